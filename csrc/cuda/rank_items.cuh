// What every ranking kernel reads and writes: the items of each list, as they are or moved by
// lam * grad, and the place for their ranks, or for the gradient made of them.
//
// Element types are known at run time only. A kernel is compiled once per width of key; the type
// costs it a branch that all threads take alike.
#pragma once

#include "../common/formulas.h"
#include "../common/keys.h"
#include "device.cuh"

namespace rankreg {
namespace gpu {

// std::numeric_limits has none for device code.
template <class C>
RANKREG_HD inline C nan_of() {
  if constexpr (sizeof(C) == 4)
    return bit_cast<C>(0x7fc00000u);
  else
    return bit_cast<C>(uint64_t{0x7ff8000000000000u});
}

// A floating-point element as C, which holds it exactly.
template <class C>
RANKREG_HD inline C number_at(const void* data, Type type, int64_t at) {
  switch (type) {
    case Type::kHalf: return C(widen(static_cast<const Half*>(data)[at]));
    case Type::kBFloat16: return C(widen(static_cast<const BFloat16*>(data)[at]));
    case Type::kFloat: return C(static_cast<const float*>(data)[at]);
    default: return C(static_cast<const double*>(data)[at]);
  }
}

// Where a view has its element, in elements from its data.
RANKREG_HD inline int64_t offset(const View& view, int64_t list, int64_t i) {
  return list * view.list_stride + i * view.stride;
}

RANKREG_HD inline bool present_at(const View& mask, int64_t list, int64_t i) {
  return mask.data == nullptr || static_cast<const uint8_t*>(mask.data)[offset(mask, list, i)] != 0;
}

// Bytes of the key of an item; perturbed scores are of the compute type.
inline int key_bytes(Type type, bool moved) {
  switch (type) {
    case Type::kHalf:
    case Type::kBFloat16: return moved ? 4 : 2;
    case Type::kFloat:
    case Type::kI32:
    case Type::kU32: return 4;
    case Type::kDouble:
    case Type::kI64:
    case Type::kU64: return 8;
    default: return 2;
  }
}

inline bool is_float(Type type) {
  return type == Type::kHalf || type == Type::kBFloat16 || type == Type::kFloat ||
         type == Type::kDouble;
}

struct Items {
  View x;           // lists x n
  View where;       // lists x n bool, or absent
  View grad;        // lists x n of the ranks' type: the items move. Absent: they do not
  Lam lam;          // of the move
  bool descending;  // the best item is the highest

  RANKREG_HD bool moved() const { return grad.data != nullptr; }

  // An item of a floating-point type in the type that it is compared in; NaN if it is absent.
  // C: double for double, float for the others.
  template <class C>
  RANKREG_HD C value(int64_t list, int64_t i, C lam_value) const {
    if (!present_at(where, list, i)) return nan_of<C>();
    const C a = number_at<C>(x.data, x.type, offset(x, list, i));
    if (!moved()) return a;
    const C g =
        C(grad.type == Type::kFloat ? static_cast<const float*>(grad.data)[offset(grad, list, i)]
                                    : static_cast<const double*>(grad.data)[offset(grad, list, i)]);
    return perturb(a, lam_value, g, descending);
  }
};

// Takes ranks; without `ranks` they are the output, with it the gradient (rank - ranks) / lam is.
struct Sink {
  void* out;       // lists x n, contiguous, of rank_type, or of x_type for a gradient
  Type rank_type;  // float or double
  View ranks;      // lists x n of rank_type: before the move. Absent: no gradient
  Type x_type;     // a floating-point type
  View where;
  Lam lam;

  RANKREG_HD bool is_gradient() const { return ranks.data != nullptr; }

  // Twice the rank, because average ranks are half-integers: 2^32 at most.
  RANKREG_HD void store(int64_t list, int64_t n, int64_t i, uint64_t twice_rank) const {
    if (rank_type == Type::kFloat) {
      store_as<float>(list, n, i, float(twice_rank) * 0.5f);  // exact: see float_ranks_suffice
    } else {
      store_as<double>(list, n, i, double(twice_rank) * 0.5);
    }
  }

  // The gradient of an item, of type T, in the place `at` of the output.
  template <class T, class R>
  RANKREG_HD void put(int64_t at, R rank, R before, Compute<T> lam_value) const {
    static_cast<T*>(out)[at] = Narrow<T>::from(gradient(rank, before, lam_value));
  }

  // An item that takes no part: masked (0), or NaN.
  RANKREG_HD void store_absent(int64_t list, int64_t n, int64_t i) const {
    const bool masked = !present_at(where, list, i);
    const float value = masked ? 0.0f : nan_of<float>();
    const int64_t at = list * n + i;
    switch (is_gradient() ? x_type : rank_type) {
      case Type::kHalf: static_cast<Half*>(out)[at] = Half::from(value); break;
      case Type::kBFloat16: static_cast<BFloat16*>(out)[at] = BFloat16::from(value); break;
      case Type::kFloat: static_cast<float*>(out)[at] = value; break;
      default: static_cast<double*>(out)[at] = double(value); break;
    }
  }

 private:
  template <class R>
  RANKREG_HD void store_as(int64_t list, int64_t n, int64_t i, R rank) const {
    const int64_t at = list * n + i;
    if (!is_gradient()) {
      static_cast<R*>(out)[at] = rank;
      return;
    }
    const R before = static_cast<const R*>(ranks.data)[offset(ranks, list, i)];
    switch (x_type) {
      case Type::kHalf: return put<Half>(at, rank, before, lam_of<float>(lam));
      case Type::kBFloat16: return put<BFloat16>(at, rank, before, lam_of<float>(lam));
      case Type::kFloat: return put<float>(at, rank, before, lam_of<float>(lam));
      default: return put<double>(at, rank, before, lam_of<double>(lam));
    }
  }
};

}  // namespace gpu
}  // namespace rankreg
