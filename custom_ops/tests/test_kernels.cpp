// Every instruction set that this processor has against the scalar reference: equal bit for bit, whatever the shape and
// the alignment, and independent of the batch and of the cut into tasks. With ONNXPQ_SANITIZE, also that no kernel
// reads past an array: all arrays here have their exact sizes.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "pq_matmul.h"
#include "pq_weight.h"

namespace {

using namespace onnxpq;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

struct Shape {
  size_t out, in, d, K, G, R;  // G = 0: one codebook for each sub-vector position
  bool fast = false;
};

std::string describe(const Shape& s) {
  return "out " + std::to_string(s.out) + " in " + std::to_string(s.in) + " d " + std::to_string(s.d) + " K " +
         std::to_string(s.K) + " G " + std::to_string(s.G) + " R " + std::to_string(s.R) + (s.fast ? " fast" : "");
}

// Bytes at an address that is `offset` past an alignment of 64, in an allocation that ends where they end.
class Bytes {
 public:
  Bytes(const void* source, size_t size, size_t offset) : memory_(new unsigned char[size + 64 + offset]), offset_(0) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    offset_ = (64 - address % 64) % 64 + offset;
    exact_.assign(static_cast<const unsigned char*>(source), static_cast<const unsigned char*>(source) + size);
    std::memcpy(memory_.get() + offset_, source, size);
  }
  const void* misaligned() const { return memory_.get() + offset_; }
  const void* exact() const { return exact_.data(); }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  size_t offset_;
  std::vector<unsigned char> exact_;
};

class Layer {
 public:
  Layer(const Shape& s, TensorType type, std::mt19937& random) : shape(s) {
    const size_t M = (s.in + s.d - 1) / s.d, G = s.G == 0 ? M : s.G;
    const size_t block = s.K <= kNibbleCodewords ? kNibbleOutputs : kByteOutputs;
    const size_t blocks = (s.out + block - 1) / block;
    const size_t count = s.R * G * s.d * s.K;
    std::vector<uint16_t> halves(count);
    std::vector<float> floats(count);
    // Exponents around 1, both signs.
    for (size_t i = 0; i < count; ++i)
      halves[i] = static_cast<uint16_t>(random() % 0x0c00 + 0x3000 + (random() % 2 << 15));
    for (size_t i = 0; i < count; ++i) floats[i] = half_to_float(halves[i]) * 1.0001f;
    std::vector<int8_t> bytes(count);
    for (int8_t& byte : bytes) byte = static_cast<int8_t>(static_cast<int>(random() % 256) - 128);
    const Bytes codebooks = type == TensorType::kInt8      ? Bytes(bytes.data(), count, 1)
                            : type == TensorType::kFloat16 ? Bytes(halves.data(), count * 2, 2)
                                                           : Bytes(floats.data(), count * 4, 4);
    std::vector<uint8_t> packed(blocks * s.R * M * kUnitBytes);
    for (uint8_t& byte : packed) {
      byte = static_cast<uint8_t>(random() % s.K);
      if (s.K <= kNibbleCodewords) byte = static_cast<uint8_t>(byte | random() % s.K << 4);
    }
    codes = std::make_unique<Bytes>(packed.data(), packed.size(), 1);
    std::vector<float> scales(s.out), bias(s.out);
    std::normal_distribution<float> normal;
    for (float& value : scales) value = normal(random);
    for (float& value : bias) value = normal(random);
    const auto n = [](size_t size) { return static_cast<int64_t>(size); };
    const ConstantInputs inputs = {
        {type, {n(s.R), n(G), n(s.K), n(s.d)}, codebooks.misaligned()},
        {TensorType::kUint8, {n(blocks), n(s.R * M), 16}, codes->exact()},
        {TensorType::kFloat32, {n(s.out)}, scales.data()},
        {TensorType::kFloat32, {n(s.out)}, bias.data()}};
    checked = std::make_unique<PQWeight>("test", inputs, s.fast);
  }

  Weight weight(bool misaligned) const {
    return checked->view(shape.in, misaligned ? codes->misaligned() : codes->exact());
  }

  Shape shape;
  std::unique_ptr<Bytes> codes;
  std::unique_ptr<PQWeight> checked;
};

// Tasks in reverse order: none may depend on another one.
void run_reversed(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  for (size_t i = count; i-- > 0;) task(argument, i);
}
void run_in_order(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

std::vector<float> multiply(const Kernels& kernels, const Weight& weight, const std::vector<float>& x, bool reversed) {
  const size_t rows = x.size() / weight.in;
  std::vector<float> y(rows * weight.out);
  pq_matmul(kernels, weight, x.data(), rows, y.data(), {nullptr, reversed ? run_reversed : run_in_order});
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof a[i]) != 0) return false;
  }
  return true;
}

