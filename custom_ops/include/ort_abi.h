// The part of onnxruntime's C ABI that this library uses, declared by ourselves: no package of the registries carries
// the official header. Positions and signatures are those of onnxruntime's C header, where the table of functions only
// ever grows at its end, so that they hold for every version that has the function. tests/test_abi.cpp compares them
// with the official header where one is given.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ONNXPQ_ORT_CALL __stdcall
#define ONNXPQ_EXPORT __declspec(dllexport)
#else
#define ONNXPQ_ORT_CALL
#define ONNXPQ_EXPORT __attribute__((visibility("default")))
#endif

namespace onnxpq::abi {

// 1.17 is the first onnxruntime with KernelContext_ParallelFor. Asking for this version whatever the runtime is makes
// one binary serve it and all later ones: runtimes up to 1.27 refuse an operator whose version exceeds their own.
constexpr uint32_t kApiVersion = 17;

struct OrtStatus;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtOpAttr;
struct OrtApi;
struct OrtCustomOp;

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,  // as an input's type: any
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
};

enum OrtOpAttrType : int { ORT_OP_ATTR_INT = 1 };

enum OrtCustomOpInputOutputCharacteristic : int { INPUT_OUTPUT_REQUIRED = 0 };

enum OrtMemType : int { OrtMemTypeDefault = 0 };

struct OrtApiBase {
  const OrtApi*(ONNXPQ_ORT_CALL* GetApi)(uint32_t version);
  const char*(ONNXPQ_ORT_CALL* GetVersionString)();
};

using UnusedFunction = void (*)();

