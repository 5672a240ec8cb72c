// positive_ranks: counting against thresholds instead of sorting.
//
//   forward    r_i = 1 + #{k : a_k > a_i}
//   backward   an item that does not move changes rank by D(a_j), a step function:
//                D(x) = #{i in P : a+_i > x} - #{i in P : a_i > x}
//              a positive that moves has r'_i = 1 + #{k : a'_k > a+_i}, a' = scores after the move
//
// Positives that do not move (a+ == a) cancel in D and are items like any other. Scores are read
// once per direction, in tiles that stay in the first-level cache; in a tile, masked and NaN scores
// are NaN, which is above nothing and below nothing.
//
// - Forward with few thresholds: every score meets every threshold.
// - Otherwise each score is put in its place among sorted breakpoints (places.h). Forward these are
//   the next scores above the thresholds. Backward they are a, a+ and the next score above a+, so
//   that D is a table by place, and so is the gradient: nothing is divided per score.
// - Forward with more than one positive in eight of a long list: all of it is ranked (order.h).
//
// Bytes moved, per score: 4 (float32) + 1 (positives) forward, and 4 more, the gradient, backward.
// Scratch: O(P) a thread, O(n) where all is ranked. Threads split the list, count for themselves,
// and add integers: the result does not depend on them.
#pragma once

#include <limits>

#include "../common/formulas.h"
#include "places.h"
#include "positive_ranks.h"
#include "sources.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

// The steps on one list, which rankreg_loss is made of too.

template <class T>
struct ScoreList {
  Row<T> scores;
  Row<uint8_t> positives;
  Mask where;
  int64_t n;

  bool masked(int64_t i) const { return where && !where[i]; }
};

// The positives of one list in index order: all the memory that the method needs.
template <class C>
struct Positives {
  std::vector<int64_t> at;   // index in the list
  std::vector<C> score;      // a
  std::vector<C> moved;      // a+, filled by the caller before step_gradient
  std::vector<double> rank;  // NaN for a NaN score

  int64_t size() const { return int64_t(at.size()); }
};

template <class C>
constexpr int64_t compare_all_max() {
  return sizeof(C) == 4 ? kCompareAll[RANKREG_ISA] : kCompareAllDouble[RANKREG_ISA];
}

// What the steps need besides the list, kept from one list to the next.
template <class T>
struct Work {
  using C = Compute<T>;
  Positives<C> found;
  Places<C> places;
  std::vector<KeyOf<C>> keys, spare;
  std::vector<PlaceCounts> counts;  // of each chunk
  Positives<C> movers;
  std::vector<int64_t> from, to;                           // their places
  std::vector<int64_t> steps;                              // D by place
  std::vector<T> values;                                   // to be written by place
  LongPlacer<KeyOf<T>, typename Scores<T>::Value> placer;  // of all scores, for many positives
  Buffer<uint32_t> place;
};

// Scores [begin, begin + size) as C, masked ones NaN: the list's own memory where that is the same.
template <class T, class C = Compute<T>>
const C* tile_of(const ScoreList<T>& list, int64_t begin, int64_t size, C* buffer) {
  if (list.scores.stride == 1) {
    if constexpr (std::is_same<T, C>::value) {
      if (!list.where) return list.scores.data + begin;
    }
    widen_tile(list.scores.data + begin, size, buffer);
  } else {
    for (int64_t j = 0; j < size; ++j)
      buffer[j] = widen(list.scores[begin + j]);
  }
  if (list.where) {
    for (int64_t j = 0; j < size; ++j)
      buffer[j] = list.where[begin + j] ? buffer[j] : std::numeric_limits<C>::quiet_NaN();
  }
  return buffer;
}

// f(chunk, begin, size, x) for the tiles of a part of the list.
template <class T, class F>
void each_tile(const ScoreList<T>& list, int64_t chunk, int64_t chunks, const F& f) {
  Compute<T> buffer[kTile];
  const Part part(list.n, chunk, chunks);
  for (int64_t begin = part.begin; begin < part.end; begin += kTile) {
    const int64_t size = std::min(kTile, part.end - begin);
    f(begin, size, tile_of(list, begin, size, buffer));
  }
}

