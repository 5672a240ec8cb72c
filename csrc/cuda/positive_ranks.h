// Ranks of a few positives among all items of a list, and their gradient, on a GPU, without a sort
// of the list. Arguments as for the CPU (cpu/positive_ranks.h), in device memory.
#pragma once

#include "context.h"

namespace rankreg {
namespace gpu {

void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, Context& context);

void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, const Lam& lam, int64_t lists,
                             int64_t n, void* out, Context& context);

}  // namespace gpu
}  // namespace rankreg
