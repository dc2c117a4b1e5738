// NEON of 64-bit Arm. No fused multiply-adds: products are rounded before they are summed, as in the scalar reference.

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/byte_scan.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/unit_walk.h"

#if defined(_MSC_VER)
#define ONNXPQ_ALWAYS_INLINE __forceinline
#else
#define ONNXPQ_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace onnxpq {
namespace {

// Four codewords' elements, at any alignment: loads of bytes need none.
float32x4_t load4(const float* codewords) {
  return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(codewords)));
}

float32x4_t load4(const uint16_t* codewords) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(codewords))));
}

// ---- K <= 16 ----

constexpr size_t kQuarters = kNibbleCodewords / 4;  // registers of a float table

struct TableStatistics {
  float32x4_t finite;  // NaN in an element where a table entry was NaN or infinite
  float span, centre;
};

// Float tables of units [begin, begin + count), their centres and statistics.
template <typename T>
TableStatistics build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t count,
                                   float (*values)[kNibbleCodewords], float* centres) {
  TableStatistics statistics = {vdupq_n_f32(0.0f), 0.0f, 0.0f};
  UnitWalk unit(weight, begin);
  for (size_t j = 0; j < count; ++j, unit.next()) {
    const T* codeword = codebooks + unit.codebook_row() * kNibbleCodewords;
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    float32x4_t sums[kQuarters];
    for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0f);
    for (size_t i = 0; i < length; ++i, codeword += kNibbleCodewords) {
      const float32x4_t element = vdupq_n_f32(elements[i]);
      for (size_t q = 0; q < kQuarters; ++q) sums[q] = vaddq_f32(sums[q], vmulq_f32(element, load4(codeword + 4 * q)));
    }
    // 0 * entry is NaN exactly where the entry is not finite.
    for (size_t q = 0; q < kQuarters; ++q) {
      vst1q_f32(values[j] + 4 * q, sums[q]);
      statistics.finite = vaddq_f32(statistics.finite, vmulq_f32(sums[q], vdupq_n_f32(0.0f)));
    }
    const float32x4_t low4 = vminq_f32(vminq_f32(sums[0], sums[1]), vminq_f32(sums[2], sums[3]));
    const float32x4_t high4 = vmaxq_f32(vmaxq_f32(sums[0], sums[1]), vmaxq_f32(sums[2], sums[3]));
    const float low = 0.5f * vminvq_f32(low4);
    const float high = 0.5f * vmaxvq_f32(high4);
    centres[j] = low + high;
    const float span = high - low;
    if (!weight.fast) {
      statistics.span += span;
    } else if (span > statistics.span) {
      statistics.span = span;
    }
    statistics.centre += centres[j];
  }
  return statistics;
}

// round((value - centre) * scale) of 8 entries.
ONNXPQ_ALWAYS_INLINE int16x8_t quantize8(const float* values, float32x4_t centre, float32x4_t scale) {
  const int32x4_t first = vcvtnq_s32_f32(vmulq_f32(vsubq_f32(vld1q_f32(values), centre), scale));
  const int32x4_t second = vcvtnq_s32_f32(vmulq_f32(vsubq_f32(vld1q_f32(values + 4), centre), scale));
  return vcombine_s16(vmovn_s32(first), vmovn_s32(second));
}

// The planes of 16 entries.
void quantize_table(const float* values, float centre, float scale, bool fast, uint8_t* entries) {
  const float32x4_t c = vdupq_n_f32(centre), factor = vdupq_n_f32(scale);
  const int16x8_t first = quantize8(values, c, factor), second = quantize8(values + 8, c, factor);
  const uint8x16_t bytes = vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(first), vmovn_s16(second)));
  if (fast) {
    vst1q_u8(entries, veorq_u8(bytes, vdupq_n_u8(kFastOffset)));
    return;
  }
  vst1q_u8(entries, vandq_u8(bytes, vdupq_n_u8((1 << kLowPlaneBits) - 1)));
  const int8x16_t high = vcombine_s8(vshrn_n_s16(first, kLowPlaneBits), vshrn_n_s16(second, kLowPlaneBits));
  vst1q_u8(entries + kPlaneBytes, vreinterpretq_u8_s8(high));
}

