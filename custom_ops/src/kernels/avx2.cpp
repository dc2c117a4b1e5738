// AVX2 and F16C. No FMA: products are rounded before they are summed, as in the scalar reference.

#include <immintrin.h>
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
ONNXPQ_ALWAYS_INLINE FloatTable products(const T* codeword, const float* x) {
  const __m256 element = _mm256_broadcast_ss(x);
  return {_mm256_mul_ps(element, load8(codeword)), _mm256_mul_ps(element, load8(codeword + 8))};
}

// kLength elements, or `length` where that is 0.
template <size_t kLength, typename T>
ONNXPQ_ALWAYS_INLINE FloatTable float_table(const T* codeword, const float* x, size_t length) {
  FloatTable table = products(codeword, x);
  const size_t count = kLength == 0 ? length : kLength;
  ONNXPQ_UNROLL_QUAD
  for (size_t i = 1; i < count; ++i) {
    const FloatTable next = products(codeword + i * kNibbleCodewords, x + i);
    table.first = _mm256_add_ps(table.first, next.first);
    table.second = _mm256_add_ps(table.second, next.second);
  }
  return table;
}

// The two halves of a register, element by element: the smaller, the larger.
__m128 smaller_half(__m256 v) { return _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
__m128 larger_half(__m256 v) { return _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

// The span of a group so far and that of one more unit.
float combined(float span, float unit, bool fast) {
  if (!fast) return span + unit;
  return unit > span ? unit : span;
}

constexpr size_t kQuad = 4;  // units whose extremes are found side by side

// Float tables of units [begin, begin + count), their centres and statistics. Entries of `values` and `centres` past
// `count` up to a multiple of kQuad become zero.
template <size_t kLength, typename T>
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
        const T* codewords = codebooks + unit.codebook_row() * kNibbleCodewords;
        table = float_table<kLength>(codewords, x + unit.x_begin(), unit.x_count());
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
      statistics.span = combined(statistics.span, spans[q], weight.fast);
      statistics.centre += centres[j + q];
    }
  }
  return statistics;
}

template <typename T>
TableStatistics of_length(size_t length, const Weight& weight, const T* codebooks, const float* x, size_t begin,
                          size_t count, float (*values)[kNibbleCodewords], float* centres) {
  const auto build = length == 2   ? build_float_tables<2, T>
                     : length == 4 ? build_float_tables<4, T>
                     : length == 8 ? build_float_tables<8, T>
                                   : build_float_tables<0, T>;
  return build(weight, codebooks, x, begin, count, values, centres);
}

// round((value - centre) * scale) of the 16 entries of a unit as int16: entries 0-3, 8-11 and 4-7, 12-15 of each lane.
ONNXPQ_ALWAYS_INLINE __m256i quantize_table(const float* values, float centre, __m256 scale) {
  const __m256 c = _mm256_set1_ps(centre);
  const __m256 first = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values), c), scale);
  const __m256 second = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values + 8), c), scale);
  return _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
}

// The bytes of two tables of quantize_table, entries in order.
ONNXPQ_ALWAYS_INLINE void store_plane(__m256i a, __m256i b, __m256i offset, uint8_t* plane) {
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // the packs work within 128-bit lanes
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), in_order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(plane), _mm256_xor_si256(bytes, offset));
}

// The planes of two units.
ONNXPQ_ALWAYS_INLINE void store_pair(const float (*values)[kNibbleCodewords], const float* centres, __m256 scale,
                                     bool fast, uint8_t* pair) {
  const __m256i a = quantize_table(values[0], centres[0], scale), b = quantize_table(values[1], centres[1], scale);
  if (fast) {
    store_plane(a, b, _mm256_set1_epi8(static_cast<char>(kFastOffset)), pair);
    return;
  }
  const __m256i low = _mm256_set1_epi16((1 << kLowPlaneBits) - 1), none = _mm256_setzero_si256();
  store_plane(_mm256_and_si256(a, low), _mm256_and_si256(b, low), none, pair);
  store_plane(_mm256_srai_epi16(a, kLowPlaneBits), _mm256_srai_epi16(b, kLowPlaneBits), none, pair + kPlaneBytes);
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
  // The last sub-vector may be shorter than d.
  const size_t length = weight.in % weight.d == 0 ? weight.d : 0;
  const TableStatistics statistics =
      weight.codebook_element == Element::kFloat16
          ? of_length(length, weight, static_cast<const uint16_t*>(weight.codebooks), x, begin, count, values, centres)
          : of_length(length, weight, static_cast<const float*>(weight.codebooks), x, begin, count, values, centres);
  const float span = statistics.span;
  // An infinite entry makes the span infinite or NaN.
  const bool finite = _mm256_movemask_ps(statistics.nan) == 0 && span - span == 0.0f;
  const bool usable = finite && span >= kMinSpan;
  const float range = weight.fast ? kFastTableRange : kTableRange;
  const float scale = usable ? range / span : 0.0f;
  tables.steps[group] = usable ? span / range : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? statistics.centre : 0.0f;
  const size_t bytes = pair_bytes(weight.fast);
  uint8_t* planes = tables.planes + begin / 2 * bytes;
  if (!usable) {
    clear_tables(count, weight.fast, planes);
    return;
  }
  const __m256 factor = _mm256_set1_ps(scale);
  for (size_t j = 0; j < count; j += 2) {
    store_pair(values + j, centres + j, factor, weight.fast, planes + j / 2 * bytes);
  }
  if (count % 2 != 0 && weight.fast) memset(planes + count * kNibbleCodewords, 0, kNibbleCodewords);
}

