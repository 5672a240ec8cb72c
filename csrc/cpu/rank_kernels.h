// rank: a list is loaded as keys of the items that take part, gets their places (order.h), and
// every place becomes a rank.
//
// Forward and backward differ in their source of keys and in the sink of ranks alone: the scores,
// or the scores moved by lam * grad as they are loaded; the ranks, or their differences over lam.
//
// Where few scores of a list have a gradient, its backward needs no order at all.
//
// Tie rules: "min" is the place that equal keys share, "ordinal" the place of each. Where a list
// has equal keys at all, counts of the shared places give the other rules.
//
// Scratch, per element of one list: 12 bytes for scores of up to 32 bits and 16 for 64-bit ones,
// plus 4 where a tie rule counts.
#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "../common/formulas.h"
#include "../common/keys.h"
#include "positive_ranks_kernels.h"
#include "rank.h"
#include "sources.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

constexpr int64_t kWholeMax = kRankTuning[RANKREG_ISA].whole_max;

// Takes the ranks of a list: those of items [begin, end), and then what is absent there.
template <class R>
struct Sink {
  using Rank = R;
  virtual ~Sink() = default;
  virtual void tile(int64_t begin, int64_t end, const R* rank) const = 0;
  virtual void absent(int64_t i) const = 0;
};

template <class R>
struct RankSink final : Sink<R> {
  R* out;
  Mask where;

  RankSink(R* out, Mask where) : out(out), where(where) {}

  void tile(int64_t begin, int64_t end, const R* rank) const override {
    std::copy(rank, rank + (end - begin), out + begin);
  }
  void absent(int64_t i) const override {
    out[i] = where && !where[i] ? R(0) : std::numeric_limits<R>::quiet_NaN();
  }
};

template <class T, class R>
struct GradientSink final : Sink<R> {
  using C = Compute<T>;
  T* out;
  Row<R> ranks;
  Mask where;
  C lam;

  GradientSink(T* out, Row<R> ranks, Mask where, C lam)
      : out(out), ranks(ranks), where(where), lam(lam) {}

  void tile(int64_t begin, int64_t end, const R* rank) const override {
    R buffer[kKeyTile];
    const R* const before = side_by_side(ranks, begin, end, buffer);
    const C divisor = lam;
    for (int64_t i = 0; i < end - begin; ++i)
      out[begin + i] = Narrow<T>::from(gradient(rank[i], before[i], divisor));
  }
  void absent(int64_t i) const override {
    out[i] = Narrow<T>::from(where && !where[i] ? C(0) : std::numeric_limits<C>::quiet_NaN());
  }
};

// Memory of one thread, kept from list to list.
template <class Key, class Value>
struct RankWork {
  Buffer<Key> key;
  Buffer<uint32_t> index, place, count;
  Placer<Key, Value> placer;
  LongPlacer<Key, Value> long_placer;
};

// R(place) for places below 2^31 where R is float: that conversion is one instruction everywhere.
template <class R>
RANKREG_INLINE R number(uint32_t place) {
  if constexpr (sizeof(R) == 4) return R(int32_t(place));
  return R(place);
}

// Hands the sink rank_of(place) of every item that takes part.
template <class Key, class R, class RankOf>
void emit(const Source<Key>& source, const Sink<R>& sink, int64_t n, bool gaps,
          const uint32_t* place, const Parallel& parallel, const RankOf& rank_of) {
  const int64_t chunks = chunks_of(n, parallel);
  parallel.each(chunks, [&](int64_t c) {
    const Part part(n, c, chunks);
    R rank[kKeyTile];
    for (int64_t begin = part.begin; begin < part.end; begin += kKeyTile) {
      const int64_t end = std::min(part.end, begin + kKeyTile);
      if (!gaps) {
        for (int64_t i = begin; i < end; ++i)
          rank[i - begin] = rank_of(place[i]);
        sink.tile(begin, end, rank);
        continue;
      }
      Key key;
      for (int64_t i = begin; i < end; ++i)
        rank[i - begin] = source.one(i, &key) ? rank_of(place[i]) : 0;
      sink.tile(begin, end, rank);
      for (int64_t i = begin; i < end; ++i) {
        if (!source.one(i, &key)) sink.absent(i);
      }
    }
  });
}

