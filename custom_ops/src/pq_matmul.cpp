#include "pq_matmul.h"

#include <algorithm>
#include <memory>
#include <new>

namespace onnxpq {
namespace {

// A task should take a few microseconds: handing one over costs about 0.2 us. In units of one lookup for one output.
constexpr size_t kNibbleTaskLookups = 128 * 1024;
constexpr size_t kByteTaskLookups = 8 * 1024;
// A product of the table building costs about as much as a lookup of K <= 16, an eighth of one of K > 16.
constexpr size_t kProductsPerByteLookup = 8;
constexpr size_t kMaxTasks = 64;

// Tables of so many bytes stay in the second cache while all codes pass by.
constexpr size_t kTileBytes = 256 * 1024;

constexpr size_t kAlignment = 64;

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
};
using Scratch = std::unique_ptr<void, AlignedDelete>;

Scratch allocate(size_t bytes) { return Scratch(::operator new(bytes, std::align_val_t(kAlignment))); }

// Calls body(begin, end) for ranges that cover [0, total), each worth about `task_cost` where one item costs
// `item_cost`.
template <typename Body>
void for_ranges(const ThreadPool& threads, size_t total, size_t item_cost, size_t task_cost, const Body& body) {
  const size_t items = std::max(ceil_div(task_cost, std::max<size_t>(item_cost, 1)), ceil_div(total, kMaxTasks));
  const size_t tasks = ceil_div(total, items);
  if (tasks <= 1) {
    body(size_t{0}, total);
    return;
  }
  struct Job {
    const Body* body;
    size_t items, total;
  } job = {&body, items, total};
  threads.run(
      threads.pool,
      [](void* argument, size_t task) {
        const Job& j = *static_cast<const Job*>(argument);
        (*j.body)(task* j.items, std::min((task + 1) * j.items, j.total));
      },
      tasks, &job);
}

void nibble_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
                   const ThreadPool& threads) {
  const size_t S = weight.R * weight.M;
  const size_t groups = ceil_div(S, kGroupUnits);
  const size_t blocks = ceil_div(weight.out, kNibbleOutputs);
  const size_t plane_bytes = ceil_div(S, 2) * kPairBytes;
  const size_t row_bytes = plane_bytes + ceil_div(2 * groups * sizeof(float), kAlignment) * kAlignment;
  // A multiple of scan_rows, so that only the last tile has rows that share no codes.
  const size_t wanted_rows =
      ceil_div(std::max<size_t>(kTileBytes / row_bytes, 1), kernels.scan_rows) * kernels.scan_rows;
  const size_t tile_rows = std::min(wanted_rows, rows);
  const Scratch scratch = allocate(tile_rows * row_bytes + tile_rows * sizeof(NibbleTables));
  auto* bytes = static_cast<uint8_t*>(scratch.get());
  auto* tables = reinterpret_cast<NibbleTables*>(bytes + tile_rows * row_bytes);
  for (size_t row = 0; row < tile_rows; ++row) {
    uint8_t* planes = bytes + row * row_bytes;
    auto* steps = reinterpret_cast<float*>(planes + plane_bytes);
    new (tables + row) NibbleTables{planes, steps, steps + groups};
  }

  for (size_t tile = 0; tile < rows; tile += tile_rows) {
    const size_t count = std::min(tile_rows, rows - tile);
    const size_t products = std::min(kGroupUnits, S) * weight.d * kNibbleCodewords;
    for_ranges(threads, count * groups, products, kNibbleTaskLookups, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const size_t row = i / groups;
        kernels.build_nibble_tables(weight, x + (tile + row) * weight.in, i % groups, tables[row]);
      }
    });
    const size_t bundles = ceil_div(count, kernels.scan_rows);
    // A block's codes stay in the first cache for all rows of the tile: the row runs fastest.
    for_ranges(threads, blocks * bundles, kNibbleOutputs * S * kernels.scan_rows, kNibbleTaskLookups,
               [&](size_t begin, size_t end) {
                 for (size_t i = begin; i < end; ++i) {
                   const size_t row = i % bundles * kernels.scan_rows;
                   const size_t bundle_rows = std::min(kernels.scan_rows, count - row);
                   kernels.scan_nibbles(weight, tables + row, bundle_rows, i / bundles, y + (tile + row) * weight.out);
                 }
               });
  }
}

void byte_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
                 const ThreadPool& threads) {
  const size_t S = weight.R * weight.M;
  const size_t blocks = ceil_div(weight.out, kByteOutputs);
  const size_t table_floats = S * weight.codebook_width;
  const size_t tile_rows = std::min(std::max<size_t>(kTileBytes / (table_floats * sizeof(float)), 1), rows);
  const Scratch scratch = allocate(tile_rows * table_floats * sizeof(float));
  auto* tables = static_cast<float*>(scratch.get());

  for (size_t tile = 0; tile < rows; tile += tile_rows) {
    const size_t count = std::min(tile_rows, rows - tile);
    const size_t products = weight.d * weight.codebook_width;
    for_ranges(threads, count * S, products / kProductsPerByteLookup, kByteTaskLookups, [&](size_t begin, size_t end) {
      while (begin < end) {
        const size_t row = begin / S, first = begin % S;
        const size_t last = std::min(S, first + (end - begin));
        kernels.build_byte_tables(weight, x + (tile + row) * weight.in, first, last, tables + row * table_floats);
        begin += last - first;
      }
    });
    for_ranges(threads, count * blocks, kByteOutputs * S, kByteTaskLookups, [&](size_t begin, size_t end) {
      while (begin < end) {
        const size_t row = begin / blocks, first = begin % blocks;
        const size_t last = std::min(blocks, first + (end - begin));
        kernels.scan_bytes(weight, tables + row * table_floats, first, last, y + (tile + row) * weight.out);
        begin += last - first;
      }
    });
  }
}

}  // namespace

void pq_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
               const ThreadPool& threads) {
  if (rows == 0) return;
  if (weight.codewords <= kNibbleCodewords) {
    nibble_matmul(kernels, weight, x, rows, y, threads);
  } else {
    byte_matmul(kernels, weight, x, rows, y, threads);
  }
}

}  // namespace onnxpq
