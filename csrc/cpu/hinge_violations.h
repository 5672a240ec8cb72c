// How far, in sum, the negatives come too close to each positive of a list, and the gradient of it.
#pragma once

#include "../common/view.h"
#include "parallel.h"

namespace rankreg {

// out (lists x n, contiguous, compute type of the scores), at the positives, 0 elsewhere:
//   q_j = sum over negatives k of max(0, delta - (a_j - a_k))
void hinge_violations(const View& scores, const View& positives, const View& where, double delta,
                      int64_t lists, int64_t n, void* out, const Parallel& parallel);

// out (lists x n, contiguous, type of scores): the gradient for grad (lists x n, compute type of
// the scores) at q.
void hinge_violations_backward(const View& grad, const View& scores, const View& positives,
                               const View& where, double delta, int64_t lists, int64_t n, void* out,
                               const Parallel& parallel);

}  // namespace rankreg
