// The formulas of the contract, each stated once. Every operation here rounds once, to nearest
// even: a fused multiply-add or a reassociation would let two back-ends disagree about a rank.
#pragma once

#include "types.h"

namespace rankreg {

// a+ = a + lam g, and a - lam g for ascending ranks: a product, then a sum.
template <class C>
RANKREG_HD inline C perturb(C a, C lam, C g, bool descending = true) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(C) == 4) {
    const C step = __fmul_rn(lam, g);
    return descending ? __fadd_rn(a, step) : __fsub_rn(a, step);
  } else {
    const C step = __dmul_rn(lam, g);
    return descending ? __dadd_rn(a, step) : __dsub_rn(a, step);
  }
#else
  const C step = lam * g;  // compiled with -ffp-contract=off
  return descending ? a + step : a - step;
#endif
}

// upstream * (r' - r) / divisor; the difference is exact in the type R of the ranks.
template <class C, class R>
RANKREG_HD inline C gradient(R moved_rank, R rank, C divisor, C upstream = C(1)) {
  return upstream * (C(moved_rank - rank) / divisor);
}

// x^exponent by repeated multiplication.
RANKREG_HD inline double integer_power(double x, int64_t exponent) {
  double out = 1;
  for (int64_t i = 0; i < exponent; ++i)
    out *= x;
  return out;
}

// RankReg of one list: y = r / Z, R = mean over P of y^p, h = dR/dy = p y^(p-1) / |P|.
struct RankReg {
  int64_t power;
  double length;     // Z
  double positives;  // |P|

  RANKREG_HD double term(double rank) const { return integer_power(rank, power); }

  // The sum of the terms, integers below 2^53, is exact in any order.
  RANKREG_HD double value(double sum_of_terms) const {
    return sum_of_terms / (integer_power(length, power) * positives);
  }

  RANKREG_HD double inner_gradient(double rank) const {
    return double(power) * integer_power(rank, power - 1) /
           (integer_power(length, power - 1) * positives);
  }

  // The divisor of (r' - r) in dR/da.
  template <class C>
  RANKREG_HD C divisor(C lam) const {
    return C(length * double(lam));
  }
};

}  // namespace rankreg
