// Instruction sets: what the library holds, what this machine has, and what is in use.
//
// The kernels (*_kernels.h) are compiled once per instruction set, each time into a namespace of
// its own (isa_*.cpp); the public functions call those of the set in use (dispatch.cpp). All give
// equal results.
#pragma once

#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)  // Clang says so too
#define RANKREG_X86 1
#else
#define RANKREG_X86 0
#endif

// Values of RANKREG_ISA, and of Isa.
#define RANKREG_BASELINE 0
#define RANKREG_AVX2 1
#define RANKREG_AVX512 2  // F, BW, CD, DQ, VL, VBMI, VBMI2: Ice Lake, Zen 4 and newer

namespace rankreg {

enum class Isa : int {
  kBaseline = RANKREG_BASELINE,
  kAvx2 = RANKREG_AVX2,
  kAvx512 = RANKREG_AVX512
};

const char* name(Isa isa);

// Those that this machine can run, the widest last.
std::vector<Isa> isas();

// The one in use: the widest, unless use_isa() said otherwise. Not meant to change while a kernel
// runs, though nothing but speed depends on it.
Isa isa();
void use_isa(Isa isa);  // std::invalid_argument if this machine lacks it

}  // namespace rankreg

// Declares the same functions in the namespace of every instruction set.
#if RANKREG_X86
#define RANKREG_DECLARE_PER_ISA(...) \
  namespace baseline {               \
  __VA_ARGS__                        \
  }                                  \
  namespace avx2 {                   \
  __VA_ARGS__                        \
  }                                  \
  namespace avx512 {                 \
  __VA_ARGS__                        \
  }
#else
#define RANKREG_DECLARE_PER_ISA(...) \
  namespace baseline {               \
  __VA_ARGS__                        \
  }
#endif
