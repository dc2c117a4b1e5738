// Times the kernels on one thread: the tables of a row of X, the scan of the codes, and the whole multiplication, hot
// (the same buffers every time) and cold (weights that have left the caches).
//
//     bench_kernels [--level avx2] [--fast] [--rows 8] [out in d K]
//
// Columns are first deciles (what else runs on the machine only ever adds time) in ns for one row of X; `w/ns` are
// weights of the dense layer for one ns of the whole, hot.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "pq_matmul.h"
#include "pq_weight.h"

namespace {

using namespace onnxpq;

constexpr double kSecondsPerFigure = 0.1;
constexpr size_t kMinRuns = 9;
constexpr size_t kColdBytes = size_t{128} << 20;

struct Case {
  size_t out, in, d, K, rows;
  bool fast;
};

// First decile of the time of a call in ns; call(i) may use another buffer for each i.
template <typename Call>
double decile_ns(const Call& call) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  call(size_t{0});
  const auto start = Clock::now();
  for (size_t i = 1; times.size() < kMinRuns || Clock::now() - start < std::chrono::duration<double>(kSecondsPerFigure);
       ++i) {
    const auto before = Clock::now();
    call(i);
    times.push_back(std::chrono::duration<double, std::nano>(Clock::now() - before).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 10), times.end());
  return times[times.size() / 10];
}

