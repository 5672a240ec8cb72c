#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace oracle {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

bool missing(double v) { return std::isnan(v); }
bool missing(int64_t) { return false; }
bool missing(uint64_t) { return false; }

bool masked(const Flags& where, size_t i) { return !where.empty() && !where[i]; }

// What the pairs of one item come to.
struct Pairs {
  int64_t better = 0, equal = 0, earlier = 0, better_groups = 0;

  double rank(Ties ties) const {
    switch (ties) {
      case Ties::kMin: return double(1 + better);
      case Ties::kMax: return double(better + equal);
      case Ties::kAverage: return double(better) + double(equal + 1) / 2;
      case Ties::kDense: return double(1 + better_groups);
      case Ties::kOrdinal: return double(1 + better + earlier);
    }
    return kNaN;
  }
};

// Values that take part, in index order.
template <class V>
struct Present {
  std::vector<V> value;
  std::vector<size_t> index;
  Values out;  // 0 where masked, NaN where missing

  Present(const std::vector<V>& a, const Flags& where) : out(a.size(), 0) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (masked(where, i)) continue;
      if (missing(a[i])) {
        out[i] = kNaN;
      } else {
        value.push_back(a[i]);
        index.push_back(i);
      }
    }
  }
};

template <class V>
Pairs count_pairs(const std::vector<V>& value, size_t i, bool descending) {
  Pairs pairs;
  const V mine = value[i];
  for (const V other : value)
    pairs.better += descending ? other > mine : other < mine;
  for (const V other : value)
    pairs.equal += other == mine;
  for (size_t k = 0; k < i; ++k)
    pairs.earlier += value[k] == mine;
  return pairs;
}

// The compute type of an element type, every operation rounded once. For float the operation is
// done in double, which has more than twice the bits, so that rounding again changes nothing.
struct Arithmetic {
  bool wide;
  explicit Arithmetic(Type type) : wide(type == Type::kDouble) {}
  double round(double v) const { return wide ? v : double(float(v)); }
  double multiply(double a, double b) const { return round(a * b); }
  double add(double a, double b) const { return round(a + b); }
  double divide(double a, double b) const { return round(a / b); }
};

double power_of(double x, int64_t exponent) {
  double out = 1;
  while (exponent-- > 0)
    out *= x;
  return out;
}

}  // namespace

template <class V>
Values literal_ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties) {
  Present<V> present(a, where);
  const std::vector<V>& value = present.value;
  std::vector<uint8_t> first(value.size());
  for (size_t i = 0; ties == Ties::kDense && i < value.size(); ++i) {
    first[i] = std::find(value.begin(), value.begin() + int64_t(i), value[i]) ==
               value.begin() + int64_t(i);
  }
  for (size_t i = 0; i < value.size(); ++i) {
    Pairs pairs = count_pairs(value, i, descending);
    for (size_t k = 0; ties == Ties::kDense && k < value.size(); ++k) {
      const bool beats = descending ? value[k] > value[i] : value[k] < value[i];
      pairs.better_groups += beats && first[k];
    }
    present.out[present.index[i]] = pairs.rank(ties);
  }
  return present.out;
}

template <class V>
Values sorted_ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties) {
  Present<V> present(a, where);
  const std::vector<V>& value = present.value;
  std::vector<std::pair<V, size_t>> order;
  for (size_t i = 0; i < value.size(); ++i)
    order.emplace_back(value[i], i);
  std::sort(order.begin(), order.end(), [descending](const auto& x, const auto& y) {
    if (x.first == y.first) return x.second < y.second;
    return descending ? x.first > y.first : x.first < y.first;
  });
  Pairs pairs;
  for (size_t first = 0, last = 0; first < order.size(); first = last) {
    while (last < order.size() && order[last].first == order[first].first)
      ++last;
    pairs.better = int64_t(first);
    pairs.equal = int64_t(last - first);
    for (size_t at = first; at < last; ++at) {
      pairs.earlier = int64_t(at - first);
      present.out[present.index[order[at].second]] = pairs.rank(ties);
    }
    ++pairs.better_groups;
  }
  for (size_t sample = 0; ties != Ties::kDense && sample < 12 && !value.empty(); ++sample) {
    const size_t i = sample == 11 ? value.size() - 1 : sample * value.size() / 11;
    CHECK(count_pairs(value, i, descending).rank(ties) == present.out[present.index[i]]);
  }
  return present.out;
}

template <class V>
Values ranks(const std::vector<V>& a, const Flags& where, bool descending, Ties ties) {
  return a.size() <= kLiteralMax ? literal_ranks(a, where, descending, ties)
                                 : sorted_ranks(a, where, descending, ties);
}