// Entries of `count` units that are all zero. Where count is odd, the last half is zero as a byte.
void clear_tables(size_t count, bool fast, uint8_t* planes) {
  memset(planes, 0, (count + 1) / 2 * pair_bytes(fast));
  if (fast) memset(planes, static_cast<int>(kFastOffset), count * kNibbleCodewords);
}

void build_group(const Weight& weight, const float* x, size_t group, const NibbleTables& tables) {
  const size_t S = weight.R * weight.M;
  const size_t begin = group * kGroupUnits;
  const size_t count = S - begin < kGroupUnits ? S - begin : kGroupUnits;
  float values[kGroupUnits][kNibbleCodewords];
  float centres[kGroupUnits];
  const TableStatistics statistics =
      weight.codebook_element == Element::kFloat16
          ? build_float_tables(weight, static_cast<const uint16_t*>(weight.codebooks), x, begin, count, values, centres)
          : build_float_tables(weight, static_cast<const float*>(weight.codebooks), x, begin, count, values, centres);
  const float span = statistics.span;
  const bool all_numbers = vminvq_u32(vceqq_f32(statistics.finite, statistics.finite)) != 0;
  const bool finite = all_numbers && span - span == 0.0f;
  const bool usable = finite && span >= kMinSpan;
  const float range = weight.fast ? kFastTableRange : kTableRange;
  const float scale = usable ? range / span : 0.0f;
  tables.steps[group] = usable ? span / range : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? statistics.centre : 0.0f;
  const size_t bytes = pair_bytes(weight.fast);
  uint8_t* planes = tables.planes + begin / 2 * bytes;
  if (!usable || count % 2 != 0) clear_tables(count, weight.fast, planes);
  if (!usable) return;
  for (size_t j = 0; j < count; ++j) {
    quantize_table(values[j], centres[j], scale, weight.fast, planes + j / 2 * bytes + j % 2 * kNibbleCodewords);
  }
}

void build_nibble_tables(const Weight& weight, const float* x, size_t rows, size_t group, const NibbleTables* tables) {
  for (size_t row = 0; row < rows; ++row) build_group(weight, x + row * weight.in, group, tables[row]);
}

// Sums of table entries of the 32 outputs of a block for one row: of the low planes or the only ones in 16 bits, of the
// high ones, which count 2^7 times as much, modulo 2^8.
template <bool kFast>
struct Sums {
  uint16x8_t low[4];
  uint8x16_t high[2];  // unused where kFast
};

// Codes of a unit: of outputs 0 to 15 and of outputs 16 to 31.
struct Codes {
  uint8x16_t halves[2];
};

ONNXPQ_ALWAYS_INLINE Codes unpack(const uint8_t* bytes) {
  const uint8x16_t both = vld1q_u8(bytes);
  return {{vandq_u8(both, vdupq_n_u8(0x0f)), vshrq_n_u8(both, 4)}};
}

template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_widened(Sums<kFast>& sums, size_t half, uint8x16_t bytes) {
  sums.low[2 * half] = vaddw_u8(sums.low[2 * half], vget_low_u8(bytes));
  sums.low[2 * half + 1] = vaddw_high_u8(sums.low[2 * half + 1], bytes);
}

template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_high(Sums<kFast>& sums, const uint8_t* plane, const Codes& codes) {
  const uint8x16_t table = vld1q_u8(plane + kPlaneBytes);
  for (size_t half = 0; half < 2; ++half) {
    sums.high[half] = vaddq_u8(sums.high[half], vqtbl1q_u8(table, codes.halves[half]));
  }
}

