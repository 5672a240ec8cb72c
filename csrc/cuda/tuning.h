// Where the CUDA kernels change their ways: the one place of such numbers. No GPU has measured
// them; each is an estimate by counts of instructions or bytes, as its line says.
#pragma once

#include <cstdint>

namespace rankreg {
namespace gpu {

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
