// AVX-512 with VBMI and VNNI, which came together (Intel from Ice Lake, AMD from Zen 4 on). No fused multiply-adds:
// products are rounded before they are summed, as in the scalar reference.
//
// K <= 16: four units of a block are a register of codes, and four tables one of entries. vpermb looks up 64 entries in
// a table of 64, so the two bits above a code can say whose unit's it is. With the four units of an output side by
// side, vpdpbusd adds their four entries to the output's sum in 32 bits: there is nothing to widen. Two instructions
// for 64 entries of a plane, where AVX2 takes five.

// GCC 12 takes the undefined register that its own intrinsics begin with for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

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
#define ONNXPQ_UNROLL _Pragma("GCC unroll 16")
#else
#define ONNXPQ_UNROLL
#endif

namespace onnxpq {
namespace {

constexpr size_t kQuad = 4;  // units of a register of codes
constexpr size_t kQuadCodeBytes = kQuad * kUnitBytes;
constexpr size_t kHalfOutputs = 16;  // a register of sums: the outputs of the low, of the high halves of the bytes
constexpr size_t kRegisterBytes = 64;

// Bytes of four units: their low plane and their high plane, entries of 16 codewords each, or their one plane, signed.
constexpr size_t quad_bytes(bool fast) { return fast ? kRegisterBytes : 2 * kRegisterBytes; }

// The first `count` elements of a register, all where it has no more.
ONNXPQ_ALWAYS_INLINE __mmask16 first_elements(size_t count) {
  return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffffu);
}

// ---- K <= 16: tables ----

__m512 load16(const float* codewords) { return _mm512_loadu_ps(codewords); }

__m512 load16(const uint16_t* codewords) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codewords)));
}

// The float tables of a unit for some rows of X, which share the codewords. `x` is the first row's elements, next row
// `in` further. kLength elements, or `length` where that is 0.
template <size_t kLength, size_t kRows, typename T>
ONNXPQ_ALWAYS_INLINE void float_tables(const T* codeword, const float* x, size_t in, size_t length, __m512* tables) {
  const __m512 first = load16(codeword);
  ONNXPQ_UNROLL
  for (size_t row = 0; row < kRows; ++row) tables[row] = _mm512_mul_ps(_mm512_set1_ps(x[row * in]), first);
  const size_t count = kLength == 0 ? length : kLength;
  ONNXPQ_UNROLL
  for (size_t i = 1; i < count; ++i) {
    const __m512 next = load16(codeword + i * kNibbleCodewords);
    ONNXPQ_UNROLL
    for (size_t row = 0; row < kRows; ++row) {
      tables[row] = _mm512_add_ps(tables[row], _mm512_mul_ps(_mm512_set1_ps(x[row * in + i]), next));
    }
  }
}

// Least and greatest of the entries of some tables, not yet down to one.
struct Extremes {
  __m512 low, high;
};

// Of two tables: in lanes 0 and 1 of the first, in lanes 2 and 3 of the second.
ONNXPQ_ALWAYS_INLINE Extremes extremes_of(__m512 a, __m512 b) {
  const __m512 first = _mm512_shuffle_f32x4(a, b, 0x44), second = _mm512_shuffle_f32x4(a, b, 0xee);
  return {_mm512_min_ps(first, second), _mm512_max_ps(first, second)};
}

// Of four tables, each in a lane.
ONNXPQ_ALWAYS_INLINE Extremes lanes_joined(const Extremes& a, const Extremes& b) {
  return {_mm512_min_ps(_mm512_shuffle_f32x4(a.low, b.low, 0x88), _mm512_shuffle_f32x4(a.low, b.low, 0xdd)),
          _mm512_max_ps(_mm512_shuffle_f32x4(a.high, b.high, 0x88), _mm512_shuffle_f32x4(a.high, b.high, 0xdd))};
}

