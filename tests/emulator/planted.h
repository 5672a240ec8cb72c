// Kernels with a planted defect, which the emulator must notice.
#pragma once

#include <string>
#include <vector>

namespace planted {

// The sums over each warp of a block of 64 threads that a correct kernel computes, or what this one
// does instead: "nothing" (it is correct), "missing_barrier", "missing_warp_barrier",
// "divergent_barrier", "early_return", "divergent_shuffle", "uninitialised", "overrun" (one element
// past dynamic shared memory: for AddressSanitizer), "static_overrun", "greedy" (for shared
// memory).
std::vector<int> run(const std::string& defect);

}  // namespace planted
