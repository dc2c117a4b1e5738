// AVX2 and F16C. No FMA: products are rounded before they are summed, as in the scalar reference.

#include <immintrin.h>
#include <math.h>

#include "kernels/byte_scan.h"
#include "kernels/kernels.h"
#include "kernels/unit_walk.h"

#if defined(_MSC_VER)
#define ONNXPQ_ALWAYS_INLINE __forceinline
#else
#define ONNXPQ_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

// Keeps small arrays of registers in registers; other compilers do so of their own accord.
#if defined(__GNUC__) && !defined(__clang__)
#define ONNXPQ_UNROLL_QUAD _Pragma("GCC unroll 4")
#else
#define ONNXPQ_UNROLL_QUAD
#endif

namespace onnxpq {
namespace {

__m256 load8(const float* codewords) { return _mm256_loadu_ps(codewords); }

__m256 load8(const uint16_t* codewords) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codewords)));
}

// ---- K <= 16 ----

struct TableStatistics {
  __m256 nan;  // all ones in an element where a table entry was NaN
  float span, centre;
};

// The float table of a unit: two registers of 8 entries.
struct FloatTable {
  __m256 first, second;
};

template <typename T>
ONNXPQ_ALWAYS_INLINE FloatTable float_table(const T* codeword, const float* x, size_t length) {
  FloatTable table = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (size_t i = 0; i < length; ++i, codeword += kNibbleCodewords) {
    const __m256 element = _mm256_broadcast_ss(x + i);
    table.first = _mm256_add_ps(table.first, _mm256_mul_ps(element, load8(codeword)));
    table.second = _mm256_add_ps(table.second, _mm256_mul_ps(element, load8(codeword + 8)));
  }
  return table;
}

// The two halves of a register, element by element: the smaller, the larger.
__m128 smaller_half(__m256 v) { return _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
__m128 larger_half(__m256 v) { return _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

constexpr size_t kQuad = 4;  // units whose extremes are found side by side

// Float tables of units [begin, begin + count), their centres and statistics. Entries of `values` and `centres` past
// `count` up to a multiple of kQuad become zero.
template <typename T>
TableStatistics build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t count,
                                   float (*values)[kNibbleCodewords], float* centres) {
  TableStatistics statistics = {_mm256_setzero_ps(), 0.0f, 0.0f};
  const __m128 half = _mm_set1_ps(0.5f);
  UnitWalk unit(weight, begin);
  for (size_t j = 0; j < count; j += kQuad) {
    __m128 low[kQuad], high[kQuad];
    ONNXPQ_UNROLL_QUAD
    for (size_t q = 0; q < kQuad; ++q) {
      FloatTable table = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      if (j + q < count) {
        table = float_table(codebooks + unit.codebook_row() * kNibbleCodewords, x + unit.x_begin(), unit.x_count());
        if (j + q + 1 < count) unit.next();
      }
      _mm256_storeu_ps(values[j + q], table.first);
      _mm256_storeu_ps(values[j + q] + 8, table.second);
      statistics.nan = _mm256_or_ps(statistics.nan, _mm256_cmp_ps(table.first, table.second, _CMP_UNORD_Q));
      low[q] = smaller_half(_mm256_min_ps(table.first, table.second));
      high[q] = larger_half(_mm256_max_ps(table.first, table.second));
    }
    _MM_TRANSPOSE4_PS(low[0], low[1], low[2], low[3]);
    _MM_TRANSPOSE4_PS(high[0], high[1], high[2], high[3]);
    const __m128 lows = _mm_mul_ps(half, _mm_min_ps(_mm_min_ps(low[0], low[1]), _mm_min_ps(low[2], low[3])));
    const __m128 highs = _mm_mul_ps(half, _mm_max_ps(_mm_max_ps(high[0], high[1]), _mm_max_ps(high[2], high[3])));
    float spans[kQuad];
    _mm_storeu_ps(centres + j, _mm_add_ps(lows, highs));
    _mm_storeu_ps(spans, _mm_sub_ps(highs, lows));
    for (size_t q = 0; q < kQuad; ++q) {  // the units past `count` add zero, which changes no sum
      statistics.span += spans[q];
      statistics.centre += centres[j + q];
    }
  }
  return statistics;
}

// round((value - centre) * scale) of the 16 entries of a unit as int16: entries 0-3, 8-11 and 4-7, 12-15 of each lane.
ONNXPQ_ALWAYS_INLINE __m256i quantize_table(const float* values, float centre, __m256 scale) {
  const __m256 c = _mm256_set1_ps(centre);
  const __m256 first = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values), c), scale);
  const __m256 second = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values + 8), c), scale);
  return _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
}

