// The kernels of csrc/cuda as a back-end of ops.h; B::Call is for the derived back-end to say.
#pragma once

#include "../ops.h"
#include "hinge_violations.h"
#include "positive_ranks.h"
#include "rank.h"
#include "rankreg_loss.h"

namespace rankreg {
namespace gpu {

struct Backend {
  static Lam lam(double lam, const Optional& tensor) {
    if (!tensor) return Lam{lam, nullptr, Type::kDouble};
    STD_TORCH_CHECK(tensor->numel() == 1, "rankreg_ext: a lam tensor must have one element");
    return Lam{0, tensor->const_data_ptr(), type_of(*tensor)};
  }

  static constexpr auto& rank = gpu::rank;
  static constexpr auto& blackbox_rank_backward = gpu::blackbox_rank_backward;
  static constexpr auto& positive_ranks = gpu::positive_ranks;
  static constexpr auto& positive_ranks_backward = gpu::positive_ranks_backward;
  static constexpr auto& rankreg_loss = gpu::rankreg_loss;
  static constexpr auto& rankreg_loss_backward = gpu::rankreg_loss_backward;
  static constexpr auto& hinge_violations = gpu::hinge_violations;
  static constexpr auto& hinge_violations_backward = gpu::hinge_violations_backward;
};

}  // namespace gpu
}  // namespace rankreg
