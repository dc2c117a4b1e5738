// What a kernel computes, as plain pointers: one set of functions per instruction set.
//
// Letters: `out`, `in` sizes of the layer; d sub-vector length; M = ceil(in/d) sub-vectors; K codewords; G codebook
// groups; R stages; S = R*M units, unit s = r*M + m. The format of the operator's inputs: onnxpq/operators/schema.py.
//
// ADDING AN INSTRUCTION SET
//   1. src/kernels/<name>.cpp defines `const Kernels k<Name>Kernels`, with the semantics of scalar.cpp: equal bit for
//   bit.
//   2. CMakeLists.txt lists it, with its own compiler flags and a COMPILE definition for dispatch.cpp.
//   3. dispatch.cpp names it and says when a processor has it.
//   tests/test_kernels.cpp then compares it with the scalar one of its own accord.
//   Include no inline function or template that other files use too: the linker keeps one copy, perhaps yours, and
//   older processors would then run your instructions.

#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxpq {

constexpr size_t kUnitBytes = 16;         // bytes of a unit of codes
constexpr size_t kNibbleCodewords = 16;   // K up to which two codes share a byte
constexpr size_t kNibbleOutputs = 32;     // outputs of a block of codes, K <= 16
constexpr size_t kByteOutputs = 16;       // outputs of a block of codes, K > 16
constexpr size_t kCodewordAlignment = 8;  // rows of a codebook are padded to a multiple of so many codewords

struct Range {
  size_t begin, end;
};

enum class Element { kFloat32, kFloat16 };

// A layer's weight. Padding never reaches a result.
struct Weight {
  size_t out, in;
  size_t d, M, R, G;
  size_t group_width;     // ceil(M/G): sub-vector m uses codebook group m / group_width
  size_t codewords;       // K
  size_t codebook_width;  // K rounded up; 16 where K <= 16. Entries past K repeat the last codeword
  bool fast;              // tables of 8 bits instead of 15; K <= 16 only
  Element codebook_element;
  const void* codebooks;  // [R*G][d][codebook_width], any alignment
  const uint8_t* codes;   // [blocks][S][16], any alignment
  const float* scales;    // [blocks * outputs of a block], padded
  const float* bias;      // [blocks * outputs of a block], padded
};

// ---- K <= 16: integer tables ------------------------------------------------------------------------------------
//
// T[s][k] = < x_m, C[r, g(m), :, k] >, summed in float32 over the elements in order, product rounded before the sum.
// Units are taken in groups of kGroupUnits. With centre c = mid-range and h = half-span of a unit's table, over the
// units of a group in order:
//     span = sum of h (fast: the largest h), centre = sum of c,
//     scale = range / span, step = span / range, q[s][k] = round_to_even((T[s][k] - c[s]) * scale).
// An entry has 15 bits: |sum of q| <= range + kGroupUnits / 2 < 2^14 whatever the codes, so that the sum of a group
// cannot overflow. It is stored in two planes, q mod 2^7 and floor(q / 2^7). The low ones of two units can be summed in
// a byte before they are widened, and the sum of the high ones is needed modulo 2^8 only: a byte holds it. Planes of
// two whole bytes would halve the error and cost a quarter more time (measured, AVX2).
// Fast tables have one plane of q + 128, |q| <= 127: 1.1 to 1.6 times as fast, about five times the error.
//
// A group with span < 1e-30 counts as constant (q = 0, step = 0); one with a NaN or an infinity has q = 0 and
// step = NaN, so that its row becomes NaN, never a finite wrong number.
//     y[o] = (sum of centres + sum over groups of (sum over units of q) * step) * scales[o] + bias[o]
// in float32, sums over groups in order, each product rounded before its sum.

constexpr size_t kGroupUnits = 64;
constexpr float kTableRange = 16340.0f;
constexpr float kFastTableRange = 127.0f;
constexpr float kMinSpan = 1e-30f;
constexpr unsigned kLowPlaneBits = 7;
constexpr unsigned kFastOffset = 128;
constexpr size_t kPlaneBytes = 32;  // of two units: 2 x 16 entries

// Bytes of two units: their low plane and their high plane, or their one plane.
constexpr size_t pair_bytes(bool fast) { return fast ? kPlaneBytes : 2 * kPlaneBytes; }