void build_nibble_tables(const Weight& weight, const float* x, size_t rows, size_t group, const NibbleTables* tables) {
  for (size_t row = 0; row < rows; ++row) build_group(weight, x + row * weight.in, group, tables[row]);
}

// Sums of table entries of the 32 outputs of a block for one row: element i of [half] is output 16 * half + i. One
// 128-bit lane sums the even units, the other the odd ones. To widen bytes to 16 bits without a shuffle (a processor
// does more additions at a time than shuffles), they are added as if pairs of them were numbers of 16 bits, and those
// at odd places once more by themselves: what these have added to the first sum is subtracted in the end.
template <bool kFast>
struct Sums {
  __m256i pairs[2];  // of the low planes or the only ones, in 16 bits: even places + 2^8 * odd places, modulo 2^16
  __m256i odd[2];    // of the odd places alone
  __m256i high[2];   // of the high planes, modulo 2^8; unused where kFast
};

__m256i load32(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// A table for several shuffles, loaded once: the compiler would rather load it for each of them, which costs a tenth of
// the time.
ONNXPQ_ALWAYS_INLINE __m256i load_table(const uint8_t* bytes) {
  __m256i table = load32(bytes);
#if defined(__GNUC__)
  __asm__("" : "+x"(table));
#endif
  return table;
}

// The last unit of an odd number: the 16 bytes after it may lie outside of the codes. Its table's other half is zero.
__m256i load_single(const uint8_t* bytes) {
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Codes of two units: of outputs 0 to 15 and of outputs 16 to 31.
struct Codes {
  __m256i halves[2];
};

ONNXPQ_ALWAYS_INLINE Codes unpack(__m256i both) {
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  return {{_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)}};
}

template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_widened(Sums<kFast>& sums, size_t half, __m256i bytes) {
  sums.pairs[half] = _mm256_add_epi16(sums.pairs[half], bytes);
  sums.odd[half] = _mm256_add_epi16(sums.odd[half], _mm256_srli_epi16(bytes, 8));
}

template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_high(Sums<kFast>& sums, const uint8_t* pair, const Codes& codes) {
  const __m256i plane = load_table(pair + kPlaneBytes);
  for (size_t half = 0; half < 2; ++half) {
    sums.high[half] = _mm256_add_epi8(sums.high[half], _mm256_shuffle_epi8(plane, codes.halves[half]));
  }
}

// Keeps the sums in the same registers from one turn of a loop to the next; without it the compiler copies all of them
// in every turn, which costs a fifth of the time.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void keep_in_registers(Sums<kFast>& sums) {
#if defined(__GNUC__)
  for (size_t half = 0; half < 2; ++half) {
    __asm__("" : "+x"(sums.pairs[half]), "+x"(sums.odd[half]));
    if (!kFast) __asm__("" : "+x"(sums.high[half]));
  }
#else
  (void)sums;
#endif
}

// Adds the table entries of four units.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_units(Sums<kFast>& sums, const uint8_t* planes, const Codes& first, const Codes& second) {
  const uint8_t* next = planes + pair_bytes(kFast);
  __m256i plane = load_table(planes);
  __m256i low[2] = {_mm256_shuffle_epi8(plane, first.halves[0]), _mm256_shuffle_epi8(plane, first.halves[1])};
  plane = load_table(next);
  for (size_t half = 0; half < 2; ++half) {
    const __m256i other = _mm256_shuffle_epi8(plane, second.halves[half]);
    if (kFast) {
      add_widened(sums, half, low[half]);
      add_widened(sums, half, other);
    } else {
      add_widened(sums, half, _mm256_add_epi8(low[half], other));
    }
  }
  if (!kFast) {
    add_high(sums, planes, first);
    add_high(sums, next, second);
  }
}

