// Ranks of all items of each list, and their blackbox gradient.
#pragma once

#include "../common/view.h"
#include "parallel.h"

namespace rankreg {

// ranks (lists x n, contiguous, of `rank_type`) of x (lists x n), absent items 0 or NaN.
void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, const Parallel& parallel);

// out (lists x n, contiguous, type of x) = (rk(x + lam grad) - ranks) / lam, in one pass per list.
// grad and ranks have the type of ranks.
void blackbox_rank_backward(const View& grad, const View& x, const View& ranks, const View& where,
                            double lam, bool descending, Ties ties, int64_t lists, int64_t n,
                            void* out, const Parallel& parallel);

}  // namespace rankreg