// Adds the table entries of a pair of units; the low ones of both are summed in a byte before they are widened.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_units(Sums<kFast>& sums, const uint8_t* pair, const Codes& first, const Codes& second) {
  const uint8_t* next = pair + kNibbleCodewords;
  const uint8x16_t first_table = vld1q_u8(pair), second_table = vld1q_u8(next);
  for (size_t half = 0; half < 2; ++half) {
    const uint8x16_t a = vqtbl1q_u8(first_table, first.halves[half]);
    const uint8x16_t b = vqtbl1q_u8(second_table, second.halves[half]);
    if (kFast) {
      add_widened(sums, half, a);
      add_widened(sums, half, b);
    } else {
      add_widened(sums, half, vaddq_u8(a, b));
    }
  }
  if (!kFast) {
    add_high(sums, pair, first);
    add_high(sums, next, second);
  }
}

// Adds the table entries of one unit.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_units(Sums<kFast>& sums, const uint8_t* pair, const Codes& codes) {
  const uint8x16_t table = vld1q_u8(pair);
  for (size_t half = 0; half < 2; ++half) add_widened(sums, half, vqtbl1q_u8(table, codes.halves[half]));
  if (!kFast) add_high(sums, pair, codes);
}

// y[4*i .. 4*i + 4] += sums * step; `count` units are in the sums.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_scaled(const Sums<kFast>& sums, size_t count, float step, float32x4_t* y) {
  const float32x4_t factor = vdupq_n_f32(kFast ? step : 0.5f * step);
  for (size_t i = 0; i < 4; ++i) {
    int16x8_t sum;
    if (kFast) {
      sum = vreinterpretq_s16_u16(vsubq_u16(sums.low[i], vdupq_n_u16(static_cast<uint16_t>(kFastOffset * count))));
    } else {  // twice the sums, which have 15 bits: 2^8 * high + 2 * low
      const uint8x16_t high = sums.high[i / 2];
      const uint8x8_t high8 = i % 2 == 0 ? vget_low_u8(high) : vget_high_u8(high);
      sum = vreinterpretq_s16_u16(vaddq_u16(vshlq_n_u16(sums.low[i], 1), vshll_n_u8(high8, 8)));
    }
    const float32x4_t first = vcvtq_f32_s32(vmovl_s16(vget_low_s16(sum)));
    const float32x4_t second = vcvtq_f32_s32(vmovl_high_s16(sum));
    y[2 * i] = vaddq_f32(y[2 * i], vmulq_f32(first, factor));
    y[2 * i + 1] = vaddq_f32(y[2 * i + 1], vmulq_f32(second, factor));
  }
}

constexpr size_t kBlockRegisters = kNibbleOutputs / 4;

// The sums of a block so far.
void load_block(const Weight& weight, size_t first, const float* y, float32x4_t* sums) {
  float whole[kNibbleOutputs] = {};
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  for (size_t i = 0; i < count; ++i) whole[i] = y[first + i];
  for (size_t i = 0; i < kBlockRegisters; ++i) sums[i] = vld1q_f32(whole + 4 * i);
}

void store_block(const Weight& weight, size_t first, const float32x4_t* sums, bool last, float* y) {
  float whole[kNibbleOutputs];
  for (size_t i = 0; i < kBlockRegisters; ++i) {
    const float32x4_t scale = vld1q_f32(weight.scales + first + 4 * i);
    const float32x4_t bias = vld1q_f32(weight.bias + first + 4 * i);
    vst1q_f32(whole + 4 * i, last ? vaddq_f32(vmulq_f32(sums[i], scale), bias) : sums[i]);
  }
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  for (size_t i = 0; i < count; ++i) y[first + i] = whole[i];
}

