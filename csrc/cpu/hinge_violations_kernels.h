// hinge_violations: sums by threshold instead of over pairs, without a sort of the list.
//
// A pair violates the margin if the negative is above the positive's threshold, t_j = a_j - delta
// in double, and then by a_k - t_j.
//
// - Forward with few positives: every score meets every threshold.
// - Otherwise each negative is put in its place among the next scores above the thresholds
//   (places.h). By place, negatives are counted and their distances from the threshold just below
//   are summed; then, down the thresholds,
//     q(t) = q(t') + #{negatives above t'} (t' - t) + sum of the distances between t and t'
//   with t' the threshold above t. Nothing but positive terms is added.
// - Backward the gradient of a negative is a table by place, of sums of u over the thresholds below
//   it; that of a positive takes the number of negatives above its threshold.
//
// Bytes moved, per score: 4 (float32) + 1 (positives) and 4 written, each way. Scratch: O(P) a
// chunk. Sums are over chunks that depend on the list alone, of terms in index order, so that
// neither threads nor instruction sets change them.
#pragma once

#include <cstring>
#include <limits>

#include "hinge_violations.h"
#include "positive_ranks_kernels.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

// Sums of double are split into so many, each over every kHingeLanes-th term of a tile.
constexpr int64_t kHingeLanes = 8;
static_assert(kTile % kHingeLanes == 0, "whole vectors");

// Into how many parts the sums over a list are split, whatever the number of threads: all their
// tables together are at most as long as the list.
inline int64_t hinge_chunks(int64_t n, int64_t sums) {
  constexpr int64_t kMost = 64;
  const int64_t tables = n / std::max<int64_t>(sums, 1);
  return std::max<int64_t>(1, std::min({n / kWorthAThread, tables, kMost}));
}

// f(size, x) for the tiles of a part of the list; positives, too, are NaN in x, which f may write
// to.
template <class T, class F>
void each_negative_tile(const ScoreList<T>& list, const Part& part, const F& f) {
  using C = Compute<T>;
  C buffer[kTile];
  for (int64_t begin = part.begin; begin < part.end; begin += kTile) {
    const int64_t size = std::min(kTile, part.end - begin);
    const C* const x = tile_of(list, begin, size, buffer);
    const Row<uint8_t>& positive = list.positives;
    if (positive.stride == 1) {
      const uint8_t* const flag = positive.data + begin;
      for (int64_t j = 0; j < size; ++j)
        buffer[j] = flag[j] ? std::numeric_limits<C>::quiet_NaN() : x[j];
    } else {
      for (int64_t j = 0; j < size; ++j)
        buffer[j] = positive[begin + j] ? std::numeric_limits<C>::quiet_NaN() : x[j];
    }
    f(size, buffer);
  }
}

// The key of the lowest score of type C above t; false if there is none.
template <class C>
bool key_above(double t, KeyOf<C>* key) {
  const C near = C(t);
  if (double(near) > t) {
    *key = ascending_key(near);
  } else if (near < std::numeric_limits<C>::infinity()) {
    *key = next_key(near);
  } else {
    return false;  // nothing is above infinity, nor comparable to NaN
  }
  return true;
}

template <class T>
struct HingeWork {
  using C = Compute<T>;
  Work<T> work;                    // found, keys, places, counts
  std::vector<double> sums;        // of chunks, one table after the other
  std::vector<double> thresholds;  // of the positives, or ascending
  std::vector<double> below;       // by place: the threshold just below
  std::vector<double> q;
  std::vector<C> breakpoints;
  std::vector<uint32_t> place_of_slot;
  std::vector<T> values;
};

// sums[i] = sum over j of max(0, x_j - t_i), for all thresholds, by lane.
template <int kThresholds>
void add_hinges(const double* x, int64_t size, const double* t, double (*sums)[kHingeLanes]) {
  double sum[kThresholds][kHingeLanes];
  memcpy(sum, sums, sizeof(sum));
  for (int64_t j = 0; j < size; j += kHingeLanes) {
    for (int i = 0; i < kThresholds; ++i) {
      for (int64_t lane = 0; lane < kHingeLanes; ++lane) {
        const double hinge = x[j + lane] - t[i];
        sum[i][lane] += hinge > 0 ? hinge : 0;  // a NaN, also of equal infinities, adds nothing
      }
    }
  }
  memcpy(sums, sum, sizeof(sum));
}