// Of two tables in each lane, their elements in turns.
ONNXPQ_ALWAYS_INLINE Extremes elements_joined(const Extremes& a, const Extremes& b) {
  return {_mm512_min_ps(_mm512_unpacklo_ps(a.low, b.low), _mm512_unpackhi_ps(a.low, b.low)),
          _mm512_max_ps(_mm512_unpacklo_ps(a.high, b.high), _mm512_unpackhi_ps(a.high, b.high))};
}

ONNXPQ_ALWAYS_INLINE __m512 unpack_low_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
ONNXPQ_ALWAYS_INLINE __m512 unpack_high_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Of four tables in each lane, in order.
ONNXPQ_ALWAYS_INLINE Extremes pairs_joined(const Extremes& a, const Extremes& b) {
  return {_mm512_min_ps(unpack_low_pairs(a.low, b.low), unpack_high_pairs(a.low, b.low)),
          _mm512_max_ps(unpack_low_pairs(a.high, b.high), unpack_high_pairs(a.high, b.high))};
}

constexpr size_t kUnitsAtOnce = 16;  // their extremes are found side by side

// A group's tables of one row before they are rounded. Units past the group's last, up to a multiple of kUnitsAtOnce,
// are zero.
struct FloatTables {
  __m512 values[kGroupUnits];
  float centres[kGroupUnits];
  bool nan;
  float span, centre;

  // Takes the values of kUnitsAtOnce units from unit j on into the rest.
  ONNXPQ_ALWAYS_INLINE void add_statistics(size_t j, bool fast) {
    const __m512* tables = values + j;
    __mmask16 unordered = 0;
    Extremes quads[kQuad];
    ONNXPQ_UNROLL
    for (size_t i = 0; i < kQuad; ++i) {  // units i, 4 + i, 8 + i, 12 + i, so that they are in order in the end
      unordered = static_cast<__mmask16>(unordered | _mm512_cmp_ps_mask(tables[i], tables[4 + i], _CMP_UNORD_Q) |
                                         _mm512_cmp_ps_mask(tables[8 + i], tables[12 + i], _CMP_UNORD_Q));
      quads[i] = lanes_joined(extremes_of(tables[i], tables[4 + i]), extremes_of(tables[8 + i], tables[12 + i]));
    }
    nan = nan || unordered != 0;
    const Extremes all = pairs_joined(elements_joined(quads[0], quads[1]), elements_joined(quads[2], quads[3]));
    const __m512 half = _mm512_set1_ps(0.5f);
    const __m512 low = _mm512_mul_ps(half, all.low), high = _mm512_mul_ps(half, all.high);
    float spans[kUnitsAtOnce];
    _mm512_storeu_ps(centres + j, _mm512_add_ps(low, high));
    _mm512_storeu_ps(spans, _mm512_sub_ps(high, low));
#if defined(__GNUC__)
    // To be read from memory: the compiler would rather take the registers apart, element by element.
    __asm__("" : : "r"(spans), "r"(centres) : "memory");
#endif
    for (size_t i = 0; i < kUnitsAtOnce; ++i) {  // the units that are not there add zero, which changes no sum
      centre += centres[j + i];
      span = !fast ? span + spans[i] : spans[i] > span ? spans[i] : span;
    }
  }
};

// Units [begin, begin + count) for kRows rows.
template <size_t kLength, size_t kRows, typename T>
void build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t count,
                        FloatTables* rows) {
  for (size_t row = 0; row < kRows; ++row) {
    rows[row].nan = false;
    rows[row].span = rows[row].centre = 0.0f;
  }
  UnitWalk unit(weight, begin);
  for (size_t j = 0; j < count; j += kUnitsAtOnce) {
    for (size_t i = j; i < j + kUnitsAtOnce; ++i) {
      __m512 tables[kRows];
      if (i < count) {
        const T* codewords = codebooks + unit.codebook_row() * kNibbleCodewords;
        float_tables<kLength, kRows>(codewords, x + unit.x_begin(), weight.in, unit.x_count(), tables);
        if (i + 1 < count) unit.next();
      } else {
        for (__m512& table : tables) table = _mm512_setzero_ps();
      }
      ONNXPQ_UNROLL
      for (size_t row = 0; row < kRows; ++row) rows[row].values[i] = tables[row];
    }
    for (size_t row = 0; row < kRows; ++row) rows[row].add_statistics(j, weight.fast);
  }
}

