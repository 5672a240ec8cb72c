// Opens and closes the part of a file that is compiled for RANKREG_ISA, in the namespace of that
// instruction set.
//
//   #include <...>            // everything from elsewhere first: its functions stay baseline code,
//   #include "target.h"       // whichever of their copies the linker keeps
//   RANKREG_TARGET_BEGIN
//   namespace rankreg { namespace RANKREG_ISA_NAME { ... } }
//   RANKREG_TARGET_END
//
// Intrinsics are used under `#if RANKREG_ISA == ...` alone; what is left compiles anywhere.
#pragma once

#include "isa.h"

#ifndef RANKREG_ISA
#error "define RANKREG_ISA before including a kernel"
#endif

#if RANKREG_X86
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's AVX-512 header starts results from values that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#if RANKREG_ISA == RANKREG_BASELINE
#ifndef RANKREG_ISA_NAME  // a test of what the kernels keep to themselves has its own copy
#define RANKREG_ISA_NAME baseline
#endif
#define RANKREG_TARGET_BEGIN
#define RANKREG_TARGET_END
#else
#if RANKREG_ISA == RANKREG_AVX2
#define RANKREG_ISA_NAME avx2
#define RANKREG_FEATURES "avx2,bmi,bmi2,f16c,popcnt,lzcnt"
#else
#define RANKREG_ISA_NAME avx512
#define RANKREG_FEATURES             \
  "avx2,bmi,bmi2,f16c,popcnt,lzcnt," \
  "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2"
#endif
#define RANKREG_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define RANKREG_TARGET_OF(features) \
  RANKREG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define RANKREG_TARGET_END _Pragma("clang attribute pop")
#else
#define RANKREG_TARGET_OF(features) _Pragma("GCC push_options") RANKREG_PRAGMA(GCC target(features))
#define RANKREG_TARGET_END _Pragma("GCC pop_options")
#endif
#define RANKREG_TARGET_BEGIN RANKREG_TARGET_OF(RANKREG_FEATURES)
#endif