// The byte planes of two units.
ONNXPQ_ALWAYS_INLINE void store_pair(const float (*values)[kNibbleCodewords], const float* centres, __m256 scale,
                                     uint8_t* pair) {
  const __m256i a = quantize_table(values[0], centres[0], scale), b = quantize_table(values[1], centres[1], scale);
  const __m256i byte = _mm256_set1_epi16(0xff);
  const __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
  const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // the packs work within 128-bit lanes
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(pair), _mm256_permutevar8x32_epi32(low, in_order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(pair + kPairBytes / 2), _mm256_permutevar8x32_epi32(high, in_order));
}

void clear_pair(uint8_t* pair) {
  for (size_t i = 0; i < kPairBytes; i += sizeof(__m256i)) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pair + i), _mm256_setzero_si256());
  }
}

void build_nibble_tables(const Weight& weight, const float* x, size_t group, const NibbleTables& tables) {
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
  // An infinite entry makes the span infinite or NaN.
  const bool finite = _mm256_movemask_ps(statistics.nan) == 0 && span - span == 0.0f;
  const bool usable = finite && span >= kMinSpan;
  const float scale = usable ? kTableRange / span : 0.0f;
  tables.steps[group] = usable ? span / kTableRange : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? statistics.centre : 0.0f;
  uint8_t* planes = tables.planes + begin / 2 * kPairBytes;
  if (!usable) {
    for (size_t j = 0; j < count; j += 2) clear_pair(planes + j / 2 * kPairBytes);
    return;
  }
  const __m256 factor = _mm256_set1_ps(scale);
  for (size_t j = 0; j < count; j += 2) store_pair(values + j, centres + j, factor, planes + j / 2 * kPairBytes);
}

// int16 sums of the 32 outputs of a block for one row: 8 outputs a register and 128-bit lane; one lane sums the even
// units, the other the odd ones.
struct IntegerSums {
  __m256i sums[4];
};

__m256i load_pair(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// The last unit of an odd number: the 16 bytes after it may lie outside of the codes. Its table's other half is zero.
__m256i load_single(const uint8_t* bytes) {
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Adds the table entries of two units for kRows rows, which share the unpacking of the codes. Inlined, or the sums
// would live in memory.
template <size_t kRows>
ONNXPQ_ALWAYS_INLINE void accumulate(const uint8_t* const (&planes)[kRows], size_t offset, __m256i codes,
                                     IntegerSums (&rows)[kRows]) {
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  const __m256i halves[2] = {_mm256_and_si256(codes, nibble), _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble)};
  for (size_t row = 0; row < kRows; ++row) {
    const __m256i low_plane = load_pair(planes[row] + offset);
    const __m256i high_plane = load_pair(planes[row] + offset + kPairBytes / 2);
    for (size_t half = 0; half < 2; ++half) {
      const __m256i low = _mm256_shuffle_epi8(low_plane, halves[half]);
      const __m256i high = _mm256_shuffle_epi8(high_plane, halves[half]);
      __m256i* sums = rows[row].sums + 2 * half;
      sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(low, high));
      sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(low, high));
    }
  }
}

// y[8*i .. 8*i + 8] += sums * step
ONNXPQ_ALWAYS_INLINE void add_scaled(const IntegerSums& row, float step, __m256* y) {
  const __m256 factor = _mm256_set1_ps(step);
  for (size_t i = 0; i < 4; ++i) {
    const __m128i both = _mm_add_epi16(_mm256_castsi256_si128(row.sums[i]), _mm256_extracti128_si256(row.sums[i], 1));
    const __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(both));
    y[i] = _mm256_add_ps(y[i], _mm256_mul_ps(value, factor));
  }
}

