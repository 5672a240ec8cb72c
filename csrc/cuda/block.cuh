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

// The threads that share a list, a power of two of them: up to 32 neighbouring lanes of a warp, or
// the whole block.
struct Group {
  int size;

  __device__ int thread() const { return int(threadIdx.x) & (size - 1); }
  __device__ void sync() const {
    if (size > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // As block_scan's `of_others`.
  template <class Op, bool from_end = false, class T>
  __device__ T scan_of_others(T value, T none, ScanStorage<T>& storage) const {
    const int t = from_end ? size - 1 - thread() : thread();
    const int width = size < kWarp ? size : kWarp;
    const int lane = t & (width - 1), warp = t / kWarp;
    T upto = value;
    for (int step = 1; step < width; step *= 2) {
      const T other = from_end ? __shfl_down_sync(kAll, upto, unsigned(step), width)
                               : __shfl_up_sync(kAll, upto, unsigned(step), width);
      if (lane >= step) upto = Op::of(other, upto);
    }
    T before =
        from_end ? __shfl_down_sync(kAll, upto, 1u, width) : __shfl_up_sync(kAll, upto, 1u, width);
    if (lane == 0) before = none;
    if (size > kWarp) {
      if (lane == kWarp - 1) storage.warp[warp] = upto;
      __syncthreads();
      for (int w = 0; w < warp; ++w)
        before = Op::of(before, storage.warp[w]);
    }
    return before;
  }
};

// Twice the rank of the items of a sorted list: thread t holds positions t * kItems + j, of which
// those below `size` are the list's. Bit j of `heads`: the key at that position is not that of the
// position before it. All threads call it; the storage may be used again after a barrier.
template <class Threads, int kItems>
__device__ void ranks_of_sorted(Ties ties, uint32_t heads, int size, const Threads& threads,
                                RankStorage& storage, uint32_t (&twice)[kItems]) {
  static_assert(kItems <= 32, "a bit each");
  const int begin = threads.thread() * kItems, inside = size - begin;
  if (inside < kItems) heads &= inside > 0 ? (1u << inside) - 1u : 0u;
  if (ties == Ties::kOrdinal) {
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      twice[j] = 2u * uint32_t(begin + j + 1);
    return;
  }
  if (ties == Ties::kDense) {
    int group = threads.template scan_of_others<Sum>(__popc(heads), 0, storage.first);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      group += int(heads >> j & 1u);
      twice[j] = 2u * uint32_t(group);
    }
    return;
  }
  if (ties != Ties::kMax) {  // the first position of each item's group
    const int own = heads ? begin + 31 - __clz(int(heads)) : 0;
    int first = threads.template scan_of_others<Max>(own, 0, storage.first);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      first = heads >> j & 1u ? begin + j : first;
      twice[j] = 2u * uint32_t(first + 1);
    }
  }
  if (ties == Ties::kMin) return;
  // The next group's first position, which is the last one of this group, counted from 1.
  const int own = heads ? begin + __ffs(int(heads)) - 1 : size;
  int next = threads.template scan_of_others<Min, true>(own, size, storage.last);
#pragma unroll
  for (int j = kItems - 1; j >= 0; --j) {
    twice[j] = ties == Ties::kMax ? 2u * uint32_t(next) : twice[j] / 2 + uint32_t(next);
    next = heads >> j & 1u ? begin + j : next;
  }
}

}  // namespace gpu
}  // namespace rankreg