// The sums of units [begin, end), at most a group of them, for kRows rows, which share the unpacking of the codes.
// Inlined, or the sums would live in memory.
template <bool kFast, size_t kRows>
ONNXPQ_ALWAYS_INLINE void sum_units(const NibbleTables* tables, const uint8_t* codes, size_t begin, size_t end,
                                    Sums<kFast> (&sums)[kRows]) {
  for (Sums<kFast>& row : sums) {
    for (uint16x8_t& sum : row.low) sum = vdupq_n_u16(0);
    for (uint8x16_t& sum : row.high) sum = vdupq_n_u8(0);
  }
  size_t s = begin;
  for (; s + 1 < end; s += 2) {
    const Codes first = unpack(codes + s * kUnitBytes), second = unpack(codes + (s + 1) * kUnitBytes);
    for (size_t row = 0; row < kRows; ++row) {
      add_units(sums[row], tables[row].planes + s / 2 * pair_bytes(kFast), first, second);
    }
  }
  if (s == end) return;
  const Codes last = unpack(codes + s * kUnitBytes);
  for (size_t row = 0; row < kRows; ++row) add_units(sums[row], tables[row].planes + s / 2 * pair_bytes(kFast), last);
}

template <bool kFast, size_t kRows>
void scan_block(const Weight& weight, const NibbleTables* tables, const Range& groups, size_t block, float* y) {
  const size_t S = weight.R * weight.M;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  float32x4_t outputs[kRows][kBlockRegisters];
  for (size_t row = 0; row < kRows; ++row) {
    if (groups.begin > 0) {
      load_block(weight, block * kNibbleOutputs, y + row * weight.out, outputs[row]);
      continue;
    }
    float centre = 0.0f;
    for (size_t group = 0; group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (float32x4_t& output : outputs[row]) output = vdupq_n_f32(centre);
  }
  for (size_t group = groups.begin; group < groups.end; ++group) {
    const size_t begin = group * kGroupUnits;
    const size_t end = S - begin < kGroupUnits ? S : begin + kGroupUnits;
    Sums<kFast> sums[kRows];
    sum_units(tables, codes, begin, end, sums);
    for (size_t row = 0; row < kRows; ++row) {
      add_scaled(sums[row], end - begin, tables[row].steps[group], outputs[row]);
    }
  }
  const bool last = groups.end * kGroupUnits >= S;
  for (size_t row = 0; row < kRows; ++row) {
    store_block(weight, block * kNibbleOutputs, outputs[row], last, y + row * weight.out);
  }
}

// Four rows of six sums each, the unpacked codes and the tables at hand fill the 32 registers.
constexpr size_t kScanRows = 4;

template <bool kFast>
void scan_rows(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
               float* y) {
  switch (rows) {
    case 4:
      return scan_block<kFast, 4>(weight, tables, groups, block, y);
    case 3:
      return scan_block<kFast, 3>(weight, tables, groups, block, y);
    case 2:
      return scan_block<kFast, 2>(weight, tables, groups, block, y);
    default:
      return scan_block<kFast, 1>(weight, tables, groups, block, y);
  }
}

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                  float* y) {
  (weight.fast ? scan_rows<true> : scan_rows<false>)(weight, tables, rows, groups, block, y);
}

// ---- K > 16 ----

template <typename T>
void build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t end,
                        float* tables) {
  const size_t width = weight.codebook_width;
  UnitWalk unit(weight, begin);
  for (size_t s = begin; s < end; ++s, unit.next()) {
    const T* codebook = codebooks + unit.codebook_row() * width;
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    for (size_t k = 0; k < width; k += 8) {
      float32x4_t first = vdupq_n_f32(0.0f), second = vdupq_n_f32(0.0f);
      for (size_t i = 0; i < length; ++i) {
        const float32x4_t element = vdupq_n_f32(elements[i]);
        first = vaddq_f32(first, vmulq_f32(element, load4(codebook + i * width + k)));
        second = vaddq_f32(second, vmulq_f32(element, load4(codebook + i * width + k + 4)));
      }
      vst1q_f32(tables + s * width + k, first);
      vst1q_f32(tables + s * width + k + 4, second);
    }
  }
}

void build_byte_tables(const Weight& weight, const float* x, size_t begin, size_t end, float* tables) {
  if (weight.codebook_element == Element::kFloat16) {
    build_float_tables(weight, static_cast<const uint16_t*>(weight.codebooks), x, begin, end, tables);
  } else {
    build_float_tables(weight, static_cast<const float*>(weight.codebooks), x, begin, end, tables);
  }
}

