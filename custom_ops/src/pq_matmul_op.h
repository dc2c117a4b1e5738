// onnxpq::PQMatMul as onnxruntime sees it.

#pragma once

#include "kernels/kernels.h"
#include "ort_abi.h"
#include "ort_values.h"

namespace onnxpq {

// The operator for one type of X and Y, float32 or float16, with the functions that onnxruntime calls.
struct PQMatMulOp : Operator {
  PQMatMulOp(const abi::OrtApi* api, const Kernels* kernels, abi::ONNXTensorElementDataType type);

  const abi::OrtApi* api;
  const Kernels* kernels;
  const abi::ONNXTensorElementDataType element_type;
};

}  // namespace onnxpq
