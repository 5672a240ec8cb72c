// The kernels for long lists of rare positives as ops of CPU tensors, whatever the length of the
// lists: torch.ops.rankreg_ext_stream, with all of rankreg_ext but the ranks of whole lists.
#include "../../csrc/cuda/positives_stream.cuh"
#include "emulated_backend.h"

namespace rankreg {
namespace gpu {
namespace {

struct Streamed : Emulated {
  static constexpr decltype(gpu::positive_ranks)& positive_ranks = positive_ranks_stream;
  static constexpr decltype(gpu::positive_ranks_backward)& positive_ranks_backward =
      positive_ranks_backward_stream;
  static constexpr decltype(gpu::rankreg_loss)& rankreg_loss = rankreg_loss_stream;
  static constexpr decltype(gpu::rankreg_loss_backward)& rankreg_loss_backward =
      rankreg_loss_backward_stream;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext_stream, CPU, m) { Ops<Streamed>::register_all(m); }

}  // namespace gpu
}  // namespace rankreg