// Fills q of each positive, by meeting all.
template <class T>
void hinge_by_pairs(const ScoreList<T>& list, double delta, HingeWork<T>& own,
                    const Parallel& parallel) {
  using C = Compute<T>;
  const Positives<C>& found = own.work.found;
  const int64_t size = found.size(), chunks = hinge_chunks(list.n, kHingeLanes * size);
  own.thresholds.resize(size_t(size));
  for (size_t i = 0; i < size_t(size); ++i)
    own.thresholds[i] = double(found.score[i]) - delta;
  own.sums.assign(size_t(chunks * size * kHingeLanes), 0.0);
  parallel.each(chunks, [&](int64_t c) {
    double wide[kTile];
    using Lanes = double[kHingeLanes];
    Lanes* const sums = reinterpret_cast<Lanes*>(own.sums.data() + c * size * kHingeLanes);
    each_negative_tile(list, Part(list.n, c, chunks), [&](int64_t tile, const C* x) {
      for (int64_t j = 0; j < tile; ++j)
        wide[j] = double(x[j]);
      for (; tile % kHingeLanes != 0; ++tile)
        wide[tile] = -std::numeric_limits<double>::infinity();
      int64_t i = 0;
      for (; i + 4 <= size; i += 4)
        add_hinges<4>(wide, tile, &own.thresholds[size_t(i)], sums + i);
      for (; i < size; ++i)
        add_hinges<1>(wide, tile, &own.thresholds[size_t(i)], sums + i);
    });
  });
  own.q.assign(size_t(size), 0.0);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t i = 0; i < size; ++i) {
      const double* const sum = &own.sums[size_t((c * size + i) * kHingeLanes)];
      own.q[size_t(i)] +=
          ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }
  }
}

// Fills q of each positive, by places.
template <class T>
void hinge_by_places(const ScoreList<T>& list, double delta, HingeWork<T>& own,
                     const Parallel& parallel) {
  using C = Compute<T>;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Work<T>& work = own.work;
  const Positives<C>& found = work.found;

  // The positives' scores, ascending and distinct: so are their thresholds, but for being distinct.
  work.keys.clear();
  for (const C score : found.score) {
    if (!is_nan(score)) work.keys.push_back(ascending_key(score));
  }
  build_places(list, work);
  work.places.places(found.score, work.from);
  const int64_t size = int64_t(work.keys.size());
  own.thresholds.resize(size_t(size));
  for (int64_t i = 0; i < size; ++i)
    own.thresholds[size_t(i)] = double(score_of<C>(work.keys[size_t(i)])) - delta;

  // Ascending as well, once each; to[i] is the place of the scores just above threshold i.
  work.keys.clear();
  work.to.assign(size_t(size), 0);
  own.below.assign(1, 0.0);
  for (size_t i = 0; i < size_t(size); ++i) {
    KeyOf<C> key;
    if (!key_above<C>(own.thresholds[i], &key)) continue;
    if (work.keys.empty() || work.keys.back() != key) {
      work.keys.push_back(key);
      own.below.push_back(0.0);
    }
    own.below.back() = own.thresholds[i];
    work.to[i] = int64_t(work.keys.size());
  }
  build_places(list, work);
  const Places<C>& places = work.places;
  const int64_t count = places.size();
  own.place_of_slot.assign(size_t(places.slots()), 0);
  for (int64_t p = 0; p < count; ++p)
    own.place_of_slot[size_t(places.slot(p))] = uint32_t(p);

  const int64_t chunks = hinge_chunks(list.n, count);
  if (int64_t(work.counts.size()) < chunks) work.counts.resize(size_t(chunks));
  own.sums.assign(size_t(chunks * count), 0.0);
  parallel.each(chunks, [&](int64_t c) {
    PlaceCounts& counts = work.counts[size_t(c)];
    double* const sums = own.sums.data() + c * count;
    uint32_t place[kTile];
    places.start(counts);
    each_negative_tile(list, Part(list.n, c, chunks), [&](int64_t tile, const C* x) {
      places.template pass<true>(x, tile, counts, own.place_of_slot.data(), uint32_t{0}, place);
      for (int64_t j = 0; j < tile; ++j)  // what place 0 gets, NaN too, nobody reads
        sums[place[j]] += double(x[j]) - own.below[place[j]];
    });
    places.finish(counts);
  });
  std::vector<int64_t>& at = reduce(work.counts, chunks);
  for (int64_t c = 1; c < chunks; ++c) {
    for (int64_t p = 1; p < count; ++p)
      own.sums[size_t(p)] += own.sums[size_t(c * count + p)];
  }

  // Down the thresholds; in own.q, of each of them, then of each positive.
  own.q.assign(size_t(size), 0.0);
  double q = 0, above = 0, last = kInfinity;
  int64_t counted = count;
  for (int64_t i = size - 1; i >= 0; --i) {
    const double t = own.thresholds[size_t(i)];
    const int64_t to = work.to[size_t(i)];
    if (to == 0) continue;  // nothing is above it
    // Nobody above, or no step: the difference may then be inf - inf.
    if (above > 0 && last > t) q += above * (last - t);
    if (to < counted) {
      q += own.sums[size_t(to)];
      above += double(at[size_t(places.counter(to))]);
      counted = to;
    }
    own.q[size_t(i)] = q;
    last = t;
  }
  std::vector<double>& of_each = own.below;
  of_each.resize(found.at.size());
  for (size_t i = 0; i < found.at.size(); ++i) {
    of_each[i] = work.from[i] == 0 ? std::numeric_limits<double>::quiet_NaN()
                                   : own.q[size_t(work.from[i] - 1)];
  }
  own.q.swap(of_each);
}

