// onnxpq::PQGather as onnxruntime sees it.

#pragma once

#include "ort_abi.h"
#include "ort_values.h"

namespace onnxpq {

// The operator for one type of the row numbers, int32 or int64.
struct PQGatherOp : Operator {
  PQGatherOp(const abi::OrtApi* api, abi::ONNXTensorElementDataType type);

  const abi::OrtApi* api;
  const abi::ONNXTensorElementDataType element_type;
};

}  // namespace onnxpq
