// What the kernels must return, straight from the definitions, one list at a time, in double.
//
//   rank         rk(a)_i = 1 + #{k : a_k > a_i}, and the other tie rules
//   blackbox     ( rk(a + lam g) - rk(a) ) / lam
//   RankReg      y = r / Z,  R = mean over P of y^p,  h = p y^(p-1) / |P|,  ( y(a + lam h) - y(a) )
//   / lam
//
// Masked items: rank 0, gradient 0. NaN: beats nothing, its rank and gradient are NaN.
#pragma once

#include <cstdint>
#include <vector>

#include "elements.h"

namespace oracle {

using elements::Type;
using rankreg::Ties;
using Values = std::vector<double>;
using Flags = std::vector<uint8_t>;  // empty: all true (a mask)

// Pairs counted one by one up to this length; beyond it counts come from a sorted copy, and a
// sample of them is counted one by one.
constexpr size_t kLiteralMax = 1200;

// V: double, int64_t or uint64_t.
template <class V>
Values ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties);

template <class V>
Values literal_ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties);
template <class V>
Values sorted_ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties);

// a + lam g (a - lam g if ascending), each operation rounded to the compute type of `type`.
Values moved(const Values& a, double lam, const Values& g, bool descending, Type type);

Values blackbox_gradient(const Values& a, const Values& g, double lam, const Flags& where,
                         bool descending, Ties ties, Type type);

// The same for g = 0 outside P, by the closed form for rare positives, P x n comparisons.
Values closed_form_gradient(const Values& a, const Values& g, const Flags& positives, double lam,
                            const Flags& where, Type type);

struct RankReg {
  bool counted;   // has a positive
  double value;   // R, 0 without one
  double length;  // Z
  Flags positives;
  Values ranks;
};
RankReg rankreg(const Values& a, const Flags& positives, const Flags& where, int64_t power,
                bool by_length);

// R again, but literally as the mean of y^p.
double rankreg_mean(const RankReg& list, int64_t power);

Values rankreg_gradient(const RankReg& list, const Values& a, const Flags& where, int64_t power,
                        double lam, double upstream, Type type);

double round_to_compute(Type type, double value);

}  // namespace oracle
