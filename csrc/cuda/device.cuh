// How kernels are written: CUDA C++, of which this file holds what a C++ compiler cannot be made to
// read. nvcc compiles them for a GPU; for tests, a C++ compiler compiles the same text with an
// emulator's header (tests/emulator) in the place of CUDA's.
//
//   static shared memory    RANKREG_SHARED(Type, name);            Type without constructors
//   dynamic shared memory   T* name = dynamic_shared<T>();
//   launch                  launch<kernel>(context, blocks, threads, shared_bytes, arguments...)
//
// A __syncthreads() must be reached by every thread of the block, a warp function by every lane of
// its mask; no thread returns before its block's last barrier.
#pragma once

#include <stdexcept>
#include <string>

#include "context.h"

namespace rankreg {
namespace gpu {

// Not deduced: the kernel's parameters say what P is, the arguments are converted.
template <class T>
struct Exact {
  using type = T;
};
template <class T>
using Exactly = typename Exact<T>::type;

constexpr int64_t kMostStatic = 16384;  // bytes of static shared memory that a kernel may have

}  // namespace gpu
}  // namespace rankreg

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <atomic>
#include <tuple>

#define RANKREG_SHARED(type, name) __shared__ type name

namespace rankreg {
namespace gpu {

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char rankreg_dynamic_shared[];
  return reinterpret_cast<T*>(rankreg_dynamic_shared);
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("rankreg_ext: ") + what + ": " +
                             cudaGetErrorString(error));
}

// More than 48 KiB, static memory included, must be asked for: once per kernel and device.
template <auto kernel>
void allow_shared(const Context& context, int64_t bytes) {
  constexpr int64_t kAlways = 49152 - kMostStatic;
  static std::atomic<uint64_t> allowed{0};  // a bit a device; from 64 on, asked for every time
  const uint64_t bit = context.device < 64 ? uint64_t{1} << context.device : 0;
  if (bytes <= kAlways || (allowed.load(std::memory_order_relaxed) & bit)) return;
  const void* const function = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, function), "cudaFuncGetAttributes");
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(context.shared_most - int64_t(attributes.sharedSizeBytes))),
        "cudaFuncSetAttribute");
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

template <auto kernel, class... P>
void launch_as(void (*)(P...), const Context& context, int64_t blocks, int threads, int64_t shared,
               Exactly<P>... arguments) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  allow_shared<kernel>(context, shared);
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)),
                         dim3(unsigned(threads)), pointers, size_t(shared),
                         static_cast<cudaStream_t>(context.stream)),
        "launch");
}

}  // namespace gpu
}  // namespace rankreg

#else

#include "cuda_emulator.h"

namespace rankreg {
namespace gpu {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

template <auto kernel, class... P>
void launch_as(void (*)(P...), const Context& context, int64_t blocks, int threads, int64_t shared,
               Exactly<P>... arguments) {
  emulator::run(blocks, threads, {size_t(shared), size_t(kMostStatic), size_t(context.shared_most)},
                [&] { kernel(arguments...); });
}

}  // namespace gpu
}  // namespace rankreg

#endif

namespace rankreg {
namespace gpu {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kMostBlocks = 0x7fffffff;

// blocks x threads threads; `blocks` may be 0, and then nothing is launched.
template <auto kernel, class... A>
void launch(const Context& context, int64_t blocks, int threads, int64_t shared, A... arguments) {
  if (blocks == 0) return;
  if (blocks > kMostBlocks) throw std::runtime_error("rankreg_ext: too many lists for one launch");
  launch_as<kernel>(kernel, context, blocks, threads, shared, arguments...);
}

// The value of lam in the type that the perturbation is computed in.
template <class C>
RANKREG_HD inline C lam_of(const Lam& lam) {
  if (lam.data == nullptr) return C(lam.value);
  switch (lam.type) {
    case Type::kHalf: return C(widen(*static_cast<const Half*>(lam.data)));
    case Type::kBFloat16: return C(widen(*static_cast<const BFloat16*>(lam.data)));
    case Type::kFloat: return C(*static_cast<const float*>(lam.data));
    default: return C(*static_cast<const double*>(lam.data));
  }
}

}  // namespace gpu
}  // namespace rankreg
