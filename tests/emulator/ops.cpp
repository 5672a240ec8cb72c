// The CUDA back-end, emulated, as ops of CPU tensors: torch.ops.rankreg_ext_emulated.
#include "../../csrc/cuda/backend.h"
#include "emulated.h"

namespace rankreg {
namespace gpu {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext_emulated, CPU, m) { Ops<Emulated>::register_all(m); }

}  // namespace gpu
}  // namespace rankreg
