// onnxpq::PQMatMul as onnxruntime sees it.

#pragma once

#include "kernels/kernels.h"
#include "ort_abi.h"

namespace onnxpq {

// The operator with the functions that onnxruntime calls.
struct PQMatMulOp : abi::OrtCustomOp {
  PQMatMulOp(const abi::OrtApi* api, const Kernels* kernels);

  const abi::OrtApi* api;
  const Kernels* kernels;
};

}  // namespace onnxpq
