// onnxruntime's values, failures and threads as C++ has them: what the operators have in common.

#pragma once

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "parallel.h"
#include "pq_weight.h"

namespace onnxpq {

// A failure that onnxruntime has already put into words.
struct OrtFailure {
  abi::OrtStatus* status;
};

void check(abi::OrtStatus* status);

// No exception may leave this library: onnxruntime may be built by another compiler, or without exceptions.
template <typename Body>
abi::OrtStatus* as_status(const abi::OrtApi& api, const char* op_type, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const OrtFailure& failure) {
    return failure.status;
  } catch (const Refusal& refusal) {
    return api.CreateStatus(abi::ORT_INVALID_ARGUMENT, refusal.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(abi::ORT_FAIL, (std::string("onnxpq::") + op_type + ": " + error.what()).c_str());
  }
}

struct ReleaseInfo {
  const abi::OrtApi* api;
  void operator()(abi::OrtTensorTypeAndShapeInfo* info) const { api->ReleaseTensorTypeAndShapeInfo(info); }
};
using OwnedInfo = std::unique_ptr<abi::OrtTensorTypeAndShapeInfo, ReleaseInfo>;

// Reads type and shape of a tensor; does not own what it reads.
class TypeAndShape {
 public:
  TypeAndShape(const abi::OrtApi& api, const abi::OrtTensorTypeAndShapeInfo* info) : api_(api), info_(info) {}

  // Of an input, while shapes are inferred.
  TypeAndShape(const abi::OrtApi& api, const abi::OrtShapeInferContext* context, size_t input);

  std::vector<int64_t> shape() const;
  TensorType type() const;

  // Names of symbolic sizes, empty where a size is a number or unknown. They belong to the info.
  std::vector<const char*> symbols() const;

 private:
  const abi::OrtApi& api_;
  const abi::OrtTensorTypeAndShapeInfo* info_;
};

// Says what the output is, or leaves it unknown where a size is neither number nor name: it would become the number -1,
// which later nodes then refuse.
void infer_output(const abi::OrtApi& api, abi::OrtShapeInferContext* context, abi::ONNXTensorElementDataType type,
                  const std::vector<int64_t>& shape, std::vector<const char*> symbols);

TensorView view(const abi::OrtApi& api, const abi::OrtValue* value);

// "onnxpq::OP_TYPE node 'NAME'", which sentences begin with.
std::string node_name(const abi::OrtApi& api, const abi::OrtKernelInfo* info, const char* op_type);

// Throws Refusal where the input is no constant.
TensorView constant_input(const abi::OrtApi& api, const abi::OrtKernelInfo* info, const std::string& node, size_t input,
                          const char* name);

const abi::OrtValue* input(const abi::OrtApi& api, const abi::OrtKernelContext* context, size_t index);

// Of a constant, whose type and shape were checked when the kernel was made.
const void* data_of(const abi::OrtApi& api, const abi::OrtKernelContext* context, size_t index);

// Memory of the only output.
void* output(const abi::OrtApi& api, abi::OrtKernelContext* context, const std::vector<int64_t>& shape);

// onnxruntime's threads while a kernel computes.
class OrtPool {
 public:
  OrtPool(const abi::OrtApi& api, const abi::OrtKernelContext* context) : api_(api), context_(context) {}

  ThreadPool threads() { return {this, run}; }
  abi::OrtStatus* failure() const { return failure_; }

 private:
  static void run(void* pool, void (*task)(void*, size_t), size_t count, void* argument);

  const abi::OrtApi& api_;
  const abi::OrtKernelContext* context_;
  abi::OrtStatus* failure_ = nullptr;
};

// What is the same in all operators: they run on the CPU, are of version 1, and need all inputs and outputs.
struct Operator : abi::OrtCustomOp {
  Operator();
};

}  // namespace onnxpq
