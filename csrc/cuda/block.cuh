// Scans over the threads of a block, and the ranks of a sorted list under each tie rule.
#pragma once

#include "device.cuh"

namespace rankreg {
namespace gpu {

struct Sum {
  template <class T>
  __device__ static T of(T a, T b) {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  __device__ static T of(T a, T b) {
    return a < b ? a : b;
  }
};

// One word a warp.
template <class T>
struct ScanStorage {
  T warp[kWarp];
};

// Of threads 0..t (or t..last, `from_end`), the value of all of them combined; `of_others` leaves
// out t itself and is `none` for the first. kThreads: a multiple of 32 up to 1024. All threads of
// the block call it; the storage may be used again after a barrier.
template <int kThreads, class Op, bool from_end = false, class T>
__device__ T block_scan(T value, T none, ScanStorage<T>& storage, T* of_others) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024, "whole warps");
  constexpr int kWarps = kThreads / kWarp;
  const int t = from_end ? kThreads - 1 - int(threadIdx.x) : int(threadIdx.x);
  const int lane = t % kWarp, warp = t / kWarp;
  T upto = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = from_end ? __shfl_down_sync(kAll, upto, unsigned(step))
                             : __shfl_up_sync(kAll, upto, unsigned(step));
    if (lane >= step) upto = Op::of(other, upto);
  }
  T before = from_end ? __shfl_down_sync(kAll, upto, 1u) : __shfl_up_sync(kAll, upto, 1u);
  if (lane == 0) before = none;
  if constexpr (kWarps > 1) {
    if (lane == kWarp - 1) storage.warp[warp] = upto;
    __syncthreads();
    T outer = none;
    for (int w = 0; w < warp; ++w)
      outer = Op::of(outer, storage.warp[w]);
    upto = Op::of(outer, upto);
    before = Op::of(outer, before);
  }
  if (of_others) *of_others = before;
  return upto;
}

// One scan and what it needs for another: for the functions below.
struct RankStorage {
  ScanStorage<int> first, last;
};

// Twice the rank of the items of a sorted list: thread t holds positions t * kItems + j, of which
// those below `size` are the list's. head[j]: the key at that position is not that of the position
// before it. All threads call it; the storage may be used again after a barrier.
template <int kThreads, int kItems>
__device__ void ranks_of_sorted(Ties ties, const bool (&head)[kItems], int size,
                                RankStorage& storage, uint32_t (&twice)[kItems]) {
  const int begin = int(threadIdx.x) * kItems;
  if (ties == Ties::kOrdinal) {
    for (int j = 0; j < kItems; ++j)
      twice[j] = 2u * uint32_t(begin + j + 1);
    return;
  }
  if (ties == Ties::kDense) {
    int heads = 0;
    for (int j = 0; j < kItems; ++j)
      heads += head[j] && begin + j < size;
    int group;
    block_scan<kThreads, Sum>(heads, 0, storage.first, &group);
    for (int j = 0; j < kItems; ++j) {
      group += head[j] && begin + j < size;
      twice[j] = 2u * uint32_t(group);
    }
    return;
  }
  if (ties != Ties::kMax) {  // the first position of each item's group
    int own = 0, first;
    for (int j = 0; j < kItems; ++j)
      own = head[j] ? begin + j : own;
    block_scan<kThreads, Max>(own, 0, storage.first, &first);
    for (int j = 0; j < kItems; ++j) {
      first = head[j] ? begin + j : first;
      twice[j] = 2u * uint32_t(first + 1);
    }
  }
  if (ties == Ties::kMin) return;
  // The next group's first position, which is the last one of this group, counted from 1.
  int own = size, next;
  for (int j = kItems - 1; j >= 0; --j)
    own = head[j] && begin + j < size ? begin + j : own;
  block_scan<kThreads, Min, true>(own, size, storage.last, &next);
  for (int j = kItems - 1; j >= 0; --j) {
    twice[j] = ties == Ties::kMax ? 2u * uint32_t(next) : twice[j] / 2 + uint32_t(next);
    next = head[j] && begin + j < size ? begin + j : next;
  }
}

}  // namespace gpu
}  // namespace rankreg