void scan_bytes(const Weight& weight, const float* tables, size_t begin, size_t end, float* y) {
  scan_byte_codes(weight, tables, begin, end, y);
}

// ---- K > 16, kBatchRows rows: two registers hold one entry for all of them ----

constexpr size_t kBatchRows = 8;

template <typename T>
void build_row_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t end,
                      float* tables) {
  const size_t width = weight.codebook_width;
  UnitWalk unit(weight, begin);
  for (size_t s = begin; s < end; ++s, unit.next()) {
    const T* codebook = codebooks + unit.codebook_row() * width;
    const float* elements = x + unit.x_begin() * kBatchRows;
    const size_t length = unit.x_count();
    for (size_t k = 0; k < width; k += 4, tables += 4 * kBatchRows) {
      float32x4_t sums[4][2];
      for (auto& sum : sums) sum[0] = sum[1] = vdupq_n_f32(0.0f);
      for (size_t i = 0; i < length; ++i) {
        const float32x4_t first = vld1q_f32(elements + i * kBatchRows);
        const float32x4_t second = vld1q_f32(elements + i * kBatchRows + 4);
        float codewords[4];
        vst1q_f32(codewords, load4(codebook + i * width + k));
        for (size_t j = 0; j < 4; ++j) {
          sums[j][0] = vaddq_f32(sums[j][0], vmulq_n_f32(first, codewords[j]));
          sums[j][1] = vaddq_f32(sums[j][1], vmulq_n_f32(second, codewords[j]));
        }
      }
      for (size_t j = 0; j < 4; ++j) {
        vst1q_f32(tables + j * kBatchRows, sums[j][0]);
        vst1q_f32(tables + j * kBatchRows + 4, sums[j][1]);
      }
    }
  }
}

void build_batch_tables(const Weight& weight, const float* x, size_t begin, size_t end, float* tables) {
  if (weight.codebook_element == Element::kFloat16) {
    build_row_tables(weight, static_cast<const uint16_t*>(weight.codebooks), x, begin, end, tables);
  } else {
    build_row_tables(weight, static_cast<const float*>(weight.codebooks), x, begin, end, tables);
  }
}

void scan_batch(const Weight& weight, const float* tables, const Range& units, size_t block, float* sums) {
  const size_t S = weight.R * weight.M;
  const size_t table_size = weight.codebook_width * kBatchRows;
  const uint8_t* block_codes = weight.codes + (block * S + units.begin) * kUnitBytes;
  for (size_t i = 0; i < kByteOutputs; i += kChains) {
    const uint8_t* codes = block_codes + i;
    const float* table = tables;
    float32x4_t chains[kChains][2];
    for (size_t c = 0; c < kChains; ++c) {
      chains[c][0] = vld1q_f32(sums + (i + c) * kBatchRows);
      chains[c][1] = vld1q_f32(sums + (i + c) * kBatchRows + 4);
    }
    for (size_t s = units.begin; s < units.end; ++s, codes += kUnitBytes, table += table_size) {
      for (size_t c = 0; c < kChains; ++c) {
        const float* entry = table + codes[c] * kBatchRows;
        chains[c][0] = vaddq_f32(chains[c][0], vld1q_f32(entry));
        chains[c][1] = vaddq_f32(chains[c][1], vld1q_f32(entry + 4));
      }
    }
    for (size_t c = 0; c < kChains; ++c) {
      vst1q_f32(sums + (i + c) * kBatchRows, chains[c][0]);
      vst1q_f32(sums + (i + c) * kBatchRows + 4, chains[c][1]);
    }
  }
}

// ---- K > 16, few outputs: four registers hold a block ----

