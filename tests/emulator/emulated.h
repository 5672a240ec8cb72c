// The GPU that is emulated: kernels choose their ways by these, so tests set them.
#pragma once

#include <cstdint>

namespace rankreg {
namespace gpu {

struct EmulatedGpu {
  int multiprocessors = 4;
  int64_t shared_most = 227 * 1024;
};

EmulatedGpu& emulated_gpu();

}  // namespace gpu
}  // namespace rankreg