template <size_t kRows, typename T>
void of_length(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t count,
               FloatTables* rows) {
  // The last sub-vector may be shorter than d.
  const size_t length = weight.in % weight.d == 0 ? weight.d : 0;
  const auto build = length == 2   ? build_float_tables<2, kRows, T>
                     : length == 4 ? build_float_tables<4, kRows, T>
                     : length == 8 ? build_float_tables<8, kRows, T>
                                   : build_float_tables<0, kRows, T>;
  build(weight, codebooks, x, begin, count, rows);
}

// round((value - centre) * scale) of the 16 entries of a unit.
ONNXPQ_ALWAYS_INLINE __m512i quantize_table(__m512 values, float centre, __m512 scale) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(values, _mm512_set1_ps(centre)), scale));
}

// The bytes of four tables, each a quarter of the entries of two in 16 bits, in order.
ONNXPQ_ALWAYS_INLINE void store_plane(__m512i first, __m512i second, uint8_t* plane) {
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  // The packs work within 128-bit lanes.
  _mm512_storeu_si512(plane, _mm512_permutexvar_epi32(in_order, _mm512_packs_epi16(first, second)));
}

// The planes of four units.
ONNXPQ_ALWAYS_INLINE void store_quad(const __m512* values, const float* centres, __m512 scale, bool fast,
                                     uint8_t* quad) {
  __m512i q[kQuad];
  ONNXPQ_UNROLL
  for (size_t i = 0; i < kQuad; ++i) q[i] = quantize_table(values[i], centres[i], scale);
  const __m512i first = _mm512_packs_epi32(q[0], q[1]), second = _mm512_packs_epi32(q[2], q[3]);
  if (fast) {
    store_plane(first, second, quad);
    return;
  }
  const __m512i low = _mm512_set1_epi16((1 << kLowPlaneBits) - 1);
  store_plane(_mm512_and_si512(first, low), _mm512_and_si512(second, low), quad);
  store_plane(_mm512_srai_epi16(first, kLowPlaneBits), _mm512_srai_epi16(second, kLowPlaneBits), quad + kRegisterBytes);
}

// The planes, the step and the centre of a group of one row.
void round_tables(const FloatTables& row, size_t group, size_t count, bool fast, const NibbleTables& tables) {
  // An infinite entry makes the span infinite or NaN.
  const bool finite = !row.nan && row.span - row.span == 0.0f;
  const bool usable = finite && row.span >= kMinSpan;
  const float range = fast ? kFastTableRange : kTableRange;
  const __m512 scale = _mm512_set1_ps(usable ? range / row.span : 0.0f);
  tables.steps[group] = usable ? row.span / range : finite ? 0.0f : NAN;
  tables.centres[group] = finite ? row.centre : 0.0f;
  const size_t bytes = quad_bytes(fast);
  uint8_t* quad = tables.planes + group * (kGroupUnits / kQuad) * bytes;
  for (size_t j = 0; j < count; j += kQuad, quad += bytes) {
    if (usable) {
      store_quad(row.values + j, row.centres + j, scale, fast, quad);
    } else {
      for (size_t i = 0; i < bytes; i += kRegisterBytes) _mm512_storeu_si512(quad + i, _mm512_setzero_si512());
    }
  }
}

