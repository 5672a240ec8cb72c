// Registers the CPU kernels.
#include "ops.h"

#include "cpu/hinge_violations.h"
#include "cpu/positive_ranks.h"
#include "cpu/rank.h"
#include "cpu/rankreg_loss.h"
#include "threads.h"

namespace rankreg {
namespace {

class TorchThreads final : public Parallel {
 public:
  int threads() const override { return int(torch::stable::get_num_threads()); }

 protected:
  void run(int64_t tasks, void (*body)(const void*, int64_t), const void* context) const override {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        body(context, task);
    });
  }
};

}  // namespace

const Parallel& torch_threads() {
  static const TorchThreads threads;
  return threads;
}

namespace {

struct Cpu {
  struct Call {
    explicit Call(const Lists& lists) {
      STD_TORCH_CHECK(lists.place().device_type == aoti_torch_device_type_cpu(),
                      "rankreg_ext: a CPU tensor is required");
    }
    operator const Parallel&() const { return torch_threads(); }
  };

  static double lam(double lam, const Optional& tensor) {
    if (!tensor) return lam;
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->numel() == 1,
                    "rankreg_ext: a lam or delta tensor must be a 0-dim CPU tensor");
    const void* data = tensor->const_data_ptr();
    double value = 0;
    dispatch_float(type_of(*tensor), [&](auto tag) {
      value = double(widen(*static_cast<const typename decltype(tag)::type*>(data)));
    });
    return value;
  }

  static constexpr auto& rank = rankreg::rank;
  static constexpr auto& blackbox_rank_backward = rankreg::blackbox_rank_backward;
  static constexpr auto& positive_ranks = rankreg::positive_ranks;
  static constexpr auto& positive_ranks_backward = rankreg::positive_ranks_backward;
  static constexpr auto& rankreg_loss = rankreg::rankreg_loss;
  static constexpr auto& rankreg_loss_backward = rankreg::rankreg_loss_backward;
  static constexpr auto& hinge_violations = rankreg::hinge_violations;
  static constexpr auto& hinge_violations_backward = rankreg::hinge_violations_backward;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext, CPU, m) { Ops<Cpu>::register_all(m); }

}  // namespace rankreg
