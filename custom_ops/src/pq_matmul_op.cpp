#include "pq_matmul_op.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "pq_matmul.h"
#include "pq_weight.h"

namespace onnxpq {
namespace {

using namespace abi;

enum Input : size_t { kX, kCodebooks, kCodes, kScales, kBias, kInputCount };
constexpr const char* kInputNames[kInputCount] = {"X", "codebooks", "codes", "scales", "bias"};

// A failure that onnxruntime has already put into words.
struct OrtFailure {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status != nullptr) throw OrtFailure{status};
}

// No exception may leave this library: onnxruntime may be built by another compiler, or without exceptions.
template <typename Body>
OrtStatus* as_status(const OrtApi& api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const OrtFailure& failure) {
    return failure.status;
  } catch (const Refusal& refusal) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, refusal.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, (std::string("onnxpq::PQMatMul: ") + error.what()).c_str());
  }
}

struct ReleaseInfo {
  const OrtApi* api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const { api->ReleaseTensorTypeAndShapeInfo(info); }
};
using OwnedInfo = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo>;

// Reads type and shape of a tensor; does not own what it reads.
class TypeAndShape {
 public:
  TypeAndShape(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) : api_(api), info_(info) {}

  std::vector<int64_t> shape() const {
    size_t rank = 0;
    check(api_.GetDimensionsCount(info_, &rank));
    std::vector<int64_t> dims(rank);
    check(api_.GetDimensions(info_, dims.data(), rank));
    return dims;
  }

  // Names of symbolic sizes, empty where a size is a number or unknown. They belong to the info.
  std::vector<const char*> symbols() const {
    std::vector<const char*> names(shape().size(), "");
    check(api_.GetSymbolicDimensions(info_, names.data(), names.size()));
    return names;
  }

  TensorType type() const {
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(api_.GetTensorElementType(info_, &type));
    switch (type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return TensorType::kFloat32;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return TensorType::kFloat16;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
        return TensorType::kUint8;
      default:
        return TensorType::kOther;
    }
  }

 private:
  const OrtApi& api_;
  const OrtTensorTypeAndShapeInfo* info_;
};

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

std::string node_name(const OrtApi& api, const OrtKernelInfo* info) {
  size_t size = 0;
  check(api.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(api.KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return name;
}

TensorView constant_input(const OrtApi& api, const OrtKernelInfo* info, const std::string& node, Input input) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    throw Refusal("onnxpq::PQMatMul node '" + node + "': input '" + kInputNames[input] +
                  "' is computed when the model runs, or may be replaced by a graph input of the same name; expected a "
                  "constant (an initializer that is no graph input).");
  }
  return view(api, value);
}

// The attribute `fast`, 0 where the node has none. onnxruntime says with the same code that there is none and that
// there is one of another type, and only in the second sentence speaks of types.
bool fast_attribute(const OrtApi& api, const OrtKernelInfo* info, const std::string& node) {
  int64_t value = 0;
  if (OrtStatus* failure = api.KernelInfoGetAttribute_int64(info, "fast", &value)) {
    const std::string message = api.GetErrorMessage(failure);
    api.ReleaseStatus(failure);
    if (message.find("type") == std::string::npos) return false;
    throw Refusal("onnxpq::PQMatMul node '" + node + "': attribute 'fast' is no integer; expected 0 or 1.");
  }
  if (value != 0 && value != 1) {
    throw Refusal("onnxpq::PQMatMul node '" + node + "': attribute 'fast' is " + std::to_string(value) +
                  "; expected 0 or 1.");
  }
  return value == 1;
}

// A node of the model. Immutable once made: sessions run it from several threads at once.
class PQMatMulKernel {
 public:
  PQMatMulKernel(const OrtApi& api, const Kernels& kernels, const OrtKernelInfo* info)
      : api_(api),
        kernels_(kernels),
        node_(node_name(api, info)),
        weight_(node_, constants(api, info, node_), fast_attribute(api, info, node_)) {}

  void compute(OrtKernelContext* context) const {
    const TensorView x = view(api_, input(context, kX));
    const std::vector<int64_t> y_shape = output_shape(x.shape);
    OrtValue* y = nullptr;
    check(api_.KernelContext_GetOutput(context, 0, y_shape.data(), y_shape.size(), &y));
    void* y_data = nullptr;
    check(api_.GetTensorMutableData(y, &y_data));
    size_t rows = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= static_cast<size_t>(x.shape[i]);
    if (rows == 0) return;
    const Weight weight =
        weight_.view(static_cast<size_t>(x.shape.back()), data_of(context, kCodebooks), data_of(context, kCodes));
    OrtPool pool = {&api_, context, nullptr};
    if (x.type == TensorType::kFloat16) {
      multiply_halves(weight, static_cast<const uint16_t*>(x.data), rows, static_cast<uint16_t*>(y_data), pool);
    } else {
      multiply(weight, static_cast<const float*>(x.data), rows, static_cast<float*>(y_data), pool);
    }
  }

  const OrtApi& api() const { return api_; }

 private:
  struct OrtPool {
    const OrtApi* api;
    const OrtKernelContext* context;
    OrtStatus* failure;
  };

  static void run_in_pool(void* pool, void (*task)(void*, size_t), size_t count, void* argument) {
    auto& p = *static_cast<OrtPool*>(pool);
    // A batch for each task: threads take them as they get free. Left to itself, onnxruntime makes one for each thread,
    // and all wait for the one that was interrupted.
    OrtStatus* status = p.api->KernelContext_ParallelFor(p.context, task, count, count, argument);
    if (status == nullptr) return;
    if (p.failure != nullptr) p.api->ReleaseStatus(p.failure);
    p.failure = status;
  }

