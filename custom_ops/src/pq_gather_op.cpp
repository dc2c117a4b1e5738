#include "pq_gather_op.h"

#include <string>
#include <utility>
#include <vector>

#include "pq_gather.h"
#include "pq_weight.h"

namespace onnxpq {
namespace {

using namespace abi;

enum Input : size_t { kRows, kCodebooks, kCodes, kScales, kInputCount };
constexpr const char* kOperator = "PQGather";
constexpr const char* kInputNames[kInputCount] = {"rows", "codebooks", "codes", "scales"};
constexpr const char* kColumns = "columns";

// Immutable once made: sessions run it from several threads at once.
class PQGatherKernel {
 public:
  PQGatherKernel(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        node_(node_name(api, info, kOperator)),
        table_(node_, constants(api, info, node_), /*fast=*/false),
        columns_(columns(info)),
        codewords_(table_.view(columns_, nullptr)) {}

  void compute(OrtKernelContext* context) const {
    const TensorView given = view(api_, input(api_, context, kRows));
    std::vector<int64_t> shape = given.shape;
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    shape.push_back(static_cast<int64_t>(columns_));
    const std::vector<int64_t> rows = checked(given, count);
    auto* const y = static_cast<float*>(output(api_, context, shape));
    if (count == 0) return;
    const Weight table = table_.view(columns_, data_of(api_, context, kCodes));
    OrtPool pool(api_, context);
    pq_gather(table, codewords_, rows.data(), count, y, pool.threads());
    check(pool.failure());
  }

  const OrtApi& api() const { return api_; }

 private:
  static ConstantInputs constants(const OrtApi& api, const OrtKernelInfo* info, const std::string& node) {
    const auto constant = [&](Input input) { return constant_input(api, info, node, input, kInputNames[input]); };
    return {constant(kCodebooks), constant(kCodes), constant(kScales), {}, /*has_bias=*/false};
  }

  // The last codeword may be longer than what it stands for, so that the table does not say how many columns it has.
  size_t columns(const OrtKernelInfo* info) const {
    int64_t value = 0;
    if (OrtStatus* failure = api_.KernelInfoGetAttribute_int64(info, kColumns, &value)) {
      api_.ReleaseStatus(failure);
      throw Refusal(node_ + ": attribute 'columns' is missing, or no integer; expected the number of the table's " +
                    "columns. Models of onnxpq before it had this kernel run without the library.");
    }
    if (value < static_cast<int64_t>(table_.min_in()) || value > static_cast<int64_t>(table_.max_in())) {
      throw Refusal(node_ + ": attribute 'columns' is " + std::to_string(value) + "; expected " +
                    std::to_string(table_.min_in()) + " to " + std::to_string(table_.max_in()) +
                    ", as the codes and codebooks have it.");
    }
    return static_cast<size_t>(value);
  }

  // The numbers of rows without negative ones.
  std::vector<int64_t> checked(const TensorView& given, size_t count) const {
    const auto size = static_cast<int64_t>(table_.out());
    std::vector<int64_t> rows(count);
    for (size_t i = 0; i < count; ++i) {
      const int64_t row = given.type == TensorType::kInt64 ? static_cast<const int64_t*>(given.data)[i]
                                                           : int64_t{static_cast<const int32_t*>(given.data)[i]};
      if (row < -size || row >= size) {
        throw Refusal(node_ + ": input 'rows' holds " + std::to_string(row) + " in place " + std::to_string(i) +
                      "; expected " + std::to_string(-size) + " to " + std::to_string(size - 1) +
                      ", as the table has " + std::to_string(size) + " rows.");
      }
      rows[i] = row < 0 ? row + size : row;
    }
    return rows;
  }

  const OrtApi& api_;
  const std::string node_;
  const PQWeight table_;
  const size_t columns_;
  const Codewords codewords_;
};

const PQGatherOp& self(const OrtCustomOp* op) { return *static_cast<const PQGatherOp*>(op); }

OrtStatus* ONNXPQ_ORT_CALL create_kernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                                         void** kernel) {
  return as_status(*api, kOperator, [&] { *kernel = new PQGatherKernel(*api, info); });
}

OrtStatus* ONNXPQ_ORT_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& k = *static_cast<const PQGatherKernel*>(kernel);
  return as_status(k.api(), kOperator, [&] { k.compute(context); });
}

void ONNXPQ_ORT_CALL destroy_kernel(void* kernel) { delete static_cast<PQGatherKernel*>(kernel); }

// Y has the shape of `rows` with one size more. Rows of unknown shape look like a single one, and leave Y's unknown.
OrtStatus* ONNXPQ_ORT_CALL infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *self(op).api;
  return as_status(api, kOperator, [&] {
    const OrtOpAttr* attribute = nullptr;
    int64_t columns = 0;
    size_t size = 0;
    check(api.ShapeInferContext_GetAttribute(context, kColumns, &attribute));
    check(api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &columns, sizeof columns, &size));
    const TypeAndShape rows(api, context, kRows);
    std::vector<int64_t> shape = rows.shape();
    if (shape.empty()) return;
    std::vector<const char*> symbols = rows.symbols();
    shape.push_back(columns);
    symbols.push_back("");
    infer_output(api, context, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape, std::move(symbols));
  });
}

ONNXTensorElementDataType ONNXPQ_ORT_CALL input_type(const OrtCustomOp* op, size_t index) {
  if (index == kRows) return self(op).element_type;
  if (index == kCodes) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // checked when the kernel is made
}

}  // namespace

PQGatherOp::PQGatherOp(const abi::OrtApi* ort_api, ONNXTensorElementDataType type)
    : api(ort_api), element_type(type) {
  GetName = [](const OrtCustomOp*) { return kOperator; };
  GetInputType = input_type;
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = infer_shape;
}

}  // namespace onnxpq
