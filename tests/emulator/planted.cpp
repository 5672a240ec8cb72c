#include "planted.h"

#include <map>
#include <stdexcept>

#include "../../csrc/cuda/device.cuh"

namespace planted {
namespace {

enum Defect {
  kNothing,
  kMissingBarrier,
  kMissingWarpBarrier,
  kDivergentBarrier,
  kEarlyReturn,
  kDivergentShuffle,
  kUninitialised,
  kOverrun,
  kStaticOverrun,
  kGreedy
};

struct Storage {
  int value[64];
};

// One block of 64 threads. values: 64; out: 64, each the sum of the values of the other warp's
// lanes up to the thread's own, read through shared memory.
__global__ void sums(const int* values, int* out, Defect defect) {
  RANKREG_SHARED(Storage, fixed);
  int* const shared = rankreg::gpu::dynamic_shared<int>();
  const int t = int(threadIdx.x), lane = t % 32;
  if (defect == kEarlyReturn && t == 40) return;
  int sum = values[t];
  for (int step = 1; step < 32; step *= 2) {
    if (defect == kDivergentShuffle && t == 3) continue;
    const int below = __shfl_up_sync(rankreg::gpu::kAll, sum, unsigned(step));
    if (lane >= step) sum += below;
  }
  // The same again through memory, within the warp.
  fixed.value[t] = sum;
  if (defect != kMissingWarpBarrier) __syncwarp();
  sum = fixed.value[t ^ 1];
  __syncwarp();
  fixed.value[t] = sum;
  __syncwarp();
  sum = fixed.value[t ^ 1];
  if (defect == kStaticOverrun && t == 0) sum += reinterpret_cast<volatile int*>(&fixed)[64];
  if (defect != kUninitialised || t != 0) shared[t] = sum;
  if (defect == kOverrun && t == 0) sum += static_cast<volatile int*>(shared)[64];
  if (defect == kDivergentBarrier) {
    if (t < 32) __syncthreads();
  } else if (defect != kMissingBarrier) {
    __syncthreads();
  }
  out[t] = shared[t ^ 32];
}

}  // namespace

std::vector<int> run(const std::string& defect) {
  static const std::map<std::string, Defect> names = {{"nothing", kNothing},
                                                      {"missing_barrier", kMissingBarrier},
                                                      {"missing_warp_barrier", kMissingWarpBarrier},
                                                      {"divergent_barrier", kDivergentBarrier},
                                                      {"early_return", kEarlyReturn},
                                                      {"divergent_shuffle", kDivergentShuffle},
                                                      {"uninitialised", kUninitialised},
                                                      {"overrun", kOverrun},
                                                      {"static_overrun", kStaticOverrun},
                                                      {"greedy", kGreedy}};
  class Host final : public rankreg::gpu::Context {
    void* allocate(int64_t) override { throw std::logic_error("no scratch is needed"); }
  } context;
  std::vector<int> values(64), out(64);
  for (int i = 0; i < 64; ++i)
    values[size_t(i)] = i * i % 7;
  // All that a block may have, without a byte for what is static.
  const int64_t shared =
      names.at(defect) == kGreedy ? context.shared_most : 64 * int64_t(sizeof(int));
  rankreg::gpu::launch<sums>(context, 1, 64, shared, values.data(), out.data(), names.at(defect));
  return out;
}

}  // namespace planted