template <typename T>
void decode_codewords(const Weight& weight, const T* codebooks, const Range& units, const uint8_t* codes,
                      float* panel) {
  UnitWalk unit(weight, units.begin);
  for (size_t s = units.begin; s < units.end; ++s, unit.next(), panel += weight.d * kByteOutputs) {
    const uint8_t* chosen = codes + s * kUnitBytes;
    const T* row = codebooks + unit.codebook_row() * weight.codebook_width;
    const size_t length = unit.x_count();
    for (size_t i = 0; i < length; ++i, row += weight.codebook_width) {
      T elements[kByteOutputs];
      for (size_t o = 0; o < kByteOutputs; ++o) elements[o] = row[chosen[o]];
      for (size_t o = 0; o < kByteOutputs; o += 4) vst1q_f32(panel + i * kByteOutputs + o, load4(elements + o));
    }
  }
}

void decode_panel(const Weight& weight, const Range& units, size_t block, float* panel) {
  const uint8_t* codes = weight.codes + block * weight.R * weight.M * kUnitBytes;
  if (weight.codebook_element == Element::kFloat16) {
    decode_codewords(weight, static_cast<const uint16_t*>(weight.codebooks), units, codes, panel);
  } else {
    decode_codewords(weight, static_cast<const float*>(weight.codebooks), units, codes, panel);
  }
}

constexpr size_t kPanelRegisters = kByteOutputs / 4;

// kRows rows share the loads of the panel.
template <size_t kRows>
void multiply_rows(const Weight& weight, const float* x, const Range& units, const float* panel, float* sums) {
  float32x4_t outputs[kRows][kPanelRegisters];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t q = 0; q < kPanelRegisters; ++q) outputs[row][q] = vld1q_f32(sums + row * kByteOutputs + 4 * q);
  }
  UnitWalk unit(weight, units.begin);
  for (size_t s = units.begin; s < units.end; ++s, unit.next(), panel += weight.d * kByteOutputs) {
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    float32x4_t products[kRows][kPanelRegisters];
    for (auto& row : products) {
      for (float32x4_t& product : row) product = vdupq_n_f32(0.0f);
    }
    for (size_t i = 0; i < length; ++i) {
      for (size_t q = 0; q < kPanelRegisters; ++q) {
        const float32x4_t codewords = vld1q_f32(panel + i * kByteOutputs + 4 * q);
        for (size_t row = 0; row < kRows; ++row) {
          const float element = elements[row * weight.in + i];
          products[row][q] = vaddq_f32(products[row][q], vmulq_n_f32(codewords, element));
        }
      }
    }
    for (size_t row = 0; row < kRows; ++row) {
      for (size_t q = 0; q < kPanelRegisters; ++q) outputs[row][q] = vaddq_f32(outputs[row][q], products[row][q]);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t q = 0; q < kPanelRegisters; ++q) vst1q_f32(sums + row * kByteOutputs + 4 * q, outputs[row][q]);
  }
}

void multiply_panel(const Weight& weight, const float* x, size_t rows, const Range& units, const float* panel,
                    float* sums) {
  constexpr size_t kPanelRows = 3;  // 24 sums and products
  size_t row = 0;
  for (; row + kPanelRows <= rows; row += kPanelRows) {
    multiply_rows<kPanelRows>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
  }
  for (; row < rows; ++row) multiply_rows<1>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
}

// ---- float16 X and Y ----

void widen(const uint16_t* halves, size_t count, float* floats) {
  size_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(floats + i, load4(halves + i));
  for (; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

void narrow(const float* floats, size_t count, uint16_t* halves) {
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    vst1_u8(reinterpret_cast<uint8_t*>(halves + i), vreinterpret_u8_f16(vcvt_f16_f32(vld1q_f32(floats + i))));
  }
  for (; i < count; ++i) halves[i] = float_to_half(floats[i]);
}

}  // namespace

const Kernels kNeonKernels = {"neon",
                              build_nibble_tables,
                              scan_nibbles,
                              kScanRows,
                              build_byte_tables,
                              scan_bytes,
                              build_batch_tables,
                              scan_batch,
                              kBatchRows,
                              decode_panel,
                              multiply_panel,
                              widen,
                              narrow};

}  // namespace onnxpq