template <size_t kRows>
void build_some_tables(const Weight& weight, const float* x, size_t group, const NibbleTables* tables) {
  const size_t S = weight.R * weight.M;
  const size_t begin = group * kGroupUnits;
  const size_t count = S - begin < kGroupUnits ? S - begin : kGroupUnits;
  FloatTables rows[kRows];
  if (weight.codebook_element == Element::kFloat16) {
    of_length<kRows>(weight, static_cast<const uint16_t*>(weight.codebooks), x, begin, count, rows);
  } else {
    of_length<kRows>(weight, static_cast<const float*>(weight.codebooks), x, begin, count, rows);
  }
  for (size_t row = 0; row < kRows; ++row) round_tables(rows[row], group, count, weight.fast, tables[row]);
}

void build_nibble_tables(const Weight& weight, const float* x, size_t rows, size_t group, const NibbleTables* tables) {
  constexpr size_t kSharing = 4;
  size_t row = 0;
  for (; rows - row >= kSharing; row += kSharing) {
    build_some_tables<kSharing>(weight, x + row * weight.in, group, tables + row);
  }
  for (; row < rows; ++row) build_some_tables<1>(weight, x + row * weight.in, group, tables + row);
}

// ---- K <= 16: scan ----

// Places in a table of four units: element i is for output i, its byte j for unit j; of outputs 0 to 15 and of outputs
// 16 to 31.
struct Places {
  __m512i halves[2];
};

ONNXPQ_ALWAYS_INLINE Places unpack(__m512i codes) {
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  const __m512i unit = _mm512_set1_epi32(0x30201000);
  // Byte 4 * i + j from byte 16 * j + i.
  const __m512i by_output =
      _mm512_add_epi32(_mm512_set1_epi32(0x30201000),
                       _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                          _mm512_set1_epi32(0x01010101)));
  const __m512i both = _mm512_permutexvar_epi8(by_output, codes);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  return {{_mm512_ternarylogic_epi32(both, nibble, unit, kAndOr),
           _mm512_ternarylogic_epi32(_mm512_srli_epi16(both, 4), nibble, unit, kAndOr)}};
}

// Sums of the entries of kRows rows. A sum waits for its last addition: where few rows give few sums, each plane or
// every other quad has sums of its own.
template <size_t kRows>
struct Sums {
  static constexpr size_t kChains = kRows <= 2 ? 2 : 1;
  __m512i chains[kRows][2][kChains];

  ONNXPQ_ALWAYS_INLINE void clear() {
    ONNXPQ_UNROLL
    for (size_t row = 0; row < kRows; ++row) {
      for (auto& half : chains[row]) {
        for (__m512i& chain : half) chain = _mm512_setzero_si512();
      }
    }
  }
};

// A table for two lookups, loaded once: the compiler would rather load it for each of them.
ONNXPQ_ALWAYS_INLINE __m512i load_table(const uint8_t* bytes) {
  __m512i table = _mm512_loadu_si512(bytes);
#if defined(__GNUC__)
  __asm__("" : "+v"(table));
#endif
  return table;
}

// chain += sums of four products of a byte without and a byte with a sign.
ONNXPQ_ALWAYS_INLINE void add_products(__m512i& chain, __m512i a, __m512i b) {
#if defined(__GNUC__) && !defined(__clang__)
  // GCC 12 would copy the sums before each of its own intrinsics.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(chain) : "v"(a), "v"(b));
#else
  chain = _mm512_dpbusd_epi32(chain, a, b);
#endif
}

