// Registers the CUDA kernels.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <mutex>

#include "backend.h"

namespace rankreg {
namespace gpu {
namespace {

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "rankreg_ext: ", cudaGetErrorString(error));
}

// What does not change about a device, asked for once.
struct Facts {
  int multiprocessors = 0, shared_most = 0;
};

const Facts& facts_of(int device) {
  constexpr int kMost = 64;
  static Facts facts[kMost];
  static std::once_flag once[kMost];
  STD_TORCH_CHECK(device >= 0 && device < kMost, "rankreg_ext: unexpected device ", device);
  std::call_once(once[device], [device] {
    check(cudaDeviceGetAttribute(&facts[device].multiprocessors, cudaDevAttrMultiProcessorCount,
                                 device));
    check(cudaDeviceGetAttribute(&facts[device].shared_most,
                                 cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  });
  return facts[device];
}

struct Cuda : Backend {
  class Call : public Context {
   public:
    explicit Call(const Lists& lists) : lists_(lists), guard_(lists.place().device_index) {
      STD_TORCH_CHECK(lists.place().device_type == aoti_torch_device_type_cuda(),
                      "rankreg_ext: a CUDA tensor is required");
      device = lists.place().device_index;
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
      multiprocessors = facts_of(device).multiprocessors;
      shared_most = facts_of(device).shared_most;
    }
    // Freed at the end of the call, and by then enqueued on this stream: torch's allocator hands
    // the memory only to what comes later on it.
    void* allocate(int64_t bytes) override {
      scratch_.push_back(lists_.bytes(bytes));
      return scratch_.back().data();
    }

   private:
    const Lists& lists_;
    torch::stable::accelerator::DeviceGuard guard_;
    std::vector<Output> scratch_;
  };
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext, CUDA, m) { Ops<Cuda>::register_all(m); }

}  // namespace gpu
}  // namespace rankreg
