// Where the kernels change their ways, per instruction set: the one place of such numbers.
#pragma once

#include <cstdint>

#include "isa.h"

namespace rankreg {

struct RankTuning {
  int64_t counting_max;  // longest list in which every key is compared with every key
  int64_t whole_max;     // longest list that one network sorts; beyond, keys go to cells first
  int64_t network_max;   // most keys of neighbouring cells, or of one cell, that one network sorts
};

constexpr RankTuning kRankTuning[] = {
    {24, 1024, 4096},   // RANKREG_BASELINE
    {32, 4096, 16384},  // RANKREG_AVX2
    {32, 4096, 16384},  // RANKREG_AVX512
};

}  // namespace rankreg
