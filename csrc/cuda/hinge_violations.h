// How far, in sum, the negatives come too close to each positive of a list, and the gradient of it,
// on a GPU. Arguments as for the CPU (cpu/hinge_violations.h), in device memory.
#pragma once

#include "context.h"

namespace rankreg {
namespace gpu {

void hinge_violations(const View& scores, const View& positives, const View& where,
                      const Lam& delta, int64_t lists, int64_t n, void* out, Context& context);

void hinge_violations_backward(const View& grad, const View& scores, const View& positives,
                               const View& where, const Lam& delta, int64_t lists, int64_t n,
                               void* out, Context& context);

}  // namespace gpu
}  // namespace rankreg
