// Where the CUDA kernels change their ways: the one place of such numbers. All were derived by
// counting instructions for an H100 (132 multiprocessors; a multiprocessor issues 128 lanes a
// clock, half of that to integer arithmetic and comparisons, a quarter to shuffles), none was
// measured.
=======
// Where the kernels change their ways: the one place of such numbers. No GPU has measured them:
// each says what it was derived from.
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

// One block sorts a list in shared memory. More threads need more counters there, so that blocks of
// short lists are small: at 8192 32-bit keys, a block of 256 takes 81 KiB.
constexpr int64_t kSmallBlockRadixMost = 8192;

struct DeviceRadixTuning {
  // Longest list that is sorted together with others, by the number of its list before its key. A
  // sort of its own costs a list about 40 us of launches and 0.023 ns an element, one of many 0.053
  // ns an element: equal at 1.3e6.
  int64_t together_most = int64_t{1} << 20;
  // Elements of one such sort: enough for the launches to be a twentieth of its time, few enough
  // for the scratch memory to stay at 400 MB.
  int64_t elements_most = int64_t{1} << 24;
};

// positives_stream.cuh.
struct StreamTuning {
  // Bytes of thresholds of one tree, and the least share of the shared memory that this may be: a
  // block takes four times as much, and registers are for two blocks a multiprocessor.
  int64_t tree_bytes = 16384;
  int64_t tree_share = 8;
  // Blocks wanted, per multiprocessor, by all lists together. Few for collect: its blocks are what
  // the others look through for positives. Twice as many as can be there at a time for the others,
  // so that unequal ends weigh less.
  int collect_blocks = 4;
  int count_blocks = 8;
  int step_blocks = 8;
};

constexpr StreamTuning kStreamTuning{};

}  // namespace gpu
}  // namespace rankreg