// Adds the entries of four units, at `offset` in the planes of each row.
template <bool kFast, size_t kChain, size_t kRows>
ONNXPQ_ALWAYS_INLINE void add_quad(Sums<kRows>& sums, const uint8_t* const* planes, size_t offset,
                                   const Places& places) {
  constexpr size_t kLast = Sums<kRows>::kChains - 1;
  const __m512i ones = _mm512_set1_epi8(1), high_place = _mm512_set1_epi8(static_cast<char>(1 << kLowPlaneBits));
  ONNXPQ_UNROLL
  for (size_t row = 0; row < kRows; ++row) {
    const __m512i first = load_table(planes[row] + offset);
    ONNXPQ_UNROLL
    for (size_t half = 0; half < 2; ++half) {
      const __m512i entries = _mm512_permutexvar_epi8(places.halves[half], first);
      if (kFast) {
        add_products(sums.chains[row][half][kChain * kLast], ones, entries);
      } else {
        add_products(sums.chains[row][half][0], entries, ones);
      }
    }
    if (kFast) continue;
    const __m512i second = load_table(planes[row] + offset + kRegisterBytes);
    ONNXPQ_UNROLL
    for (size_t half = 0; half < 2; ++half) {
      const __m512i entries = _mm512_permutexvar_epi8(places.halves[half], second);
      add_products(sums.chains[row][half][kLast], high_place, entries);
    }
  }
}

// Adds the entries of `count` units, at most a group of them, to the sums.
template <bool kFast, size_t kRows>
ONNXPQ_ALWAYS_INLINE void add_units(Sums<kRows>& sums, const uint8_t* const* planes, const uint8_t* codes,
                                    size_t count) {
  // A single row reads the codes once, from memory where they have left the caches: asking for them ahead helps. The
  // address may lie past the codes, which is no fault for a prefetch.
  constexpr uintptr_t kAhead = 2048;
  size_t offset = 0, quad = 0;
  const auto next = [&] {
    const uint8_t* here = codes + quad++ * kQuadCodeBytes;
    if (kRows == 1) {
      _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(here) + kAhead), _MM_HINT_T0);
    }
    return unpack(_mm512_loadu_si512(here));
  };
  for (const size_t end = count / kQuad / 2 * 2; quad != end; offset += 2 * quad_bytes(kFast)) {
    add_quad<kFast, 0>(sums, planes, offset, next());
    add_quad<kFast, 1>(sums, planes, offset + quad_bytes(kFast), next());
  }
  if (quad != count / kQuad) {
    add_quad<kFast, 0>(sums, planes, offset, next());
    offset += quad_bytes(kFast);
  }
  if (const size_t left = count % kQuad; left != 0) {  // the tables of the units that are not there are zero
    const auto mask = static_cast<__mmask64>((uint64_t{1} << left * kUnitBytes) - 1);
    add_quad<kFast, 0>(sums, planes, offset, unpack(_mm512_maskz_loadu_epi8(mask, codes + quad * kQuadCodeBytes)));
  }
}

// Which of the 16 outputs from `first` on the layer has.
ONNXPQ_ALWAYS_INLINE __mmask16 outputs_from(const Weight& weight, size_t first) {
  return first < weight.out ? first_elements(weight.out - first) : __mmask16{0};
}

