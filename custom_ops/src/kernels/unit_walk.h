// Which codebook and which elements of X the units have, in order, without a division after the first.

#pragma once

#include "kernels/kernels.h"

namespace onnxpq {
// A namespace without a name: each instruction set compiles its own copy (see ADDING AN INSTRUCTION SET).
namespace {

class UnitWalk {
 public:
  UnitWalk(const Weight& weight, size_t s) : weight_(weight), m_(s % weight.M) {
    const size_t group = m_ / weight.group_width;
    codebook_ = s / weight.M * weight.G + group;
    left_in_group_ = (group + 1) * weight.group_width - m_;
  }

  size_t codebook() const { return codebook_; }
  size_t codebook_row() const { return codebook_ * weight_.d; }  // of [R*G*d][codebook_width]
  size_t x_begin() const { return m_ * weight_.d; }
  size_t x_count() const {
    const size_t left = weight_.in - x_begin();
    return left < weight_.d ? left : weight_.d;
  }

  void next() {
    if (++m_ == weight_.M) {
      m_ = 0;
      // The last groups may have no sub-vector.
      codebook_ = (codebook_ / weight_.G + 1) * weight_.G;
      left_in_group_ = weight_.group_width;
    } else if (--left_in_group_ == 0) {
      ++codebook_;
      left_in_group_ = weight_.group_width;
    }
  }

 private:
  const Weight& weight_;
  size_t m_, codebook_, left_in_group_;
};

}  // namespace
}  // namespace onnxpq