struct OrtApi {
  OrtStatus*(ONNXPQ_ORT_CALL* CreateStatus)(OrtErrorCode code, const char* message);
  UnusedFunction unused_1[1];
  const char*(ONNXPQ_ORT_CALL* GetErrorMessage)(const OrtStatus* status);
  UnusedFunction unused_3[23];
  OrtStatus*(ONNXPQ_ORT_CALL* CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);
  OrtStatus*(ONNXPQ_ORT_CALL* CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  OrtStatus*(ONNXPQ_ORT_CALL* AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  UnusedFunction unused_29[22];
  OrtStatus*(ONNXPQ_ORT_CALL* GetTensorMutableData)(OrtValue* value, void** out);
  UnusedFunction unused_52[5];
  OrtStatus*(ONNXPQ_ORT_CALL* CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** out);
  OrtStatus*(ONNXPQ_ORT_CALL* SetTensorElementType)(OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type);
  OrtStatus*(ONNXPQ_ORT_CALL* SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t count);
  OrtStatus*(ONNXPQ_ORT_CALL* GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info,
                                                    ONNXTensorElementDataType* out);
  OrtStatus*(ONNXPQ_ORT_CALL* GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus*(ONNXPQ_ORT_CALL* GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count);
  OrtStatus*(ONNXPQ_ORT_CALL* GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                                     size_t count);
  UnusedFunction unused_64[1];
  OrtStatus*(ONNXPQ_ORT_CALL* GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  UnusedFunction unused_66[20];
  OrtStatus*(ONNXPQ_ORT_CALL* KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);
  UnusedFunction unused_87[3];
  OrtStatus*(ONNXPQ_ORT_CALL* KernelContext_GetInput)(const OrtKernelContext* context, size_t index,
                                                      const OrtValue** out);
  OrtStatus*(ONNXPQ_ORT_CALL* KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims,
                                                       size_t count, OrtValue** out);
  UnusedFunction unused_92[1];
  void(ONNXPQ_ORT_CALL* ReleaseStatus)(OrtStatus* status);
  UnusedFunction unused_94[5];
  void(ONNXPQ_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  UnusedFunction unused_100[144];
  OrtStatus*(ONNXPQ_ORT_CALL* KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);
  UnusedFunction unused_245[4];
  OrtStatus*(ONNXPQ_ORT_CALL* KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index,
                                                                 int* is_constant, const OrtValue** out);
  UnusedFunction unused_250[18];
  OrtStatus*(ONNXPQ_ORT_CALL* ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                                   OrtTensorTypeAndShapeInfo** out);
  OrtStatus*(ONNXPQ_ORT_CALL* ShapeInferContext_GetAttribute)(const OrtShapeInferContext* context, const char* name,
                                                              const OrtOpAttr** out);
  OrtStatus*(ONNXPQ_ORT_CALL* ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                                    const OrtTensorTypeAndShapeInfo* info);
  OrtStatus*(ONNXPQ_ORT_CALL* SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names, size_t count);
  OrtStatus*(ONNXPQ_ORT_CALL* ReadOpAttr)(const OrtOpAttr* attribute, OrtOpAttrType type, void* data, size_t capacity,
                                          size_t* size);
  UnusedFunction unused_273[1];
  OrtStatus*(ONNXPQ_ORT_CALL* KernelContext_ParallelFor)(const OrtKernelContext* context,
                                                         void (*task)(void* user_data, size_t index), size_t total,
                                                         size_t batches, void* user_data);
};

struct OrtCustomOp {
  uint32_t version;
  void*(ONNXPQ_ORT_CALL* CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char*(ONNXPQ_ORT_CALL* GetName)(const OrtCustomOp* op);
  const char*(ONNXPQ_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp* op);
  ONNXTensorElementDataType(ONNXPQ_ORT_CALL* GetInputType)(const OrtCustomOp* op, size_t index);
  size_t(ONNXPQ_ORT_CALL* GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType(ONNXPQ_ORT_CALL* GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t(ONNXPQ_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp* op);
  void(ONNXPQ_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext* context);
  void(ONNXPQ_ORT_CALL* KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic(ONNXPQ_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic(ONNXPQ_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType(ONNXPQ_ORT_CALL* GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int(ONNXPQ_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp* op);
  int(ONNXPQ_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int(ONNXPQ_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int(ONNXPQ_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatus*(ONNXPQ_ORT_CALL* CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                                              void** kernel);
  OrtStatus*(ONNXPQ_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus*(ONNXPQ_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int(ONNXPQ_ORT_CALL* GetStartVersion)(const OrtCustomOp* op);
  int(ONNXPQ_ORT_CALL* GetEndVersion)(const OrtCustomOp* op);
};

#define ONNXPQ_CHECK_POSITION(function, position) \
  static_assert(offsetof(OrtApi, function) == (position) * sizeof(UnusedFunction), #function)
ONNXPQ_CHECK_POSITION(CreateStatus, 0);
ONNXPQ_CHECK_POSITION(GetErrorMessage, 2);
ONNXPQ_CHECK_POSITION(CreateCustomOpDomain, 26);
ONNXPQ_CHECK_POSITION(CustomOpDomain_Add, 27);
ONNXPQ_CHECK_POSITION(AddCustomOpDomain, 28);
ONNXPQ_CHECK_POSITION(GetTensorMutableData, 51);
ONNXPQ_CHECK_POSITION(CreateTensorTypeAndShapeInfo, 57);
ONNXPQ_CHECK_POSITION(SetTensorElementType, 58);
ONNXPQ_CHECK_POSITION(SetDimensions, 59);
ONNXPQ_CHECK_POSITION(GetTensorElementType, 60);
ONNXPQ_CHECK_POSITION(GetDimensionsCount, 61);
ONNXPQ_CHECK_POSITION(GetDimensions, 62);
ONNXPQ_CHECK_POSITION(GetSymbolicDimensions, 63);
ONNXPQ_CHECK_POSITION(GetTensorTypeAndShape, 65);
ONNXPQ_CHECK_POSITION(KernelInfoGetAttribute_int64, 86);
ONNXPQ_CHECK_POSITION(KernelContext_GetInput, 90);
ONNXPQ_CHECK_POSITION(KernelContext_GetOutput, 91);
ONNXPQ_CHECK_POSITION(ReleaseStatus, 93);
ONNXPQ_CHECK_POSITION(ReleaseTensorTypeAndShapeInfo, 99);
ONNXPQ_CHECK_POSITION(KernelInfo_GetNodeName, 244);
ONNXPQ_CHECK_POSITION(KernelInfoGetConstantInput_tensor, 249);
ONNXPQ_CHECK_POSITION(ShapeInferContext_GetInputTypeShape, 268);
ONNXPQ_CHECK_POSITION(ShapeInferContext_GetAttribute, 269);
ONNXPQ_CHECK_POSITION(ShapeInferContext_SetOutputTypeShape, 270);
ONNXPQ_CHECK_POSITION(SetSymbolicDimensions, 271);
ONNXPQ_CHECK_POSITION(ReadOpAttr, 272);
ONNXPQ_CHECK_POSITION(KernelContext_ParallelFor, 274);
#undef ONNXPQ_CHECK_POSITION

#define ONNXPQ_CHECK_FIELD(field, position) \
  static_assert(offsetof(OrtCustomOp, field) == (position) * sizeof(UnusedFunction), #field)
ONNXPQ_CHECK_FIELD(CreateKernel, 1);
ONNXPQ_CHECK_FIELD(GetInputType, 4);
ONNXPQ_CHECK_FIELD(KernelCompute, 8);
ONNXPQ_CHECK_FIELD(GetInputCharacteristic, 10);
ONNXPQ_CHECK_FIELD(GetVariadicOutputHomogeneity, 16);
ONNXPQ_CHECK_FIELD(CreateKernelV2, 17);
ONNXPQ_CHECK_FIELD(KernelComputeV2, 18);
ONNXPQ_CHECK_FIELD(InferOutputShapeFn, 19);
ONNXPQ_CHECK_FIELD(GetEndVersion, 21);
#undef ONNXPQ_CHECK_FIELD

}  // namespace onnxpq::abi
