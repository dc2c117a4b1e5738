#include "ort_values.h"

namespace onnxpq {

using namespace abi;

void check(OrtStatus* status) {
  if (status != nullptr) throw OrtFailure{status};
}

namespace {

const OrtTensorTypeAndShapeInfo* inferred(const OrtApi& api, const OrtShapeInferContext* context, size_t input) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // stays the context's
  check(api.ShapeInferContext_GetInputTypeShape(context, input, &info));
  return info;
}

}  // namespace

TypeAndShape::TypeAndShape(const OrtApi& api, const OrtShapeInferContext* context, size_t input)
    : TypeAndShape(api, inferred(api, context, input)) {}

std::vector<int64_t> TypeAndShape::shape() const {
  size_t rank = 0;
  check(api_.GetDimensionsCount(info_, &rank));
  std::vector<int64_t> dims(rank);
  check(api_.GetDimensions(info_, dims.data(), rank));
  return dims;
}

std::vector<const char*> TypeAndShape::symbols() const {
  std::vector<const char*> names(shape().size(), "");
  check(api_.GetSymbolicDimensions(info_, names.data(), names.size()));
  return names;
}

TensorType TypeAndShape::type() const {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api_.GetTensorElementType(info_, &type));
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return TensorType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return TensorType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return TensorType::kInt8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return TensorType::kUint8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return TensorType::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return TensorType::kInt64;
    default:
      return TensorType::kOther;
  }
}

void infer_output(const OrtApi& api, OrtShapeInferContext* context, ONNXTensorElementDataType type,
                  const std::vector<int64_t>& shape, std::vector<const char*> symbols) {
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0 && (symbols[i] == nullptr || *symbols[i] == '\0')) return;
  }
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(api.CreateTensorTypeAndShapeInfo(&raw));
  const OwnedInfo info(raw, {&api});
  check(api.SetTensorElementType(info.get(), type));
  check(api.SetDimensions(info.get(), shape.data(), shape.size()));
  check(api.SetSymbolicDimensions(info.get(), symbols.data(), symbols.size()));
  check(api.ShapeInferContext_SetOutputTypeShape(context, 0, info.get()));
}

TensorView view(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(api.GetTensorTypeAndShape(value, &raw));
  const OwnedInfo owned(raw, {&api});
  const TypeAndShape info(api, raw);
  void* data = nullptr;
  // There is no function for read-only data.
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return {info.type(), info.shape(), data};
}

std::string node_name(const OrtApi& api, const OrtKernelInfo* info, const char* op_type) {
  size_t size = 0;
  check(api.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(api.KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return std::string("onnxpq::") + op_type + " node '" + name + "'";
}

TensorView constant_input(const OrtApi& api, const OrtKernelInfo* info, const std::string& node, size_t input,
                          const char* name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    throw Refusal(node + ": input '" + name +
                  "' is computed when the model runs, or may be replaced by a graph input of the same name; expected a "
                  "constant (an initializer that is no graph input).");
  }
  return view(api, value);
}

const OrtValue* input(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  return value;
}

const void* data_of(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<OrtValue*>(input(api, context, index)), &data));
  return data;
}

void* output(const OrtApi& api, OrtKernelContext* context, const std::vector<int64_t>& shape) {
  OrtValue* value = nullptr;
  check(api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api.GetTensorMutableData(value, &data));
  return data;
}

void OrtPool::run(void* pool, void (*task)(void*, size_t), size_t count, void* argument) {
  auto& p = *static_cast<OrtPool*>(pool);
  // A batch for each task: threads take them as they get free. Left to itself, onnxruntime makes one for each thread,
  // and all wait for the one that was interrupted.
  OrtStatus* status = p.api_.KernelContext_ParallelFor(p.context_, task, count, count, argument);
  if (status == nullptr) return;
  if (p.failure_ != nullptr) p.api_.ReleaseStatus(p.failure_);
  p.failure_ = status;
}

Operator::Operator() : OrtCustomOp{} {
  version = kApiVersion;
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
}

}  // namespace onnxpq
