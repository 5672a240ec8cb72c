// Ranks of a few positives among all items of a list, and their gradient, without a sort of the
// list.
#pragma once

#include <vector>

#include "../common/types.h"
#include "parallel.h"
#include "view.h"

namespace rankreg {

// ranks (lists x n, contiguous, of `rank_type`): those of the positives, 0 elsewhere.
void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, const Parallel& parallel);

// out (lists x n, contiguous, type of scores): the blackbox gradient for grad at the positives.
// grad and ranks (lists x n) have the type of ranks.
void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, double lam, int64_t lists,
                             int64_t n, void* out, const Parallel& parallel);

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

// Fills at and score.
template <class T>
void find_positives(const ScoreList<T>& list, Positives<Compute<T>>& found,
                    const Parallel& parallel);

// Fills rank: 1 + #{k : a_k > a_i}.
template <class T>
void rank_positives(const ScoreList<T>& list, Positives<Compute<T>>& found,
                    const Parallel& parallel);

// out[j] = upstream * (rk(a+)_j - rk(a)_j) / divisor for every j in the list.
template <class T>
void step_gradient(const ScoreList<T>& list, const Positives<Compute<T>>& found, Compute<T> divisor,
                   Compute<T> upstream, T* out, const Parallel& parallel);

}  // namespace rankreg