// Some scores spread over the list.
template <class T>
int64_t sample_of(const ScoreList<T>& list, Compute<T>* sample, int64_t most) {
  const int64_t size = std::min(list.n, most);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = Part(list.n, i, size).begin;
    sample[i] =
        list.masked(at) ? std::numeric_limits<Compute<T>>::quiet_NaN() : widen(list.scores[at]);
  }
  return size;
}

template <class T>
void build_places(const ScoreList<T>& list, Work<T>& work) {
  Compute<T> sample[256];
  const bool few = int64_t(work.keys.size()) <= Search<Compute<T>>::kMost;
  const int64_t sampled = few ? 0 : sample_of(list, sample, 256);
  work.places.build(work.keys, work.spare, sample, sampled, list.n);
}

// Of counts by place: counts[p] becomes the number at places after p.
inline void count_after(std::vector<int64_t>& counts) {
  int64_t after = 0;
  for (size_t p = counts.size(); p-- > 0;) {
    const int64_t here = counts[p];
    counts[p] = after;
    after += here;
  }
}

// Sum of the chunks' counters into the first of them.
inline std::vector<int64_t>& reduce(std::vector<PlaceCounts>& counts, int64_t chunks) {
  std::vector<int64_t>& sum = counts[0].at;
  for (size_t c = 1; c < size_t(chunks); ++c) {
    for (size_t i = 0; i < sum.size(); ++i)
      sum[i] += counts[c].at[i];
  }
  return sum;
}

// Fills at and score.
template <class T>
void find_positives(const ScoreList<T>& list, Positives<Compute<T>>& found,
                    const Parallel& parallel) {
  const int64_t chunks = chunks_of(list.n, parallel);
  std::vector<std::vector<int64_t>> part_at(size_t(chunks) - 1);  // chunk 0 writes to found
  found.at.clear();
  parallel.each(chunks, [&](int64_t c) {
    std::vector<int64_t>& at = c == 0 ? found.at : part_at[size_t(c) - 1];
    const Part part(list.n, c, chunks);
    const auto visit = [&](int64_t i) {
      if (list.positives[i] && !list.masked(i)) at.push_back(i);
    };
    if (list.positives.stride != 1) {
      for (int64_t i = part.begin; i < part.end; ++i)
        visit(i);
      return;
    }
    // Positives are rare: 64 flags at a time are usually all false.
    const auto visit_block = [&](int64_t begin, const uint8_t* flags) {
      for (uint64_t set = set_flags(flags); set != 0; set &= set - 1)
        visit(begin + __builtin_ctzll(set));
    };
    int64_t i = part.begin;
    for (; i + 64 <= part.end; i += 64)
      visit_block(i, list.positives.data + i);
    if (i < part.end) {
      uint8_t rest[64] = {};
      std::copy(list.positives.data + i, list.positives.data + part.end, rest);
      visit_block(i, rest);
    }
  });
  for (const auto& at : part_at)
    found.at.insert(found.at.end(), at.begin(), at.end());
  found.score.resize(found.at.size());
  for (size_t i = 0; i < found.at.size(); ++i)
    found.score[i] = widen(list.scores[found.at[i]]);
}

// The same by the places of all scores in their order.
template <class T>
void rank_all(const ScoreList<T>& list, Work<T>& work, const Parallel& parallel) {
  const int64_t n = list.n;
  uint32_t* const place = work.place.of(n + std::max(kRoom, long_room(n, parallel)));
  int64_t present;
  work.placer.place(Scores<T>(list.scores, list.where, true), n, Equal::kShare, place, &present,
                    parallel);
  for (size_t i = 0; i < work.found.at.size(); ++i)
    work.found.rank[i] = double(place[work.found.at[i]]) + 1;
}

