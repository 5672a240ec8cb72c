// rank: one list at a time is loaded as (key, index) pairs of the items that take part, put in
// order or counted, and its ranks are handed to a sink at their own places.
//
// A list comes from a source  - source(i, &key) gives item i's key, false if it is absent -
// and ends in a sink          - sink.put(i, rank), sink.absent(i).
// Forward and backward differ in these two alone.
//
// - Short lists: n^2 comparisons of keys, which the compiler turns into vector code; nothing is put
//   in order.
// - Longer lists: a stable LSD radix sort, 8 bits a pass, passes over a constant digit skipped;
// then
//   one walk over the groups of equal keys. Threads split a list into chunks with histograms of
//   their own, so that a single long list uses all of them.
//
// Scratch, per element: 2 keys + 2 indices, that is 16 bytes for 32-bit scores (24 for 64-bit, 12
// for 16-bit). Traffic per pass: key + index read and written once.
#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "../common/formulas.h"
#include "../common/keys.h"
#include "rank.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {
// Below this length comparing everything with everything is faster than 256-entry histograms.
constexpr int64_t kCountingMax = 96;
constexpr int kDigitBits = 8, kBuckets = 1 << kDigitBits;

template <class T>
struct Scores {
  using Key = KeyOf<T>;
  Row<T> x;
  Mask where;
  bool descending;

  bool operator()(int64_t i, Key* key) const {
    if (where && !where[i]) return false;
    const T value = x[i];
    *key = best_first_key(value, descending);
    return !is_nan(value);
  }
};

// The perturbed scores x + lam grad, formed as they are loaded.
template <class T, class R>
struct MovedScores {
  using C = Compute<T>;
  using Key = KeyOf<C>;
  Row<T> x;
  Row<R> grad;
  Mask where;
  C lam;
  bool descending;

  bool operator()(int64_t i, Key* key) const {
    if (where && !where[i]) return false;
    const C value = perturb(widen(x[i]), lam, C(grad[i]), descending);
    *key = best_first_key(value, descending);
    return !is_nan(value);
  }
};

template <class R>
struct RankSink {
  R* out;
  Mask where;

  void put(int64_t i, double rank) const { out[i] = R(rank); }
  void absent(int64_t i) const {
    out[i] = where && !where[i] ? R(0) : std::numeric_limits<R>::quiet_NaN();
  }
};

template <class T, class R>
struct GradientSink {
  using C = Compute<T>;
  T* out;
  Row<R> ranks;
  Mask where;
  C lam;

  void put(int64_t i, double rank) const {
    out[i] = Narrow<T>::from(gradient(rank, double(ranks[i]), lam));
  }
  void absent(int64_t i) const {
    out[i] = Narrow<T>::from(where && !where[i] ? C(0) : std::numeric_limits<C>::quiet_NaN());
  }
};

// Items of one list that take part, in two buffers between which the passes go to and fro.
template <class Key, class Index>
struct Items {
  std::unique_ptr<Key[]> key[2];
  std::unique_ptr<Index[]> index[2];

  explicit Items(int64_t n) {
    for (int side = 0; side < 2; ++side) {
      key[side].reset(new Key[size_t(n)]);
      index[side].reset(new Index[size_t(n)]);
    }
  }
};

// Fills side 0 in index order; returns how many items take part.
template <class Source, class Key, class Index>
int64_t load(const Source& source, int64_t n, Items<Key, Index>& items, const Parallel& parallel) {
  const int64_t chunks = chunks_of(n, parallel);
  std::vector<int64_t> first(size_t(chunks) + 1, 0);
  if (chunks > 1) {  // where each chunk starts once the absent items are gone
    parallel.each(chunks, [&](int64_t c) {
      const Part part(n, c, chunks);
      int64_t present = 0;
      Key key;
      for (int64_t i = part.begin; i < part.end; ++i)
        present += source(i, &key);
      first[size_t(c) + 1] = present;
    });
    for (int64_t c = 0; c < chunks; ++c)
      first[size_t(c) + 1] += first[size_t(c)];
  }
  parallel.each(chunks, [&](int64_t c) {
    const Part part(n, c, chunks);
    Key* key = items.key[0].get() + first[size_t(c)];
    Index* index = items.index[0].get() + first[size_t(c)];
    for (int64_t i = part.begin; i < part.end; ++i) {
      Key present;
      if (source(i, &present)) {
        *key++ = present;
        *index++ = Index(i);
      }
    }
    if (chunks == 1) first[1] = key - items.key[0].get();
  });
  return first[size_t(chunks)];
}

template <class Key>
int digit_of(Key key, int digit) {
  return int((key >> (digit * kDigitBits)) & Key(kBuckets - 1));
}

