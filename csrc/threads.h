// The threads of torch, for callers that do not know torch.
#pragma once

#include "cpu/parallel.h"

namespace rankreg {

// at::parallel_for and the number of threads that torch.set_num_threads set.
const Parallel& torch_threads();

}  // namespace rankreg
