// Rows of a product-quantized matrix, looked up by number.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "parallel.h"

namespace onnxpq {

// The codewords of a table, one after the other. They are copied: in the file an element of all codewords lies
// together, as tables of products need it.
class Codewords {
 public:
  // `weight` is needed here only.
  explicit Codewords(const Weight& weight);

  const float* of_codebook(size_t codebook) const { return values_.data() + codebook * codewords_ * d_; }

 private:
  size_t codewords_, d_;
  std::vector<float> values_;  // [R*G][K][d]
};

// Rows [count] of the table to y [count, in]; every row is one of its `out` rows.
//     y[i, m*d : (m+1)*d] = scales[row] * (sum over stages in order of the codeword), in float32
void pq_gather(const Weight& table, const Codewords& codewords, const int64_t* rows, size_t count, float* y,
               const ThreadPool& threads);

}  // namespace onnxpq
