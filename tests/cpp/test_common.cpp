// csrc/common and parallel.h: conversions, keys, the sharing out of work; and the oracle itself.

#include "../../csrc/common/formulas.h"
#include "../../csrc/common/keys.h"
#include "cases.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;
using elements::Bits;
using elements::decode;
using elements::encode;
using elements::format;

float float_of(Bits bits) { return float(decode(Type::kFloat, bits)); }

// The nearest of all elements by search among them, the even one of two equally near. Beyond the
// largest lies what the format would hold next, and that is infinity.
class Nearest {
 public:
  explicit Nearest(Type type) : type_(type), infinity_(format(type).infinity()) {
    for (Bits bits = 0; bits < infinity_; ++bits)
      values_.push_back(decode(type, bits));
    values_.push_back(2 * values_.back() - values_[values_.size() - 2]);
  }
  const std::vector<double>& values() const { return values_; }

  Bits operator()(double value) const {
    const double magnitude = std::fabs(value);
    const auto above = std::upper_bound(values_.begin(), values_.end(), magnitude);
    Bits bits = Bits(above - values_.begin()) - 1;
    if (bits < infinity_) {
      const double down = magnitude - values_[bits], up = values_[bits + 1] - magnitude;
      if (up < down || (up == down && bits % 2 == 1)) ++bits;
    }
    return bits | (std::signbit(value) ? format(type_).sign() : 0);
  }

 private:
  Type type_;
  Bits infinity_;
  std::vector<double> values_;  // by their bits
};

template <class T>
void round_trip(Type type) {
  check::start_case("all ", format(type).name);
  Values expected, widened, back;
  for (Bits bits = 0; bits < 65536; ++bits) {
    const T value{uint16_t(bits)};
    const float wide = float(value);
    const double exact = decode(type, bits);
    expected.push_back(exact);
    widened.push_back(double(wide));
    CHECK(std::signbit(wide) == std::signbit(exact) || std::isnan(wide));
    CHECK(rankreg::is_nan(value) == std::isnan(exact));
    const T again = T::from(wide);
    CHECK(std::isnan(exact) ? rankreg::is_nan(again) : again.bits == bits);
    CHECK((again.bits & 0x8000u) == (bits & 0x8000u) || std::isnan(exact));
    CHECK(std::isnan(exact) || encode(type, exact) == bits);
  }
  CHECK_EQUAL(expected, widened);
}

template <class T>
void rounding(Type type) {
  const Nearest nearest(type);
  const auto check_one = [&](float value) {
    const Bits expected = nearest(double(value));
    const T got = T::from(value);
    if (got.bits != expected) check::describe(" value=", value);
    CHECK(got.bits == expected);
    CHECK(encode(type, double(value)) == expected);
  };
  check::start_case(format(type).name, " halfway");
  const std::vector<double>& values = nearest.values();
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float middle = float(values[i] + (values[i + 1] - values[i]) / 2);
    CHECK(double(middle) - values[i] == values[i + 1] - double(middle));
    for (const float sign : {1.0f, -1.0f}) {
      check_one(sign * middle);
      check_one(sign * std::nextafterf(middle, 0.0f));
      check_one(sign * std::nextafterf(middle, INFINITY));
    }
  }
  Random random = check::start_case(format(type).name, " at random");
  Values expected, got;
  for (int i = 0; i < 100000; ++i) {
    const float value = float_of(random.bits() & 0xffffffffu);
    if (std::isnan(value)) continue;
    check_one(value);
    check_one(std::ldexp(float(random.unit()) + 1, int(random.below(46)) - 28));
    expected.push_back(decode(type, nearest(double(value))));
    got.push_back(double(float(T::from(value))));
  }
  CHECK_EQUAL(expected, got);
  check::start_case(format(type).name, " special");
  check_one(0.0f), check_one(-0.0f);
  check_one(std::numeric_limits<float>::infinity());
  check_one(-std::numeric_limits<float>::infinity());
  check_one(std::numeric_limits<float>::max());
  check_one(std::numeric_limits<float>::denorm_min());
  for (const Bits nan :
       {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u, 0x7fffff80u}) {
    const T got_nan = T::from(rankreg::bit_cast<float>(uint32_t(nan)));
    CHECK(rankreg::is_nan(got_nan));
    CHECK((got_nan.bits >> 15) == (nan >> 31));
  }
}

