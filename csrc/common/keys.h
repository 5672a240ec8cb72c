// Monotone keys: unsigned integers in the order of the scores they come from.
#pragma once

#include <type_traits>

#include "types.h"

namespace rankreg {

template <size_t bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = uint16_t;  // 8-bit scores share the kernels of the 16-bit ones
};
template <>
struct UnsignedOf<2> {
  using type = uint16_t;
};
template <>
struct UnsignedOf<4> {
  using type = uint32_t;
};
template <>
struct UnsignedOf<8> {
  using type = uint64_t;
};
template <class T>
using KeyOf = typename UnsignedOf<sizeof(T)>::type;

template <class T>
constexpr bool kIsFloat = std::is_floating_point<T>::value || std::is_same<T, Half>::value ||
                          std::is_same<T, BFloat16>::value;

// Bits of a float's infinity: everything above it, sign aside, is NaN.
template <class T>
struct FloatLayout;
template <>
struct FloatLayout<Half> {
  static constexpr uint16_t kInfinity = 0x7c00u;
};
template <>
struct FloatLayout<BFloat16> {
  static constexpr uint16_t kInfinity = 0x7f80u;
};
template <>
struct FloatLayout<float> {
  static constexpr uint32_t kInfinity = 0x7f800000u;
};
template <>
struct FloatLayout<double> {
  static constexpr uint64_t kInfinity = 0x7ff0000000000000u;
};

template <class T>
RANKREG_HD inline bool is_nan(T value) {
  if constexpr (kIsFloat<T>) {
    using Key = KeyOf<T>;
    constexpr Key top = Key(Key{1} << (8 * sizeof(Key) - 1));
    return Key(bit_cast<Key>(value) & Key(~top)) > FloatLayout<T>::kInfinity;
  } else {
    return false;
  }
}

// Ascending with the score; -0.0 and 0.0 share a key. NaN has none: test it first. Without
// branches, so that it vectorises.
template <class T>
RANKREG_HD inline KeyOf<T> ascending_key(T value) {
  using Key = KeyOf<T>;
  constexpr Key top = Key(Key{1} << (8 * sizeof(Key) - 1));
  if constexpr (kIsFloat<T>) {
    const Key bits = bit_cast<Key>(value);
    const Key positive = Key(bits == top ? Key{0} : bits);
    return Key(positive ^ (positive & top ? Key(~Key{0}) : top));
  } else if constexpr (std::is_signed<T>::value) {
    return Key(Key(value) ^ top);
  } else {
    return Key(value);
  }
}

// Ascending with the rank: the best item has the smallest key.
template <class T>
RANKREG_HD inline KeyOf<T> best_first_key(T value, bool descending) {
  const KeyOf<T> key = ascending_key(value);
  return descending ? KeyOf<T>(~key) : key;
}

}  // namespace rankreg
