#include "pq_matmul_op.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "ort_values.h"
#include "pq_matmul.h"
#include "pq_weight.h"

namespace onnxpq {
namespace {

using namespace abi;

enum Input : size_t { kX, kCodebooks, kCodes, kScales, kBias, kInputCount };
constexpr const char* kOperator = "PQMatMul";  // in sentences about no node
constexpr const char* kInputNames[kInputCount] = {"X", "codebooks", "codes", "scales", "bias"};

// The attribute `fast`, 0 where the node has none. onnxruntime says with the same code that there is none and that
// there is one of another type, and only in the second sentence speaks of types.
bool fast_attribute(const OrtApi& api, const OrtKernelInfo* info, const std::string& node) {
  int64_t value = 0;
  if (OrtStatus* failure = api.KernelInfoGetAttribute_int64(info, "fast", &value)) {
    const std::string message = api.GetErrorMessage(failure);
    api.ReleaseStatus(failure);
    if (message.find("type") == std::string::npos) return false;
    throw Refusal(node + ": attribute 'fast' is no integer; expected 0 or 1.");
  }
  if (value != 0 && value != 1) {
    throw Refusal(node + ": attribute 'fast' is " + std::to_string(value) + "; expected 0 or 1.");
  }
  return value == 1;
}

// A node of the model. Immutable once made: sessions run it from several threads at once.
class PQMatMulKernel {
 public:
  PQMatMulKernel(const OrtApi& api, const Kernels& kernels, const char* op_type, const OrtKernelInfo* info)
      : api_(api),
        kernels_(kernels),
        node_(node_name(api, info, op_type)),
        weight_(node_, constants(api, info, node_), fast_attribute(api, info, node_)) {}

  void compute(OrtKernelContext* context) const {
    const TensorView x = view(api_, input(api_, context, kX));
    const std::vector<int64_t> y_shape = output_shape(x.shape);
    void* const y_data = output(api_, context, y_shape);
    size_t rows = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= static_cast<size_t>(x.shape[i]);
    if (rows == 0) return;
    const Weight weight = weight_.view(static_cast<size_t>(x.shape.back()), data_of(api_, context, kCodes));
    OrtPool pool(api_, context);
    if (x.type == TensorType::kFloat16) {
      multiply_halves(weight, static_cast<const uint16_t*>(x.data), rows, static_cast<uint16_t*>(y_data), pool);
    } else {
      multiply(weight, static_cast<const float*>(x.data), rows, static_cast<float*>(y_data), pool);
    }
  }

  const OrtApi& api() const { return api_; }

 private:
  void multiply(const Weight& weight, const float* x, size_t rows, float* y, OrtPool& pool) const {
    pq_matmul(kernels_, weight, x, rows, y, pool.threads());
    check(pool.failure());
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
    const auto constant = [&](Input input) { return constant_input(api, info, node, input, kInputNames[input]); };
    return {constant(kCodebooks), constant(kCodes), constant(kScales), constant(kBias)};
  }

  std::vector<int64_t> output_shape(const std::vector<int64_t>& x_shape) const {
    const bool fits = !x_shape.empty() && x_shape.back() >= static_cast<int64_t>(weight_.min_in()) &&
                      x_shape.back() <= static_cast<int64_t>(weight_.max_in());
    if (!fits) {
      throw Refusal(node_ + ": input 'X' has shape " + to_string(x_shape) + "; expected [..., in] with in from " +
                    std::to_string(weight_.min_in()) + " to " + std::to_string(weight_.max_in()) +
                    ", as the codes and codebooks have it.");
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
  return as_status(*api, kOperator, [&] {
    *kernel = new PQMatMulKernel(*api, *self(op).kernels, self(op).op_type, info);
  });
}

OrtStatus* ONNXPQ_ORT_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& k = *static_cast<const PQMatMulKernel*>(kernel);
  return as_status(k.api(), kOperator, [&] { k.compute(context); });
}

void ONNXPQ_ORT_CALL destroy_kernel(void* kernel) { delete static_cast<PQMatMulKernel*>(kernel); }

// Y has X's shape with the last size replaced. An X of unknown shape looks like a scalar, and leaves Y's unknown.
OrtStatus* ONNXPQ_ORT_CALL infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *self(op).api;
  return as_status(api, kOperator, [&] {
    const TypeAndShape x(api, context, kX), scales(api, context, kScales);
    const std::vector<int64_t> scales_shape = scales.shape();
    std::vector<int64_t> shape = x.shape();
    if (shape.empty() || scales_shape.size() != 1 || scales_shape[0] < 1) return;
    std::vector<const char*> symbols = x.symbols();
    shape.back() = scales_shape[0];
    symbols.back() = "";
    // onnxruntime asks one of the two operators, whatever the type of X is.
    const bool half = x.type() == TensorType::kFloat16;
    const auto type = half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    infer_output(api, context, type, shape, std::move(symbols));
  });
}

ONNXTensorElementDataType ONNXPQ_ORT_CALL input_type(const OrtCustomOp* op, size_t index) {
  if (index == kX) return self(op).element_type;
  if (index == kCodes) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // checked when the kernel is made
}

}  // namespace

PQMatMulOp::PQMatMulOp(const abi::OrtApi* ort_api, const Kernels* chosen_kernels, const char* name,
                       ONNXTensorElementDataType type)
    : api(ort_api), kernels(chosen_kernels), op_type(name), element_type(type) {
  GetName = [](const OrtCustomOp* op) { return self(op).op_type; };
  GetInputType = input_type;
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return self(op).element_type; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = infer_shape;
}

}  // namespace onnxpq
