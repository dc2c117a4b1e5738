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

// Rows that share a panel.
constexpr size_t kPanelRows = 64;

// So many rows are as fast together, in a batch, as one by one.
constexpr size_t kMinBatchRows = 4;

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

// Blocks of codes that the rows of a tile pass over one after the other: the codes stay in the second cache. A single
// row reads them once; small chunks are then easier to share out.
size_t chunk_blocks(size_t S, size_t bundles) {
  constexpr size_t kChunkBytes = 256 * 1024, kMinBlocks = 4, kMaxBlocks = 16;
  if (bundles == 1) return kMinBlocks;
  return std::min(std::max(kChunkBytes / (S * kUnitBytes), kMinBlocks), kMaxBlocks);
}

// The scan of up to scan_rows rows over a chunk of blocks. Where their tables do not fit into the second cache, those
// of some groups pass over the whole chunk before the next ones.
struct NibbleScan {
  const Kernels& kernels;
  const Weight& weight;
  const NibbleTables* tables;  // [rows]
  size_t rows;
  float* y;  // [rows, out]

  void run(size_t row, const Range& blocks) const {
    const size_t groups = ceil_div(weight.R * weight.M, kGroupUnits);
    const size_t count = std::min(kernels.scan_rows, rows - row);
    const size_t group_bytes = kGroupUnits / 2 * pair_bytes(weight.fast) * count;
    const size_t step = std::max<size_t>(kTileBytes / group_bytes, 1);
    for (size_t group = 0; group < groups; group += step) {
      for (size_t block = blocks.begin; block < blocks.end; ++block) {
        kernels.scan_nibbles(weight, tables + row, count, {group, std::min(group + step, groups)}, block,
                             y + row * weight.out);
      }
    }
  }
};

