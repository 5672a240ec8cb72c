// Where scores stand among thresholds: a search tree in shared memory, built by one block.
//
// The place of a score x is the number of thresholds below it, t < x, or not above it, t <= x. With
// counts by place, the number of scores above a threshold is that of scores at later places. NaN
// has place 0, -0.0 equals 0.0: scores are compared as they are, without keys.
//
// A tree is in heap order, not sorted: the lanes of a warp then read the first five levels from
// different banks, or one word, where those of a sorted array would collide.
#pragma once

#include "../common/keys.h"
#include "block.cuh"
#include "rank_items.cuh"

// Called, not inlined: what a block does once or a few times, so that a kernel has its code once.
#if defined(__CUDACC__)
#define RANKREG_CALLED __noinline__
#else
#define RANKREG_CALLED
#endif

namespace rankreg {
namespace gpu {

template <class C>
RANKREG_HD inline C infinity() {
  return bit_cast<C>(FloatLayout<C>::kInfinity);
}

// The lowest score above `value`, which is less than infinity.
template <class C>
RANKREG_HD inline C next_above(C value) {
  using Key = KeyOf<C>;
  constexpr Key top = Key(Key{1} << (8 * sizeof(Key) - 1));
  const Key key = Key(ascending_key(value) + 1);
  return bit_cast<C>(key & top ? Key(key ^ top) : Key(~key));
}

template <class C>
struct Tree {
  C* node;     // 2^levels; the children of k are 2 k and 2 k + 1, the root is 1; missing ones NaN
  int levels;  // 2^levels - 1 thresholds at most

  // Levels for so many thresholds.
  RANKREG_HD static int levels_of(int size) {
    int levels = 0;
    while (size >> levels)
      ++levels;
    return levels;
  }

  // Where the threshold goes that is `i` in ascending order.
  __device__ int node_of(int i) const {
    const int up = __ffs(i + 1) - 1;
    return (1 << (levels - 1 - up)) + ((i + 1) >> (up + 1));
  }

  // The lowest threshold, if there is one.
  __device__ C lowest() const { return node[1 << (levels - 1)]; }

  // Places of kItems scores, searched for side by side. Nodes are counted in bytes on the way: one
  // instruction less a level.
  template <bool or_equal, int kItems>
  __device__ void places(const C (&x)[kItems], int (&place)[kItems]) const {
    constexpr int kBytes = int(sizeof(C));
    const char* const nodes = reinterpret_cast<const char*>(node);
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      place[j] = kBytes;
#pragma unroll 1
    for (int level = 0; level < levels; ++level) {
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const C t = *reinterpret_cast<const C*>(nodes + place[j]);
        place[j] *= 2;
        if (or_equal ? t <= x[j] : t < x[j]) place[j] += kBytes;
      }
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      place[j] = int(unsigned(place[j]) / unsigned(kBytes)) - (1 << levels);
  }

  template <bool or_equal>
  __device__ int place(C x) const {
    const C one[1] = {x};
    int place[1];
    places<or_equal>(one, place);
    return place[0];
  }
};

// Below: all kThreads threads of the block call, with the same arguments. None of the items is NaN;
// an infinity can stand for an item to be left out. What was written to memory before is seen after
// the first barrier inside, and results after a last one.

// Items up to which each is compared with every other one: fewer steps than merging takes.
constexpr int kCompareItems = 256;

// How many of items [begin, end) come before item i, equal ones in their order.
template <class C>
__device__ int before(const C* items, int begin, int end, int i) {
  const C value = items[i];
  const int warp = i / kWarp * kWarp;  // of the lanes that share the loops
  int count = 0, k = begin;
  for (; k < warp; ++k)
    count += items[k] <= value;
  for (; k < warp + kWarp && k < end; ++k)
    count += k < i ? items[k] <= value : items[k] < value;
  for (; k < end; ++k)
    count += items[k] < value;
  return count;
}

// Ascending order of `size` items; `spare` is as long. Returns where they are: one of the two.
//
// Runs of a warp's length by comparing all, then merges of pairs of runs, in which every item finds
// its new position by a search in the other run.
template <int kThreads, class C>
__device__ C* sort_in_block(C* items, C* spare, int size) {
  __syncthreads();
  for (int i = int(threadIdx.x); i < size; i += kThreads) {
    const int begin = i / kWarp * kWarp, end = begin + kWarp < size ? begin + kWarp : size;
    spare[begin + before(items, begin, end, i)] = items[i];
  }
  C *from = spare, *to = items;
  for (int run = kWarp; run < size; run *= 2) {
    __syncthreads();
    for (int i = int(threadIdx.x); i < size; i += kThreads) {
      const C value = from[i];
      const int own = i / run, other = own ^ 1;
      const int begin = other * run, end = begin + run < size ? begin + run : size;
      // Equal items: those of the left run first.
      int low = begin, high = end > begin ? end : begin;
      while (low < high) {
        const int middle = (low + high) / 2;
        const bool lower = own & 1 ? from[middle] <= value : from[middle] < value;
        low = lower ? middle + 1 : low;
        high = lower ? high : middle;
      }
      to[(own & 1 ? begin : own * run) + (i - own * run) + (low - begin)] = value;
    }
    C* const swap = from;
    from = to;
    to = swap;
  }
  __syncthreads();
  return from;
}

// The tree of `size` items, which may be equal. node: 2^levels_of(size); `items` and `spare`: size
// each, lost.
template <int kThreads, class C>
__device__ RANKREG_CALLED Tree<C> plant(C* node, C* items, C* spare, int size) {
  const Tree<C> tree{node, Tree<C>::levels_of(size)};
  const int nodes = (1 << tree.levels) - 1;
  if (size <= kCompareItems) {
    __syncthreads();
    for (int i = int(threadIdx.x); i < size; i += kThreads)
      node[tree.node_of(before(items, 0, size, i))] = items[i];
  } else {
    const C* const sorted = sort_in_block<kThreads>(items, spare, size);
    for (int i = int(threadIdx.x); i < size; i += kThreads)
      node[tree.node_of(i)] = sorted[i];
  }
  for (int i = size + int(threadIdx.x); i < nodes; i += kThreads)
    node[tree.node_of(i)] = nan_of<C>();
  __syncthreads();
  return tree;
}

// Of counts by place, those at later places: counts[p] becomes the sum of counts[p + 1...], modulo
// 2^32. The storage may be used again after a barrier; there is one at the end.
template <int kThreads>
__device__ RANKREG_CALLED void count_after(uint32_t* counts, int size,
                                           ScanStorage<uint32_t>& storage) {
  __syncthreads();
  const int share = (size + kThreads - 1) / kThreads;
  const int begin = int(threadIdx.x) * share < size ? int(threadIdx.x) * share : size;
  const int end = begin + share < size ? begin + share : size;
  uint32_t own = 0, after;
  for (int p = begin; p < end; ++p)
    own += counts[p];
  block_scan<kThreads, Sum, true>(own, 0u, storage, &after);
  for (int p = end - 1; p >= begin; --p) {
    const uint32_t here = counts[p];
    counts[p] = after;
    after += here;
  }
  __syncthreads();
}

}  // namespace gpu
}  // namespace rankreg
