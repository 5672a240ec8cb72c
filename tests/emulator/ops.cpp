// The CUDA back-end, emulated, as ops of CPU tensors: torch.ops.rankreg_ext_emulated.
#include "emulated_backend.h"

namespace rankreg {
namespace gpu {

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext_emulated, CPU, m) { Ops<Emulated>::register_all(m); }

}  // namespace gpu
}  // namespace rankreg
