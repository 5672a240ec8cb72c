// Runs CUDA kernels on the CPU, for tests: the device part of CUDA C++ that csrc/cuda uses, and no
// more, for a C++ compiler.
//
// A block's threads are fibers of one thread of the machine. Each runs until it waits: at a barrier
// of its block, or at a warp function for the other lanes of its mask. So
//
// - between two barriers, the order in which threads run is arbitrary: set_seed() shuffles it, and
//   that of the blocks, so that a missing barrier shows as a wrong result;
// - a barrier that not all threads reach, a warp function that not all lanes of its mask call, and
//   lanes that call different ones are errors, and say who waits where;
// - shared memory is poisoned before each block, and made on the heap to the byte, so that
//   AddressSanitizer sees an access beyond its end (fiber switches are announced to it).
//
// Blocks run one after another, each to its end: a kernel that waits for another block hangs on a
// GPU sometimes, and is an error here always. Atomics are plain operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// One a function, and one an instantiation of a template, as in CUDA: so is the tag's address.
#define RANKREG_SHARED(type, name)                          \
  type& name = *static_cast<type*>(emulator::static_shared( \
      [] {                                                  \
        static char tag;                                    \
        return static_cast<const void*>(&tag);              \
      }(),                                                  \
      sizeof(type)))

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

struct Dim {
  unsigned x = 0, y = 0, z = 0;
};

// Order of threads and blocks: 0 is their natural one, anything else shuffles.
void set_seed(uint64_t seed);

// Launches since the process began.
int64_t launches();

// Bytes of a block.
struct Shared {
  size_t dynamic;
  size_t static_most, most;  // of all static memory, and with the dynamic
};

// kernel() as every thread of every block; std::runtime_error for what a GPU would hang or crash
// on.
void run(int64_t blocks, int threads, const Shared& shared, const std::function<void()>& kernel);

void* dynamic_shared();
void* static_shared(const void* tag, size_t bytes);

enum class Wait { kNone, kBarrier, kCountBarrier, kWarp, kShuffle, kBallot };

// What the lanes of `mask` called `kind` with; returns when all have. The array is by lane.
const uint64_t* exchange(unsigned mask, Wait kind, uint64_t value);

// Sum of `value` over the block's threads.
int64_t barrier(Wait kind, int64_t value);

int current_lane();

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "at most 8 bytes");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T, class F>
T shuffle(unsigned mask, T value, int width, const F& source_of) {
  const uint64_t* words = exchange(mask, Wait::kShuffle, to_word(value));
  const int lane = current_lane(), base = lane & ~(width - 1), source = source_of(lane - base);
  const bool inside = source >= 0 && source < width;
  return inside ? from_word<T>(words[base + source]) : value;
}

}  // namespace emulator

extern emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulator::barrier(emulator::Wait::kBarrier, 0); }
inline int __syncthreads_count(int predicate) {
  return int(emulator::barrier(emulator::Wait::kCountBarrier, predicate != 0));
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::exchange(mask, emulator::Wait::kWarp, 0);
}
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int) { return source & (width - 1); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane - int(delta); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane + int(delta); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane ^ lanes; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* words = emulator::exchange(mask, emulator::Wait::kBallot, predicate != 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    ballot |= (mask >> lane & 1u) && words[lane] ? 1u << lane : 0u;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

template <class T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  const T before = *at;
  *at = T(before + value);
  return before;
}
template <class T>
T atomicOr(T* at, std::common_type_t<T> value) {
  const T before = *at;
  *at = T(before | value);
  return before;
}
