// positive_ranks: counting against thresholds instead of sorting.
//
//   forward    r_i = 1 + #{k : a_k > a_i}: every score meets |P| thresholds
//   backward   an item that does not move changes rank by D(a_j), a step function:
//                D(x) = #{i in P : a+_i > x} - #{i in P : a_i > x}
//              a positive that moves has r'_i = 1 + #{k : a'_k > a+_i}, a' = scores after the move
//
// Positives that do not move (a+ == a) cancel in D and are items like any other. Scores are read
// once per direction, in tiles that stay in the first-level cache; in a tile, masked and NaN scores
// are NaN, which is above nothing and below nothing.
//
// - Few thresholds: compare-all. Every score meets every threshold, eight of them in registers;
//   exact with ties because the comparison is strict.
// - Many thresholds: a sorted table of the distinct ones, with a lookup array over the leading bits
//   of the key: one short search a score, near O(n) whatever |P|.
//
// Bytes moved, per score: 4 (float32) + 1 (positives) forward, and 4 more, the gradient, backward.
// Threads split the list, count for themselves, and add integers: the result does not depend on
// them.
#pragma once

#include <limits>
#include <memory>

#include "../common/formulas.h"
#include "../common/keys.h"
#include "positive_ranks.h"
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

constexpr int64_t kTile = 2048;          // scores: 8 KiB of floats
constexpr int kBlock = 8;                // thresholds held in registers
constexpr int64_t kCompareAllMax = 512;  // thresholds beyond which the table is faster

// Counters as wide as the scores keep the vectors full; a tile cannot overflow them.
template <class C>
using Counter = typename std::conditional<sizeof(C) == 4, int32_t, int64_t>::type;

// Scores [begin, begin + size) as C, masked ones NaN: the list's own memory where that is the same.
template <class T, class C = Compute<T>>
const C* tile_of(const ScoreList<T>& list, int64_t begin, int64_t size, C* buffer) {
  if constexpr (std::is_same<T, C>::value) {
    if (list.scores.stride == 1 && !list.where) return list.scores.data + begin;
  }
  for (int64_t j = 0; j < size; ++j)
    buffer[j] = widen(list.scores[begin + j]);
  if (list.where) {
    for (int64_t j = 0; j < size; ++j) {
      if (!list.where[begin + j]) buffer[j] = std::numeric_limits<C>::quiet_NaN();
    }
  }
  return buffer;
}

// counts[i] += #{j : x_j > t_i}, for kBlock thresholds.
template <class C>
void count_above(const C* x, int64_t size, const C* t, int64_t* counts) {
  Counter<C> c0 = 0, c1 = 0, c2 = 0, c3 = 0, c4 = 0, c5 = 0, c6 = 0, c7 = 0;
  const C t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6], t7 = t[7];
  for (int64_t j = 0; j < size; ++j) {
    const C v = x[j];
    c0 += v > t0, c1 += v > t1, c2 += v > t2, c3 += v > t3;
    c4 += v > t4, c5 += v > t5, c6 += v > t6, c7 += v > t7;
  }
  counts[0] += c0, counts[1] += c1, counts[2] += c2, counts[3] += c3;
  counts[4] += c4, counts[5] += c5, counts[6] += c6, counts[7] += c7;
}

// d_j += #{i : t'_i > x_j} - #{i : t_i > x_j}, for kBlock pairs.
template <class C>
void add_steps(const C* x, int64_t size, const C* t, const C* moved, Counter<C>* d) {
  C from[kBlock], to[kBlock];  // copies that d cannot alias, so that they stay in registers
  std::copy(t, t + kBlock, from);
  std::copy(moved, moved + kBlock, to);
  for (int64_t j = 0; j < size; ++j) {
    const C v = x[j];
    Counter<C> up = 0, down = 0;
    for (int i = 0; i < kBlock; ++i) {
      up += to[i] > v;
      down += from[i] > v;
    }
    d[j] += up - down;
  }
}

// Thresholds padded to whole blocks with +infinity, which nothing exceeds.
template <class C>
std::vector<C> padded(const std::vector<C>& thresholds) {
  std::vector<C> out(thresholds);
  out.resize((out.size() + kBlock - 1) / kBlock * kBlock, std::numeric_limits<C>::infinity());
  return out;
}

// The distinct thresholds in order. A score's `place` is 2 l + e: l thresholds lie below it, and e
// is 1 if it equals the next. So places are ordered as scores are, and thresholds have places of
// their own.
template <class C>
class Table {
 public:
  using Key = KeyOf<C>;