#define ORACLE_INSTANTIATE(V)                                                     \
  template Values ranks(const std::vector<V>&, const Flags&, bool, Ties);         \
  template Values literal_ranks(const std::vector<V>&, const Flags&, bool, Ties); \
  template Values sorted_ranks(const std::vector<V>&, const Flags&, bool, Ties);
ORACLE_INSTANTIATE(double)
ORACLE_INSTANTIATE(int64_t)
ORACLE_INSTANTIATE(uint64_t)
#undef ORACLE_INSTANTIATE

double round_to_compute(Type type, double value) { return Arithmetic(type).round(value); }

Values moved(const Values& a, double lam, const Values& g, bool descending, Type type) {
  const Arithmetic in(type);
  Values out(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double step = in.multiply(in.round(lam), in.round(g[i]));
    out[i] = in.add(a[i], descending ? step : -step);
  }
  return out;
}

Values blackbox_gradient(const Values& a, const Values& g, double lam, const Flags& where,
                         bool descending, Ties ties, Type type) {
  const Arithmetic in(type);
  const Values before = ranks(a, where, descending, ties);
  const Values after = ranks(moved(a, lam, g, descending, type), where, descending, ties);
  Values out(a.size(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    if (masked(where, i)) continue;
    const double gradient = in.divide(in.round(after[i] - before[i]), in.round(lam));
    out[i] = elements::round_to(type, gradient);
  }
  return out;
}

Values closed_form_gradient(const Values& a, const Values& g, const Flags& positives, double lam,
                            const Flags& where, Type type) {
  const Arithmetic in(type);
  const Values to = moved(a, lam, g, true, type);
  std::vector<size_t> of_p;
  for (size_t i = 0; i < a.size(); ++i) {
    if (positives[i] && !masked(where, i)) of_p.push_back(i);
  }
  Values out(a.size(), 0);
  for (size_t j = 0; j < a.size(); ++j) {
    if (masked(where, j)) continue;
    int64_t change = 0;
    bool defined = !std::isnan(a[j]);
    if (!positives[j]) {
      for (const size_t i : of_p)
        change += int(to[i] > a[j]) - int(a[i] > a[j]);
    } else {
      defined = defined && !std::isnan(to[j]);
      for (size_t k = 0; k < a.size(); ++k) {
        if (!masked(where, k))
          change += int((positives[k] ? to[k] : a[k]) > to[j]) - int(a[k] > a[j]);
      }
    }
    const double gradient = in.divide(in.round(double(change)), in.round(lam));
    out[j] = defined ? elements::round_to(type, gradient) : kNaN;
  }
  return out;
}

RankReg rankreg(const Values& a, const Flags& positives, const Flags& where, int64_t power,
                bool by_length) {
  RankReg list{false, 0, 1, positives, ranks(a, where, true, Ties::kMin)};
  double items = 0, count = 0;
  long double sum = 0;  // of integers, beyond 2^53 too
  for (size_t i = 0; i < a.size(); ++i) {
    const bool present = !masked(where, i);
    items += present;
    list.positives[i] = positives[i] && present;
    if (!list.positives[i]) continue;
    count += 1;
    sum += power_of(list.ranks[i], power);
  }
  if (by_length) list.length = items;
  list.counted = count > 0;
  if (list.counted) list.value = double(sum) / (power_of(list.length, power) * count);
  return list;
}

double rankreg_mean(const RankReg& list, int64_t power) {
  long double sum = 0, count = 0;
  for (size_t i = 0; i < list.ranks.size(); ++i) {
    if (!list.positives[i]) continue;
    sum += std::pow(static_cast<long double>(list.ranks[i]) / list.length, int(power));
    count += 1;
  }
  return count > 0 ? double(sum / count) : 0;
}

Values rankreg_gradient(const RankReg& list, const Values& a, const Flags& where, int64_t power,
                        double lam, double upstream, Type type) {
  const Arithmetic in(type);
  const double count = double(std::count(list.positives.begin(), list.positives.end(), 1));
  Values h(a.size(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    if (!list.positives[i]) continue;
    h[i] = double(power) * power_of(list.ranks[i], power - 1) /
           (power_of(list.length, power - 1) * count);
  }
  const Values after = ranks(moved(a, lam, h, true, type), where, true, Ties::kMin);
  const double divisor = in.round(list.length * in.round(lam));
  Values out(a.size(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    if (masked(where, i)) continue;
    const double step = in.divide(in.round(after[i] - list.ranks[i]), divisor);
    out[i] = elements::round_to(type, in.multiply(upstream, step));
  }
  return out;
}

}  // namespace oracle