template <bool kFast, size_t kRows>
void scan_rows(const Weight& weight, const NibbleTables* tables, const Range& groups, size_t block, float* y) {
  const size_t S = weight.R * weight.M;
  const size_t first = block * kNibbleOutputs;
  const uint8_t* codes = weight.codes + block * S * kUnitBytes;
  const __mmask16 present[2] = {outputs_from(weight, first), outputs_from(weight, first + kHalfOutputs)};
  const uint8_t* planes[kRows];
  __m512 outputs[kRows][2];
  for (size_t row = 0; row < kRows; ++row) {
    planes[row] = tables[row].planes + groups.begin * (kGroupUnits / kQuad) * quad_bytes(kFast);
    float centre = 0.0f;
    for (size_t group = 0; groups.begin == 0 && group * kGroupUnits < S; ++group) centre += tables[row].centres[group];
    for (size_t half = 0; half < 2; ++half) {
      outputs[row][half] =
          groups.begin == 0 ? _mm512_set1_ps(centre)
                            : _mm512_maskz_loadu_ps(present[half], y + row * weight.out + first + half * kHalfOutputs);
    }
  }
  for (size_t group = groups.begin; group < groups.end; ++group) {
    const size_t begin = group * kGroupUnits;
    Sums<kRows> sums;
    sums.clear();
    add_units<kFast>(sums, planes, codes + begin * kUnitBytes, S - begin < kGroupUnits ? S - begin : kGroupUnits);
    ONNXPQ_UNROLL
    for (size_t row = 0; row < kRows; ++row) {
      planes[row] += kGroupUnits / kQuad * quad_bytes(kFast);
      const __m512 step = _mm512_set1_ps(tables[row].steps[group]);
      ONNXPQ_UNROLL
      for (size_t half = 0; half < 2; ++half) {
        __m512i sum = sums.chains[row][half][0];
        if (Sums<kRows>::kChains == 2) sum = _mm512_add_epi32(sum, sums.chains[row][half][Sums<kRows>::kChains - 1]);
        outputs[row][half] = _mm512_add_ps(outputs[row][half], _mm512_mul_ps(_mm512_cvtepi32_ps(sum), step));
      }
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t half = 0; half < 2; ++half) {
      const size_t place = first + half * kHalfOutputs;
      __m512 output = outputs[row][half];
      if (groups.end * kGroupUnits >= S) {
        output = _mm512_add_ps(_mm512_mul_ps(output, _mm512_loadu_ps(weight.scales + place)),
                               _mm512_loadu_ps(weight.bias + place));
      }
      if (present[half] != 0) _mm512_mask_storeu_ps(y + row * weight.out + place, present[half], output);
    }
  }
}

constexpr size_t kScanRows = 8;  // 16 registers of sums

template <bool kFast>
void scan_block(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                float* y) {
  size_t row = 0;
  const auto scan = [&](auto scan_some, size_t count) {
    for (; rows - row >= count; row += count) scan_some(weight, tables + row, groups, block, y + row * weight.out);
  };
  scan(scan_rows<kFast, 8>, 8);
  scan(scan_rows<kFast, 4>, 4);
  scan(scan_rows<kFast, 2>, 2);
  scan(scan_rows<kFast, 1>, 1);
}

void scan_nibbles(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                  float* y) {
  (weight.fast ? scan_block<true> : scan_block<false>)(weight, tables, rows, groups, block, y);
}

// ---- K > 16 ----

__m512 load_some(const float* codewords, __mmask16 present) { return _mm512_maskz_loadu_ps(present, codewords); }

__m512 load_some(const uint16_t* codewords, __mmask16 present) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, codewords));
}

