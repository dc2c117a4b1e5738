// From the operator's constant inputs to a validated weight that the kernels can trust.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace onnxpq {

// An input that cannot be used; the text is a whole sentence that names node and input.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class TensorType { kFloat32, kFloat16, kInt8, kUint8, kInt32, kInt64, kOther };

// A tensor that somebody else owns.
struct TensorView {
  TensorType type;
  std::vector<int64_t> shape;
  const void* data;
};

struct ConstantInputs {
  TensorView codebooks;  // [R, G, K, d]
  TensorView codes;      // [B, S, 16]
  TensorView scales;     // [out]
  TensorView bias;       // [out]
  bool has_bias = true;
};

std::string to_string(const std::vector<int64_t>& shape);

// A checked weight. Holds what the kernels need in another form than the file has it: scales and bias (a few bytes per
// output), and the codebooks, codewords as columns. The codes stay where they are.
class PQWeight {
 public:
  // `node`: operator and name, for sentences. `fast`: tables of 8 bits. Throws Refusal where the inputs contradict each
  // other, a code points past the codebook, or fast tables are asked for where K > 16.
  PQWeight(const std::string& node, const ConstantInputs& inputs, bool fast);

  // Sub-vectors hold (M-1)*d + 1 to M*d inputs; how many there are is for X to say.
  size_t min_in() const { return (shape_.M - 1) * shape_.d + 1; }
  size_t max_in() const { return shape_.M * shape_.d; }
  size_t out() const { return shape_.out; }

  // For the kernels. `codes` is the input's data, which must outlive the result, as this must.
  Weight view(size_t in, const void* codes) const;

 private:
  Weight shape_;  // without pointers and `in`
  std::vector<float> scales_, bias_;
  std::vector<unsigned char> codebooks_;  // [R*G][d][codebook_width]
};

}  // namespace onnxpq
