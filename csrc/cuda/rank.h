// Ranks of all items of each list, and their blackbox gradient, on a GPU. Arguments as for the CPU
// (cpu/rank.h); every pointer but lam's own is one to device memory.
#pragma once

#include "context.h"

namespace rankreg {
namespace gpu {

void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, Context& context);

void blackbox_rank_backward(const View& grad, const View& x, const View& ranks, const View& where,
                            const Lam& lam, bool descending, Ties ties, int64_t lists, int64_t n,
                            void* out, Context& context);

}  // namespace gpu
}  // namespace rankreg
