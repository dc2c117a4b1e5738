// A custom-operator library as a user might have one, for tests: my::Leaky version 1, max(x, x / 10) of a float tensor.

#include <algorithm>
#include <vector>

#include "ort_abi.h"

using namespace onnxpq::abi;

namespace {

const OrtApi* api;

OrtStatus* compute(void*, OrtKernelContext* context) {
  const OrtValue* x = nullptr;
  if (OrtStatus* status = api->KernelContext_GetInput(context, 0, &x)) return status;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* status = api->GetTensorTypeAndShape(x, &info)) return status;
  size_t rank = 0;
  OrtStatus* status = api->GetDimensionsCount(info, &rank);
  std::vector<int64_t> dims(rank);
  if (status == nullptr) status = api->GetDimensions(info, dims.data(), rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  OrtValue* y = nullptr;
  if (status == nullptr) status = api->KernelContext_GetOutput(context, 0, dims.data(), rank, &y);
  void *from = nullptr, *to = nullptr;
  if (status == nullptr) status = api->GetTensorMutableData(const_cast<OrtValue*>(x), &from);
  if (status == nullptr) status = api->GetTensorMutableData(y, &to);
  if (status != nullptr) return status;
  size_t count = 1;
  for (int64_t size : dims) count *= static_cast<size_t>(size);
  for (size_t i = 0; i < count; ++i) {
    const float value = static_cast<const float*>(from)[i];
    static_cast<float*>(to)[i] = std::max(value, value / 10);
  }
  return nullptr;
}

OrtCustomOp leaky() {
  OrtCustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "Leaky"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel) -> OrtStatus* {
    *kernel = nullptr;
    return nullptr;
  };
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void*) {};
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace

extern "C" ONNXPQ_EXPORT OrtStatus* ONNXPQ_ORT_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static const OrtCustomOp op = leaky();
  api = base->GetApi(kApiVersion);
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = api->CreateCustomOpDomain("my", &domain)) return status;
  if (OrtStatus* status = api->CustomOpDomain_Add(domain, &op)) return status;
  return api->AddCustomOpDomain(options, domain);
}