// The sums of a block so far.
void load_block(const Weight& weight, size_t first, const float* y, __m256* sums) {
  float whole[kNibbleOutputs] = {};
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  for (size_t i = 0; i < count; ++i) whole[i] = y[first + i];
  for (size_t i = 0; i < 4; ++i) sums[i] = _mm256_loadu_ps(whole + 8 * i);
}

void store_block(const Weight& weight, size_t first, const __m256* sums, bool last, float* y) {
  float whole[kNibbleOutputs];
  for (size_t i = 0; i < 4; ++i) {
    const __m256 scale = _mm256_loadu_ps(weight.scales + first + 8 * i);
    const __m256 bias = _mm256_loadu_ps(weight.bias + first + 8 * i);
    _mm256_storeu_ps(whole + 8 * i, last ? _mm256_add_ps(_mm256_mul_ps(sums[i], scale), bias) : sums[i]);
  }
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  for (size_t i = 0; i < count; ++i) y[first + i] = whole[i];
}

template <size_t kRows>
void scan_block(const Weight& weight, const NibbleTables* tables, const Range& groups, size_t block, float* y) {
  const size_t S = weight.R * weight.M;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  const uint8_t* planes[kRows];
  __m256 outputs[kRows][4];
  for (size_t row = 0; row < kRows; ++row) {
    planes[row] = tables[row].planes;
    if (groups.begin > 0) {
      load_block(weight, block * kNibbleOutputs, y + row * weight.out, outputs[row]);
      continue;
    }
    float centre = 0.0f;
    for (size_t group = 0; group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (__m256& output : outputs[row]) output = _mm256_set1_ps(centre);
  }
  for (size_t group = groups.begin; group < groups.end; ++group) {
    size_t s = group * kGroupUnits;
    const size_t end = S - s < kGroupUnits ? S : s + kGroupUnits;
    IntegerSums sums[kRows];
    for (IntegerSums& row : sums) {
      for (__m256i& sum : row.sums) sum = _mm256_setzero_si256();
    }
    for (; s + 1 < end; s += 2) {
      accumulate(planes, s / 2 * kPairBytes, load_pair(codes + s * kUnitBytes), sums);
    }
    if (s < end) accumulate(planes, s / 2 * kPairBytes, load_single(codes + s * kUnitBytes), sums);
    for (size_t row = 0; row < kRows; ++row) add_scaled(sums[row], tables[row].steps[group], outputs[row]);
  }
  const bool last = groups.end * kGroupUnits >= S;
  for (size_t row = 0; row < kRows; ++row) {
    store_block(weight, block * kNibbleOutputs, outputs[row], last, y + row * weight.out);
  }
}

// Two rows share the unpacking of the codes; three would not fit into 16 registers.
constexpr size_t kScanRows = 2;

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                  float* y) {
  if (rows == kScanRows) {
    scan_block<kScanRows>(weight, tables, groups, block, y);
  } else {
    scan_block<1>(weight, tables, groups, block, y);
  }
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
      __m256 sum = _mm256_setzero_ps();
      for (size_t i = 0; i < length; ++i) {
        const __m256 element = _mm256_set1_ps(elements[i]);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(element, load8(codebook + i * width + k)));
      }
      _mm256_storeu_ps(tables + s * width + k, sum);
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

// ---- K > 16, kBatchRows rows: a register holds one entry for all of them ----

static_assert(kBatchRows == 8, "one register of 8 floats");

