// Where the CUDA kernels change their ways: the one place of such numbers. All were derived by
// counting instructions for an H100 (132 multiprocessors; a multiprocessor issues 128 lanes a
// clock, half of that to integer arithmetic and comparisons, a quarter to shuffles), none was
// measured.
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

}  // namespace gpu
}  // namespace rankreg
