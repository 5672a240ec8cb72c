// The RankReg term of each list, and its gradient, on a GPU. Arguments as for the CPU
// (cpu/rankreg_loss.h), in device memory.
#pragma once

#include "context.h"

namespace rankreg {
namespace gpu {

struct RankRegOptions {
  Lam lam;
  int64_t power;
  bool by_length;  // y = r / Z with Z the number of unmasked items; otherwise Z = 1
};

void rankreg_loss(const View& scores, const View& positives, const View& where,
                  const RankRegOptions& options, Reduction reduction, int64_t lists, int64_t n,
                  int64_t kept, Type rank_type, void* loss, void* state, Context& context);

void rankreg_loss_backward(const View& grad, const View& scores, const View& positives,
                           const View& state, const View& where, const RankRegOptions& options,
                           int64_t lists, int64_t n, int64_t kept, void* out, Context& context);

}  // namespace gpu
}  // namespace rankreg