  explicit Table(std::vector<Key> keys) : keys_(std::move(keys)) {
    std::sort(keys_.begin(), keys_.end());
    keys_.erase(std::unique(keys_.begin(), keys_.end()), keys_.end());
    const Key span = keys_.back() - keys_.front();
    while ((span >> shift_) >= 4 * keys_.size())
      ++shift_;
    // starts_[c]: thresholds in the cells before c. Cells are equal ranges of keys.
    starts_.assign(size_t(span >> shift_) + 2, 0);
    for (const Key key : keys_)
      ++starts_[cell(key) + 1];
    for (size_t c = 1; c < starts_.size(); ++c)
      starts_[c] += starts_[c - 1];
  }

  int64_t places() const { return 2 * int64_t(keys_.size()) + 1; }

  int64_t place(Key key) const {
    if (key < keys_.front()) return 0;
    if (key > keys_.back()) return places() - 1;
    const size_t c = cell(key);
    const Key* begin = keys_.data() + starts_[c];
    const Key* at = std::lower_bound(begin, keys_.data() + starts_[c + 1], key);
    const int64_t below = at - keys_.data();
    return 2 * below + (keys_[size_t(below)] == key);
  }

 private:
  size_t cell(Key key) const { return size_t((key - keys_.front()) >> shift_); }

  std::vector<Key> keys_;
  std::vector<int64_t> starts_;
  int shift_ = 0;
};

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
inline std::vector<int64_t>& reduce(std::vector<std::vector<int64_t>>& counts) {
  for (size_t c = 1; c < counts.size(); ++c) {
    for (size_t i = 0; i < counts[0].size(); ++i)
      counts[0][i] += counts[c][i];
  }
  return counts[0];
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
    int64_t i = part.begin;
    if (list.positives.stride == 1) {
      // Positives are rare: eight flags at a time are usually all false.
      for (; i + 8 <= part.end; i += 8) {
        uint64_t flags;
        memcpy(&flags, list.positives.data + i, sizeof(flags));
        if (flags != 0) {
          for (int64_t k = i; k < i + 8; ++k)
            visit(k);
        }
      }
    }
    for (; i < part.end; ++i)
      visit(i);
  });
  for (const auto& at : part_at)
    found.at.insert(found.at.end(), at.begin(), at.end());
  found.score.resize(found.at.size());
  for (size_t i = 0; i < found.at.size(); ++i)
    found.score[i] = widen(list.scores[found.at[i]]);
}

// Fills rank: 1 + #{k : a_k > a_i}.
template <class T>
void rank_positives(const ScoreList<T>& list, Positives<Compute<T>>& found,
                    const Parallel& parallel) {
  using C = Compute<T>;
  const int64_t size = found.size(), chunks = chunks_of(list.n, parallel);
  found.rank.resize(size_t(size));
  if (size == 0) return;

  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(chunks));
  if (size <= kCompareAllMax) {
    const std::vector<C> thresholds = padded(found.score);
    parallel.each(chunks, [&](int64_t c) {
      std::vector<int64_t>& above = counts[size_t(c)];
      above.assign(thresholds.size(), 0);
      C buffer[kTile];
      const Part part(list.n, c, chunks);
      for (int64_t begin = part.begin; begin < part.end; begin += kTile) {
        const int64_t tile = std::min(kTile, part.end - begin);
        const C* x = tile_of(list, begin, tile, buffer);
        for (size_t i = 0; i < thresholds.size(); i += kBlock) {
          count_above(x, tile, &thresholds[i], &above[i]);
        }
      }
    });
    const std::vector<int64_t>& above = reduce(counts);
    for (size_t i = 0; i < size_t(size); ++i)
      found.rank[i] = double(1 + above[i]);
  } else {
    std::vector<KeyOf<C>> keys;
    for (const C score : found.score) {
      if (!is_nan(score)) keys.push_back(ascending_key(score));
    }
    if (!keys.empty()) {
      const Table<C> table(std::move(keys));
      parallel.each(chunks, [&](int64_t c) {
        std::vector<int64_t>& at_place = counts[size_t(c)];
        at_place.assign(size_t(table.places()), 0);
        C buffer[kTile];
        const Part part(list.n, c, chunks);
        for (int64_t begin = part.begin; begin < part.end; begin += kTile) {
          const int64_t tile = std::min(kTile, part.end - begin);
          const C* x = tile_of(list, begin, tile, buffer);
          for (int64_t j = 0; j < tile; ++j) {
            if (!is_nan(x[j])) ++at_place[size_t(table.place(ascending_key(x[j])))];
          }
        }
      });
      std::vector<int64_t>& above = reduce(counts);
      count_after(above);
      for (size_t i = 0; i < size_t(size); ++i) {
        if (!is_nan(found.score[i])) {
          found.rank[i] = double(1 + above[size_t(table.place(ascending_key(found.score[i])))]);
        }
      }
    }
  }
  for (size_t i = 0; i < size_t(size); ++i) {
    if (is_nan(found.score[i])) found.rank[i] = std::numeric_limits<double>::quiet_NaN();
  }
}

