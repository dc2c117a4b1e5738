// The reference: defines what every other level must compute, bit for bit. See kernels.h for the formulas.

#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace onnxpq {
namespace {

float load(const Weight& weight, size_t index) {
  if (weight.codebook_element == Element::kFloat16) {
    uint16_t half;
    std::memcpy(&half, static_cast<const char*>(weight.codebooks) + index * sizeof half, sizeof half);
    return half_to_float(half);
  }
  float value;
  std::memcpy(&value, static_cast<const char*>(weight.codebooks) + index * sizeof value, sizeof value);
  return value;
}

size_t codebook_of(const Weight& weight, size_t s) {
  return s / weight.M * weight.G + s % weight.M / weight.group_width;
}

// Table [codebook_width] of unit s.
void build_table(const Weight& weight, const float* x, size_t s, float* table) {
  const size_t codebook = codebook_of(weight, s);
  const size_t first = s % weight.M * weight.d;
  const size_t length = weight.in - first < weight.d ? weight.in - first : weight.d;
  for (size_t k = 0; k < weight.codebook_width; ++k) table[k] = 0.0f;
  for (size_t i = 0; i < length; ++i) {
    const size_t row = (codebook * weight.d + i) * weight.codebook_width;
    for (size_t k = 0; k < weight.codebook_width; ++k) table[k] += x[first + i] * load(weight, row + k);
  }
}

void build_group(const Weight& weight, const float* x, size_t group, const NibbleTables& tables) {
  const size_t S = weight.R * weight.M;
  const size_t begin = group * kGroupUnits;
  const size_t count = S - begin < kGroupUnits ? S - begin : kGroupUnits;
  float values[kGroupUnits][kNibbleCodewords];
  float centres[kGroupUnits];
  float span = 0.0f, centre = 0.0f;
  bool finite = true;
  for (size_t j = 0; j < count; ++j) {
    build_table(weight, x, begin + j, values[j]);
    float low = values[j][0], high = values[j][0];
    for (const float value : values[j]) {
      low = value < low ? value : low;
      high = value > high ? value : high;
      finite = finite && std::isfinite(value);
    }
    low *= 0.5f;
    high *= 0.5f;
    centres[j] = low + high;
    span = weight.fast ? (high - low > span ? high - low : span) : span + (high - low);
    centre += centres[j];
  }
  finite = finite && std::isfinite(span);
  const bool usable = finite && span >= kMinSpan;
  const float range = weight.fast ? kFastTableRange : kTableRange;
  const float scale = usable ? range / span : 0.0f;
  tables.steps[group] = usable ? span / range : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? centre : 0.0f;
  const size_t bytes = pair_bytes(weight.fast);
  uint8_t* planes = tables.planes + begin / 2 * bytes;
  std::memset(planes, 0, (count + 1) / 2 * bytes);
  for (size_t j = 0; j < count; ++j) {
    uint8_t* entries = planes + j / 2 * bytes + j % 2 * kNibbleCodewords;
    for (size_t k = 0; k < kNibbleCodewords; ++k) {
      const int q = usable ? static_cast<int>(std::lrintf((values[j][k] - centres[j]) * scale)) : 0;
      if (weight.fast) {
        entries[k] = static_cast<uint8_t>(q + static_cast<int>(kFastOffset));
      } else {
        const int low = static_cast<int>(static_cast<unsigned>(q) % (1u << kLowPlaneBits));
        entries[k] = static_cast<uint8_t>(low);
        entries[k + kPlaneBytes] = static_cast<uint8_t>((q - low) / (1 << kLowPlaneBits));
      }
    }
  }
}

void build_nibble_tables(const Weight& weight, const float* x, size_t rows, size_t group, const NibbleTables* tables) {
  for (size_t row = 0; row < rows; ++row) build_group(weight, x + row * weight.in, group, tables[row]);
}

int table_entry(const uint8_t* planes, bool fast, size_t s, unsigned code) {
  const uint8_t* entries = planes + s / 2 * pair_bytes(fast) + s % 2 * kNibbleCodewords;
  if (fast) return entries[code] - static_cast<int>(kFastOffset);
  return entries[code] + static_cast<int8_t>(entries[code + kPlaneBytes]) * (1 << kLowPlaneBits);
}

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                  float* y) {
  const size_t S = weight.R * weight.M;
  const size_t first = block * kNibbleOutputs;
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  for (size_t row = 0; row < rows; ++row) {
    float centre = 0.0f;
    for (size_t group = 0; group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (size_t i = 0; i < count; ++i) {
      const unsigned shift = i < kUnitBytes ? 0 : 4;
      float& output = y[row * weight.out + first + i];
      float sum = groups.begin == 0 ? centre : output;
      for (size_t group = groups.begin; group < groups.end; ++group) {
        const size_t end = (group + 1) * kGroupUnits < S ? (group + 1) * kGroupUnits : S;
        int integer_sum = 0;
        for (size_t s = group * kGroupUnits; s < end; ++s) {
          const unsigned code = codes[s * kUnitBytes + i % kUnitBytes] >> shift & 15u;
          integer_sum += table_entry(tables[row].planes, weight.fast, s, code);
        }
        sum += static_cast<float>(integer_sum) * tables[row].steps[group];
      }
      output = groups.end * kGroupUnits < S ? sum : sum * weight.scales[first + i] + weight.bias[first + i];
    }
  }
}

void build_byte_tables(const Weight& weight, const float* x, size_t begin, size_t end, float* tables) {
  for (size_t s = begin; s < end; ++s) build_table(weight, x, s, tables + s * weight.codebook_width);
}

void scan_bytes(const Weight& weight, const float* tables, size_t begin, size_t end, float* y) {
  const size_t S = weight.R * weight.M;
  for (size_t block = begin; block < end; ++block) {
    const size_t first = block * kByteOutputs;
    const size_t count = weight.out - first < kByteOutputs ? weight.out - first : kByteOutputs;
    const uint8_t* codes = weight.codes + block * S * kUnitBytes;
    for (size_t i = 0; i < count; ++i) {
      float sum = 0.0f;
      for (size_t s = 0; s < S; ++s) sum += tables[s * weight.codebook_width + codes[s * kUnitBytes + i]];
      y[first + i] = sum * weight.scales[first + i] + weight.bias[first + i];
    }
  }
}

constexpr size_t kBatchRows = 8;

void build_batch_tables(const Weight& weight, const float* x, size_t begin, size_t end, float* tables) {
  const size_t width = weight.codebook_width;
  for (size_t s = begin; s < end; ++s, tables += width * kBatchRows) {
    const size_t first = s % weight.M * weight.d;
    const size_t length = weight.in - first < weight.d ? weight.in - first : weight.d;
    for (size_t i = 0; i < width * kBatchRows; ++i) tables[i] = 0.0f;
    for (size_t i = 0; i < length; ++i) {
      const size_t codebook_row = codebook_of(weight, s) * weight.d + i;
      for (size_t k = 0; k < width; ++k) {
        const float codeword = load(weight, codebook_row * width + k);
        for (size_t row = 0; row < kBatchRows; ++row) {
          tables[k * kBatchRows + row] += x[(first + i) * kBatchRows + row] * codeword;
        }
      }
    }
  }
}

void scan_batch(const Weight& weight, const float* tables, const Range& units, size_t block, float* sums) {
  const uint8_t* codes = weight.codes + block * weight.R * weight.M * kUnitBytes;
  for (size_t s = units.begin; s < units.end; ++s, tables += weight.codebook_width * kBatchRows) {
    for (size_t i = 0; i < kByteOutputs; ++i) {
      const float* entries = tables + codes[s * kUnitBytes + i] * kBatchRows;
      for (size_t row = 0; row < kBatchRows; ++row) sums[i * kBatchRows + row] += entries[row];
    }
  }
}

// Elements that unit s has: d, but for the last sub-vector.
size_t unit_length(const Weight& weight, size_t s) {
  const size_t left = weight.in - s % weight.M * weight.d;
  return left < weight.d ? left : weight.d;
}

void decode_panel(const Weight& weight, const Range& units, size_t block, float* panel) {
  const uint8_t* codes = weight.codes + block * weight.R * weight.M * kUnitBytes;
  for (size_t s = units.begin; s < units.end; ++s, panel += weight.d * kByteOutputs) {
    for (size_t i = 0; i < unit_length(weight, s); ++i) {
      const size_t row = (codebook_of(weight, s) * weight.d + i) * weight.codebook_width;
      for (size_t o = 0; o < kByteOutputs; ++o)
        panel[i * kByteOutputs + o] = load(weight, row + codes[s * kUnitBytes + o]);
    }
  }
}

void multiply_panel(const Weight& weight, const float* x, size_t rows, const Range& units, const float* panel,
                    float* sums) {
  for (size_t row = 0; row < rows; ++row, x += weight.in, sums += kByteOutputs) {
    for (size_t s = units.begin; s < units.end; ++s) {
      const float* elements = x + s % weight.M * weight.d;
      for (size_t o = 0; o < kByteOutputs; ++o) {
        float sum = 0.0f;
        for (size_t i = 0; i < unit_length(weight, s); ++i) {
          sum += elements[i] * panel[((s - units.begin) * weight.d + i) * kByteOutputs + o];
        }
        sums[o] += sum;
      }
    }
  }
}

void widen(const uint16_t* halves, size_t count, float* floats) {
  for (size_t i = 0; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

void narrow(const float* floats, size_t count, uint16_t* halves) {
  for (size_t i = 0; i < count; ++i) halves[i] = float_to_half(floats[i]);
}

}  // namespace

const Kernels kScalarKernels = {"scalar",          build_nibble_tables, scan_nibbles,       1,
                                build_byte_tables, scan_bytes,          build_batch_tables, scan_batch,
                                kBatchRows,        decode_panel,        multiply_panel,     widen,
                                narrow};

}  // namespace onnxpq