void hinge_violations(const View& scores, const View& positives, const View& where, double delta,
                      int64_t lists, int64_t n, void* out, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_float(scores.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Compute<T>;
    for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
      HingeWork<T> own;
      Positives<C>& found = own.work.found;
      for (int64_t b = begin; b < end; ++b) {
        const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
        C* const q = static_cast<C*>(out) + b * n;
        find_positives(list, found, inner);
        const int64_t chunks = chunks_of(n, inner);
        inner.each(chunks, [&](int64_t c) {
          const Part part(n, c, chunks);
          std::fill(q + part.begin, q + part.end, C(0));
        });
        if (found.size() == 0) continue;
        if (found.size() <= kHingePairs) {
          hinge_by_pairs(list, delta, own, inner);
        } else {
          hinge_by_places(list, delta, own, inner);
        }
        for (size_t i = 0; i < found.at.size(); ++i) {
          q[found.at[i]] =
              is_nan(found.score[i]) ? std::numeric_limits<C>::quiet_NaN() : C(own.q[i]);
        }
      }
    });
  });
}

// One list.
template <class T>
void hinge_gradient(const ScoreList<T>& list, const Row<Compute<T>>& grad, double delta,
                    HingeWork<T>& own, T* out, const Parallel& parallel) {
  using C = Compute<T>;
  Work<T>& work = own.work;
  const Positives<C>& found = work.found;

  // A positive whose threshold nothing can be above has the breakpoint NaN, and place 0.
  work.keys.clear();
  own.breakpoints.assign(found.at.size(), std::numeric_limits<C>::quiet_NaN());
  for (size_t i = 0; i < found.at.size(); ++i) {
    KeyOf<C> key;
    if (is_nan(found.score[i]) || !key_above<C>(double(found.score[i]) - delta, &key)) continue;
    work.keys.push_back(key);
    own.breakpoints[i] = score_of<C>(key);
  }
  build_places(list, work);
  Places<C>& places = work.places;
  places.places(own.breakpoints, work.to);
  places.places(found.score, work.from);

  // Sums of u over the thresholds below each place.
  own.sums.assign(size_t(places.size()), 0.0);
  for (size_t i = 0; i < found.at.size(); ++i) {
    if (work.to[i] > 0) own.sums[size_t(work.to[i])] += double(grad[found.at[i]]);
  }
  own.values.resize(size_t(places.slots()));
  double sum = 0;
  for (int64_t p = 0; p < places.size(); ++p) {
    sum += own.sums[size_t(p)];
    own.values[size_t(places.slot(p))] = Narrow<T>::from(C(sum));
  }

  const int64_t chunks = chunks_of(list.n, parallel);
  if (int64_t(work.counts.size()) < chunks) work.counts.resize(size_t(chunks));
  const T zero = Narrow<T>::from(C(0));
  const T nan = Narrow<T>::from(std::numeric_limits<C>::quiet_NaN());
  parallel.each(chunks, [&](int64_t c) {
    PlaceCounts& counts = work.counts[size_t(c)];
    places.start(counts);
    each_tile(list, c, chunks, [&](int64_t begin, int64_t size, const C* x) {
      places.template pass<true>(x, size, counts, own.values.data(), nan, out + begin);
      for (int64_t j = begin; list.where && j < begin + size; ++j)
        out[j] = list.where[j] ? out[j] : zero;
    });
    places.finish(counts);
  });

  // The positives were counted where they are; then the number of negatives from each place on.
  std::vector<int64_t>& above = reduce(work.counts, chunks);
  for (size_t i = 0; i < found.at.size(); ++i)
    --above[size_t(places.counter(work.from[i]))];
  count_after(above);
  for (size_t i = 0; i < found.at.size(); ++i) {
    if (is_nan(found.score[i])) continue;  // NaN already
    const int64_t to = work.to[i];
    const double count = to == 0 ? 0 : double(above[size_t(places.counter(to - 1))]);
    out[found.at[i]] = Narrow<T>::from(C(-double(grad[found.at[i]]) * count));
  }
}

void hinge_violations_backward(const View& grad, const View& scores, const View& positives,
                               const View& where, double delta, int64_t lists, int64_t n, void* out,
                               const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_float(scores.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
      HingeWork<T> own;
      for (int64_t b = begin; b < end; ++b) {
        const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
        find_positives(list, own.work.found, inner);
        hinge_gradient(list, Row<Compute<T>>(grad, b), delta, own, static_cast<T*>(out) + b * n,
                       inner);
      }
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
