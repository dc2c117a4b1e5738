// Y = PQMatMul(X) for any number of rows: cuts the work into tasks for a thread pool. Knows nothing of onnxruntime.

#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace onnxpq {

// Runs task(argument, i) for i in [0, count), possibly in parallel, and returns when all are done. `task` does not
// throw.
struct ThreadPool {
  void* pool;
  void (*run)(void* pool, void (*task)(void* argument, size_t index), size_t count, void* argument);
};

// x [rows, in], y [rows, out]. A row's result does not depend on the other rows, nor on the number of threads.
// Throws std::bad_alloc where there is no memory for the tables.
void pq_matmul(const Kernels& kernels, const Weight& weight, const float* x, size_t rows, float* y,
               const ThreadPool& threads);

}  // namespace onnxpq
