// The RankReg term of each list: its value, and its gradient, fused with the positives' ranks.
#pragma once

#include "../common/view.h"
#include "parallel.h"

namespace rankreg {

struct RankRegOptions {
  double lam;
  int64_t power;
  bool by_length;  // y = r / Z with Z the number of unmasked items; otherwise Z = 1
};

// loss: one value, or one per list for kNone, in the compute type of the scores.
// state (lists x (1 + kept), contiguous, of `rank_type`): what the reduction divided by, then the
// ranks of the list's positives in their order, and zeros; zeros alone if there are more than
// `kept`.
void rankreg_loss(const View& scores, const View& positives, const View& where,
                  const RankRegOptions& options, Reduction reduction, int64_t lists, int64_t n,
                  int64_t kept, Type rank_type, void* loss, void* state, const Parallel& parallel);

// out (lists x n, contiguous, type of scores) = grad / divisor * dR/da. grad (lists x 1) has the
// compute type of the scores. A list with more than `kept` positives has them ranked again.
void rankreg_loss_backward(const View& grad, const View& scores, const View& positives,
                           const View& state, const View& where, const RankRegOptions& options,
                           int64_t lists, int64_t n, int64_t kept, void* out,
                           const Parallel& parallel);

}  // namespace rankreg
