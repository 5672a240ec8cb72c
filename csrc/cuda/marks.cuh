// Marked positions of a tile, such as the first ones of its groups of equal keys: a bitmap in
// shared memory, and per word of it what lies in the other words.
#pragma once

#include "device.cuh"

namespace rankreg {
namespace gpu {

struct Marks {
  static constexpr uint32_t kNone = 0xffffffffu;

  // All of length `words`, in shared memory. What is not asked for need not be there.
  uint32_t* bits;
  uint32_t* last;   // last marked position of the words before, plus one; 0: there is none
  uint32_t* next;   // first marked position of the words after; kNone: there is none
  uint32_t* count;  // marks in the words before

  // One array after the other.
  __device__ static Marks at(uint32_t* memory, int words) {
    return {memory, memory + words, memory + 2 * words, memory + 3 * words};
  }

  __device__ static uint32_t upto(uint32_t p) { return kAll >> (31 - p % 32); }

  __device__ uint32_t last_upto(uint32_t p) const {  // plus one
    const uint32_t own = bits[p / 32] & upto(p);
    return own ? p / 32 * 32 + 32 - uint32_t(__clz(int(own))) : last[p / 32];
  }
  __device__ uint32_t next_after(uint32_t p) const {
    const uint32_t own = bits[p / 32] & ~upto(p);
    return own ? p / 32 * 32 + uint32_t(__ffs(int(own))) - 1 : next[p / 32];
  }
  __device__ uint32_t count_upto(uint32_t p) const {
    return count[p / 32] + uint32_t(__popc(bits[p / 32] & upto(p)));
  }

  // Each by one whole warp, 32 words a step; `bits` is complete.
  __device__ void fill_last(int words) const {
    const int lane = int(threadIdx.x) % kWarp;
    uint32_t carry = 0;
#pragma unroll 1
    for (int first = 0; first < words; first += kWarp) {
      const int w = first + lane;
      const uint32_t own = w < words ? bits[w] : 0;
      uint32_t most = own ? uint32_t(w) * 32 + 32 - uint32_t(__clz(int(own))) : 0;
      for (unsigned step = 1; step < kWarp; step *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, most, step);
        if (lane >= int(step) && other > most) most = other;
      }
      const uint32_t before = __shfl_up_sync(kAll, most, 1u);
      if (w < words) last[w] = lane > 0 && before > carry ? before : carry;
      const uint32_t all = __shfl_sync(kAll, most, kWarp - 1);
      carry = all > carry ? all : carry;
    }
  }
  __device__ void fill_next(int words) const {
    const int lane = int(threadIdx.x) % kWarp;
    uint32_t carry = kNone;
#pragma unroll 1
    for (int first = (words - 1) / kWarp * kWarp; first >= 0; first -= kWarp) {
      const int w = first + lane;
      const uint32_t own = w < words ? bits[w] : 0;
      uint32_t least = own ? uint32_t(w) * 32 + uint32_t(__ffs(int(own))) - 1 : kNone;
      for (unsigned step = 1; step < kWarp; step *= 2) {
        const uint32_t other = __shfl_down_sync(kAll, least, step);
        if (lane + int(step) < kWarp && other < least) least = other;
      }
      const uint32_t after = __shfl_down_sync(kAll, least, 1u);
      if (w < words) next[w] = lane + 1 < kWarp && after < carry ? after : carry;
      const uint32_t all = __shfl_sync(kAll, least, 0);
      carry = all < carry ? all : carry;
    }
  }
  __device__ void fill_count(int words) const {
    const int lane = int(threadIdx.x) % kWarp;
    uint32_t carry = 0;
#pragma unroll 1
    for (int first = 0; first < words; first += kWarp) {
      const int w = first + lane;
      const uint32_t own = w < words ? uint32_t(__popc(bits[w])) : 0;
      uint32_t sum = own;
      for (unsigned step = 1; step < kWarp; step *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, sum, step);
        if (lane >= int(step)) sum += other;
      }
      if (w < words) count[w] = carry + sum - own;
      carry += __shfl_sync(kAll, sum, kWarp - 1);
    }
  }

  // What the ranks of groups, whose first positions are marked, need under a tie rule: by the first
  // two warps of a block, between two of its barriers.
  __device__ void fill(Ties ties, int words) const {
    const int warp = int(threadIdx.x) / kWarp;
    if (warp == 0 && (ties == Ties::kMin || ties == Ties::kAverage)) fill_last(words);
    if (warp == 1 && (ties == Ties::kMax || ties == Ties::kAverage)) fill_next(words);
    if (warp == 0 && ties == Ties::kDense) fill_count(words);
  }
};

}  // namespace gpu
}  // namespace rankreg
