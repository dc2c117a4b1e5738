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

namespace onnxpq {
namespace {

__m256 load8(const float* codewords) { return _mm256_loadu_ps(codewords); }

__m256 load8(const uint16_t* codewords) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codewords)));
}

// ---- K <= 16 ----

struct TableStatistics {
  __m256 finite;  // NaN in an element where a table entry was NaN or infinite
  float span, centre;
};

float minimum(__m256 v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

float maximum(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

bool any_nan(__m256 v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }

// Float tables of units [begin, begin + count), their centres and statistics.
template <typename T>
TableStatistics build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t count,
                                   float (*values)[kNibbleCodewords], float* centres) {
  TableStatistics statistics = {_mm256_setzero_ps(), 0.0f, 0.0f};
  UnitWalk unit(weight, begin);
  for (size_t j = 0; j < count; ++j, unit.next()) {
    const T* codeword = codebooks + unit.codebook_row() * kNibbleCodewords;
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    __m256 first = _mm256_setzero_ps(), second = _mm256_setzero_ps();
    for (size_t i = 0; i < length; ++i, codeword += kNibbleCodewords) {
      const __m256 element = _mm256_set1_ps(elements[i]);
      first = _mm256_add_ps(first, _mm256_mul_ps(element, load8(codeword)));
      second = _mm256_add_ps(second, _mm256_mul_ps(element, load8(codeword + 8)));
    }
    _mm256_storeu_ps(values[j], first);
    _mm256_storeu_ps(values[j] + 8, second);
    // 0 * entry is NaN exactly where the entry is not finite.
    const __m256 zero = _mm256_setzero_ps();
    statistics.finite = _mm256_add_ps(statistics.finite, _mm256_mul_ps(first, zero));
    statistics.finite = _mm256_add_ps(statistics.finite, _mm256_mul_ps(second, zero));
    const float low = 0.5f * minimum(_mm256_min_ps(first, second));
    const float high = 0.5f * maximum(_mm256_max_ps(first, second));
    centres[j] = low + high;
    statistics.span += high - low;
    statistics.centre += centres[j];
  }
  return statistics;
}

// round((value - centre) * scale) of 16 entries: low bytes to `low_bytes`, high bytes 32 further.
void quantize_table(const float* values, float centre, float scale, uint8_t* low_bytes) {
  const __m256 c = _mm256_set1_ps(centre), factor = _mm256_set1_ps(scale);
  const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values), c), factor));
  const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values + 8), c), factor));
  constexpr int kUndoLanes = 0xd8;  // both packs below work within 128-bit lanes
  const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), kUndoLanes);
  const __m256i low = _mm256_and_si256(q, _mm256_set1_epi16(0xff));
  const __m256i high = _mm256_srli_epi16(q, 8);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), kUndoLanes);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low_bytes), _mm256_castsi256_si128(bytes));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low_bytes + 2 * kNibbleCodewords), _mm256_extracti128_si256(bytes, 1));
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
  const bool finite = !any_nan(statistics.finite) && span - span == 0.0f;
  const bool usable = finite && span >= kMinSpan;
  const float scale = usable ? kTableRange / span : 0.0f;
  tables.steps[group] = usable ? span / kTableRange : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? statistics.centre : 0.0f;
  uint8_t* planes = tables.planes + begin / 2 * kPairBytes;
  if (!usable) {
    for (size_t j = 0; j < count; j += 2) clear_pair(planes + j / 2 * kPairBytes);
    return;
  }
  if (count % 2 != 0) clear_pair(planes + count / 2 * kPairBytes);
  for (size_t j = 0; j < count; ++j) {
    quantize_table(values[j], centres[j], scale, planes + j / 2 * kPairBytes + j % 2 * kNibbleCodewords);
  }
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

void store_block(const Weight& weight, size_t first, const __m256* sums, float* y) {
  float whole[kNibbleOutputs];
  for (size_t i = 0; i < 4; ++i) {
    const __m256 scale = _mm256_loadu_ps(weight.scales + first + 8 * i);
    const __m256 bias = _mm256_loadu_ps(weight.bias + first + 8 * i);
    _mm256_storeu_ps(whole + 8 * i, _mm256_add_ps(_mm256_mul_ps(sums[i], scale), bias));
  }
  const size_t count = weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
  for (size_t i = 0; i < count; ++i) y[first + i] = whole[i];
}

template <size_t kRows>
void scan_block(const Weight& weight, const NibbleTables* tables, size_t block, float* y) {
  const size_t S = weight.R * weight.M;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  const uint8_t* planes[kRows];
  __m256 outputs[kRows][4];
  for (size_t row = 0; row < kRows; ++row) {
    planes[row] = tables[row].planes;
    float centre = 0.0f;
    for (size_t group = 0; group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (__m256& output : outputs[row]) output = _mm256_set1_ps(centre);
  }
  for (size_t begin = 0; begin < S; begin += kGroupUnits) {
    const size_t end = S - begin < kGroupUnits ? S : begin + kGroupUnits;
    IntegerSums sums[kRows];
    for (IntegerSums& row : sums) {
      for (__m256i& sum : row.sums) sum = _mm256_setzero_si256();
    }
    size_t s = begin;
    for (; s + 1 < end; s += 2) {
      accumulate(planes, s / 2 * kPairBytes, load_pair(codes + s * kUnitBytes), sums);
    }
    if (s < end) accumulate(planes, s / 2 * kPairBytes, load_single(codes + s * kUnitBytes), sums);
    for (size_t row = 0; row < kRows; ++row)
      add_scaled(sums[row], tables[row].steps[begin / kGroupUnits], outputs[row]);
  }
  for (size_t row = 0; row < kRows; ++row)
    store_block(weight, block * kNibbleOutputs, outputs[row], y + row * weight.out);
}

// Two rows share the unpacking of the codes; three would not fit into 16 registers.
constexpr size_t kScanRows = 2;

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, size_t block, float* y) {
  if (rows == kScanRows) {
    scan_block<kScanRows>(weight, tables, block, y);
  } else {
    scan_block<1>(weight, tables, block, y);
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

void scan_batch(const Weight& weight, const float* tables, const UnitRange& units, size_t block, float* sums) {
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

}  // namespace

const Kernels kAvx2Kernels = {"avx2",     build_nibble_tables, scan_nibbles, kScanRows, build_byte_tables,
                              scan_bytes, build_batch_tables,  scan_batch};

}  // namespace onnxpq
