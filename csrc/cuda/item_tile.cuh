// Some items of a list in a thread's registers, and the way back for their ranks. Types are told
// apart once for all of a thread's items, so that their loads are under way together.
//
// For lists so short that ranks, and gradients that arrive at them, are double for scores of double
// alone.
#pragma once

#include "rank_items.cuh"

namespace rankreg {
namespace gpu {

// Whether elements of type T, as they are or moved, can be had as W: as monotone keys of an
// unsigned type, or as values of float or double, which hold them exactly.
template <class W, class T, bool moved>
RANKREG_HD constexpr bool has_form() {
  if (moved && !kIsFloat<T>) return false;
  switch (sizeof(W) | (std::is_floating_point<W>::value ? 0x100 : 0)) {
    case 2: return !moved && sizeof(T) <= 2;
    case 4: return sizeof(T) == 4 || (moved && sizeof(T) == 2);
    case 8: return sizeof(T) == 8;
    case 0x100 | 4: return sizeof(T) <= 2 || std::is_same<T, float>::value;
    default: return std::is_same<T, double>::value;
  }
}

// What an item is ranked by, as W; a value for ascending ranks is its negative.
template <class W, class T>
__device__ __forceinline__ W form_of(T value, bool descending) {
  if constexpr (std::is_floating_point<W>::value) {
    const W wide = W(widen(value));
    return descending ? wide : -wide;
  } else {
    return W(best_first_key(value, descending));
  }
}

// out[j]: element first + j * step of a list, of type T, where bit j of `taken` is set; else 0.
template <class T, int kItems>
__device__ __forceinline__ void gather(const View& view, int64_t list, int first, int step,
                                       uint32_t taken, T (&out)[kItems]) {
  const T* at = static_cast<const T*>(view.data) + offset(view, list, first);
  const int64_t stride = view.stride * step;
#pragma unroll
  for (int j = 0; j < kItems; ++j, at += stride)
    out[j] = taken >> j & 1u ? *at : T{};
}

template <class W, class T, bool moved, int kItems>
__device__ __forceinline__ uint32_t load_as(const Items& items, int64_t list, int first, int step,
                                            uint32_t taken, W (&out)[kItems]) {
  if constexpr (has_form<W, T, moved>()) {
    T value[kItems];
    gather<T>(items.x, list, first, step, taken, value);
    if constexpr (moved) {
      using C = Compute<T>;
      C g[kItems];
      gather<C>(items.grad, list, first, step, taken, g);
      const C lam = lam_of<C>(items.lam);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const C a = perturb(widen(value[j]), lam, g[j], items.descending);
        taken &= ~(uint32_t(is_nan(a)) << j);
        out[j] = form_of<W>(a, items.descending);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        taken &= ~(uint32_t(is_nan(value[j])) << j);
        out[j] = form_of<W>(value[j], items.descending);
      }
    }
  } else {  // not reached
    for (int j = 0; j < kItems; ++j)
      out[j] = W{};
  }
  return taken;
}

template <class W, bool moved, int kItems>
__device__ __forceinline__ uint32_t load_moved(const Items& items, int64_t list, int first,
                                               int step, uint32_t taken, W (&out)[kItems]) {
  switch (items.x.type) {
    case Type::kBool:
    case Type::kU8: return load_as<W, uint8_t, moved>(items, list, first, step, taken, out);
    case Type::kU16: return load_as<W, uint16_t, moved>(items, list, first, step, taken, out);
    case Type::kU32: return load_as<W, uint32_t, moved>(items, list, first, step, taken, out);
    case Type::kU64: return load_as<W, uint64_t, moved>(items, list, first, step, taken, out);
    case Type::kI8: return load_as<W, int8_t, moved>(items, list, first, step, taken, out);
    case Type::kI16: return load_as<W, int16_t, moved>(items, list, first, step, taken, out);
    case Type::kI32: return load_as<W, int32_t, moved>(items, list, first, step, taken, out);
    case Type::kI64: return load_as<W, int64_t, moved>(items, list, first, step, taken, out);
    case Type::kHalf: return load_as<W, Half, moved>(items, list, first, step, taken, out);
    case Type::kBFloat16: return load_as<W, BFloat16, moved>(items, list, first, step, taken, out);
    case Type::kFloat: return load_as<W, float, moved>(items, list, first, step, taken, out);
    default: return load_as<W, double, moved>(items, list, first, step, taken, out);
  }
}

// out[j]: item first + j * step of the list, below `end`. Bit j of the result: that item takes
// part; of those that do not, out[j] is unspecified.
template <class W, int kItems>
__device__ __forceinline__ uint32_t load_items(const Items& items, int64_t list, int first,
                                               int step, int end, W (&out)[kItems]) {
  static_assert(kItems <= 32, "a bit each");
  uint32_t taken = 0;
#pragma unroll
  for (int j = 0; j < kItems; ++j)
    taken |= uint32_t(first + j * step < end) << j;
  const View& where = items.where;
  if (where.data != nullptr) {
    uint8_t mask[kItems];
    gather<uint8_t>(where, list, first, step, taken, mask);
    taken = 0;
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      taken |= uint32_t(mask[j] != 0) << j;
  }
  return items.moved() ? load_moved<W, true>(items, list, first, step, taken, out)
                       : load_moved<W, false>(items, list, first, step, taken, out);
}

template <class R, int kItems>
__device__ __forceinline__ void store_ranks(const Sink& sink, int64_t list, int64_t n, int first,
                                            int step, uint32_t taken,
                                            const uint32_t (&twice)[kItems]) {
  R* at = static_cast<R*>(sink.out) + (list * n + first);
#pragma unroll
  for (int j = 0; j < kItems; ++j, at += step) {
    if (taken >> j & 1u) *at = R(twice[j]) * R(0.5);
  }
}

template <class T, class R, int kItems>
__device__ __forceinline__ void store_gradient(const Sink& sink, int64_t list, int64_t n, int first,
                                               int step, uint32_t taken,
                                               const uint32_t (&twice)[kItems]) {
  R before[kItems];
  gather<R>(sink.ranks, list, first, step, taken, before);
  const Compute<T> lam = lam_of<Compute<T>>(sink.lam);
  int64_t at = list * n + first;
#pragma unroll
  for (int j = 0; j < kItems; ++j, at += step) {
    if (taken >> j & 1u) sink.put<T>(at, R(twice[j]) * R(0.5), before[j], lam);
  }
}

// Takes twice the ranks of items first + j * step that were loaded as W; those below n without a
// bit in `taken` are absent.
template <class W, int kItems>
__device__ __forceinline__ void store_items(const Sink& sink, int64_t list, int64_t n, int first,
                                            int step, uint32_t taken,
                                            const uint32_t (&twice)[kItems]) {
  if (!sink.is_gradient()) {
    if (sizeof(W) == 8 && sink.rank_type == Type::kDouble) {
      store_ranks<double>(sink, list, n, first, step, taken, twice);
    } else {
      store_ranks<float>(sink, list, n, first, step, taken, twice);
    }
  } else if constexpr (sizeof(W) == 8) {
    store_gradient<double, double>(sink, list, n, first, step, taken, twice);
  } else if constexpr (sizeof(W) == 4) {  // keys of 16 bits are of scores that do not move
    switch (sink.x_type) {
      case Type::kHalf:
        store_gradient<Half, float>(sink, list, n, first, step, taken, twice);
        break;
      case Type::kBFloat16:
        store_gradient<BFloat16, float>(sink, list, n, first, step, taken, twice);
        break;
      default: store_gradient<float, float>(sink, list, n, first, step, taken, twice); break;
    }
  }
  uint32_t absent = 0;
#pragma unroll
  for (int j = 0; j < kItems; ++j)
    absent |= uint32_t(first + j * step < n) << j;
  for (absent &= ~taken; absent != 0; absent &= absent - 1)
    sink.store_absent(list, n, first + (__ffs(int(absent)) - 1) * step);
}

}  // namespace gpu
}  // namespace rankreg
