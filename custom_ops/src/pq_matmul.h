// Y = PQMatMul(X) for any number of rows.

#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "parallel.h"

namespace onnxpq {

// x [rows, in], y [rows, out]. A row's result does not depend on the other rows, nor on the number of threads.
// Throws std::bad_alloc where there is no memory for the tables.
void pq_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
               const ThreadPool& threads);

}  // namespace onnxpq
