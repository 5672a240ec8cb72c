// Strided lists, and the step from an element type known at run time to one known to the compiler.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "types.h"

namespace rankreg {

enum class Type {
  kBool,
  kU8,
  kU16,
  kU32,
  kU64,
  kI8,
  kI16,
  kI32,
  kI64,
  kHalf,
  kBFloat16,
  kFloat,
  kDouble
};

// `lists` x `n` elements at data[list * list_stride + i * stride]; strides in elements, 0 allowed.
// data == nullptr stands for an absent optional argument.
struct View {
  const void* data = nullptr;
  Type type = Type::kBool;
  int64_t list_stride = 0;
  int64_t stride = 0;
};

template <class T>
struct Row {
  const T* data = nullptr;
  int64_t stride = 0;

  Row() = default;
  Row(const View& view, int64_t list)
      : data(view.data ? static_cast<const T*>(view.data) + list * view.list_stride : nullptr),
        stride(view.stride) {}

  explicit operator bool() const { return data != nullptr; }
  T operator[](int64_t i) const { return data[i * stride]; }
};

// torch stores a bool as one byte of 0 or 1.
using Mask = Row<uint8_t>;

template <class T>
struct Tag {
  using type = T;
};

template <class F>
void dispatch_float(Type type, const F& f) {
  switch (type) {
    case Type::kHalf: return f(Tag<Half>());
    case Type::kBFloat16: return f(Tag<BFloat16>());
    case Type::kFloat: return f(Tag<float>());
    case Type::kDouble: return f(Tag<double>());
    default: throw std::invalid_argument("rankreg_ext: a floating-point type is required");
  }
}

template <class F>
void dispatch_any(Type type, const F& f) {
  switch (type) {
    case Type::kBool:
    case Type::kU8: return f(Tag<uint8_t>());
    case Type::kU16: return f(Tag<uint16_t>());
    case Type::kU32: return f(Tag<uint32_t>());
    case Type::kU64: return f(Tag<uint64_t>());
    case Type::kI8: return f(Tag<int8_t>());
    case Type::kI16: return f(Tag<int16_t>());
    case Type::kI32: return f(Tag<int32_t>());
    case Type::kI64: return f(Tag<int64_t>());
    default: return dispatch_float(type, f);
  }
}

// Ranks are float or double.
template <class F>
void dispatch_rank(Type type, const F& f) {
  if (type == Type::kFloat) return f(Tag<float>());
  if (type == Type::kDouble) return f(Tag<double>());
  throw std::invalid_argument("rankreg_ext: ranks must be float32 or float64");
}

}  // namespace rankreg
