// The radix sorts as ops of CPU tensors, whatever the length of the lists:
// torch.ops.rankreg_ext_block_radix and torch.ops.rankreg_ext_device_radix.
//
// rank.cu takes them for long lists alone, which the emulator is too slow for. Each has `rank` and
// `blackbox_rank_backward` of rankreg_ext; a test defines the schemas before it loads the module.
#include "radix_ops.h"

#include "../../csrc/cuda/rank_radix.cuh"
#include "emulated_backend.h"

namespace rankreg {
namespace gpu {

DeviceRadixTuning& emulated_radix_tuning() {
  static DeviceRadixTuning tuning;
  return tuning;
}

namespace {

// Way: what to do with the items and the sink of a call.
template <class Way>
struct Only : Emulated {
  static void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists,
                   int64_t n, Type rank_type, void* ranks, Context& context) {
    const Items items{x, where, View{}, Lam{}, descending};
    const Sink sink{ranks, rank_type, View{}, x.type, where, Lam{}};
    Way::take(items, sink, ties, lists, n, context);
  }

  static void blackbox_rank_backward(const View& grad, const View& x, const View& ranks,
                                     const View& where, const Lam& lam, bool descending, Ties ties,
                                     int64_t lists, int64_t n, void* out, Context& context) {
    const Items items{x, where, grad, lam, descending};
    const Sink sink{out, ranks.type, ranks, x.type, where, lam};
    Way::take(items, sink, ties, lists, n, context);
  }
};

struct BlockWay {
  static void take(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                   Context& context) {
    if (!rank_block_radix(items, sink, ties, lists, n, context))
      throw std::runtime_error("the list does not fit a block");
  }
};

struct DeviceWay {
  static void take(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                   Context& context) {
    rank_device_radix_tuned(items, sink, ties, lists, n, emulated_radix_tuning(), context);
  }
};

template <class Way>
void register_way(torch::stable::detail::StableLibrary& m) {
  using Its = Ops<Only<Way>>;
  m.impl("rank", TORCH_BOX(&Its::rank));
  m.impl("blackbox_rank_backward", TORCH_BOX(&Its::blackbox_rank_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext_block_radix, CPU, m) { register_way<BlockWay>(m); }
STABLE_TORCH_LIBRARY_IMPL(rankreg_ext_device_radix, CPU, m) { register_way<DeviceWay>(m); }

}  // namespace gpu
}  // namespace rankreg
