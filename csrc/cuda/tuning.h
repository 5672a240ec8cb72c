// Where the kernels change their ways: the one place of such numbers. No GPU has measured them:
// each says what it was derived from.
#pragma once

#include <cstdint>

namespace rankreg {
namespace gpu {

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

}  // namespace gpu
}  // namespace rankreg
