// Elements of every type as bits and as exact doubles, written from the formats' definitions and
// not from csrc/common; strided inputs and poisoned outputs in heap blocks of exactly their size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../../csrc/common/view.h"
#include "check.h"

namespace elements {

using check::Random;
using rankreg::Type;
using rankreg::View;
using Bits = uint64_t;

struct Format {
  const char* name;
  int bytes;
  int exponent_bits = 0, fraction_bits = 0;  // of floating-point types
  bool is_signed = true;

  bool is_float() const { return exponent_bits != 0; }
  int lowest_exponent() const { return 2 - (1 << (exponent_bits - 1)); }
  Bits infinity() const { return ((Bits{1} << exponent_bits) - 1) << fraction_bits; }
  Bits sign() const { return Bits{1} << (8 * bytes - 1); }
  Bits all() const { return bytes == 8 ? ~Bits{0} : (Bits{1} << (8 * bytes)) - 1; }
};

inline Format format(Type type) {
  switch (type) {
    case Type::kBool: return {"bool", 1, 0, 0, false};
    case Type::kU8: return {"u8", 1, 0, 0, false};
    case Type::kU16: return {"u16", 2, 0, 0, false};
    case Type::kU32: return {"u32", 4, 0, 0, false};
    case Type::kU64: return {"u64", 8, 0, 0, false};
    case Type::kI8: return {"i8", 1};
    case Type::kI16: return {"i16", 2};
    case Type::kI32: return {"i32", 4};
    case Type::kI64: return {"i64", 8};
    case Type::kHalf: return {"half", 2, 5, 10};
    case Type::kBFloat16: return {"bfloat16", 2, 8, 7};
    case Type::kFloat: return {"float", 4, 8, 23};
    case Type::kDouble: return {"double", 8, 11, 52};
  }
  return {"unknown", 0};
}

inline const std::vector<Type>& all_types() {
  static const std::vector<Type> types{
      Type::kBool, Type::kU8,  Type::kU16,  Type::kU32,      Type::kU64,   Type::kI8,    Type::kI16,
      Type::kI32,  Type::kI64, Type::kHalf, Type::kBFloat16, Type::kFloat, Type::kDouble};
  return types;
}
inline const std::vector<Type>& float_types() {
  static const std::vector<Type> types{Type::kHalf, Type::kBFloat16, Type::kFloat, Type::kDouble};
  return types;
}

inline int64_t to_signed(const Format& f, Bits bits) {
  return (bits & f.sign()) && f.is_signed ? int64_t(bits | ~f.all()) : int64_t(bits);
}

// Exact but for 64-bit integers.
double decode(Type type, Bits bits);

// Nearest element of a floating-point type, ties to the even one.
Bits encode(Type type, double value);

inline double round_to(Type type, double value) { return decode(type, encode(type, value)); }

enum class Kind { kSpread, kGrid, kBits, kSpecial, kConstant, kTwo, kRising, kFalling, kClustered };

inline const char* name(Kind kind) {
  static const char* const names[] = {"spread", "grid",   "bits",    "special",  "constant",
                                      "two",    "rising", "falling", "clustered"};
  return names[int(kind)];
}
inline const std::vector<Kind>& all_kinds() {
  static const std::vector<Kind> kinds{Kind::kSpread,  Kind::kGrid,     Kind::kBits,
                                       Kind::kSpecial, Kind::kConstant, Kind::kTwo,
                                       Kind::kRising,  Kind::kFalling,  Kind::kClustered};
  return kinds;
}

// Item i of a list of n.
Bits draw(Type type, Kind kind, int64_t i, int64_t n, Random& random);

// lists x n elements behind strides; what lies between them is poison.
class Array {
 public:
  Array(Type type, int64_t lists, int64_t n, int64_t list_stride, int64_t stride,
        int64_t offset = 0)
      : type_(type),
        lists_(lists),
        n_(n),
        list_stride_(list_stride),
        stride_(stride),
        offset_(offset),
        width_(size_t(format(type).bytes)) {
    const bool empty = lists == 0 || n == 0;
    size_ = empty ? 0 : size_t(offset + (lists - 1) * list_stride + (n - 1) * stride + 1) * width_;
    bytes_.reset(new unsigned char[size_]);
    memset(bytes_.get(), 0xa5, size_);
  }
  static Array contiguous(Type type, int64_t lists, int64_t n) { return {type, lists, n, n, 1}; }