// Stable sort of the first m items by key; returns the side that holds them.
template <class Key, class Index>
int sort(Items<Key, Index>& items, int64_t m, const Parallel& parallel) {
  constexpr int digits = int(sizeof(Key));
  const int64_t chunks = chunks_of(m, parallel);
  // counts[chunk][digit][bucket]; those of a digit become the chunk's write positions.
  std::vector<Index> counts(size_t(chunks) * digits * kBuckets, 0);
  const auto counts_at = [&](int64_t chunk, int digit) {
    return counts.data() + (chunk * digits + digit) * kBuckets;
  };
  parallel.each(chunks, [&](int64_t c) {
    const Part part(m, c, chunks);
    const Key* key = items.key[0].get();
    for (int64_t i = part.begin; i < part.end; ++i) {
      for (int d = 0; d < digits; ++d)
        ++counts_at(c, d)[digit_of(key[i], d)];
    }
  });

  int side = 0;
  bool counts_are_current = true;
  for (int d = 0; d < digits; ++d) {
    Index total[kBuckets] = {};
    for (int64_t c = 0; c < chunks; ++c) {
      for (int b = 0; b < kBuckets; ++b)
        total[b] += counts_at(c, d)[b];
    }
    if (*std::max_element(total, total + kBuckets) == Index(m)) continue;  // a constant digit

    const Key* key = items.key[side].get();
    const Index* index = items.index[side].get();
    Key* sorted_key = items.key[1 - side].get();
    Index* sorted_index = items.index[1 - side].get();
    if (!counts_are_current) {  // an earlier pass moved items from chunk to chunk
      parallel.each(chunks, [&](int64_t c) {
        const Part part(m, c, chunks);
        Index* count = counts_at(c, d);
        std::fill(count, count + kBuckets, Index(0));
        for (int64_t i = part.begin; i < part.end; ++i)
          ++count[digit_of(key[i], d)];
      });
    }
    Index position = 0;
    for (int b = 0; b < kBuckets; ++b) {
      for (int64_t c = 0; c < chunks; ++c) {
        Index& slot = counts_at(c, d)[b];
        const Index count = slot;
        slot = position;
        position += count;
      }
    }
    parallel.each(chunks, [&](int64_t c) {
      const Part part(m, c, chunks);
      Index* next = counts_at(c, d);
      for (int64_t i = part.begin; i < part.end; ++i) {
        const Index at = next[digit_of(key[i], d)]++;
        sorted_key[at] = key[i];
        sorted_index[at] = index[i];
      }
    });
    side = 1 - side;
    counts_are_current = chunks == 1;
  }
  return side;
}

// The rank of the item at sorted `place` in a tie group [first, last), the group-th of its list.
inline double tied_rank(Ties ties, int64_t first, int64_t last, int64_t place, int64_t group) {
  switch (ties) {
    case Ties::kMin: return double(first + 1);
    case Ties::kMax: return double(last);
    case Ties::kAverage: return double(first + 1 + last) / 2;
    case Ties::kDense: return double(group);
    case Ties::kOrdinal: return double(place + 1);
  }
  return 0;
}

// Hands every sorted item its rank.
template <class Sink, class Key, class Index>
void emit_sorted(const Items<Key, Index>& items, int side, int64_t m, Ties ties, const Sink& sink,
                 const Parallel& parallel) {
  const Key* key = items.key[side].get();
  const Index* index = items.index[side].get();
  const int64_t chunks = chunks_of(m, parallel);
  std::vector<int64_t> groups(size_t(chunks) + 1, 0);  // that start before each chunk
  if (chunks > 1 && ties == Ties::kDense) {
    parallel.each(chunks, [&](int64_t c) {
      const Part part(m, c, chunks);
      int64_t starts = 0;
      for (int64_t p = part.begin; p < part.end; ++p)
        starts += p == 0 || key[p] != key[p - 1];
      groups[size_t(c) + 1] = starts;
    });
    for (int64_t c = 0; c < chunks; ++c)
      groups[size_t(c) + 1] += groups[size_t(c)];
  }
  parallel.each(chunks, [&](int64_t c) {
    const Part part(m, c, chunks);
    int64_t group = groups[size_t(c)];
    for (int64_t p = part.begin; p < part.end;) {
      // Only a chunk's outer groups can reach beyond it; the keys are sorted, so search for their
      // ends.
      const bool begins_here = p == 0 || key[p] != key[p - 1];
      const int64_t first = begins_here ? p : std::lower_bound(key, key + p, key[p]) - key;
      int64_t last = p + 1;
      while (last < part.end && key[last] == key[p])
        ++last;
      const int64_t stop = last;
      if (last == part.end) last = std::upper_bound(key + last, key + m, key[p]) - key;
      group += begins_here;
      for (; p < stop; ++p)
        sink.put(int64_t(index[p]), tied_rank(ties, first, last, p, group));
    }
  });
}