template <class Key, class Value, class R>
void rank_list(const Source<Key>& source, const Sink<R>& sink, int64_t n, Ties ties,
               RankWork<Key, Value>& work, const Parallel& parallel) {
  uint32_t* const place = work.place.of(n + std::max(kRoom, long_room(n, parallel)));
  const Equal kind = ties == Ties::kOrdinal ? Equal::kOwn : Equal::kShare;
  int64_t present = 0;
  bool equal = false;
  if (n <= kWholeMax) {
    auto* const key = work.key.of(n);
    uint32_t* const index = work.index.of(n + kRoom);
    for (int64_t begin = 0; begin < n; begin += kKeyTile) {
      present += source.tile(begin, std::min(n, begin + kKeyTile), key + present, index + present);
    }
    if (present == n) {
      equal = work.placer.place(key, n, kind, 0, Own(), place);
    } else if (present > 0) {
      std::fill(index + present, index + present + kRoom, uint32_t(n));
      equal = work.placer.place(key, present, kind, 0, Listed{index}, place);
    }
  } else {
    equal = work.long_placer.place(source, n, kind, place, &present, parallel);
  }

  const bool gaps = present < n;
  if (!equal || ties == Ties::kMin || ties == Ties::kOrdinal) {
    return emit(source, sink, n, gaps, place, parallel,
                [](uint32_t p) RANKREG_ALWAYS { return number<R>(p) + 1; });
  }
  // How many share a place; for dense ranks, how many places are in use up to it.
  uint32_t* const count = work.count.of(n);
  std::fill(count, count + n, 0u);
  Key key;
  for (int64_t i = 0; i < n; ++i) {
    if (!gaps || source.one(i, &key)) ++count[place[i]];
  }
  switch (ties) {
    case Ties::kMax:
      return emit(source, sink, n, gaps, place, parallel,
                  [=](uint32_t p) RANKREG_ALWAYS { return number<R>(p + count[p]); });
    case Ties::kAverage:
      return emit(source, sink, n, gaps, place, parallel, [=](uint32_t p) RANKREG_ALWAYS {
        return number<R>(p) + number<R>(count[p] + 1) / 2;
      });
    default: {
      uint32_t places = 0;
      for (int64_t p = 0; p < n; ++p)
        count[p] = places += count[p] != 0;
      return emit(source, sink, n, gaps, place, parallel,
                  [=](uint32_t p) RANKREG_ALWAYS { return number<R>(count[p]); });
    }
  }
}

// Lists too long for 32-bit places: plain sorting of 64-bit indices, on one thread.
template <class Key, class R>
void rank_huge_list(const Source<Key>& source, const Sink<R>& sink, int64_t n, Ties ties) {
  const auto key_of = [&](int64_t i) {
    Key key;
    source.one(i, &key);
    return key;
  };
  std::vector<int64_t> order;
  Key key;
  for (int64_t i = 0; i < n; ++i) {
    if (source.one(i, &key)) {
      order.push_back(i);
    } else {
      sink.absent(i);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return key_of(a) < key_of(b); });
  const int64_t size = int64_t(order.size());
  int64_t group = 0;
  for (int64_t first = 0; first < size;) {
    int64_t last = first + 1;
    while (last < size && key_of(order[size_t(last)]) == key_of(order[size_t(first)]))
      ++last;
    ++group;
    for (int64_t p = first; p < last; ++p) {
      const double rank = ties == Ties::kMin       ? double(first + 1)
                          : ties == Ties::kMax     ? double(last)
                          : ties == Ties::kAverage ? double(first + 1 + last) / 2
                          : ties == Ties::kDense   ? double(group)
                                                   : double(p + 1);
      const R narrow = R(rank);
      sink.tile(order[size_t(p)], order[size_t(p)] + 1, &narrow);
    }
    first = last;
  }
}

