// Where the positives of a list stand.
#pragma once

#include <numeric>

#include "cases.h"

namespace cases {

enum class Placing { kAnywhere, kBorders };

// Places where tiles, words of flags and the chunks of 2, 3 and 5 threads begin and end.
inline std::vector<int64_t> border_places(int64_t n) {
  std::vector<int64_t> out;
  const auto around = [&](int64_t at) {
    for (const int64_t i : {at, at - 1}) {
      if (i >= 0 && i < n) out.push_back(i);
    }
  };
  for (const int64_t parts : {1, 2, 3, 5}) {
    for (int64_t p = 0; p <= parts; ++p) {
      const int64_t begin = p < parts ? rankreg::Part(n, p, parts).begin : n;
      around(begin);
      around(begin + 8);
      around(begin + tile());
    }
  }
  return out;
}

// Exactly `count` positives in every list, as far as the layout keeps lists apart.
inline void place(Array& positives, int64_t count, Placing placing, Random& random) {
  const int64_t n = positives.n();
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t list = 0; list < positives.lists(); ++list) {
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = 0; i < count; ++i) {
      std::swap(order[size_t(i)], order[size_t(i + random.below(n - i))]);
    }
    if (placing == Placing::kBorders) {
      std::vector<int64_t> first = border_places(n);
      std::vector<uint8_t> taken(static_cast<size_t>(n), 0);
      std::vector<int64_t> chosen;
      first.insert(first.end(), order.begin(), order.end());
      for (const int64_t i : first) {
        if (!taken[size_t(i)]) chosen.push_back(i);
        taken[size_t(i)] = 1;
      }
      order = chosen;
    }
    for (int64_t i = 0; i < n; ++i)
      positives.set(list, order[size_t(i)], i < count);
  }
}

}  // namespace cases