  void multiply(const Weight& weight, const float* x, size_t rows, float* y, OrtPool& pool) const {
    pq_matmul(kernels_, weight, x, rows, y, {&pool, run_in_pool});
    check(pool.failure);
  }

  // A tile of rows is widened, multiplied in float32 and narrowed: rounding is that of X and Y alone.
  void multiply_halves(const Weight& weight, const uint16_t* x, size_t rows, uint16_t* y, OrtPool& pool) const {
    constexpr size_t kTileElements = 256 * 1024;
    const size_t row_elements = weight.in + weight.out;
    const size_t tile_rows = std::min(rows, std::max<size_t>(kTileElements / row_elements, kMinTileRows));
    std::vector<float> floats(tile_rows * row_elements);
    float* const wide_y = floats.data() + tile_rows * weight.in;
    for (size_t row = 0; row < rows; row += tile_rows) {
      const size_t count = std::min(tile_rows, rows - row);
      kernels_.widen(x + row * weight.in, count * weight.in, floats.data());
      multiply(weight, floats.data(), count, wide_y, pool);
      kernels_.narrow(wide_y, count * weight.out, y + row * weight.out);
    }
  }

  // So many rows share the codes at least.
  static constexpr size_t kMinTileRows = 16;

  static ConstantInputs constants(const OrtApi& api, const OrtKernelInfo* info, const std::string& node) {
    return {constant_input(api, info, node, kCodebooks), constant_input(api, info, node, kCodes),
            constant_input(api, info, node, kScales), constant_input(api, info, node, kBias)};
  }

  const OrtValue* input(const OrtKernelContext* context, Input index) const {
    const OrtValue* value = nullptr;
    check(api_.KernelContext_GetInput(context, index, &value));
    return value;
  }

  // Type and shape of a constant were checked when the kernel was made.
  const void* data_of(const OrtKernelContext* context, Input index) const {
    void* data = nullptr;
    check(api_.GetTensorMutableData(const_cast<OrtValue*>(input(context, index)), &data));
    return data;
  }

  std::vector<int64_t> output_shape(const std::vector<int64_t>& x_shape) const {
    const bool fits = !x_shape.empty() && x_shape.back() >= static_cast<int64_t>(weight_.min_in()) &&
                      x_shape.back() <= static_cast<int64_t>(weight_.max_in());
    if (!fits) {
      throw Refusal("onnxpq::PQMatMul node '" + node_ + "': input 'X' has shape " + to_string(x_shape) +
                    "; expected [..., in] with in from " + std::to_string(weight_.min_in()) + " to " +
                    std::to_string(weight_.max_in()) + ", as the codes and codebooks have it.");
    }
    std::vector<int64_t> shape = x_shape;
    shape.back() = static_cast<int64_t>(weight_.out());
    return shape;
  }

  const OrtApi& api_;
  const Kernels& kernels_;
  const std::string node_;
  const PQWeight weight_;
};

const PQMatMulOp& self(const OrtCustomOp* op) { return *static_cast<const PQMatMulOp*>(op); }

OrtStatus* ONNXPQ_ORT_CALL create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                                         void** kernel) {
  return as_status(*api, [&] { *kernel = new PQMatMulKernel(*api, *self(op).kernels, info); });
}

OrtStatus* ONNXPQ_ORT_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& k = *static_cast<const PQMatMulKernel*>(kernel);
  return as_status(k.api(), [&] { k.compute(context); });
}

void ONNXPQ_ORT_CALL destroy_kernel(void* kernel) { delete static_cast<PQMatMulKernel*>(kernel); }

// Y has X's shape with the last size replaced. Two things that onnxruntime cannot express leave Y's shape unknown: an X
// of unknown shape looks like a scalar, and a size of X that is neither number nor name would become the number -1 in
// Y, which later nodes then refuse.
OrtStatus* ONNXPQ_ORT_CALL infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *self(op).api;
  return as_status(api, [&] {
    const auto input = [&](Input index) {
      OrtTensorTypeAndShapeInfo* info = nullptr;  // stays the context's
      check(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
      return TypeAndShape(api, info);
    };
    const TypeAndShape x = input(kX), scales = input(kScales);
    const std::vector<int64_t> scales_shape = scales.shape();
    std::vector<int64_t> shape = x.shape();
    if (shape.empty() || scales_shape.size() != 1 || scales_shape[0] < 1) return;
    std::vector<const char*> symbols = x.symbols();
    shape.back() = scales_shape[0];
    symbols.back() = "";
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] < 0 && (symbols[i] == nullptr || *symbols[i] == '\0')) return;
    }
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(api.CreateTensorTypeAndShapeInfo(&raw));
    const OwnedInfo y(raw, {&api});
    // onnxruntime asks one of the two operators, whatever the type of X is.
    const bool half = x.type() == TensorType::kFloat16;
    check(api.SetTensorElementType(
        y.get(), half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    check(api.SetDimensions(y.get(), shape.data(), shape.size()));
    check(api.SetSymbolicDimensions(y.get(), symbols.data(), symbols.size()));
    check(api.ShapeInferContext_SetOutputTypeShape(context, 0, y.get()));
  });
}

ONNXTensorElementDataType ONNXPQ_ORT_CALL input_type(const OrtCustomOp* op, size_t index) {
  if (index == kX) return self(op).element_type;
  if (index == kCodes) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // float16 or float32; checked when the kernel is made
}

}  // namespace

PQMatMulOp::PQMatMulOp(const abi::OrtApi* ort_api, const Kernels* chosen_kernels, ONNXTensorElementDataType type)
    : OrtCustomOp{}, api(ort_api), kernels(chosen_kernels), element_type(type) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp*) { return "PQMatMul"; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetInputType = input_type;
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return self(op).element_type; };
  GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = infer_shape;
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
}

}  // namespace onnxpq