// Keys are ordered as the values are, and equal where those are (-0.0 and 0.0).
template <class T, class V>
void check_keys(Type type, const std::vector<std::pair<V, Bits>>& sorted) {
  check::start_case(format(type).name);
  const auto element = [](Bits bits) {
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  };
  Values expected, got;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const T value = element(sorted[i].second);
    CHECK(!rankreg::is_nan(value));
    if (i == 0) continue;
    const T before = element(sorted[i - 1].second);
    expected.push_back(sorted[i - 1].first < sorted[i].first ? 1 : 0);
    const auto a = rankreg::ascending_key(before), b = rankreg::ascending_key(value);
    got.push_back(a < b ? 1 : a == b ? 0 : -1);
    const auto c = rankreg::best_first_key(before, true), d = rankreg::best_first_key(value, true);
    CHECK((c > d) == (a < b) && (c == d) == (a == b));
    CHECK(rankreg::best_first_key(value, false) == b);
  }
  CHECK_EQUAL(expected, got);
}

template <class T, class V>
void check_keys(Type type) {
  Random random = check::start_case("drawing ", format(type).name);
  const int64_t all = format(type).bytes > 2 ? 3000 : int64_t(format(type).all()) + 1;
  std::vector<std::pair<V, Bits>> sorted;
  for (int64_t i = 0; i < all; ++i) {
    const Bits bits = format(type).bytes <= 2
                          ? Bits(i)
                          : draw(type, random.pick(elements::all_kinds()), i, all, random);
    if constexpr (std::is_same<V, double>::value) {
      const double value = decode(type, bits);
      if (!std::isnan(value)) sorted.emplace_back(value, bits);
    } else {
      sorted.emplace_back(V(elements::to_signed(format(type), bits)), bits);
    }
  }
  std::sort(sorted.begin(), sorted.end());
  check_keys<T, V>(type, sorted);
}

}  // namespace

void oracle_agrees_with_itself() {
  for (const Kind kind : elements::all_kinds()) {
    for (const Ties ties : all_ties()) {
      for (const int64_t n : {1, 2, 9, 60, 300}) {
        Random random =
            check::start_case("kind=", elements::name(kind), " ties=", int(ties), " n=", n);
        const bool descending = random.chance(0.5);
        Array x = Array::contiguous(random.pick(elements::all_types()), 1, n);
        const Values a = x.fill(kind, random).values(0);
        const Flags where = Mask(int(random.below(Mask::kShapes)), 1, n, true, random).flags(0);
        CHECK_EQUAL(oracle::literal_ranks(a, where, descending, ties),
                    oracle::sorted_ranks(a, where, descending, ties));
      }
    }
  }
  check::start_case("by hand");
  const Values a{2, 3, 3, NAN, 1, 9};
  const Flags where{1, 1, 1, 1, 1, 0};
  CHECK_EQUAL((Values{3, 1, 1, NAN, 4, 0}), oracle::ranks(a, where, true, Ties::kMin));
  CHECK_EQUAL((Values{3, 2, 2, NAN, 4, 0}), oracle::ranks(a, where, true, Ties::kMax));
  CHECK_EQUAL((Values{3, 1.5, 1.5, NAN, 4, 0}), oracle::ranks(a, where, true, Ties::kAverage));
  CHECK_EQUAL((Values{2, 1, 1, NAN, 3, 0}), oracle::ranks(a, where, true, Ties::kDense));
  CHECK_EQUAL((Values{3, 1, 2, NAN, 4, 0}), oracle::ranks(a, where, true, Ties::kOrdinal));
  CHECK_EQUAL((Values{2, 3, 3, NAN, 1, 0}), oracle::ranks(a, where, false, Ties::kMin));
  CHECK_EQUAL((Values{2, 3, 4, NAN, 1, 0}), oracle::ranks(a, where, false, Ties::kOrdinal));
}

