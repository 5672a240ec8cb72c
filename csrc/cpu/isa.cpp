#include "isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

namespace rankreg {
namespace {

bool has(Isa isa) {
#if RANKREG_X86
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  }
#endif
  return isa == Isa::kBaseline;
}

std::atomic<Isa>& in_use() {
  static std::atomic<Isa> isa{isas().back()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    default: return "baseline";
  }
}

std::vector<Isa> isas() {
  std::vector<Isa> out;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (has(isa)) out.push_back(isa);
  }
  return out;
}

Isa isa() { return in_use().load(std::memory_order_relaxed); }

void use_isa(Isa isa) {
  if (!has(isa)) {
    throw std::invalid_argument(std::string("rankreg_ext: this machine lacks ") + name(isa));
  }
  in_use().store(isa, std::memory_order_relaxed);
}

}  // namespace rankreg