void nibble_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
                   const ThreadPool& threads) {
  const size_t S = weight.R * weight.M;
  const size_t groups = ceil_div(S, kGroupUnits);
  const size_t blocks = ceil_div(weight.out, kNibbleOutputs);
  const size_t plane_size = plane_bytes(S, weight.fast);
  const size_t row_bytes = plane_size + ceil_div(2 * groups * sizeof(float), kAlignment) * kAlignment;
  // A multiple of scan_rows, so that only the last tile has rows that share no codes.
  const size_t wanted_rows =
      ceil_div(std::max<size_t>(kTileBytes / row_bytes, 1), kernels.scan_rows) * kernels.scan_rows;
  const size_t tile_rows = std::min(wanted_rows, rows);
  const Scratch scratch = allocate(tile_rows * row_bytes + tile_rows * sizeof(NibbleTables));
  auto* bytes = static_cast<uint8_t*>(scratch.get());
  auto* tables = reinterpret_cast<NibbleTables*>(bytes + tile_rows * row_bytes);
  for (size_t row = 0; row < tile_rows; ++row) {
    uint8_t* planes = bytes + row * row_bytes;
    auto* steps = reinterpret_cast<float*>(planes + plane_size);
    new (tables + row) NibbleTables{planes, steps, steps + groups};
  }

  for (size_t tile = 0; tile < rows; tile += tile_rows) {
    const size_t count = std::min(tile_rows, rows - tile);
    const size_t products = std::min(kGroupUnits, S) * weight.d * kNibbleCodewords;
    const size_t bundles = ceil_div(count, kernels.scan_rows);
    const size_t bundle_rows = std::min(count, kernels.scan_rows);
    for_ranges(threads, bundles * groups, products * bundle_rows, kNibbleTaskLookups, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const size_t row = i / groups * kernels.scan_rows;
        kernels.build_nibble_tables(weight, x + (tile + row) * weight.in, std::min(kernels.scan_rows, count - row),
                                    i % groups, tables + row);
      }
    });
    const NibbleScan scan = {kernels, weight, tables, count, y + tile * weight.out};
    const size_t chunk = chunk_blocks(S, bundles);
    for_ranges(threads, ceil_div(blocks, chunk) * bundles,
               std::min(chunk, blocks) * kNibbleOutputs * S * bundle_rows, kNibbleTaskLookups,
               [&](size_t begin, size_t end) {
                 for (size_t i = begin; i < end; ++i) {
                   const size_t first = i / bundles * chunk;
                   scan.run(i % bundles * kernels.scan_rows, {first, std::min(first + chunk, blocks)});
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

// Interleaved tables of so many units stay in the second cache; so many at a time in the first.
constexpr size_t kBatchTileUnits = 32;

// Up to batch_rows rows together; `sums` [blocks * kByteOutputs][batch_rows].
class BatchMatmul {
 public:
  BatchMatmul(const Kernels& kernels, const Weight& weight, const ThreadPool& threads)
      : kernels_(kernels),
        weight_(weight),
        threads_(threads),
        units_(weight.R * weight.M),
        blocks_(ceil_div(weight.out, kByteOutputs)),
        batch_rows_(kernels.batch_rows),
        table_size_(weight.codebook_width * batch_rows_),
        block_sums_(kByteOutputs * batch_rows_),
        x_(allocate_floats(weight.in * batch_rows_)),
        tables_(allocate_floats(std::min(kBatchTileUnits, units_) * table_size_)),
        sums_(allocate_floats(blocks_ * block_sums_)) {}

  // x [count, in], y [count, out], count <= batch_rows.
  void multiply(const float* x, size_t count, float* y) {
    for (size_t i = 0; i < weight_.in; ++i) {
      for (size_t row = 0; row < batch_rows_; ++row) {
        floats(x_)[i * batch_rows_ + row] = row < count ? x[row * weight_.in + i] : 0.0f;
      }
    }
    std::fill_n(floats(sums_), blocks_ * block_sums_, 0.0f);
    for (size_t begin = 0; begin < units_; begin += kBatchTileUnits) {
      add_tile({begin, std::min(units_, begin + kBatchTileUnits)});
    }
    for (size_t row = 0; row < count; ++row) {
      for (size_t o = 0; o < weight_.out; ++o) {
        y[row * weight_.out + o] = floats(sums_)[o * batch_rows_ + row] * weight_.scales[o] + weight_.bias[o];
      }
    }
  }

 private:
  static Scratch allocate_floats(size_t count) { return allocate(count * sizeof(float)); }
  static float* floats(const Scratch& scratch) { return static_cast<float*>(scratch.get()); }

  void add_tile(const Range& tile) {
    const size_t count = tile.end - tile.begin;
    const size_t products = weight_.d * weight_.codebook_width;
    for_ranges(threads_, count, products, kByteTaskLookups, [&](size_t begin, size_t end) {
      kernels_.build_batch_tables(weight_, floats(x_), tile.begin + begin, tile.begin + end,
                                  floats(tables_) + begin * table_size_);
    });
    for_ranges(threads_, blocks_, kByteOutputs * count, kByteTaskLookups, [&](size_t begin, size_t end) {
      for (size_t block = begin; block < end; ++block) {
        kernels_.scan_batch(weight_, floats(tables_), tile, block, floats(sums_) + block * block_sums_);
      }
    });
  }

  const Kernels& kernels_;
  const Weight& weight_;
  const ThreadPool& threads_;
  size_t units_, blocks_, batch_rows_, table_size_, block_sums_;
  Scratch x_, tables_, sums_;
};

// Whether copying the codewords that occur and multiplying them is faster than tables of all codewords. Measured: a
// copy costs as much as 8 multiplications of a panel, an entry of a table as much as 1.5 for each element of a
// codeword.
bool few_outputs(const Weight& weight, size_t rows) {
  constexpr size_t kCopyRows = 8;
  const size_t sharing = std::min(rows, kPanelRows);
  return 2 * weight.out * (sharing + kCopyRows) <= 3 * weight.codewords * sharing;
}

// x [rows, in], y [rows, out], by panels. A task is a block of outputs and kPanelRows rows.
void panel_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
                  const ThreadPool& threads) {
  constexpr size_t kPanelElements = 512;  // 32 KB: the panel stays in the first or second cache
  constexpr size_t kMaxScratches = 64;
  const size_t S = weight.R * weight.M;
  const size_t blocks = ceil_div(weight.out, kByteOutputs);
  const size_t units = std::min(std::max<size_t>(kPanelElements / weight.d, 1), S);
  const size_t sums_size = std::min(rows, kPanelRows) * kByteOutputs;
  const size_t scratch_size = units * weight.d * kByteOutputs + sums_size;
  const size_t items = ceil_div(rows, kPanelRows) * blocks;
  const size_t tile_items = std::min(items, kMaxScratches);
  const Scratch scratch = allocate(tile_items * scratch_size * sizeof(float));
  const auto run = [&](size_t item, float* sums) {
    const size_t row = item / blocks * kPanelRows, block = item % blocks;
    const size_t count = std::min(kPanelRows, rows - row);
    float* panel = sums + sums_size;
    std::fill_n(sums, sums_size, 0.0f);
    for (size_t begin = 0; begin < S; begin += units) {
      const Range tile = {begin, std::min(begin + units, S)};
      kernels.decode_panel(weight, tile, block, panel);
      kernels.multiply_panel(weight, x + row * weight.in, count, tile, panel, sums);
    }
    const size_t first = block * kByteOutputs, end = std::min(first + kByteOutputs, weight.out);
    for (size_t r = 0; r < count; ++r) {
      for (size_t o = first; o < end; ++o) {
        y[(row + r) * weight.out + o] = sums[r * kByteOutputs + o - first] * weight.scales[o] + weight.bias[o];
      }
    }
  };
  const size_t products = kByteOutputs * weight.in * weight.R * std::min(rows, kPanelRows);
  for (size_t tile = 0; tile < items; tile += tile_items) {
    for_ranges(threads, std::min(tile_items, items - tile), products / kProductsPerByteLookup, kByteTaskLookups,
               [&](size_t begin, size_t end) {
                 for (size_t i = begin; i < end; ++i) {
                   run(tile + i, static_cast<float*>(scratch.get()) + i * scratch_size);
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
    return;
  }
  if (few_outputs(weight, rows)) {
    panel_matmul(kernels, weight, x, rows, y, threads);
    return;
  }
  size_t done = 0;
  if (rows >= kMinBatchRows) {
    BatchMatmul batch(kernels, weight, threads);
    for (; rows - done >= kMinBatchRows; done += std::min(rows - done, kernels.batch_rows)) {
      batch.multiply(x + done * weight.in, std::min(rows - done, kernels.batch_rows), y + done * weight.out);
    }
  }
  if (done < rows) byte_matmul(kernels, weight, x + done * weight.in, rows - done, y + done * weight.out, threads);
}

}  // namespace onnxpq
