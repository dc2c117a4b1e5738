#include "pq_matmul.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace onnxpq {
namespace {

// A task should take a few microseconds: handing one over costs about 0.2 us, until another thread has begun some
// microseconds pass. In units of one lookup for one output.
constexpr size_t kNibbleTaskLookups = 128 * 1024;
constexpr size_t kByteTaskLookups = 8 * 1024;
// A product of the table building costs about as much as four lookups of K <= 16, an eighth of one of K > 16.
constexpr size_t kNibbleLookupsPerProduct = 4;
constexpr size_t kProductsPerByteLookup = 8;

// Rows that share a panel.
constexpr size_t kPanelRows = 64;

// So many rows are as fast together, in a batch, as one by one.
constexpr size_t kMinBatchRows = 4;

// Tables of so many bytes stay in the second cache while all codes pass by.
constexpr size_t kTileBytes = 256 * 1024;

constexpr size_t kAlignment = 64;

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
};
using Scratch = std::unique_ptr<void, AlignedDelete>;

Scratch allocate(size_t bytes) { return Scratch(::operator new(bytes, std::align_val_t(kAlignment))); }

// Tiles of rows are multiplied one after the other, all threads on each, or, where there are so many, each by the
// thread that takes it: then nothing is handed from one thread to another.
constexpr size_t kSeparateTiles = 8;

constexpr ThreadPool kThisThread = {nullptr, nullptr};

// Scratch memory for each task that runs at the same time. A thread gets the memory that was used last, which is in its
// cache or the next.
class Lanes {
 public:
  Lanes(size_t count, size_t bytes) : bytes_(bytes), memory_(allocate(count * bytes)) {
    for (size_t i = count; i-- > 0;) idle_.push_back(i);
  }

  template <typename Body>
  void borrow(const Body& body) {
    std::unique_lock<std::mutex> lock(mutex_);
    const size_t lane = idle_.back();
    idle_.pop_back();
    lock.unlock();
    body(static_cast<unsigned char*>(memory_.get()) + lane * bytes_);
    lock.lock();
    idle_.push_back(lane);  // has room: it was there before
  }

 private:
  size_t bytes_;
  Scratch memory_;
  std::mutex mutex_;
  std::vector<size_t> idle_;
};

// x [rows, in], y [rows, out], in tiles of Matmul's.
template <typename Matmul>
void multiply_tiles(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
                    const ThreadPool& threads) {
  const Matmul matmul(kernels, weight);
  const size_t tile_rows = std::min(matmul.tile_rows(), rows);
  const size_t tiles = ceil_div(rows, tile_rows);
  const size_t bytes = ceil_div(matmul.scratch_bytes(tile_rows), kAlignment) * kAlignment;
  const auto multiply = [&](size_t tile, unsigned char* scratch, const ThreadPool& pool) {
    const size_t row = tile * tile_rows;
    matmul.multiply(x + row * weight.in, std::min(tile_rows, rows - row), y + row * weight.out, scratch, pool);
  };
  if (tiles < kSeparateTiles) {
    const Scratch scratch = allocate(bytes);
    for (size_t tile = 0; tile < tiles; ++tile) multiply(tile, static_cast<unsigned char*>(scratch.get()), threads);
    return;
  }
  Lanes lanes(std::min(tiles, kMaxTasks), bytes);
  for (size_t first = 0; first < tiles; first += kMaxTasks) {
    for_ranges(threads, std::min(kMaxTasks, tiles - first), matmul.row_lookups() * tile_rows, kNibbleTaskLookups,
               [&](size_t begin, size_t end) {
                 lanes.borrow([&](unsigned char* scratch) {
                   for (size_t i = begin; i < end; ++i) multiply(first + i, scratch, kThisThread);
                 });
               });
  }
}

// K <= 16. A tile is the rows that share the codes.
class NibbleMatmul {
 public:
  NibbleMatmul(const Kernels& kernels, const Weight& weight)
      : kernels_(kernels),
        weight_(weight),
        units_(weight.R * weight.M),
        groups_(ceil_div(units_, kGroupUnits)),
        blocks_(ceil_div(weight.out, kNibbleOutputs)),
        plane_size_(plane_bytes(units_, weight.fast)),
        row_bytes_(plane_size_ + ceil_div(2 * groups_ * sizeof(float), kAlignment) * kAlignment) {}

  size_t tile_rows() const { return kernels_.scan_rows; }
  size_t scratch_bytes(size_t rows) const { return rows * (row_bytes_ + sizeof(NibbleTables)); }
  size_t row_lookups() const { return blocks_ * kNibbleOutputs * units_; }

  void multiply(const float* x, size_t rows, float* y, unsigned char* scratch, const ThreadPool& threads) const {
    auto* const tables = reinterpret_cast<NibbleTables*>(scratch + rows * row_bytes_);
    for (size_t row = 0; row < rows; ++row) {
      uint8_t* const planes = scratch + row * row_bytes_;
      auto* const steps = reinterpret_cast<float*>(planes + plane_size_);
      new (tables + row) NibbleTables{planes, steps, steps + groups_};
    }
    const size_t products = rows * std::min(kGroupUnits, units_) * weight_.d * kNibbleCodewords;
    for_ranges(threads, groups_, kNibbleLookupsPerProduct * products, kNibbleTaskLookups,
               [&](size_t begin, size_t end) {
                 for (size_t group = begin; group < end; ++group) {
                   kernels_.build_nibble_tables(weight_, x, rows, group, tables);
                 }
               });
    const size_t lookups = rows * kNibbleOutputs * units_;
    for_ranges(threads, blocks_, lookups, kNibbleTaskLookups,
               [&](size_t begin, size_t end) { scan(tables, rows, {begin, end}, y); });
  }

