#include "pq_gather.h"

#include <cstring>

#include "kernels/half.h"
#include "kernels/unit_walk.h"

namespace onnxpq {
namespace {

// A task should take some microseconds, as in pq_matmul.cpp; in elements of Y.
constexpr size_t kTaskElements = 32 * 1024;

float element(const Weight& weight, size_t index) {
  if (weight.codebook_element == Element::kFloat32) {
    float value;
    std::memcpy(&value, static_cast<const unsigned char*>(weight.codebooks) + index * sizeof value, sizeof value);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, static_cast<const unsigned char*>(weight.codebooks) + index * sizeof half, sizeof half);
  return half_to_float(half);
}

// Where the codes of a row are: that of unit s at first[s * kUnitBytes], in the bits from `shift` on.
struct RowCodes {
  RowCodes(const Weight& table, size_t row) {
    const bool nibbles = table.codewords <= kNibbleCodewords;
    const size_t block_rows = nibbles ? kNibbleOutputs : kByteOutputs;
    const size_t place = row % block_rows;
    first = table.codes + row / block_rows * table.R * table.M * kUnitBytes + place % kUnitBytes;
    shift = nibbles && place >= kUnitBytes ? 4 : 0;
    mask = nibbles ? 15 : 255;
  }

  size_t of_unit(size_t s) const { return static_cast<size_t>(first[s * kUnitBytes] >> shift & mask); }

  const uint8_t* first;
  int shift, mask;
};

// D is d where the compiler is to know it, else 0.
template <size_t D>
void gather_row(const Weight& table, const Codewords& codewords, size_t row, float* y) {
  const RowCodes codes(table, row);
  const float scale = table.scales[row];
  const size_t d = D == 0 ? table.d : D, units = table.R * table.M;
  UnitWalk walk(table, 0);
  for (size_t s = 0; s < units; ++s, walk.next()) {
    const float* const codeword = codewords.of_codebook(walk.codebook()) + codes.of_unit(s) * d;
    float* const target = y + walk.x_begin();
    const auto each = [&](const auto& take) {
      const size_t count = walk.x_count();
      if constexpr (D != 0) {
        if (count == D) {
          for (size_t i = 0; i < D; ++i) take(i);
          return;
        }
      }
      for (size_t i = 0; i < count; ++i) take(i);
    };
    if (s < table.M) {
      each([&](size_t i) { target[i] = codeword[i]; });
    } else {
      each([&](size_t i) { target[i] += codeword[i]; });
    }
  }
  for (size_t i = 0; i < table.in; ++i) y[i] *= scale;
}

// The lengths that are chosen most.
auto gather_row_of(size_t d) {
  switch (d) {
    case 2:
      return gather_row<2>;
    case 4:
      return gather_row<4>;
    case 8:
      return gather_row<8>;
    default:
      return gather_row<0>;
  }
}

}  // namespace

Codewords::Codewords(const Weight& weight)
    : codewords_(weight.codewords), d_(weight.d), values_(weight.R * weight.G * weight.codewords * weight.d) {
  for (size_t codebook = 0; codebook < weight.R * weight.G; ++codebook) {
    float* const target = values_.data() + codebook * codewords_ * d_;
    for (size_t i = 0; i < d_; ++i) {
      for (size_t k = 0; k < codewords_; ++k) {
        target[k * d_ + i] = element(weight, (codebook * d_ + i) * weight.codebook_width + k);
      }
    }
  }
}

void pq_gather(const Weight& table, const Codewords& codewords, const int64_t* rows, size_t count, float* y,
               const ThreadPool& threads) {
  const auto gather = gather_row_of(table.d);
  for_ranges(threads, count, table.in * table.R, kTaskElements, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      gather(table, codewords, static_cast<size_t>(rows[i]), y + i * table.in);
    }
  });
}

}  // namespace onnxpq