void half_round_trip() { round_trip<rankreg::Half>(Type::kHalf); }
void bfloat16_round_trip() { round_trip<rankreg::BFloat16>(Type::kBFloat16); }
void half_rounding() { rounding<rankreg::Half>(Type::kHalf); }
void bfloat16_rounding() { rounding<rankreg::BFloat16>(Type::kBFloat16); }

void keys() {
  check_keys<uint8_t, uint64_t>(Type::kU8);
  check_keys<uint16_t, uint64_t>(Type::kU16);
  check_keys<uint32_t, uint64_t>(Type::kU32);
  check_keys<uint64_t, uint64_t>(Type::kU64);
  check_keys<int8_t, int64_t>(Type::kI8);
  check_keys<int16_t, int64_t>(Type::kI16);
  check_keys<int32_t, int64_t>(Type::kI32);
  check_keys<int64_t, int64_t>(Type::kI64);
  check_keys<rankreg::Half, double>(Type::kHalf);
  check_keys<rankreg::BFloat16, double>(Type::kBFloat16);
  check_keys<float, double>(Type::kFloat);
  check_keys<double, double>(Type::kDouble);

  check::start_case("what float ranks can hold");
  for (const Ties ties : all_ties()) {
    const bool average = ties == Ties::kAverage;
    // The last rank of a list of n, or that of its last two if they are equal.
    const auto exact = [average](int64_t n) {
      const double last = double(n) - (average ? 0.5 : 0);
      return double(float(last)) == last;
    };
    const int64_t most = average ? rankreg::kFloatAverageRanks : rankreg::kFloatRanks;
    CHECK(rankreg::float_ranks_suffice(most, ties) && exact(most) && exact(most - 1));
    CHECK(!rankreg::float_ranks_suffice(most + 1, ties) && !exact(most + 1));
  }
  check::start_case("powers");
  CHECK_VALUE(1, rankreg::integer_power(7, 0));
  CHECK_VALUE(7, rankreg::integer_power(7, 1));
  CHECK_VALUE(343, rankreg::integer_power(7, 3));
}

void parts_and_lists() {
  for (const int64_t n : {0, 1, 2, 5, 97, 1000}) {
    for (const int64_t parts : {1, 2, 3, 5, 7}) {
      check::start_case("n=", n, " parts=", parts);
      int64_t end = 0;
      for (int64_t p = 0; p < parts; ++p) {
        const rankreg::Part part(n, p, parts);
        CHECK_VALUE(end, part.begin);
        CHECK(part.end - part.begin == n / parts || part.end - part.begin == n / parts + 1);
        end = part.end;
      }
      CHECK_VALUE(n, end);
    }
  }
  const int64_t worth = rankreg::kWorthAThread;
  for (const int threads : {1, 2, 3, 5}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{100}, worth - 1, worth, 2 * worth}) {
      for (const int64_t lists : {0, 1, 2, 3, 9, 10, 21, 700}) {
        check::start_case("threads=", threads, " n=", n, " lists=", lists);
        Values visits(size_t(lists), 0);  // unguarded: two visits of a list would be a race
        const check::ThreadPerTask parallel(threads);
        rankreg::for_lists(lists, n, parallel,
                           [&](int64_t begin, int64_t end, const rankreg::Parallel& inner) {
                             // Threads inside a list are for one block alone.
                             if (inner.threads() != 1 && end - begin != lists) ++visits[0];
                             for (int64_t list = begin; list < end; ++list)
                               ++visits[size_t(list)];
                           });
        CHECK_EQUAL(Values(size_t(lists), 1), visits);
        check::State::get().tasks += parallel.tasks();
        if (threads > 1 && n > 0 && n < worth && lists * n >= 2 * worth)
          CHECK(parallel.tasks() > 1);
      }
    }
  }
}

}  // namespace tests