 private:
  // Where the tables do not fit into the second cache, those of some groups pass over all the blocks before the next.
  void scan(const NibbleTables* tables, size_t rows, const Range& blocks, float* y) const {
    const size_t group_bytes = rows * (kGroupUnits / 2) * pair_bytes(weight_.fast);
    const size_t step = std::max<size_t>(kTileBytes / group_bytes, 1);
    for (size_t group = 0; group < groups_; group += step) {
      const Range groups = {group, std::min(group + step, groups_)};
      for (size_t block = blocks.begin; block < blocks.end; ++block) {
        kernels_.scan_nibbles(weight_, tables, rows, groups, block, y);
      }
    }
  }

  const Kernels& kernels_;
  const Weight& weight_;
  size_t units_, groups_, blocks_, plane_size_, row_bytes_;
};

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

// Interleaved tables of so many units stay in the second cache.
constexpr size_t kBatchTileUnits = 32;

// K > 16. A tile is the rows whose tables are interleaved; where fewer are wanted, the others are zero.
class BatchMatmul {
 public:
  BatchMatmul(const Kernels& kernels, const Weight& weight)
      : kernels_(kernels),
        weight_(weight),
        units_(weight.R * weight.M),
        blocks_(ceil_div(weight.out, kByteOutputs)),
        table_size_(weight.codebook_width * kernels.batch_rows),
        block_sums_(kByteOutputs * kernels.batch_rows) {}

  size_t tile_rows() const { return kernels_.batch_rows; }
  size_t scratch_bytes(size_t) const { return (x_size() + tables_size() + blocks_ * block_sums_) * sizeof(float); }
  size_t row_lookups() const { return blocks_ * kByteOutputs * units_; }

  void multiply(const float* x, size_t rows, float* y, unsigned char* scratch, const ThreadPool& threads) const {
    const size_t width = kernels_.batch_rows;
    auto* const tables = reinterpret_cast<float*>(scratch);
    float* const interleaved = tables + tables_size();
    float* const sums = interleaved + x_size();
    for_ranges(threads, weight_.in, width, kByteTaskLookups, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        for (size_t row = 0; row < width; ++row) {
          interleaved[i * width + row] = row < rows ? x[row * weight_.in + i] : 0.0f;
        }
      }
    });
    for (size_t begin = 0; begin < units_; begin += kBatchTileUnits) {
      const Range tile = {begin, std::min(units_, begin + kBatchTileUnits)};
      const size_t count = tile.end - tile.begin;
      const size_t products = weight_.d * weight_.codebook_width;
      for_ranges(threads, count, products, kByteTaskLookups, [&](size_t first, size_t last) {
        kernels_.build_batch_tables(weight_, interleaved, tile.begin + first, tile.begin + last,
                                    tables + first * table_size_);
      });
      for_ranges(threads, blocks_, kByteOutputs * count, kByteTaskLookups, [&](size_t first, size_t last) {
        for (size_t block = first; block < last; ++block) {
          float* const block_sums = sums + block * block_sums_;
          if (tile.begin == 0) std::fill_n(block_sums, block_sums_, 0.0f);
          kernels_.scan_batch(weight_, tables, tile, block, block_sums);
          if (tile.end == units_) write_outputs(block_sums, block, rows, y);
        }
      });
    }
  }

 private:
  size_t x_size() const { return weight_.in * kernels_.batch_rows; }
  size_t tables_size() const { return std::min(kBatchTileUnits, units_) * table_size_; }

  void write_outputs(const float* block_sums, size_t block, size_t rows, float* y) const {
    const size_t first = block * kByteOutputs, end = std::min(first + kByteOutputs, weight_.out);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t o = first; o < end; ++o) {
        const float sum = block_sums[(o - first) * kernels_.batch_rows + row];
        y[row * weight_.out + o] = sum * weight_.scales[o] + weight_.bias[o];
      }
    }
  }

  const Kernels& kernels_;
  const Weight& weight_;
  size_t units_, blocks_, table_size_, block_sums_;
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
    multiply_tiles<NibbleMatmul>(kernels, weight, x, rows, y, threads);
    return;
  }
  if (few_outputs(weight, rows)) {
    panel_matmul(kernels, weight, x, rows, y, threads);
    return;
  }
  // The last rows of a batch may be too few for a tile.
  const size_t rest = rows % kernels.batch_rows < kMinBatchRows ? rows % kernels.batch_rows : 0;
  const size_t done = rows - rest;
  if (done > 0) multiply_tiles<BatchMatmul>(kernels, weight, x, done, y, threads);
  if (rest > 0) byte_matmul(kernels, weight, x + done * weight.in, rest, y + done * weight.out, threads);
}

}  // namespace onnxpq