  // One of the layouts that a tensor's views have.
  static Array any(Type type, int64_t lists, int64_t n, Random& random) {
    const int64_t gap = 1 + random.below(5);
    switch (random.below(9)) {
      case 0: return {type, lists, n, 1, lists};         // transposed
      case 1: return {type, lists, n, 2 * n + gap, 2};   // every second item
      case 2: return {type, lists, n, n + gap, 1, gap};  // columns cut out
      case 3: return {type, lists, n, 0, 1};             // one list for all
      case 4: return {type, lists, n, 1, 0};             // one item for a list
      case 5: return {type, lists, n, 1, 1};             // sliding windows
      case 6: return {type, lists, n, gap, gap * std::max<int64_t>(lists, 1), 1};
      default: return contiguous(type, lists, n);
    }
  }

  Type type() const { return type_; }
  int64_t lists() const { return lists_; }
  int64_t n() const { return n_; }
  View view() const {
    return {bytes_.get() + size_t(offset_) * width_, type_, list_stride_, stride_};
  }

  void set(int64_t list, int64_t i, Bits bits) {
    memcpy(at(list, i), &bits, width_);  // little-endian, like every platform torch runs on
  }
  Bits bits(int64_t list, int64_t i) const {
    Bits out = 0;
    memcpy(&out, at(list, i), width_);
    return out;
  }
  double value(int64_t list, int64_t i) const { return decode(type_, bits(list, i)); }

  std::vector<double> values(int64_t list) const {
    std::vector<double> out(static_cast<size_t>(n_));
    for (int64_t i = 0; i < n_; ++i)
      out[size_t(i)] = value(list, i);
    return out;
  }
  template <class V>
  std::vector<V> integers(int64_t list) const {
    std::vector<V> out(static_cast<size_t>(n_));
    for (int64_t i = 0; i < n_; ++i)
      out[size_t(i)] = V(to_signed(format(type_), bits(list, i)));
    return out;
  }

  Array& fill(Kind kind, Random& random) {
    for (int64_t list = 0; list < lists_; ++list) {
      for (int64_t i = 0; i < n_; ++i)
        set(list, i, draw(type_, kind, i, n_, random));
    }
    return *this;
  }

  const std::string& snapshot() { return copy_.assign(raw(), size_), copy_; }
  bool unchanged() const {
    return copy_.size() == size_ && memcmp(copy_.data(), raw(), size_) == 0;
  }
  std::string layout() const {
    std::ostringstream out;
    out << list_stride_ << "," << stride_ << "+" << offset_;
    return out.str();
  }

 private:
  const char* raw() const { return reinterpret_cast<const char*>(bytes_.get()); }
  unsigned char* at(int64_t list, int64_t i) const {
    return bytes_.get() + size_t(offset_ + list * list_stride_ + i * stride_) * width_;
  }

  Type type_;
  int64_t lists_, n_, list_stride_, stride_, offset_;
  size_t width_, size_;
  std::unique_ptr<unsigned char[]> bytes_;
  std::string copy_;
};

// A kernel's result. What it leaves unwritten stays poison, which no result equals.
class Output {
 public:
  Output(Type type, int64_t size)
      : type_(type),
        width_(size_t(format(type).bytes)),
        size_(size_t(size)),
        bytes_(new unsigned char[size_ * width_]) {
    memset(bytes_.get(), 0xa5, size_ * width_);
  }
  void* data() { return bytes_.get(); }
  // As an input of the next kernel: lists x n.
  View view(int64_t list_stride) const { return {bytes_.get(), type_, list_stride, 1}; }

  std::vector<double> values(int64_t begin, int64_t count) const {
    std::vector<double> out(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      out[size_t(i)] = decode(type_, bits(size_t(begin + i)));
    return out;
  }

  // Bit for bit; of NaNs only that they are NaN, their payload depends on the operands' order.
  bool identical(const Output& other) const {
    if (size_ != other.size_ || type_ != other.type_) return false;
    for (size_t i = 0; i < size_; ++i) {
      const Bits a = bits(i), b = other.bits(i);
      if (a != b && !(std::isnan(decode(type_, a)) && std::isnan(decode(type_, b)))) return false;
    }
    return true;
  }

 private:
  Bits bits(size_t i) const {
    Bits out = 0;
    memcpy(&out, bytes_.get() + i * width_, width_);
    return out;
  }

  Type type_;
  size_t width_, size_;
  std::unique_ptr<unsigned char[]> bytes_;
};

}  // namespace elements
