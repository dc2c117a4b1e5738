// Compiling this is the test: our declarations lie where onnxruntime's official header has them.

#include "ort_abi.h"
#include ONNXPQ_ORT_HEADER

#define SAME_POSITION(Struct, member) \
  static_assert(offsetof(::Struct, member) == offsetof(onnxpq::abi::Struct, member), #Struct "::" #member)

SAME_POSITION(OrtApiBase, GetApi);
SAME_POSITION(OrtApiBase, GetVersionString);
SAME_POSITION(OrtApi, CreateStatus);
SAME_POSITION(OrtApi, GetErrorMessage);
SAME_POSITION(OrtApi, CreateCustomOpDomain);
SAME_POSITION(OrtApi, CustomOpDomain_Add);
SAME_POSITION(OrtApi, AddCustomOpDomain);
SAME_POSITION(OrtApi, GetTensorMutableData);
SAME_POSITION(OrtApi, CreateTensorTypeAndShapeInfo);
SAME_POSITION(OrtApi, SetTensorElementType);
SAME_POSITION(OrtApi, SetDimensions);
SAME_POSITION(OrtApi, GetTensorElementType);
SAME_POSITION(OrtApi, GetDimensionsCount);
SAME_POSITION(OrtApi, GetDimensions);
SAME_POSITION(OrtApi, GetSymbolicDimensions);
SAME_POSITION(OrtApi, GetTensorTypeAndShape);
SAME_POSITION(OrtApi, KernelInfoGetAttribute_int64);
SAME_POSITION(OrtApi, KernelContext_GetInput);
SAME_POSITION(OrtApi, KernelContext_GetOutput);
SAME_POSITION(OrtApi, ReleaseStatus);
SAME_POSITION(OrtApi, ReleaseTensorTypeAndShapeInfo);
SAME_POSITION(OrtApi, KernelInfo_GetNodeName);
SAME_POSITION(OrtApi, KernelInfoGetConstantInput_tensor);
SAME_POSITION(OrtApi, ShapeInferContext_GetInputTypeShape);
SAME_POSITION(OrtApi, ShapeInferContext_SetOutputTypeShape);
SAME_POSITION(OrtApi, SetSymbolicDimensions);
SAME_POSITION(OrtApi, KernelContext_ParallelFor);
SAME_POSITION(OrtCustomOp, version);
SAME_POSITION(OrtCustomOp, CreateKernel);
SAME_POSITION(OrtCustomOp, GetName);
SAME_POSITION(OrtCustomOp, GetExecutionProviderType);
SAME_POSITION(OrtCustomOp, GetInputType);
SAME_POSITION(OrtCustomOp, GetInputTypeCount);
SAME_POSITION(OrtCustomOp, GetOutputType);
SAME_POSITION(OrtCustomOp, GetOutputTypeCount);
SAME_POSITION(OrtCustomOp, KernelCompute);
SAME_POSITION(OrtCustomOp, KernelDestroy);
SAME_POSITION(OrtCustomOp, GetInputCharacteristic);
SAME_POSITION(OrtCustomOp, GetOutputCharacteristic);
SAME_POSITION(OrtCustomOp, GetInputMemoryType);
SAME_POSITION(OrtCustomOp, GetVariadicInputMinArity);
SAME_POSITION(OrtCustomOp, GetVariadicInputHomogeneity);
SAME_POSITION(OrtCustomOp, GetVariadicOutputMinArity);
SAME_POSITION(OrtCustomOp, GetVariadicOutputHomogeneity);
SAME_POSITION(OrtCustomOp, CreateKernelV2);
SAME_POSITION(OrtCustomOp, KernelComputeV2);
SAME_POSITION(OrtCustomOp, InferOutputShapeFn);
SAME_POSITION(OrtCustomOp, GetStartVersion);
SAME_POSITION(OrtCustomOp, GetEndVersion);
static_assert(::ORT_FAIL == static_cast<int>(onnxpq::abi::ORT_FAIL));
static_assert(::ORT_INVALID_ARGUMENT == static_cast<int>(onnxpq::abi::ORT_INVALID_ARGUMENT));