// out[j] = upstream * (rk(a+)_j - rk(a)_j) / divisor for every j in the list.
template <class T>
void step_gradient(const ScoreList<T>& list, const Positives<Compute<T>>& found, Compute<T> divisor,
                   Compute<T> upstream, T* out, const Parallel& parallel) {
  using C = Compute<T>;
  // The positives that move: where from, where to.
  std::vector<int64_t> at;
  std::vector<C> from, to;
  std::vector<double> rank;
  for (size_t i = 0; i < found.at.size(); ++i) {
    if (is_nan(found.score[i]) || found.moved[i] == found.score[i]) continue;
    at.push_back(found.at[i]);
    from.push_back(found.score[i]);
    to.push_back(found.moved[i]);
    rank.push_back(found.rank[i]);
  }
  const int64_t movers = int64_t(at.size()), chunks = chunks_of(list.n, parallel);
  const bool compare_all = movers <= kCompareAllMax;
  const std::vector<C> padded_from = padded(from), padded_to = padded(to);

  std::unique_ptr<Table<C>> table;
  std::vector<int64_t> steps;  // D by place
  if (!compare_all) {
    std::vector<KeyOf<C>> keys;
    for (size_t i = 0; i < at.size(); ++i) {
      keys.push_back(ascending_key(from[i]));
      if (!is_nan(to[i])) keys.push_back(ascending_key(to[i]));
    }
    table.reset(new Table<C>(std::move(keys)));
    steps.assign(size_t(table->places()), 0);
    for (size_t i = 0; i < at.size(); ++i) {
      --steps[size_t(table->place(ascending_key(from[i])))];
      if (!is_nan(to[i])) ++steps[size_t(table->place(ascending_key(to[i])))];
    }
    count_after(steps);
  }

  // Items above each mover's new score (compare-all), or at each place (table).
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(chunks));
  parallel.each(chunks, [&](int64_t c) {
    std::vector<int64_t>& above = counts[size_t(c)];
    above.assign(compare_all ? padded_to.size() : size_t(table->places()), 0);
    C buffer[kTile];
    C delta[kTile];  // r' - r of the items in the tile
    const Part part(list.n, c, chunks);
    size_t next = size_t(std::lower_bound(at.begin(), at.end(), part.begin) - at.begin());
    for (int64_t begin = part.begin; begin < part.end; begin += kTile) {
      const int64_t tile = std::min(kTile, part.end - begin);
      const C* x = tile_of(list, begin, tile, buffer);
      if (next < at.size() && at[next] < begin + tile) {  // the movers stand at their new scores
        if (x != buffer) std::copy(x, x + tile, buffer);
        x = buffer;
        for (; next < at.size() && at[next] < begin + tile; ++next)
          buffer[at[next] - begin] = to[next];
      }
      if (compare_all) {
        Counter<C> change[kTile] = {};
        for (size_t i = 0; i < padded_to.size(); i += kBlock) {
          count_above(x, tile, &padded_to[i], &above[i]);
          add_steps(x, tile, &padded_from[i], &padded_to[i], change);
        }
        for (int64_t j = 0; j < tile; ++j) {
          delta[j] = is_nan(x[j]) ? x[j] : C(change[j]);
        }
      } else {
        for (int64_t j = 0; j < tile; ++j) {
          delta[j] = x[j];  // NaN where the score is
          if (is_nan(x[j])) continue;
          const size_t place = size_t(table->place(ascending_key(x[j])));
          ++above[place];
          delta[j] = C(steps[place]);
        }
      }
      for (int64_t j = 0; j < tile; ++j) {
        out[begin + j] = Narrow<T>::from(upstream * (delta[j] / divisor));
      }
      if (list.where) {
        for (int64_t j = 0; j < tile; ++j) {
          if (!list.where[begin + j]) out[begin + j] = Narrow<T>::from(C(0));
        }
      }
    }
  });

  if (movers == 0) return;
  std::vector<int64_t>& above = reduce(counts);
  if (!compare_all) count_after(above);
  for (size_t i = 0; i < at.size(); ++i) {
    double moved_rank = std::numeric_limits<double>::quiet_NaN();
    if (!is_nan(to[i])) {
      const size_t p = compare_all ? i : size_t(table->place(ascending_key(to[i])));
      moved_rank = double(1 + above[p]);
    }
    out[at[i]] = Narrow<T>::from(gradient(moved_rank, rank[i], divisor, upstream));
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
        Positives<Compute<T>> found;
        for (int64_t b = begin; b < end; ++b) {
          const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
          R* out = static_cast<R*>(ranks) + b * n;
          find_positives(list, found, inner);
          rank_positives(list, found, inner);
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
        Positives<C> found;
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
          step_gradient(list, found, C(lam), C(1), static_cast<T*>(out) + b * n, inner);
        }
      });
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
