// The one function that this library exports.

#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <string>

#include "kernels/kernels.h"
#include "ort_abi.h"
#include "pq_gather_op.h"
#include "pq_matmul_op.h"

namespace onnxpq {
namespace {

using namespace abi;

// onnxpq/operators/schema.py. The two that multiply differ in their bodies alone, for runtimes without this library.
constexpr const char* kDomain = "onnxpq";
constexpr const char* kMatMul = "PQMatMul";
constexpr const char* kIntegerMatMul = "PQDynamicQuantizeMatMul";

// The operators and their domain for one runtime. Sessions keep referring to them and onnxruntime does not say when
// they are done, so that they live as long as the process.
struct Registration {
  Registration(const OrtApi& api, const Kernels& kernels)
      : float32(&api, &kernels, kMatMul, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        float16(&api, &kernels, kMatMul, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
        integer32(&api, &kernels, kIntegerMatMul, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        integer16(&api, &kernels, kIntegerMatMul, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
        by_int32(&api, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
        by_int64(&api, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {}

  PQMatMulOp float32, float16, integer32, integer16;
  PQGatherOp by_int32, by_int64;
  OrtCustomOpDomain* domain = nullptr;
};

OrtStatus* refuse_old_runtime(const OrtApiBase& base) {
  const OrtApi* oldest = base.GetApi(1);
  if (oldest == nullptr) return nullptr;  // no way to say it: the model's own function body stays in use
  const std::string text = std::string("onnxpq: this is onnxruntime ") + base.GetVersionString() +
                           "; the operator library needs 1." + std::to_string(kApiVersion) +
                           " or newer. Upgrade onnxruntime, or run the model without the library.";
  return oldest->CreateStatus(ORT_FAIL, text.c_str());
}

OrtStatus* add_operators(const OrtApi& api, OrtSessionOptions* options) {
  static char refusal[256];
  static const Kernels* const kernels = choose_kernels(std::getenv("ONNXPQ_SIMD"), refusal, sizeof refusal);
  if (kernels == nullptr) return api.CreateStatus(ORT_INVALID_ARGUMENT, refusal);

  // A process may hold several runtimes, for instance Python's and another library's own.
  static std::mutex mutex;
  static auto& registrations = *new std::map<const OrtApi*, Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  Registration& registration = registrations.try_emplace(&api, api, *kernels).first->second;
  if (registration.domain == nullptr) {
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = api.CreateCustomOpDomain(kDomain, &domain)) return status;
    const Operator* const operators[] = {&registration.float32,   &registration.float16,  &registration.integer32,
                                         &registration.integer16, &registration.by_int32, &registration.by_int64};
    for (const Operator* op : operators) {
      if (OrtStatus* status = api.CustomOpDomain_Add(domain, op)) return status;
    }
    registration.domain = domain;
  }
  return api.AddCustomOpDomain(options, registration.domain);
}

}  // namespace
}  // namespace onnxpq

extern "C" ONNXPQ_EXPORT onnxpq::abi::OrtStatus* ONNXPQ_ORT_CALL
RegisterCustomOps(onnxpq::abi::OrtSessionOptions* options, const onnxpq::abi::OrtApiBase* base) {
  const onnxpq::abi::OrtApi* api = base->GetApi(onnxpq::abi::kApiVersion);
  try {
    return api == nullptr ? onnxpq::refuse_old_runtime(*base) : onnxpq::add_operators(*api, options);
  } catch (const std::exception& error) {
    if (api == nullptr) return nullptr;
    return api->CreateStatus(onnxpq::abi::ORT_FAIL, error.what());
  }
}
