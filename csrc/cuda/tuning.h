// Where the CUDA kernels change their ways: the one place of such numbers. None was measured on a
// GPU yet; each says what it was derived from.
#pragma once

#include <cstdint>

namespace rankreg {
namespace gpu {

// One block sorts a list in shared memory. A thread more costs counters, so blocks of short lists
// are small. Estimate: at 8192 32-bit keys, a block of 256 takes 81 KiB, so that two stay on a
// multiprocessor of 164 KiB and more.
constexpr int64_t kSmallBlockRadixMost = 8192;

struct DeviceRadixTuning {
  // Longest list that is sorted together with others, by the number of its list before its key.
  // Estimate for an H100: a sort of its own costs a list about 40 us of launches and 0.023 ns an
  // element, one of many 0.053 ns an element: equal at 1.3e6.
  int64_t together_most = int64_t{1} << 20;
  // Elements of one such sort: enough for the launches to be a twentieth of the time (estimate),
  // few enough for the scratch memory to stay at 400 MB.
  int64_t elements_most = int64_t{1} << 24;
};

}  // namespace gpu
}  // namespace rankreg