template <typename T>
void build_row_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t end,
                      float* tables) {
  const size_t width = weight.codebook_width;
  UnitWalk unit(weight, begin);
  for (size_t s = begin; s < end; ++s, unit.next()) {
    const T* codebook = codebooks + unit.codebook_row() * width;
    const float* elements = x + unit.x_begin() * kBatchRows;
    const size_t length = unit.x_count();
    for (size_t k = 0; k < width; k += 8, tables += 8 * kBatchRows) {
      __m256 sums[8];
      for (__m256& sum : sums) sum = _mm256_setzero_ps();
      for (size_t i = 0; i < length; ++i) {
        const __m256 element = _mm256_loadu_ps(elements + i * kBatchRows);
        float codewords[8];
        _mm256_storeu_ps(codewords, load8(codebook + i * width + k));
        for (size_t j = 0; j < 8; ++j) {
          sums[j] = _mm256_add_ps(sums[j], _mm256_mul_ps(element, _mm256_broadcast_ss(codewords + j)));
        }
      }
      for (size_t j = 0; j < 8; ++j) _mm256_storeu_ps(tables + j * kBatchRows, sums[j]);
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
    __m256 chains[kChains];
    for (size_t c = 0; c < kChains; ++c) chains[c] = _mm256_loadu_ps(sums + (i + c) * kBatchRows);
    for (size_t s = units.begin; s < units.end; ++s, codes += kUnitBytes, table += table_size) {
      for (size_t c = 0; c < kChains; ++c) {
        chains[c] = _mm256_add_ps(chains[c], _mm256_loadu_ps(table + codes[c] * kBatchRows));
      }
    }
    for (size_t c = 0; c < kChains; ++c) _mm256_storeu_ps(sums + (i + c) * kBatchRows, chains[c]);
  }
}

void scan_bytes(const Weight& weight, const float* tables, size_t begin, size_t end, float* y) {
  scan_byte_codes(weight, tables, begin, end, y);
}

// ---- K > 16, few outputs: two registers hold a block ----

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
      _mm256_storeu_ps(panel + i * kByteOutputs, load8(elements));
      _mm256_storeu_ps(panel + i * kByteOutputs + 8, load8(elements + 8));
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

// kRows rows share the loads of the panel.
template <size_t kRows>
void multiply_rows(const Weight& weight, const float* x, const Range& units, const float* panel, float* sums) {
  __m256 outputs[kRows][2];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t half = 0; half < 2; ++half) outputs[row][half] = _mm256_loadu_ps(sums + row * kByteOutputs + 8 * half);
  }
  UnitWalk unit(weight, units.begin);
  for (size_t s = units.begin; s < units.end; ++s, unit.next(), panel += weight.d * kByteOutputs) {
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    __m256 products[kRows][2];
    for (auto& row : products) row[0] = row[1] = _mm256_setzero_ps();
    for (size_t i = 0; i < length; ++i) {
      const __m256 first = _mm256_loadu_ps(panel + i * kByteOutputs);
      const __m256 second = _mm256_loadu_ps(panel + i * kByteOutputs + 8);
      for (size_t row = 0; row < kRows; ++row) {
        const __m256 element = _mm256_broadcast_ss(elements + row * weight.in + i);
        products[row][0] = _mm256_add_ps(products[row][0], _mm256_mul_ps(element, first));
        products[row][1] = _mm256_add_ps(products[row][1], _mm256_mul_ps(element, second));
      }
    }
    for (size_t row = 0; row < kRows; ++row) {
      for (size_t half = 0; half < 2; ++half) {
        outputs[row][half] = _mm256_add_ps(outputs[row][half], products[row][half]);
      }
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t half = 0; half < 2; ++half) _mm256_storeu_ps(sums + row * kByteOutputs + 8 * half, outputs[row][half]);
  }
}

void multiply_panel(const Weight& weight, const float* x, size_t rows, const Range& units, const float* panel,
                    float* sums) {
  constexpr size_t kPanelRows = 3;  // 12 sums and products
  size_t row = 0;
  for (; row + kPanelRows <= rows; row += kPanelRows) {
    multiply_rows<kPanelRows>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
  }
  for (; row < rows; ++row) multiply_rows<1>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2",     build_nibble_tables, scan_nibbles, kScanRows,    build_byte_tables,
                              scan_bytes, build_batch_tables,  scan_batch,   decode_panel, multiply_panel};

}  // namespace onnxpq
