// Where the CUDA kernels change their ways: the one place of such numbers. No GPU has measured
// them: all were derived by counting instructions and bytes for an H100 (132 multiprocessors; each
// issues 128 lanes a clock, half of that to integer arithmetic and comparisons, a quarter to
// shuffles).
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace rankreg {
namespace gpu {

// Longest list that a few lanes rank by comparing all its items. Instructions an item, loads and
// stores aside, of which the multiprocessor's integer half takes nine tenths in a network: 2.7 n
// for float and 3.9 n for double, against a network's 45, 90, 180 (keys of 2, 4, 8 bytes) for 64
// words and 55, 120, 245 for 128, to which shorter lists are filled up. Ranks that need two or
// three comparisons a pair come to the network at half the length.
struct LaneCounting {
  static constexpr int64_t kMost2 = 44, kMost4 = 96, kMost8 = 56;  // by bytes of the key
  static constexpr int64_t kAlways = 32;

  static constexpr int64_t most(int key_bytes, Ties ties) {
    const int64_t once = key_bytes == 2 ? kMost2 : key_bytes == 4 ? kMost4 : kMost8;
    const bool more = ties == Ties::kAverage || ties == Ties::kDense;
    return !more ? once : once / 2 > kAlways ? once / 2 : kAlways;
  }
};

// Few lists are ranked by comparing all items, over the whole grid. 250 items a multiprocessor, in
// lists of 4096, take about 17,000 clocks (2.2 instructions a pair) and so does a block's network,
// of which less work shortens nothing.
struct GridCounting {
  static constexpr int64_t kMostItems = 250;  // of all lists, a multiprocessor
  static constexpr int64_t kMostN = 16384;
  static constexpr int64_t kWarpItems = 32;  // other items that make a warp worth its while
  // Tiles of 128 items rather than 32, where they still fill the multiprocessors: 2.2 instructions
  // a pair rather than 2.8, and a quarter of the traffic from L2.
  static constexpr int64_t kWideTiles = 1;  // a multiprocessor
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
  // Bytes of thresholds of a tree, and into how many of them a block's shared memory must divide at
  // least: a block takes four, and registers are for two blocks a multiprocessor.
  int64_t tree_bytes = 16384;
  int64_t tree_share = 9;
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

// hinge_violations.cuh.
struct HingeTuning {
  // Positives whose thresholds and sums a thread holds: 32 registers, and the loads of an item are
  // a tenth of the instructions.
  static constexpr int kGroup = 8;
  // Items of a thread that meet the positives side by side.
  static constexpr int kItems = 2;
  // Items of a share of the pairs at least: four a thread, so that the tree over the threads, about
  // 250 instructions each, weighs less than half.
  static constexpr int64_t kShareLeast = 2048;
  // Blocks of 512 threads, of all lists, a multiprocessor: twice what can be there at a time.
  static constexpr int kBlocks = 8;
  // Items of a list for each of its blocks.
  static constexpr int64_t kItemsLeast = 64;
};

}  // namespace gpu
}  // namespace rankreg
