// Element types and tie rules that every back-end shares. No torch here, and nothing to link.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RANKREG_HD __host__ __device__
#else
#define RANKREG_HD
#endif

namespace rankreg {

// Order and names as in rankreg_ext/reference.py.
enum class Ties : int { kMin, kMax, kAverage, kDense, kOrdinal };

// Order as in rankreg_ext/_ops.py.
enum class Reduction : int { kNone, kSum, kMean };

// A rank is never rounded: float32 holds integers up to 2^24, half-integers up to 2^23.
constexpr int64_t kFloatRanks = int64_t{1} << 24;
constexpr int64_t kFloatAverageRanks = int64_t{1} << 23;

RANKREG_HD constexpr bool float_ranks_suffice(int64_t n, Ties ties) {
  return n <= (ties == Ties::kAverage ? kFloatAverageRanks : kFloatRanks);
}

template <class To, class From>
RANKREG_HD inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// IEEE binary16 as bits. Conversions are exact one way and round to nearest even the other way.
struct Half {
  uint16_t bits;

  RANKREG_HD explicit operator float() const {
#if defined(__CUDA_ARCH__)
    float widened;
    asm("cvt.f32.f16 %0, %1;" : "=f"(widened) : "h"(bits));
    return widened;
#else
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
    if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | fraction << 13);
    // (1024 + fraction) * 2^(exponent - 25), or fraction * 2^-24 for a subnormal.
    const float whole = float(int(exponent ? fraction | 1024u : fraction));
    const uint32_t power = (exponent ? exponent : 1u) + 127u - 25u;
    const float value = whole * bit_cast<float>(power << 23);
    return bit_cast<float>(bit_cast<uint32_t>(value) | sign);
#endif
  }

  RANKREG_HD static Half from(float value) {
#if defined(__CUDA_ARCH__)
    Half narrowed;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(value));
    return narrowed;
#else
    const uint32_t word = bit_cast<uint32_t>(value), magnitude = word & 0x7fffffffu;
    const uint16_t sign = uint16_t((word >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 rounds to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
      const float scaled = bit_cast<float>(magnitude) * 16777216.0f;
      return {uint16_t(sign | uint16_t(nearbyintf(scaled)))};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return {uint16_t(sign | uint16_t((rounded >> 13) - (112u << 10)))};
#endif
  }
};

struct BFloat16 {
  uint16_t bits;

  RANKREG_HD explicit operator float() const { return bit_cast<float>(uint32_t(bits) << 16); }

  RANKREG_HD static BFloat16 from(float value) {
    const uint32_t word = bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return {uint16_t((word >> 16) | 0x40u)};
    return {uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
  }
};

// The type in which perturbations and gradients are computed.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

template <class T>
RANKREG_HD inline Compute<T> widen(T value) {
  return Compute<T>(value);
}

template <class T>
struct Narrow {
  RANKREG_HD static T from(Compute<T> value) { return value; }
};
template <>
struct Narrow<Half> {
  RANKREG_HD static Half from(float value) { return Half::from(value); }
};
template <>
struct Narrow<BFloat16> {
  RANKREG_HD static BFloat16 from(float value) { return BFloat16::from(value); }
};

}  // namespace rankreg
