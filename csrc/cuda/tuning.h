// Where the CUDA kernels change their ways: the one place of such numbers. No GPU has measured
// them: all were derived by counting instructions and bytes for an H100 (132 multiprocessors; each
// issues 128 lanes a clock, half of that to integer arithmetic and comparisons, a quarter to
// shuffles).
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

struct ListTuning {
  // Items of a list that a thread holds in registers, four a round.
  static constexpr int kRounds = 2;
  // Threads of a block: with 1024, a thread has 64 registers, and the gradient spills some.
  static constexpr int kTeamMost = 512;
  // The longest list that is held on chip, where shared memory has room for it: 12 or 20 bytes an
  // item.
  static constexpr int kMost = kTeamMost * kRounds * 4;
  // Positives up to which every item meets every one of them: 2 instructions a pair, against about
  // 5 a step and 10 more of a search, which also needs the positives sorted first.
  static constexpr int kCompareAll = 16;
  // Positives up to which they are sorted by counting: P steps of a broadcast load and 3 more
  // instructions, against log2(P)^2 / 2 barriers of a network.
  static constexpr int kCountingSort = 256;
  // Up to this many lists a multiprocessor, a list is spread over as many threads as can take part;
  // beyond, over as few as can hold it, because barriers and idle lanes then cost throughput.
  static constexpr int kSpread = 2;
  // Lists of one warp each share a block.
  static constexpr int kWarpLists = 8;
  // Blocks up to which the last one finds itself out instead of a second launch: all tags are read
  // by every block.
  static constexpr int kTagged = 256;
  // Blocks a multiprocessor for a loss of many lists, which have one partial sum each: several
  // times what can be resident, so that no multiprocessor idles for long in the end.
  static constexpr int kLossBlocks = 32;
};

}  // namespace gpu
}  // namespace rankreg
