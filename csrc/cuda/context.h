// What a back-end on a GPU is given besides arguments. No torch here, and no CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"
#include "../common/view.h"

namespace rankreg {
namespace gpu {

// lam, as a number or, if `data` is not null, in device memory: then the host never sees it.
struct Lam {
  double value = 0;
  const void* data = nullptr;
  Type type = Type::kDouble;
};

// One call: everything is enqueued on `stream`, and nothing is waited for.
class Context {
 public:
  void* stream = nullptr;       // cudaStream_t
  int device = 0;               // the current device
  int multiprocessors = 1;      // of it
  int64_t shared_most = 49152;  // bytes of shared memory that a block may ask for

  virtual ~Context() = default;

  // Uninitialised device memory, aligned to 256 bytes, for kernels enqueued during this call.
  virtual void* allocate(int64_t bytes) = 0;

  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(allocate(count * int64_t(sizeof(T))));
  }
};

}  // namespace gpu
}  // namespace rankreg
