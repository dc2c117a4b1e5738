// IEEE binary16 to binary32, exact, without the instruction for it.

#pragma once

#include <cstdint>
#include <cstring>

namespace onnxpq {

// `static`: each translation unit keeps its own copy, so that none compiled for a newer processor replaces the others'.
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x0400u) {  // normal: the exponent's bias changes from 15 to 127
    bits = sign | (magnitude + (112u << 10)) << 13;
  } else {  // subnormal: magnitude * 2^-24, exact in binary32
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace onnxpq
