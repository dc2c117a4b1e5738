// One row's outputs for K > 16, in plain C++: lookups of 256 entries do not fit registers, and where there are gather
// instructions they are slower than scalar loads. The loads are the limit.

#pragma once

#include "kernels/kernels.h"

namespace onnxpq {
// A namespace without a name: each instruction set compiles its own copy (see ADDING AN INSTRUCTION SET).
namespace {

// So that tables stay in the first cache, 16 units (16 KB) pass over all blocks before the next 16.
constexpr size_t kTileUnits = 16;

// Outputs summed side by side: one sum waits for its last addition several times as long as a load takes.
constexpr size_t kChains = 8;

// sums[c] += entries of `units` tables that codes[c], codes[16 + c], ... choose. Padding outputs have codes, too.
inline void add_entries(const float* table, size_t width, const uint8_t* codes, size_t units, float (&sums)[kChains]) {
  for (size_t j = 0; j < units; ++j, table += width, codes += kUnitBytes) {
    for (size_t c = 0; c < kChains; ++c) sums[c] += table[codes[c]];
  }
}

inline void scan_byte_codes(const Weight& weight, const float* tables, size_t begin, size_t end, float* y) {
  const size_t S = weight.R * weight.M;
  const size_t width = weight.codebook_width;
  for (size_t tile = 0; tile < S; tile += kTileUnits) {
    const size_t units = S - tile < kTileUnits ? S - tile : kTileUnits;
    const bool last = tile + units == S;
    for (size_t block = begin; block < end; ++block) {
      const size_t first = block * kByteOutputs;
      const size_t count = weight.out - first < kByteOutputs ? weight.out - first : kByteOutputs;
      const uint8_t* codes = weight.codes + (block * S + tile) * kUnitBytes;
      for (size_t i = 0; i < count; i += kChains) {
        float sums[kChains];
        for (size_t c = 0; c < kChains; ++c) sums[c] = tile == 0 || i + c >= count ? 0.0f : y[first + i + c];
        add_entries(tables + tile * width, width, codes + i, units, sums);
        for (size_t c = 0; c < kChains && i + c < count; ++c) {
          const size_t o = first + i + c;
          y[o] = last ? sums[c] * weight.scales[o] + weight.bias[o] : sums[c];
        }
      }
    }
  }
}

}  // namespace
}  // namespace onnxpq