void compare_levels(const Shape& shape, TensorType type, size_t rows, std::mt19937& random) {
  const Layer layer(shape, type, random);
  std::vector<float> x(rows * shape.in);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  if (rows > 2) {
    x[0] = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(shape.in), shape.in, 0.0f);
    for (size_t i = 0; i < shape.in; ++i) x[2 * shape.in + i] *= 1e36f;
  }
  const std::vector<float> expected = multiply(kScalarKernels, layer.weight(false), x, false);
  const std::string what = describe(shape) + " rows " + std::to_string(rows);
  if (rows > 2) expect(std::isnan(expected[0]), what + ": a NaN in X gives NaN");
  const KernelList list = available_kernels();
  for (size_t level = 0; level < list.count; ++level) {
    const Kernels& kernels = *list.levels[level];
    const std::string where = std::string(kernels.name) + ", " + what;
    expect(same_bits(multiply(kernels, layer.weight(false), x, true), expected), where + ": equal to the reference");
    expect(same_bits(multiply(kernels, layer.weight(true), x, false), expected), where + ": misaligned inputs");
    // Rows on their own may take another path; no bit may differ.
    for (const size_t row : {size_t{0}, rows / 2, rows - 1}) {
      const std::vector<float> alone(x.begin() + static_cast<std::ptrdiff_t>(row * shape.in),
                                     x.begin() + static_cast<std::ptrdiff_t>((row + 1) * shape.in));
      const std::vector<float> wanted(expected.begin() + static_cast<std::ptrdiff_t>(row * shape.out),
                                      expected.begin() + static_cast<std::ptrdiff_t>((row + 1) * shape.out));
      expect(same_bits(multiply(kernels, layer.weight(false), alone, false), wanted), where + ": row on its own");
    }
  }
}

// Worked by hand: d = 1, K = 2, codewords -1 and +1, so that y = sum of +-x. A step is the span over the range, 4 / 16340
// here, with fast tables 3 / 127, of which an entry of 1 is no multiple: half a step for each input and output.
void check_by_hand(bool fast) {
  const float codebook[2] = {-1.0f, 1.0f};
  std::vector<uint8_t> codes(2 * kUnitBytes, 0);
  codes[0] = 0x01;           // input 0: output 0 takes +1, output 16 takes -1
  codes[kUnitBytes] = 0x10;  // input 1: output 0 takes -1, output 16 takes +1
  const std::vector<float> scales(17, 2.0f), bias(17, 0.5f);
  const PQWeight checked("hand", {{TensorType::kFloat32, {1, 1, 2, 1}, codebook},
                                  {TensorType::kUint8, {1, 2, 16}, codes.data()},
                                  {TensorType::kFloat32, {17}, scales.data()},
                                  {TensorType::kFloat32, {17}, bias.data()}},
                         fast);
  const KernelList list = available_kernels();
  for (size_t level = 0; level < list.count; ++level) {
    const float tolerance = fast ? 2.0f * 1.5f / 127.0f : 1e-3f;
    const std::vector<float> y =
        multiply(*list.levels[level], checked.view(2, codes.data()), {3.0f, 1.0f}, false);
    const std::string name = std::string(list.levels[level]->name) + (fast ? ", fast" : "");
    expect(std::abs(y[0] - (0.5f + 2.0f * (3.0f - 1.0f))) < tolerance, name + ": output 0 by hand");
    expect(std::abs(y[1] - (0.5f + 2.0f * (-3.0f - 1.0f))) < tolerance, name + ": output 1 by hand");
    expect(std::abs(y[16] - (0.5f + 2.0f * (-3.0f + 1.0f))) < tolerance, name + ": output 16 by hand");
  }
}

void check_half() {
  expect(half_to_float(0x3c00) == 1.0f && half_to_float(0xc000) == -2.0f, "half: 1 and -2");
  expect(half_to_float(0x0001) == 0x1p-24f && half_to_float(0x03ff) == 1023 * 0x1p-24f, "half: subnormal");
  expect(half_to_float(0x7bff) == 65504.0f && std::isinf(half_to_float(0x7c00)), "half: largest, infinity");
  expect(std::isnan(half_to_float(0x7e00)) && std::signbit(half_to_float(0x8000)), "half: NaN, -0");
  expect(float_to_half(1.0f + 0x1p-11f) == 0x3c00 && float_to_half(1.0f + 3 * 0x1p-11f) == 0x3c02, "to half: even");
  expect(float_to_half(65519.0f) == 0x7bff && float_to_half(65520.0f) == 0x7c00, "to half: largest, infinity");
  expect(float_to_half(0x1p-25f) == 0 && float_to_half(0x1.8p-24f) == 2 && float_to_half(-0.0f) == 0x8000,
         "to half: subnormal, -0");
  for (unsigned half = 0; half < 0x10000; ++half) {
    const float value = half_to_float(static_cast<uint16_t>(half));
    if (std::isnan(value)) {
      expect(std::isnan(half_to_float(float_to_half(value))), "to half: NaN");
    } else {
      expect(float_to_half(value) == half, "to half and back: " + std::to_string(half));
    }
  }
}