// Ranks by counting, for short lists: the inner loops are branch-free over contiguous keys.
template <class Sink, class Key, class Index>
void emit_counted(const Items<Key, Index>& items, int64_t m, Ties ties, const Sink& sink) {
  const Key* key = items.key[0].get();
  const Index* index = items.index[0].get();
  Key leads[kCountingMax];  // 1 for the first of each group of equal keys
  if (ties == Ties::kDense) {
    for (int64_t i = 0; i < m; ++i) {
      Key earlier = 0;
      for (int64_t k = 0; k < i; ++k)
        earlier = Key(earlier + (key[k] == key[i]));
      leads[i] = earlier == 0;
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    const Key mine = key[i];
    Key better = 0, equal = 0;  // counts in the keys' own width keep the vectors full
    int64_t group = 0, earlier = 0;
    if (ties == Ties::kDense) {
      for (int64_t k = 0; k < m; ++k)
        better = Key(better + (key[k] < mine ? leads[k] : Key(0)));
      group = int64_t(better) + 1;
    } else {
      for (int64_t k = 0; k < m; ++k)
        better = Key(better + (key[k] < mine));
      if (ties == Ties::kMax || ties == Ties::kAverage) {
        for (int64_t k = 0; k < m; ++k)
          equal = Key(equal + (key[k] == mine));
      } else if (ties == Ties::kOrdinal) {
        for (int64_t k = 0; k < i; ++k)
          earlier += key[k] == mine;
      }
    }
    const int64_t first = int64_t(better), last = first + int64_t(equal);
    sink.put(int64_t(index[i]), tied_rank(ties, first, last, first + earlier, group));
  }
}

template <class Source, class Sink, class Index>
void rank_list(const Source& source, const Sink& sink, int64_t n, Ties ties,
               Items<typename Source::Key, Index>& items, const Parallel& parallel) {
  const int64_t m = load(source, n, items, parallel);
  if (m < n) {
    typename Source::Key key;
    for (int64_t i = 0; i < n; ++i) {
      if (!source(i, &key)) sink.absent(i);
    }
  }
  if (m <= kCountingMax) {
    emit_counted(items, m, ties, sink);
  } else {
    emit_sorted(items, sort(items, m, parallel), m, ties, sink, parallel);
  }
}

// source(list), sink(list) for each list; skip(list) is true for a list already done.
template <class Index, class MakeSource, class MakeSink, class Skip>
void rank_lists(int64_t lists, int64_t n, Ties ties, const Parallel& parallel,
                const MakeSource& source, const MakeSink& sink, const Skip& skip) {
  using Key = typename decltype(source(int64_t{0}))::Key;
  for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
    std::unique_ptr<Items<Key, Index>> items;  // made when the first list needs it
    for (int64_t list = begin; list < end; ++list) {
      if (skip(list)) continue;
      if (!items) items.reset(new Items<Key, Index>(n));
      rank_list(source(list), sink(list), n, ties, *items, inner);
    }
  });
}

template <class MakeSource, class MakeSink, class Skip>
void rank_all(int64_t lists, int64_t n, Ties ties, const Parallel& parallel,
              const MakeSource& source, const MakeSink& sink, const Skip& skip) {
  if (n <= int64_t{std::numeric_limits<uint32_t>::max()}) {
    rank_lists<uint32_t>(lists, n, ties, parallel, source, sink, skip);
  } else {
    rank_lists<uint64_t>(lists, n, ties, parallel, source, sink, skip);
  }
}

void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(rank_type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_any(x.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      rank_all(
          lists, n, ties, parallel,
          [&](int64_t list) { return Scores<T>{Row<T>(x, list), Mask(where, list), descending}; },
          [&](int64_t list) {
            return RankSink<R>{static_cast<R*>(ranks) + list * n, Mask(where, list)};
          },
          [](int64_t) { return false; });
    });
  });
}

void blackbox_rank_backward(const View& grad, const View& x, const View& ranks, const View& where,
                            double lam, bool descending, Ties ties, int64_t lists, int64_t n,
                            void* out, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(ranks.type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_float(x.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      const auto sink = [&](int64_t list) {
        return GradientSink<T, R>{static_cast<T*>(out) + list * n, Row<R>(ranks, list),
                                  Mask(where, list), C(lam)};
      };
      rank_all(
          lists, n, ties, parallel,
          [&](int64_t list) {
            return MovedScores<T, R>{Row<T>(x, list), Row<R>(grad, list), Mask(where, list), C(lam),
                                     descending};
          },
          sink,
          // Nothing moves in a list whose gradient is zero: r' - r is 0, or NaN where r is.
          [&](int64_t list) {
            const Row<R> g(grad, list);
            for (int64_t i = 0; i < n; ++i) {
              if (!(g[i] == R(0))) return false;
            }
            const auto done = sink(list);
            for (int64_t i = 0; i < n; ++i)
              done.put(i, double(done.ranks[i]));
            return true;
          });
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
