// onnxpq::PQMatMul and onnxpq::PQDynamicQuantizeMatMul as onnxruntime sees them.

#pragma once

#include "kernels/kernels.h"
#include "ort_abi.h"
#include "ort_values.h"

namespace onnxpq {

// The operator of one name for one type of X and Y, float32 or float16, with the functions that onnxruntime calls.
struct PQMatMulOp : Operator {
  PQMatMulOp(const abi::OrtApi* api, const Kernels* kernels, const char* op_type, abi::ONNXTensorElementDataType type);

  const abi::OrtApi* api;
  const Kernels* kernels;
  const char* const op_type;
  const abi::ONNXTensorElementDataType element_type;
};

}  // namespace onnxpq
