#include "elements.h"

namespace elements {
namespace {

// A floating-point element, from its sign, exponent and fraction.
double decode_by_definition(Type type, Bits bits) {
  const Format f = format(type);
  const Bits magnitude = bits & ~f.sign(), one = Bits{1} << f.fraction_bits;
  const int exponent = int(magnitude >> f.fraction_bits);
  const Bits fraction = magnitude & (one - 1);
  double value =
      magnitude > f.infinity() ? std::numeric_limits<double>::quiet_NaN()
      : magnitude == f.infinity()
          ? std::numeric_limits<double>::infinity()
          : std::ldexp(double(exponent ? fraction + one : fraction),
                       f.lowest_exponent() - f.fraction_bits + std::max(exponent - 1, 0));
  return bits & f.sign() ? -value : value;
}

std::vector<double> decode_all(Type type) {
  std::vector<double> out;
  for (Bits bits = 0; bits < 65536; ++bits)
    out.push_back(decode_by_definition(type, bits));
  return out;
}

template <size_t size>
Bits pick(const Bits (&from)[size], Random& random) {
  return from[size_t(random.below(int64_t(size)))];
}

Bits draw_integer(const Format& f, Kind kind, int64_t i, int64_t n, Random& random) {
  const Bits middle = f.is_signed ? 0 : 1u << 6;
  Bits out = 0;
  switch (kind) {
    case Kind::kSpread:
    case Kind::kBits: out = random.bits(); break;
    case Kind::kGrid: out = middle + Bits(random.below(7)) - 3; break;
    case Kind::kSpecial: {
      const Bits ends[] = {0, 1, f.all(), f.all() - 1, f.sign(), f.sign() - 1, f.sign() + 1};
      out = pick(ends, random);
      break;
    }
    case Kind::kConstant: out = middle + 5; break;
    case Kind::kTwo: out = middle + Bits(random.below(2)); break;
    case Kind::kRising: out = f.sign() + Bits(i); break;
    case Kind::kFalling: out = Bits(n - i); break;
    case Kind::kClustered: out = (f.all() >> 1) - 250 + Bits(random.below(300)); break;
  }
  return out & f.all();
}

}  // namespace

double decode(Type type, Bits bits) {
  static const std::vector<double> halves = decode_all(Type::kHalf);
  static const std::vector<double> bfloat16s = decode_all(Type::kBFloat16);
  const Format f = format(type);
  switch (type) {
    case Type::kHalf: return halves[size_t(bits)];
    case Type::kBFloat16: return bfloat16s[size_t(bits)];
    case Type::kFloat: {
      const uint32_t word = uint32_t(bits);
      float value;
      memcpy(&value, &word, sizeof(value));
      return double(value);
    }
    case Type::kDouble: {
      double value;
      memcpy(&value, &bits, sizeof(value));
      return value;
    }
    default: return f.is_signed ? double(to_signed(f, bits)) : double(bits);
  }
}

Bits encode(Type type, double value) {
  Bits out = 0;
  if (type == Type::kDouble) return memcpy(&out, &value, sizeof(value)), out;
  if (type == Type::kFloat) {
    const float narrow = float(value);
    return memcpy(&out, &narrow, sizeof(narrow)), out;
  }
  const Format f = format(type);
  const Bits sign = std::signbit(value) ? f.sign() : 0, one = Bits{1} << f.fraction_bits;
  if (std::isnan(value)) return f.infinity() | one >> 1;
  if (std::isinf(value)) return sign | f.infinity();
  if (value == 0) return sign;
  const int exponent = std::max(std::ilogb(value), f.lowest_exponent());
  // In units of the last place; rounding up to the next power of two carries into the exponent.
  const Bits units = Bits(std::nearbyint(std::ldexp(std::fabs(value), f.fraction_bits - exponent)));
  const Bits magnitude = (Bits(exponent - f.lowest_exponent()) << f.fraction_bits) + units;
  return sign | std::min(magnitude, f.infinity());
}

Bits draw(Type type, Kind kind, int64_t i, int64_t n, Random& random) {
  const Format f = format(type);
  if (type == Type::kBool) return kind == Kind::kConstant ? 1 : Bits(random.below(2));
  if (!f.is_float()) return draw_integer(f, kind, i, n, random);
  const Bits one = encode(type, 1.0);
  switch (kind) {
    case Kind::kSpread:
      return encode(type, 4 * (random.unit() + random.unit() + random.unit()) - 6);
    case Kind::kGrid: {
      const double value = double(random.below(7) - 3) / 4;
      return encode(type, value == 0 && random.chance(0.5) ? -0.0 : value);
    }
    case Kind::kBits: return random.bits() & f.all();
    case Kind::kSpecial: {
      const Bits inf = f.infinity(), normal = Bits{1} << f.fraction_bits;
      const Bits magnitudes[] = {
          0, 0, inf,        inf,    inf + 1, f.sign() - 1, inf | normal / 2, inf - 1,
          1, 2, normal - 1, normal, one - 1, one,          one + 1};
      return pick(magnitudes, random) | (random.chance(0.5) ? f.sign() : 0);
    }
    case Kind::kConstant: return encode(type, 0.75);
    case Kind::kTwo: return encode(type, random.chance(0.5) ? 0.75 : -0.75);
    case Kind::kRising: return encode(type, double(i - n / 2) / 8);
    case Kind::kFalling: return encode(type, double(n / 2 - i) / 8);
    case Kind::kClustered:  // neighbours above 1, and a few far out
      if (random.chance(0.02)) return encode(type, random.chance(0.5) ? 1e4 : -1e4);
      return one + Bits(random.below(f.bytes == 2 ? 50 : 2000));
  }
  return 0;
}

}  // namespace elements
