// IEEE binary16 to binary32, exact, and back, to the nearest or even, without the instructions for it.

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

static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {  // NaN stays one, quiet, with the upper bits of its payload
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 65536 and above, infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal; a carry runs into the exponent as it should, up to infinity
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {  // subnormal: adding 1/2 leaves the multiple of 2^-24 in the lowest bits, rounded by the addition
    float sum;
    std::memcpy(&sum, &magnitude, sizeof sum);
    sum += 0.5f;
    std::memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace onnxpq
