// Where the kernels change their ways, by instruction set (RANKREG_ISA): the one place of such
// numbers.
//
// All were measured on one core of a Zen 4 server (AMD EPYC, 32 KiB and 1 MiB caches a core), GCC
// 12, in November 2026, on rotated inputs. `python -m benchmarks run` with and without a change of
// a number here, or `python -m benchmarks compare`, shows what it does.
#pragma once

#include <cstdint>

#include "isa.h"

namespace rankreg {

struct RankTuning {
  int64_t counting_max;  // longest list in which every key is compared with every key
  int64_t whole_max;     // longest list that one network sorts; beyond, keys go to cells first
  int64_t network_max;   // most keys of one cell that one network sorts
};

constexpr RankTuning kRankTuning[] = {
    {24, 1024, 4096},   // RANKREG_BASELINE
    {32, 4096, 16384},  // RANKREG_AVX2
    {32, 4096, 16384},  // RANKREG_AVX512
};

// Positives up to which every score meets every one of them.
constexpr int64_t kCompareAll[] = {20, 44, 12};       // float
constexpr int64_t kCompareAllDouble[] = {8, 16, 24};  // double, not measured as finely

// More than one positive in kRankAll of a list longer than kRankAllMin: all of it is ranked.
constexpr int64_t kRankAll = 8, kRankAllMin = 1 << 15;

// Breakpoints up to which places are searched in registers (16 of doubles); beyond: a lookup table.
constexpr int64_t kSearchMost[] = {16, 31, 127};

// Places up to which they are counted by comparing bytes, not one by one.
constexpr int64_t kCompareBytesMost[] = {0, 24, 64};

// Places up to which counters are held in several tables, so that equal neighbours do not wait.
constexpr int64_t kSeveralTablesMost = 1024;

// Positives up to which every score meets every one of them in hinge_violations: one number for all
// instruction sets, because the two ways round differently.
constexpr int64_t kHingePairs = 4;

}  // namespace rankreg