template <typename T>
void build_float_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t end,
                        float* tables) {
  const size_t width = weight.codebook_width;
  UnitWalk unit(weight, begin);
  for (size_t s = begin; s < end; ++s, unit.next()) {
    const T* codebook = codebooks + unit.codebook_row() * width;
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    for (size_t k = 0; k < width; k += 16) {
      const __mmask16 present = first_elements(width - k);
      __m512 sum = _mm512_setzero_ps();
      for (size_t i = 0; i < length; ++i) {
        const __m512 products =
            _mm512_mul_ps(_mm512_set1_ps(elements[i]), load_some(codebook + i * width + k, present));
        sum = _mm512_add_ps(sum, products);
      }
      _mm512_mask_storeu_ps(tables + s * width + k, present, sum);
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

// ---- K > 16, kBatchRows rows: a register holds one entry for all of them ----

constexpr size_t kBatchRows = 16;

template <typename T>
void build_row_tables(const Weight& weight, const T* codebooks, const float* x, size_t begin, size_t end,
                      float* tables) {
  constexpr size_t kCodewords = kCodewordAlignment;
  const size_t width = weight.codebook_width;
  UnitWalk unit(weight, begin);
  for (size_t s = begin; s < end; ++s, unit.next()) {
    const T* codebook = codebooks + unit.codebook_row() * width;
    const float* elements = x + unit.x_begin() * kBatchRows;
    const size_t length = unit.x_count();
    for (size_t k = 0; k < width; k += kCodewords, tables += kCodewords * kBatchRows) {
      __m512 sums[kCodewords];
      for (__m512& sum : sums) sum = _mm512_setzero_ps();
      for (size_t i = 0; i < length; ++i) {
        const __m512 element = _mm512_loadu_ps(elements + i * kBatchRows);
        float codewords[16];
        _mm512_storeu_ps(codewords, load_some(codebook + i * width + k, (1u << kCodewords) - 1));
        ONNXPQ_UNROLL
        for (size_t j = 0; j < kCodewords; ++j) {
          sums[j] = _mm512_add_ps(sums[j], _mm512_mul_ps(element, _mm512_set1_ps(codewords[j])));
        }
      }
      for (size_t j = 0; j < kCodewords; ++j) _mm512_storeu_ps(tables + j * kBatchRows, sums[j]);
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
    __m512 chains[kChains];
    for (size_t c = 0; c < kChains; ++c) chains[c] = _mm512_loadu_ps(sums + (i + c) * kBatchRows);
    for (size_t s = units.begin; s < units.end; ++s, codes += kUnitBytes, table += table_size) {
      ONNXPQ_UNROLL
      for (size_t c = 0; c < kChains; ++c) {
        chains[c] = _mm512_add_ps(chains[c], _mm512_loadu_ps(table + codes[c] * kBatchRows));
      }
    }
    for (size_t c = 0; c < kChains; ++c) _mm512_storeu_ps(sums + (i + c) * kBatchRows, chains[c]);
  }
}

// ---- K > 16, few outputs: a register holds a block ----

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
      _mm512_storeu_ps(panel + i * kByteOutputs, load16(elements));
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
  __m512 outputs[kRows];
  for (size_t row = 0; row < kRows; ++row) outputs[row] = _mm512_loadu_ps(sums + row * kByteOutputs);
  UnitWalk unit(weight, units.begin);
  for (size_t s = units.begin; s < units.end; ++s, unit.next(), panel += weight.d * kByteOutputs) {
    const float* elements = x + unit.x_begin();
    const size_t length = unit.x_count();
    __m512 products[kRows];
    for (__m512& product : products) product = _mm512_setzero_ps();
    for (size_t i = 0; i < length; ++i) {
      const __m512 codewords = _mm512_loadu_ps(panel + i * kByteOutputs);
      ONNXPQ_UNROLL
      for (size_t row = 0; row < kRows; ++row) {
        const __m512 element = _mm512_set1_ps(elements[row * weight.in + i]);
        products[row] = _mm512_add_ps(products[row], _mm512_mul_ps(element, codewords));
      }
    }
    ONNXPQ_UNROLL
    for (size_t row = 0; row < kRows; ++row) outputs[row] = _mm512_add_ps(outputs[row], products[row]);
  }
  for (size_t row = 0; row < kRows; ++row) _mm512_storeu_ps(sums + row * kByteOutputs, outputs[row]);
}

void multiply_panel(const Weight& weight, const float* x, size_t rows, const Range& units, const float* panel,
                    float* sums) {
  constexpr size_t kPanelRows = 8;  // 16 sums and products
  size_t row = 0;
  for (; row + kPanelRows <= rows; row += kPanelRows) {
    multiply_rows<kPanelRows>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
  }
  for (; row < rows; ++row) multiply_rows<1>(weight, x + row * weight.in, units, panel, sums + row * kByteOutputs);
}

// ---- float16 X and Y ----

void widen(const uint16_t* halves, size_t count, float* floats) {
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 present = first_elements(count - i);
    _mm512_mask_storeu_ps(floats + i, present, load_some(halves + i, present));
  }
}

void narrow(const float* floats, size_t count, uint16_t* halves) {
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 present = first_elements(count - i);
    const __m512 wide = _mm512_maskz_loadu_ps(present, floats + i);
    _mm256_mask_storeu_epi16(halves + i, present, _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
  }
}

}  // namespace

const Kernels kAvx512Kernels = {"avx512",
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