// A level that takes four units at a time pads them to such.
constexpr size_t kPaddedUnits = 4;
constexpr size_t plane_bytes(size_t S, bool fast) {
  return (S + kPaddedUnits - 1) / kPaddedUnits * (kPaddedUnits / 2) * pair_bytes(fast);
}

// The tables of one row of X. Where S is no multiple of a level's units, the rest of the last ones is zero. How the
// planes of several units are arranged is the level's own affair.
struct NibbleTables {
  uint8_t* planes;  // [plane_bytes(S, fast)], 64-byte aligned
  float* steps;     // [ceil(S/kGroupUnits)]
  float* centres;   // [ceil(S/kGroupUnits)]
};

// ---- K > 16: float tables ---------------------------------------------------------------------------------------
//
// T as above, [S][codebook_width] float32. y[o] = (sum over units in order of T[s][code[o, s]]) * scales[o] + bias[o].
//
// A processor does one or two lookups a cycle whatever they fetch. So where there are several rows, `batch_rows` of
// them share a lookup: their tables are interleaved, [units][codebook_width][batch_rows], and each entry is a vector.
// Each row's sums and their order are the same.

// Where a layer has fewer outputs than a table has entries, most entries are never looked up. The codewords themselves
// are then copied to a panel, [elements][kByteOutputs] of a block, and multiplied: T[s][code] is summed in the same
// order, for the codes that occur.

struct Kernels {
  const char* name;

  // Tables of one group of units for some rows of X [rows, in], as many of them as there are `tables`.
  void (*build_nibble_tables)(const Weight& weight, const float* x, size_t rows, size_t group,
                              const NibbleTables* tables);

  // Adds some groups of units to one block for `rows` rows, 1 to `scan_rows`. `y` is the first row's output [out], next
  // row `out` further: it holds the sums so far, and the outputs once the last group is in. Nothing of it is read for
  // group 0.
  void (*scan_nibbles)(const Weight& weight, const NibbleTables* tables, size_t rows, const Range& groups, size_t block,
                       float* y);
  size_t scan_rows;

  // Tables [codebook_width] of units [begin, end), at tables + s * codebook_width.
  void (*build_byte_tables)(const Weight& weight, const float* x, size_t begin, size_t end, float* tables);

  // Outputs of the blocks [begin, end) of one row; `y` is the row's output [out].
  void (*scan_bytes)(const Weight& weight, const float* tables, size_t begin, size_t end, float* y);

  // Interleaved tables of units [begin, end), the first one at `tables`; `x` is [in][batch_rows].
  void (*build_batch_tables)(const Weight& weight, const float* x, size_t begin, size_t end, float* tables);

  // Adds the entries of some units, the first one's table at `tables`, to the sums of one block,
  // [kByteOutputs][batch_rows].
  void (*scan_batch)(const Weight& weight, const float* tables, const Range& units, size_t block, float* sums);
  size_t batch_rows;

  // Panel of some units of a block; element i of unit s in row (s - units.begin) * d + i.
  void (*decode_panel)(const Weight& weight, const Range& units, size_t block, float* panel);

  // Adds the products of `rows` rows of X [rows, in] with a panel to their sums of the block, [rows][kByteOutputs].
  void (*multiply_panel)(const Weight& weight, const float* x, size_t rows, const Range& units, const float* panel,
                         float* sums);

  // float16 to float32, and back to the nearest or even.
  void (*widen)(const uint16_t* halves, size_t count, float* floats);
  void (*narrow)(const float* floats, size_t count, uint16_t* halves);
};

extern const Kernels kScalarKernels;
#if defined(ONNXPQ_COMPILE_AVX2)
extern const Kernels kAvx2Kernels;
#endif
#if defined(ONNXPQ_COMPILE_AVX512)
extern const Kernels kAvx512Kernels;
#endif
#if defined(ONNXPQ_COMPILE_NEON)
extern const Kernels kNeonKernels;
#endif

// All levels that this binary holds and this processor has, slowest first.
struct KernelList {
  const Kernels* levels[4];
  size_t count;
};
KernelList available_kernels();

// The fastest level, or the one that the environment variable ONNXPQ_SIMD names. Null where that one is unknown or
// absent; `refusal` [capacity] then says so.
const Kernels* choose_kernels(const char* wanted, char* refusal, size_t capacity);

}  // namespace onnxpq