// Fills found.rank: 1 + #{k : a_k > a_i}.
template <class T>
void rank_positives(const ScoreList<T>& list, Work<T>& work, const Parallel& parallel) {
  using C = Compute<T>;
  Positives<C>& found = work.found;
  const int64_t size = found.size(), chunks = chunks_of(list.n, parallel);
  found.rank.resize(size_t(size));
  if (size == 0) return;
  if (int64_t(work.counts.size()) < chunks) work.counts.resize(size_t(chunks));

  if (size <= compare_all_max<C>()) {
    parallel.each(chunks, [&](int64_t c) {
      std::vector<int64_t>& above = work.counts[size_t(c)].at;
      above.assign(size_t(size), 0);
      each_tile(list, c, chunks, [&](int64_t, int64_t tile, const C* x) {
        count_above(x, tile, found.score.data(), size, above.data());
      });
    });
    const std::vector<int64_t>& above = reduce(work.counts, chunks);
    for (size_t i = 0; i < size_t(size); ++i)
      found.rank[i] = double(1 + above[i]);
  } else if (size > list.n / kRankAll && list.n > kRankAllMin && list.n <= kPlacesMax) {
    rank_all(list, work, parallel);
  } else {
    work.keys.clear();
    for (const C score : found.score) {
      if (score < std::numeric_limits<C>::infinity()) work.keys.push_back(next_key(score));
    }
    build_places(list, work);
    const Places<C>& places = work.places;
    parallel.each(chunks, [&](int64_t c) {
      PlaceCounts& counts = work.counts[size_t(c)];
      places.start(counts);
      each_tile(list, c, chunks, [&](int64_t, int64_t tile, const C* x) {
        places.template pass<false, C>(x, tile, counts, nullptr, C(0), nullptr);
      });
      places.finish(counts);
    });
    std::vector<int64_t>& above = reduce(work.counts, chunks);
    count_after(above);
    places.places(found.score, work.from);
    for (size_t i = 0; i < size_t(size); ++i)
      found.rank[i] = double(1 + above[size_t(places.counter(work.from[i]))]);
  }
  for (size_t i = 0; i < size_t(size); ++i) {
    if (is_nan(found.score[i])) found.rank[i] = std::numeric_limits<double>::quiet_NaN();
  }
}