// Adds the table entries of two units.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_units(Sums<kFast>& sums, const uint8_t* planes, const Codes& codes) {
  const __m256i plane = load_table(planes);
  for (size_t half = 0; half < 2; ++half) add_widened(sums, half, _mm256_shuffle_epi8(plane, codes.halves[half]));
  if (!kFast) add_high(sums, planes, codes);
}

__m128i lanes_added16(__m256i v) {
  return _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

__m128i lanes_added8(__m256i v) {
  return _mm_add_epi8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

// Sums of 16 outputs so far: those at even places, those at odd places.
struct Halves {
  __m256 even, odd;
};

// outputs += sums * step; `count` units are in the sums.
template <bool kFast>
ONNXPQ_ALWAYS_INLINE void add_scaled(const Sums<kFast>& sums, size_t count, float step, Halves* outputs) {
  const __m256 factor = _mm256_set1_ps(kFast ? step : 0.5f * step);
  for (size_t half = 0; half < 2; ++half) {
    __m128i odd = lanes_added16(sums.odd[half]);
    __m128i even = _mm_sub_epi16(lanes_added16(sums.pairs[half]), _mm_slli_epi16(odd, 8));
    if (kFast) {
      const __m128i offset = _mm_set1_epi16(static_cast<int16_t>(kFastOffset * count));
      even = _mm_sub_epi16(even, offset);
      odd = _mm_sub_epi16(odd, offset);
    } else {  // twice the sums, which have 15 bits: 2^8 * high + 2 * low
      const __m128i high = lanes_added8(sums.high[half]);
      even = _mm_add_epi16(_mm_slli_epi16(high, 8), _mm_add_epi16(even, even));
      odd = _mm_add_epi16(_mm_andnot_si128(_mm_set1_epi16(0xff), high), _mm_add_epi16(odd, odd));
    }
    const __m256 even_value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(even));
    const __m256 odd_value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(odd));
    outputs[half].even = _mm256_add_ps(outputs[half].even, _mm256_mul_ps(even_value, factor));
    outputs[half].odd = _mm256_add_ps(outputs[half].odd, _mm256_mul_ps(odd_value, factor));
  }
}

// Outputs of a block that begins with output `first`.
size_t block_outputs(const Weight& weight, size_t first) {
  return weight.out - first < kNibbleOutputs ? weight.out - first : kNibbleOutputs;
}

// The sums of a block so far. Only the last block may be shorter and takes the way over an array.
void load_block(const Weight& weight, size_t first, const float* y, Halves* sums) {
  float padded[kNibbleOutputs];
  const float* whole = y + first;
  if (const size_t count = block_outputs(weight, first); count < kNibbleOutputs) {
    for (size_t i = 0; i < kNibbleOutputs; ++i) padded[i] = i < count ? y[first + i] : 0.0f;
    whole = padded;
  }
  for (size_t half = 0; half < 2; ++half) {
    const __m256 a = _mm256_loadu_ps(whole + 16 * half), b = _mm256_loadu_ps(whole + 16 * half + 8);
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
    sums[half].even = _mm256_castpd_ps(_mm256_permute4x64_pd(even, _MM_SHUFFLE(3, 1, 2, 0)));
    sums[half].odd = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, _MM_SHUFFLE(3, 1, 2, 0)));
  }
}

void store_block(const Weight& weight, size_t first, const Halves* sums, bool last, float* y) {
  float padded[kNibbleOutputs];
  const size_t count = block_outputs(weight, first);
  float* const whole = count < kNibbleOutputs ? padded : y + first;
  for (size_t half = 0; half < 2; ++half) {
    const __m256 a = _mm256_unpacklo_ps(sums[half].even, sums[half].odd);
    const __m256 b = _mm256_unpackhi_ps(sums[half].even, sums[half].odd);
    const __m256 in_order[2] = {_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)};
    for (size_t i = 0; i < 2; ++i) {
      const size_t place = 16 * half + 8 * i;
      const __m256 scale = _mm256_loadu_ps(weight.scales + first + place);
      const __m256 bias = _mm256_loadu_ps(weight.bias + first + place);
      _mm256_storeu_ps(whole + place, last ? _mm256_add_ps(_mm256_mul_ps(in_order[i], scale), bias) : in_order[i]);
    }
  }
  for (size_t i = 0; whole == padded && i < count; ++i) y[first + i] = padded[i];
}

