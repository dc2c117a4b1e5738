// One weight, used by several threads at once, each with a pool of threads of its own: the bits of a single thread. For
// the thread sanitizer, which sees a race even where the bits come out right.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "pq_matmul.h"
#include "pq_weight.h"

namespace {

using namespace onnxpq;

constexpr size_t kCallers = 4, kPoolThreads = 3;

void run_alone(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

void run_in_threads(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) task(argument, i);
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kPoolThreads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
}

struct Layer {
  size_t out, in, d, K;
  bool fast;
  std::vector<float> codebooks, scales, bias;
  std::vector<uint8_t> codes;

  Layer(size_t out_, size_t in_, size_t d_, size_t K_, bool fast_)
      : out(out_), in(in_), d(d_), K(K_), fast(fast_), scales(out), bias(out) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    codebooks.resize(in / d * d * K);
    for (std::vector<float>* values : {&codebooks, &scales, &bias}) {
      for (float& value : *values) value = normal(random);
    }
    const size_t outputs = K <= kNibbleCodewords ? kNibbleOutputs : kByteOutputs;
    codes.resize((out + outputs - 1) / outputs * (in / d) * kUnitBytes);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  }

  PQWeight checked() const {
    const auto n = [](size_t size) { return static_cast<int64_t>(size); };
    const int64_t units = n(in / d), blocks = n(codes.size() / kUnitBytes) / units;
    return PQWeight("threads",
                    {{TensorType::kFloat32, {1, units, n(K), n(d)}, codebooks.data()},
                     {TensorType::kUint8, {blocks, units, 16}, codes.data()},
                     {TensorType::kFloat32, {n(out)}, scales.data()},
                     {TensorType::kFloat32, {n(out)}, bias.data()}},
                    fast);
  }
};

bool same_bits(const Layer& layer, const Kernels& kernels, size_t rows) {
  const PQWeight checked = layer.checked();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(rows * layer.in);
  for (float& value : x) value = normal(random);
  const auto multiply = [&](void (*run)(void*, void (*)(void*, size_t), size_t, void*)) {
    std::vector<float> y(rows * layer.out);
    const Weight weight = checked.view(layer.in, layer.codes.data());
    pq_matmul(kernels, weight, x.data(), rows, y.data(), {nullptr, run});
    return y;
  };
  const std::vector<float> expected = multiply(run_alone);
  std::vector<std::vector<float>> found(kCallers);
  std::vector<std::thread> callers;
  for (std::vector<float>& y : found) callers.emplace_back([&] { y = multiply(run_in_threads); });
  for (std::thread& caller : callers) caller.join();
  bool same = true;
  for (const std::vector<float>& y : found) {
    same = same && std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0;
  }
  return same;
}

}  // namespace

int main() {
  const Layer layers[] = {
      {1000, 512, 4, 16, false}, {1000, 512, 4, 16, true}, {600, 512, 8, 256, false}, {20, 512, 8, 256, false}};
  int failures = 0;
  const KernelList list = available_kernels();
  for (const Layer& layer : layers) {
    for (size_t level = 0; level < list.count; ++level) {
      for (const size_t rows : {1u, 9u, 130u}) {
        if (same_bits(layer, *list.levels[level], rows)) continue;
        ++failures;
        std::printf("FAILED: %s, out %zu in %zu K %zu, %zu rows: other bits in several threads\n",
                    list.levels[level]->name, layer.out, layer.in, layer.K, rows);
      }
    }
  }
  std::printf(failures == 0 ? "%zu levels in several threads: all passed\n" : "%zu levels: checks failed\n", list.count);
  return failures == 0 ? 0 : 1;
}