// out[j] = upstream * (rk(a+)_j - rk(a)_j) / divisor for every j in the list; found.moved is a+.
template <class T>
void step_gradient(const ScoreList<T>& list, Work<T>& work, Compute<T> divisor, Compute<T> upstream,
                   T* out, const Parallel& parallel) {
  using C = Compute<T>;
  const Positives<C>& found = work.found;
  Positives<C>& movers = work.movers;
  movers.at.clear(), movers.score.clear(), movers.moved.clear(), movers.rank.clear();
  for (size_t i = 0; i < found.at.size(); ++i) {
    if (is_nan(found.score[i]) || found.moved[i] == found.score[i]) continue;
    movers.at.push_back(found.at[i]);
    movers.score.push_back(found.score[i]);
    movers.moved.push_back(found.moved[i]);
    movers.rank.push_back(found.rank[i]);
  }
  const int64_t chunks = chunks_of(list.n, parallel);
  const auto value_of = [&](int64_t step) {
    return Narrow<T>::from(upstream * (C(step) / divisor));
  };
  const T zero = Narrow<T>::from(C(0));
  const T nan = Narrow<T>::from(std::numeric_limits<C>::quiet_NaN());
  const auto clear_masked = [&](int64_t begin, int64_t size) {
    for (int64_t j = begin; list.where && j < begin + size; ++j)
      out[j] = list.where[j] ? out[j] : zero;
  };
  if (movers.size() == 0) {
    const T still = value_of(0);
    parallel.each(chunks, [&](int64_t c) {
      each_tile(list, c, chunks, [&](int64_t begin, int64_t size, const C* x) {
        for (int64_t j = 0; j < size; ++j)
          out[begin + j] = is_nan(x[j]) ? nan : still;
        clear_masked(begin, size);
      });
    });
    return;
  }

  // D steps up at the scores that positives leave, and down where they arrive.
  constexpr C kInfinity = std::numeric_limits<C>::infinity();
  work.keys.clear();
  for (size_t i = 0; i < movers.at.size(); ++i) {
    work.keys.push_back(ascending_key(movers.score[i]));
    if (is_nan(movers.moved[i])) continue;
    work.keys.push_back(ascending_key(movers.moved[i]));
    if (movers.moved[i] < kInfinity) work.keys.push_back(next_key(movers.moved[i]));
  }
  build_places(list, work);
  Places<C>& places = work.places;
  places.places(movers.score, work.from);
  places.places(movers.moved, work.to);
  places.count_after_these(work.to);
  std::vector<int64_t>& steps = work.steps;
  steps.assign(size_t(places.size()), 0);
  for (size_t i = 0; i < movers.at.size(); ++i) {
    --steps[size_t(work.from[i])];
    if (!is_nan(movers.moved[i])) ++steps[size_t(work.to[i])];
  }
  count_after(steps);
  std::vector<T>& values = work.values;
  values.resize(size_t(places.slots()));
  for (int64_t p = 0; p < places.size(); ++p)
    values[size_t(places.slot(p))] = value_of(steps[size_t(p)]);

  if (int64_t(work.counts.size()) < chunks) work.counts.resize(size_t(chunks));
  parallel.each(chunks, [&](int64_t c) {
    PlaceCounts& counts = work.counts[size_t(c)];
    places.start(counts);
    each_tile(list, c, chunks, [&](int64_t begin, int64_t size, const C* x) {
      places.template pass<true>(x, size, counts, values.data(), nan, out + begin);
      clear_masked(begin, size);
    });
    places.finish(counts);
  });

  // The movers were counted where they were.
  std::vector<int64_t>& above = reduce(work.counts, chunks);
  const auto counter = [&](int64_t place) { return size_t(places.counter(place)); };
  for (size_t i = 0; i < movers.at.size(); ++i) {
    --above[counter(work.from[i])];
    if (!is_nan(movers.moved[i])) ++above[counter(work.to[i])];
  }
  count_after(above);
  for (size_t i = 0; i < movers.at.size(); ++i) {
    const double moved_rank = is_nan(movers.moved[i]) ? std::numeric_limits<double>::quiet_NaN()
                                                      : double(1 + above[counter(work.to[i])]);
    out[movers.at[i]] = Narrow<T>::from(gradient(moved_rank, movers.rank[i], divisor, upstream));
  }
}

void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(rank_type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_float(scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
        Work<T> work;
        Positives<Compute<T>>& found = work.found;
        for (int64_t b = begin; b < end; ++b) {
          const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
          R* out = static_cast<R*>(ranks) + b * n;
          find_positives(list, found, inner);
          rank_positives(list, work, inner);
          const int64_t chunks = chunks_of(n, inner);
          inner.each(chunks, [&](int64_t c) {
            const Part part(n, c, chunks);
            std::fill(out + part.begin, out + part.end, R(0));
          });
          for (size_t i = 0; i < found.at.size(); ++i)
            out[found.at[i]] = R(found.rank[i]);
        }
      });
    });
  });
}

void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, double lam, int64_t lists,
                             int64_t n, void* out, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(ranks.type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_float(scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
        Work<T> work;
        Positives<C>& found = work.found;
        for (int64_t b = begin; b < end; ++b) {
          const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
          const Row<R> g(grad, b), r(ranks, b);
          find_positives(list, found, inner);
          found.moved.resize(found.at.size());
          found.rank.resize(found.at.size());
          for (size_t i = 0; i < found.at.size(); ++i) {
            found.moved[i] = perturb(found.score[i], C(lam), C(g[found.at[i]]));
            found.rank[i] = double(r[found.at[i]]);
          }
          step_gradient(list, work, C(lam), C(1), static_cast<T*>(out) + b * n, inner);
        }
      });
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