// The codes of a group of units as the file has them. A single row reads them once, from memory where they have left
// the caches: asking for them ahead makes it 1.15 times as fast then (measured). The address may lie past the codes,
// which is no fault for a prefetch.
struct PackedCodes {
  static constexpr uintptr_t kAhead = 1024;

  ONNXPQ_ALWAYS_INLINE Codes pair(size_t i) const {
    const uint8_t* both = codes + 2 * i * kUnitBytes;
    if (i % 2 == 0) {
      _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(both) + kAhead), _MM_HINT_T0);
    }
    return unpack(load32(both));
  }
  ONNXPQ_ALWAYS_INLINE Codes single(size_t i) const { return unpack(load_single(codes + 2 * i * kUnitBytes)); }

  const uint8_t* codes;
};

// The same, unpacked once for several rows: an operand in memory costs a shuffle nothing.
class UnpackedCodes {
 public:
  UnpackedCodes(const PackedCodes& packed, size_t count) {
    for (size_t i = 0; i < count / 2; ++i) codes_[i] = packed.pair(i);
    if (count % 2 != 0) codes_[count / 2] = packed.single(count / 2);
  }
  ONNXPQ_ALWAYS_INLINE const Codes& pair(size_t i) const { return codes_[i]; }
  ONNXPQ_ALWAYS_INLINE const Codes& single(size_t i) const { return codes_[i]; }

 private:
  Codes codes_[kGroupUnits / 2];
};

// outputs += the sums of `count` units, at most a group of them.
template <bool kFast, typename GroupCodes>
ONNXPQ_ALWAYS_INLINE void add_group(const uint8_t* planes, const GroupCodes& codes, size_t count, float step,
                                    Halves* outputs) {
  Sums<kFast> sums;
  for (size_t half = 0; half < 2; ++half) {
    sums.pairs[half] = sums.odd[half] = sums.high[half] = _mm256_setzero_si256();
  }
  size_t pair = 0;
  for (const size_t end = count / 4 * 2; pair != end; pair += 2, planes += 2 * pair_bytes(kFast)) {
    keep_in_registers(sums);
    add_units(sums, planes, codes.pair(pair), codes.pair(pair + 1));
  }
  for (; 2 * pair < count; ++pair, planes += pair_bytes(kFast)) {
    add_units(sums, planes, 2 * pair + 1 == count ? codes.single(pair) : codes.pair(pair));
  }
  add_scaled(sums, count, step, outputs);
}

// Rows that share unpacked codes; more would need no fewer instructions each, but more memory for their sums. Unpacking
// pays from kUnpackRows on (measured).
constexpr size_t kScanRows = 8;
constexpr size_t kUnpackRows = 5;

template <bool kFast>
void scan_block(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                float* y) {
  const size_t S = weight.R * weight.M;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  Halves outputs[kScanRows][2];
  for (size_t row = 0; row < rows; ++row) {
    if (groups.begin > 0) {
      load_block(weight, block * kNibbleOutputs, y + row * weight.out, outputs[row]);
      continue;
    }
    float centre = 0.0f;
    for (size_t group = 0; group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (Halves& half : outputs[row]) half.even = half.odd = _mm256_set1_ps(centre);
  }
  for (size_t group = groups.begin; group < groups.end; ++group) {
    const size_t begin = group * kGroupUnits;
    const size_t count = S - begin < kGroupUnits ? S - begin : kGroupUnits;
    const size_t plane = begin / 2 * pair_bytes(kFast);
    const PackedCodes packed = {codes + begin * kUnitBytes};
    const auto add_to_rows = [&](const auto& group_codes) {
      for (size_t row = 0; row < rows; ++row) {
        add_group<kFast>(tables[row].planes + plane, group_codes, count, tables[row].steps[group], outputs[row]);
      }
    };
    if (rows < kUnpackRows) {
      add_to_rows(packed);
    } else {
      add_to_rows(UnpackedCodes(packed, count));
    }
  }
  const bool last = groups.end * kGroupUnits >= S;
  for (size_t row = 0; row < rows; ++row) {
    store_block(weight, block * kNibbleOutputs, outputs[row], last, y + row * weight.out);
  }
}

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                  float* y) {
  (weight.fast ? scan_block<true> : scan_block<false>)(weight, tables, rows, groups, block, y);
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

// ---- float16 X and Y ----

void widen(const uint16_t* halves, size_t count, float* floats) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(floats + i, load8(halves + i));
  for (; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

void narrow(const float* floats, size_t count, uint16_t* halves) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(floats + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i), eight);
  }
  for (; i < count; ++i) halves[i] = float_to_half(floats[i]);
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2",
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