void run_in_order(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

class Layer {
 public:
  explicit Layer(const Case& c)
      : in_(c.in),
        M((c.in + c.d - 1) / c.d),
        blocks((c.out - 1) / (c.K <= kNibbleCodewords ? kNibbleOutputs : kByteOutputs) + 1),
        code_bytes(blocks * M * kUnitBytes),
        codebooks_(M * c.d * c.K, 0x3800),
        codes_(std::max<size_t>(kColdBytes / code_bytes, 1) * code_bytes),
        scales_(c.out, 1.0f),
        x(c.rows * c.in),
        y(c.rows * c.out) {
    std::mt19937 random(1);
    for (uint16_t& half : codebooks_) half = static_cast<uint16_t>(half + random() % 0x800 + (random() % 2 << 15));
    for (uint8_t& byte : codes_) {
      byte = static_cast<uint8_t>(random() % c.K);
      if (c.K <= kNibbleCodewords) byte = static_cast<uint8_t>(byte | random() % c.K << 4);
    }
    for (float& value : x) value = static_cast<float>(random() % 2001) * 1e-3f - 1.0f;
    const auto n = [](size_t size) { return static_cast<int64_t>(size); };
    const ConstantInputs inputs = {{TensorType::kFloat16, {1, n(M), n(c.K), n(c.d)}, codebooks_.data()},
                                   {TensorType::kUint8, {n(blocks), n(M), 16}, codes_.data()},
                                   {TensorType::kFloat32, {n(c.out)}, scales_.data()},
                                   {TensorType::kFloat32, {n(c.out)}, scales_.data()}};
    checked_ = std::make_unique<PQWeight>("bench", inputs, c.fast && c.K <= kNibbleCodewords);
  }

  // The layer with the `i`-th of the copies of its codes.
  Weight weight(size_t i) const {
    return checked_->view(in_, codes_.data() + i % (codes_.size() / code_bytes) * code_bytes);
  }

 private:
  size_t in_;

 public:
  size_t M, blocks, code_bytes;

 private:
  std::vector<uint16_t> codebooks_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::unique_ptr<PQWeight> checked_;

 public:
  std::vector<float> x, y;
};

// As pq_matmul has it: a register that lies across two lines of the cache takes twice as long.
template <typename T>
struct Aligned {
  using value_type = T;
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
template <typename T>
using AlignedVector = std::vector<T, Aligned<T>>;

struct Parts {
  double tables, scan;
};

// Tables and scan of one row, K <= 16.
Parts time_nibbles(const Kernels& kernels, Layer& layer) {
  const Weight weight = layer.weight(0);
  const size_t groups = (layer.M - 1) / kGroupUnits + 1;
  AlignedVector<uint8_t> planes(plane_bytes(layer.M, false));
  std::vector<float> steps(groups), centres(groups);
  const NibbleTables tables = {planes.data(), steps.data(), centres.data()};
  const std::vector<NibbleTables> same(kernels.scan_rows, tables);
  std::vector<float> y(kernels.scan_rows * weight.out);
  const size_t rows = std::min(kernels.scan_rows, layer.x.size() / weight.in);
  const double build = decile_ns([&](size_t) {
    for (size_t group = 0; group < groups; ++group) {
      kernels.build_nibble_tables(weight, layer.x.data(), rows, group, same.data());
    }
  });
  const double scan = decile_ns([&](size_t) {
    for (size_t b = 0; b < layer.blocks; ++b) kernels.scan_nibbles(weight, same.data(), rows, {0, groups}, b, y.data());
  });
  return {build / static_cast<double>(rows), scan / static_cast<double>(rows)};
}

// Tables and scan of one row, K > 16.
Parts time_bytes(const Kernels& kernels, Layer& layer) {
  const Weight weight = layer.weight(0);
  AlignedVector<float> tables(layer.M * weight.codebook_width);
  const double build =
      decile_ns([&](size_t) { kernels.build_byte_tables(weight, layer.x.data(), 0, layer.M, tables.data()); });
  const double scan =
      decile_ns([&](size_t) { kernels.scan_bytes(weight, tables.data(), 0, layer.blocks, layer.y.data()); });
  return {build, scan};
}

// As time_bytes, where rows share the lookups.
Parts time_batch(const Kernels& kernels, Layer& layer) {
  constexpr size_t kUnits = 16;
  const Weight weight = layer.weight(0);
  const size_t units = std::min(kUnits, layer.M);
  AlignedVector<float> tables(units * weight.codebook_width * kernels.batch_rows);
  AlignedVector<float> x(weight.in * kernels.batch_rows, 0.5f);
  AlignedVector<float> sums(layer.blocks * kByteOutputs * kernels.batch_rows);
  const double rows_and_tiles = static_cast<double>(kernels.batch_rows * units) / static_cast<double>(layer.M);
  const double build =
      decile_ns([&](size_t) { kernels.build_batch_tables(weight, x.data(), 0, units, tables.data()); });
  const double scan = decile_ns([&](size_t) {
    for (size_t b = 0; b < layer.blocks; ++b) {
      kernels.scan_batch(weight, tables.data(), {0, units}, b, sums.data() + b * kByteOutputs * kernels.batch_rows);
    }
  });
  return {build / rows_and_tiles, scan / rows_and_tiles};
}

void report(const Kernels& kernels, const Case& c) {
  Layer layer(c);
  const Parts parts = c.K <= kNibbleCodewords       ? time_nibbles(kernels, layer)
                      : c.rows < kernels.batch_rows ? time_bytes(kernels, layer)
                                                    : time_batch(kernels, layer);
  const auto whole = [&](bool cold) {
    return decile_ns([&](size_t i) {
             const Weight weight = layer.weight(cold ? i : 0);
             pq_matmul(kernels, weight, layer.x.data(), c.rows, layer.y.data(), {nullptr, run_in_order});
           }) /
           static_cast<double>(c.rows);
  };
  const double hot = whole(false), cold = whole(true);
  std::printf("%-7s %5zu %5zu %3zu %4zu %5zu %10.0f %10.0f %10.0f %10.0f %8.2f\n", kernels.name, c.out, c.in, c.d, c.K,
              c.rows, parts.tables, parts.scan, hot, cold, static_cast<double>(c.out * c.in) / hot);
  std::fflush(stdout);
}

std::vector<Case> default_cases(bool fast) {
  std::vector<Case> cases;
  for (const size_t rows : {1, 16}) {
    for (const auto& [out, in] :
         {std::pair<size_t, size_t>{10, 500}, {256, 256}, {1024, 1024}, {1024, 4096}, {4096, 4096}, {1024, 16384}}) {
      cases.push_back({out, in, 4, 16, rows, fast});
      cases.push_back({out, in, 8, 256, rows, fast});
    }
    cases.push_back({4096, 4096, 2, 16, rows, fast});
  }
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  std::string level;
  size_t rows = 1;
  bool fast = false;
  std::vector<size_t> sizes;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--level") == 0 && i + 1 < argc) {
      level = argv[++i];
    } else if (std::strcmp(argv[i], "--rows") == 0 && i + 1 < argc) {
      rows = std::strtoul(argv[++i], nullptr, 10);
    } else if (std::strcmp(argv[i], "--fast") == 0) {
      fast = true;
    } else {
      sizes.push_back(std::strtoul(argv[i], nullptr, 10));
    }
  }
  if ((!sizes.empty() && sizes.size() != 4) || std::count(sizes.begin(), sizes.end(), size_t{0}) != 0 || rows == 0) {
    std::fprintf(stderr, "usage: bench_kernels [--level name] [--fast] [--rows n] [out in d K]\n");
    return 2;
  }
  char refusal[256] = "";
  const Kernels* kernels = choose_kernels(level.c_str(), refusal, sizeof refusal);
  if (kernels == nullptr) {
    std::fprintf(stderr, "%s\n", refusal);
    return 2;
  }
  std::vector<Case> cases = default_cases(fast);
  if (!sizes.empty()) cases = {{sizes[0], sizes[1], sizes[2], sizes[3], rows, fast}};
  std::printf("%-7s %5s %5s %3s %4s %5s %10s %10s %10s %10s %8s\n", "level", "out", "in", "d", "K", "rows", "tables",
              "scan", "whole hot", "cold", "w/ns");
  for (const Case& c : cases) report(*kernels, c);
  return 0;
}
