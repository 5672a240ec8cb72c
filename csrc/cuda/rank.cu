// Which kernel ranks a batch. Every way is one launch, forward and backward alike, up to the
// longest list of a block.
#include <algorithm>

#include "rank.h"
#include "rank_counting.cuh"
#include "rank_network.cuh"
#include "rank_radix.cuh"
#include "tuning.h"

namespace rankreg {
namespace gpu {
namespace {

// In as many launches as blocks can be numbered: one below 2^31 blocks.
template <auto kernel>
void launch_lists(const Items& items, const Sink& sink, Ties ties, int64_t lists, int n,
                  int threads, int group, int64_t shared, const Context& context) {
  const int64_t together = threads / group, most = kMostBlocks * together;
  for (int64_t from = 0; from < lists; from += most) {
    const int64_t some = std::min(most, lists - from);
    launch<kernel>(context, (some + together - 1) / together, threads, shared, items, sink, ties,
                   from, lists, n, group);
  }
}

// The lowest power of two that is at least `least`.
int power_of_two(int64_t least) {
  int power = 1;
  while (power < least)
    power *= 2;
  return power;
}

// Types whose every value is one of float or double.
bool has_value(Type type) {
  switch (type) {
    case Type::kI32:
    case Type::kU32:
    case Type::kI64:
    case Type::kU64: return false;
    default: return true;
  }
}

void by_lanes(const Items& items, const Sink& sink, Ties ties, int64_t lists, int n,
              const Context& context) {
  const int lanes = power_of_two((n + kLaneItems - 1) / kLaneItems);
  if (items.x.type == Type::kDouble) {
    launch_lists<rank_by_lanes<double>>(items, sink, ties, lists, n, kLaneBlock, lanes, 0, context);
  } else {
    launch_lists<rank_by_lanes<float>>(items, sink, ties, lists, n, kLaneBlock, lanes, 0, context);
  }
}

template <class C, int kItems>
void over_grid_in(const Items& items, const Sink& sink, Ties ties, int64_t lists, int n,
                  const Context& context) {
  constexpr int kTile = kItems * kWarp;
  const int64_t tiles = lists * ((n + kTile - 1) / kTile);
  const int warps = int(std::min<int64_t>(
      grid_counting_warps(kItems), (n + GridCounting::kWarpItems - 1) / GridCounting::kWarpItems));
  const int range = ((n + warps - 1) / warps + 3) / 4 * 4;
  launch<rank_over_grid<C, kItems>>(context, tiles, warps * kWarp,
                                    grid_counting_shared<C>(warps, kTile), items, sink, ties, n,
                                    range);
}

template <class C>
void over_grid(const Items& items, const Sink& sink, Ties ties, int64_t lists, int n,
               const Context& context) {
  const int64_t wide_tiles = lists * ((n + 4 * kWarp - 1) / (4 * kWarp));
  if (wide_tiles >= GridCounting::kWideTiles * context.multiprocessors) {
    over_grid_in<C, 4>(items, sink, ties, lists, n, context);
  } else {
    over_grid_in<C, 1>(items, sink, ties, lists, n, context);
  }
}

// False where a list does not fit a block's registers or shared memory.
template <class Key, int kItems, int kMostThreads>
bool by_network_of(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                   const Context& context) {
  if (n > kItems * kMostThreads) return false;
  const int group = power_of_two((n + kItems - 1) / kItems);
  const int threads = group > kWarp ? group : kLaneBlock;
  const int64_t shared = network_shared<Key, kItems>(threads);
  if (shared > context.shared_most) return false;
  launch_lists<rank_by_network<Key, kItems, kMostThreads>>(items, sink, ties, lists, int(n),
                                                           threads, group, shared, context);
  return true;
}

bool by_network(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                int bytes, const Context& context) {
  switch (bytes) {
    case 2: return by_network_of<uint16_t, 16, 1024>(items, sink, ties, lists, n, context);
    case 4: return by_network_of<uint32_t, 16, 1024>(items, sink, ties, lists, n, context);
    default: return by_network_of<uint64_t, 8, 1024>(items, sink, ties, lists, n, context);
  }
}

void rank_lists(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                Context& context) {
  if (lists == 0 || n == 0) return;
  const int bytes = key_bytes(items.x.type, items.moved());
  if (has_value(items.x.type)) {
    if (n <= LaneCounting::most(bytes, ties))
      return by_lanes(items, sink, ties, lists, int(n), context);
    if (ties != Ties::kDense && n <= GridCounting::kMostN &&
        lists <= GridCounting::kMostItems * context.multiprocessors / n) {
      if (items.x.type == Type::kDouble)
        return over_grid<double>(items, sink, ties, lists, int(n), context);
      return over_grid<float>(items, sink, ties, lists, int(n), context);
    }
  }
  if (by_network(items, sink, ties, lists, n, bytes, context)) return;
  if (!rank_block_radix(items, sink, ties, lists, n, context))
    rank_device_radix(items, sink, ties, lists, n, context);
}

}  // namespace

void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, Context& context) {
  rank_lists(Items{x, where, View{}, Lam{}, descending},
             Sink{ranks, rank_type, View{}, x.type, where, Lam{}}, ties, lists, n, context);
}

void blackbox_rank_backward(const View& grad, const View& x, const View& ranks, const View& where,
                            const Lam& lam, bool descending, Ties ties, int64_t lists, int64_t n,
                            void* out, Context& context) {
  if (!is_float(x.type))
    throw std::invalid_argument("rankreg_ext: a floating-point type is required");
  const bool wide = x.type == Type::kDouble || !float_ranks_suffice(n, ties);
  if (ranks.type != (wide ? Type::kDouble : Type::kFloat) || grad.type != ranks.type)
    throw std::invalid_argument("rankreg_ext: ranks and their gradient must be of rank()'s dtype");
  rank_lists(Items{x, where, grad, lam, descending},
             Sink{out, ranks.type, ranks, x.type, where, lam}, ties, lists, n, context);
}

}  // namespace gpu
}  // namespace rankreg
