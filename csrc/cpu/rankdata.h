// Ascending ranks in the types that statistics packages give them in, and what NaN does to them.
#pragma once

#include "../common/view.h"
#include "parallel.h"

namespace rankreg {

// Whether there is a NaN among x (lists x n).
bool any_nan(const View& x, int64_t lists, int64_t n, const Parallel& parallel);

enum class NanRule : int {
  kAbsent,  // a NaN has rank NaN and counts for nobody
  kSpread,  // a list that holds a NaN has nothing but NaN ranks
};

// ranks (lists x n, contiguous, of `rank_type`): double, or int64 where x is known to hold no NaN
// and ties are not averaged.
void rankdata(const View& x, Ties ties, NanRule nan, int64_t lists, int64_t n, Type rank_type,
              void* ranks, const Parallel& parallel);

}  // namespace rankreg
