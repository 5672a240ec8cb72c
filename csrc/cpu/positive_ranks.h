// Ranks of a few positives among all items of a list, and their gradient, without a sort of the
// list.
#pragma once

#include "../common/view.h"
#include "parallel.h"

namespace rankreg {

// ranks (lists x n, contiguous, of `rank_type`): those of the positives, 0 elsewhere.
void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, const Parallel& parallel);

// out (lists x n, contiguous, type of scores): the blackbox gradient for grad at the positives.
// grad and ranks (lists x n) have the type of ranks.
void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, double lam, int64_t lists,
                             int64_t n, void* out, const Parallel& parallel);

}  // namespace rankreg
