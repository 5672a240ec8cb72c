// The CUDA back-end for CPU tensors: its kernels emulated, its memory torch's.
#pragma once

#include "../../csrc/cuda/backend.h"
#include "emulated.h"

namespace rankreg {
namespace gpu {

struct Emulated : Backend {
  class Call : public Context {
   public:
    explicit Call(const Lists& lists) : lists_(lists) {
      multiprocessors = emulated_gpu().multiprocessors;
      shared_most = emulated_gpu().shared_most;
    }
    void* allocate(int64_t bytes) override {
      scratch_.push_back(lists_.bytes(bytes));
      return scratch_.back().data();
    }

   private:
    const Lists& lists_;
    std::vector<Output> scratch_;
  };
};

}  // namespace gpu
}  // namespace rankreg
