// Where the CUDA kernels change their ways: the one place of such numbers. All were derived by
// counting instructions for an H100 (132 multiprocessors; a multiprocessor issues 128 lanes a
// clock, half of that to integer arithmetic and comparisons, a quarter to shuffles), none was
// measured.
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace rankreg {
namespace gpu {

// Longest list that a few lanes rank by comparing all its items: n comparisons and additions an
// item against a network's 50 (16-bit keys), 115 (32) or 180 (64) instructions at the next power of
// two. Ranks that need two comparisons a pair come to the network at half of it.
struct LaneCounting {
  static constexpr int64_t kMost[] = {48, 112, 128};  // by key: 2, 4, 8 bytes
  static constexpr int64_t kAlways = 32;

  static constexpr int64_t most(int key_bytes, Ties ties) {
    const int64_t most = kMost[key_bytes == 2 ? 0 : key_bytes == 4 ? 1 : 2];
    const bool twice = ties == Ties::kAverage || ties == Ties::kDense;
    return twice && most / 2 > kAlways ? most / 2 : twice ? kAlways : most;
  }
};

// Few lists are ranked by comparing all items, over the whole grid. At lists * n = 380 items a
// multiprocessor and n = 4096, its 64 comparisons a clock take about 24,000 clocks and a block's
// network about 17,000; for less of either, the network's latency hardly falls.
struct GridCounting {
  static constexpr int64_t kMostItems = 380;  // of all lists, a multiprocessor
  static constexpr int64_t kMostN = 16384;
  static constexpr int64_t kWarpItems = 32;  // other items that make a warp worth its while
  // Tiles of 128 items rather than 32 where they still fill the multiprocessors: a quarter of the
  // traffic from L2 and shared memory.
  static constexpr int64_t kWideTiles = 2;  // a multiprocessor
};

// Threads of a block in which several lists share warps.
constexpr int kLaneBlock = 128;

}  // namespace gpu
}  // namespace rankreg