// The instructions that convert against the reference: all halves, the floats between them, and a count that is no
// multiple of a register.
void check_conversions() {
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  for (unsigned half = 0; half < 0x10000; ++half) {
    halves.push_back(static_cast<uint16_t>(half));
    const float value = half_to_float(halves.back());
    if (std::isnan(value)) continue;
    for (const float factor : {1.0f, 1.0f + 0x1p-11f, 1.0f + 0x1p-12f, 1.0f - 0x1p-13f, 0.3f}) {
      floats.push_back(value * factor);
    }
  }
  floats.push_back(1e30f);
  const KernelList list = available_kernels();
  for (size_t level = 0; level < list.count; ++level) {
    const Kernels& kernels = *list.levels[level];
    std::vector<float> wide(halves.size());
    std::vector<uint16_t> narrow(floats.size());
    kernels.widen(halves.data(), halves.size(), wide.data());
    kernels.narrow(floats.data(), floats.size(), narrow.data());
    for (size_t i = 0; i < halves.size(); ++i) {
      const float expected = half_to_float(halves[i]);
      expect(std::isnan(expected) ? std::isnan(wide[i]) : std::memcmp(&wide[i], &expected, sizeof expected) == 0,
             std::string(kernels.name) + ": half " + std::to_string(i) + " to float");
    }
    for (size_t i = 0; i < floats.size(); ++i) {
      expect(narrow[i] == float_to_half(floats[i]), std::string(kernels.name) + ": float to half");
    }
  }
}

void check_dispatch() {
  char refusal[256] = "";
  expect(choose_kernels("scalar", refusal, sizeof refusal) == &kScalarKernels, "dispatch: by name");
  expect(choose_kernels(nullptr, refusal, sizeof refusal) != nullptr, "dispatch: the fastest");
  expect(choose_kernels("sse9", refusal, sizeof refusal) == nullptr && std::strstr(refusal, "sse9") != nullptr &&
             std::strstr(refusal, "scalar") != nullptr,
         "dispatch: an unknown name is refused and the known ones are listed");
}

}  // namespace

int main() {
  std::mt19937 random(20260101);
  check_half();
  check_conversions();
  check_dispatch();
  check_by_hand(false);
  check_by_hand(true);
  const Shape shapes[] = {
      {33, 7, 3, 16, 0, 1},      {1, 4, 4, 16, 0, 1},       {1, 1, 1, 2, 1, 1},       {32, 64, 1, 16, 1, 2},
      {31, 65, 1, 13, 0, 1},     {96, 127, 1, 16, 4, 3},    {6625, 120, 4, 16, 1, 1}, {1041, 1041, 4, 16, 0, 1},
      {33, 7, 3, 256, 0, 1},     {1, 4, 4, 17, 0, 1},       {1, 1, 1, 255, 1, 1},     {16, 64, 2, 100, 5, 2},
      {6625, 120, 8, 256, 1, 1}, {1041, 1041, 8, 64, 1, 1}, {100, 99, 2, 5, 7, 2},    {33, 1100, 3, 13, 0, 1},
      {1, 1100, 4, 16, 0, 1},    {40, 210, 5, 203, 0, 1},   {33, 515, 1, 16, 0, 2},   {3, 129, 2, 256, 0, 2}};
  for (Shape shape : shapes) {
    for (const TensorType type : {TensorType::kFloat16, TensorType::kFloat32, TensorType::kInt8}) {
      compare_levels(shape, type, 1, random);
      compare_levels(shape, type, shape.out * shape.in > 100000 ? 3 : 7, random);
    }
    if (shape.K > kNibbleCodewords) continue;
    shape.fast = true;
    compare_levels(shape, TensorType::kFloat16, shape.out * shape.in > 100000 ? 3 : 7, random);
  }
  compare_levels({10, 500, 4, 16, 0, 1}, TensorType::kFloat16, 300, random);  // several tiles of rows
  for (const size_t rows : {3u, 4u, 8u, 11u, 13u, 24u}) {                  // K > 16: whole and part batches of rows
    compare_levels({37, 139, 2, 40, 0, 2}, TensorType::kFloat16, rows, random);
  }
  for (const size_t rows : {1u, 2u, 70u}) {  // K > 16, few outputs
    compare_levels({17, 700, 2, 256, 3, 2}, TensorType::kFloat16, rows, random);
    compare_levels({5, 1041, 4, 250, 0, 1}, TensorType::kFloat32, rows, random);
  }
  const KernelList list = available_kernels();
  for (size_t level = 0; level < list.count; ++level) std::printf("%s ", list.levels[level]->name);
  std::printf(failures == 0 ? ": all passed\n" : ": %d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
