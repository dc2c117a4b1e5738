// Which instruction set the kernels use: decided once, outside of all loops.

#include <cstdio>
#include <cstring>

#include "kernels/kernels.h"

#if defined(ONNXPQ_COMPILE_AVX2)
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace onnxpq {
namespace {

#if defined(ONNXPQ_COMPILE_AVX2)

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf) {
  Registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
  int values[4];
  __cpuid(values, 0);
  if (static_cast<unsigned>(values[0]) < leaf) return r;
  __cpuidex(values, static_cast<int>(leaf), 0);
  r = {static_cast<unsigned>(values[0]), static_cast<unsigned>(values[1]), static_cast<unsigned>(values[2]),
       static_cast<unsigned>(values[3])};
#else
  if (__get_cpuid_max(0, nullptr) >= leaf) __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

unsigned enabled_register_state() {
#if defined(_MSC_VER)
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned eax, edx;
  // The intrinsic would need this file to be compiled with -mxsave.
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
#endif
}

bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

bool has_avx2() {
  constexpr unsigned kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29, kAvx2 = 1u << 5;
  constexpr unsigned kXmmAndYmm = 6;
  // The processor may have the registers while the operating system does not save them.
  return all(cpuid(1).ecx, kOsxsave | kAvx | kF16c) && all(enabled_register_state(), kXmmAndYmm) &&
         all(cpuid(7).ebx, kAvx2);
}

#endif

#if defined(ONNXPQ_COMPILE_AVX512)

bool has_avx512() {
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31, kVbmi = 1u << 1, kVnni = 1u << 11;
  constexpr unsigned kMasksAndZmm = 7u << 5;
  return has_avx2() && all(enabled_register_state(), kMasksAndZmm) && all(cpuid(7).ebx, kF | kDq | kBw | kVl) &&
         all(cpuid(7).ecx, kVbmi | kVnni);
}

#endif

}  // namespace

KernelList available_kernels() {
  KernelList list = {{&kScalarKernels}, 1};
#if defined(ONNXPQ_COMPILE_AVX2)
  if (has_avx2()) list.levels[list.count++] = &kAvx2Kernels;
#endif
#if defined(ONNXPQ_COMPILE_AVX512)
  if (has_avx512()) list.levels[list.count++] = &kAvx512Kernels;
#endif
#if defined(ONNXPQ_COMPILE_NEON)
  list.levels[list.count++] = &kNeonKernels;  // every 64-bit Arm processor that runs an operating system has it
#endif
  return list;
}

const Kernels* choose_kernels(const char* wanted, char* refusal, size_t capacity) {
  const KernelList list = available_kernels();
  if (wanted == nullptr || *wanted == '\0') return list.levels[list.count - 1];
  for (size_t i = 0; i < list.count; ++i) {
    if (std::strcmp(wanted, list.levels[i]->name) == 0) return list.levels[i];
  }
  int length = std::snprintf(refusal, capacity,
                             "onnxpq: the environment variable ONNXPQ_SIMD is '%.40s'; this library on this processor "
                             "has:",
                             wanted);
  for (size_t i = 0; i < list.count && length > 0 && static_cast<size_t>(length) < capacity; ++i) {
    length += std::snprintf(refusal + length, capacity - static_cast<size_t>(length), "%s %s", i == 0 ? "" : ",",
                            list.levels[i]->name);
  }
  return nullptr;
}

}  // namespace onnxpq