// source(list), sink(list) for each list, unless done(list, parallel, memory) has done it already;
// there is one memory a thread.
template <class Memory, class MakeSource, class MakeSink, class Done>
void rank_lists(int64_t lists, int64_t n, Ties ties, const Parallel& parallel,
                const MakeSource& source, const MakeSink& sink, const Done& done) {
  using List = decltype(source(int64_t{0}));
  for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
    RankWork<typename List::Key, typename List::Value> work;
    Memory memory;
    for (int64_t list = begin; list < end; ++list) {
      if (done(list, inner, memory)) continue;
      if (n <= kPlacesMax) {
        rank_list(source(list), sink(list), n, ties, work, inner);
      } else {
        rank_huge_list(source(list), sink(list), n, ties);
      }
    }
  });
}

struct Nothing {};

// Nothing moves in a list whose gradient is zero: r' - r is 0, or NaN where r is.
template <class T, class R>
bool done_as_nothing_moves(const Row<R>& grad, const GradientSink<T, R>& sink, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(grad[i] == R(0))) return false;
  }
  R buffer[kKeyTile];
  for (int64_t i = 0; i < n; i += kKeyTile) {
    const int64_t end = std::min(n, i + kKeyTile);
    sink.tile(i, end, side_by_side(sink.ranks, i, end, buffer));
  }
  return true;
}

// The gradient of a list in which few scores move, without an order: as for positive_ranks, whose
// positives are those scores. False if more than one in kFewMove moves.
constexpr int64_t kFewMove = 32;
template <class T, class R>
bool done_as_few_move(const ScoreList<T>& list, const Row<R>& grad, const Row<R>& ranks,
                      Compute<T> lam, T* out, Work<T>& work, const Parallel& parallel) {
  Positives<Compute<T>>& found = work.found;
  found.at.clear();
  for (int64_t i = 0; i < list.n; ++i) {
    if (grad[i] == R(0) || list.masked(i)) continue;
    if (int64_t(found.at.size()) * kFewMove >= list.n) return false;
    found.at.push_back(i);
  }
  found.score.clear(), found.moved.clear(), found.rank.clear();
  for (const int64_t i : found.at) {
    found.score.push_back(widen(list.scores[i]));
    found.moved.push_back(perturb(found.score.back(), lam, Compute<T>(grad[i])));
    found.rank.push_back(double(ranks[i]));
  }
  step_gradient(list, work, lam, Compute<T>(1), out, parallel);
  return true;
}

void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(rank_type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_any(x.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      rank_lists<Nothing>(
          lists, n, ties, parallel,
          [&](int64_t list) { return Scores<T>(Row<T>(x, list), Mask(where, list), descending); },
          [&](int64_t list) {
            return RankSink<R>(static_cast<R*>(ranks) + list * n, Mask(where, list));
          },
          [](int64_t, const Parallel&, Nothing&) { return false; });
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
        return GradientSink<T, R>(static_cast<T*>(out) + list * n, Row<R>(ranks, list),
                                  Mask(where, list), C(lam));
      };
      rank_lists<Work<T>>(
          lists, n, ties, parallel,
          [&](int64_t list) {
            return MovedScores<T, R>(Row<T>(x, list), Row<R>(grad, list), Mask(where, list), C(lam),
                                     descending);
          },
          sink,
          [&](int64_t list, const Parallel& inner, Work<T>& work) {
            const Row<R> g(grad, list), r(ranks, list);
            const Mask mask(where, list);
            if (ties != Ties::kMin || !descending) return done_as_nothing_moves(g, sink(list), n);
            const ScoreList<T> scores{Row<T>(x, list), {}, mask, n};
            return done_as_few_move(scores, g, r, C(lam), static_cast<T*>(out) + list * n, work,
                                    inner);
          });
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
