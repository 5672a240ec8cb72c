// rankreg_loss and its gradient for short lists; see positives_list.cuh.
#pragma once

#include <atomic>
#include <chrono>

#include "positives_list.cuh"
#include "rankreg_loss.h"

namespace rankreg {
namespace gpu {

// A sum of doubles and what its additions lost.
struct Compensated {
  double sum = 0, lost = 0;

  __device__ void add(double other_sum, double other_lost) {
    const double next = sum + other_sum;
    const double error = sum >= other_sum ? (sum - next) + other_sum : (other_sum - next) + sum;
    lost = lost + other_lost + error;
    sum = next;
  }
  __device__ double value() const {
    return sum - sum == 0 ? sum + lost : sum;  // infinite or NaN: as it is
  }
};

// Of all warps of the team, at its thread 0; `single` where only its first warp has terms. At most
// one barrier.
__device__ inline void reduce(const Team& team, TeamStorage& storage, bool single,
                              Compensated& sum) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kAll, sum.sum, step);
    sum.add(other, __shfl_xor_sync(kAll, sum.lost, step));
  }
  if (single || team.one_warp()) return;
  if (team.lane == 0) storage.sum[team.warp] = sum.sum, storage.lost[team.warp] = sum.lost;
  team.sync();
  if (team.rank == 0) {
    for (int w = 1; w < team.warps(); ++w)
      sum.add(storage.sum[w], storage.lost[w]);
  }
}

// What a block contributes to a reduction over lists.
struct Partial {
  double sum;
  double counted;  // lists with a positive
};

// The loss of all lists: one value a block, combined by whoever knows that all are there.
template <class C>
struct LossSum {
  Reduction reduction;
  int64_t lists, state_stride;
  C* loss;                   // one value, or one a list
  C* state;                  // lists x state_stride
  Partial* partials;         // a block; null where there is one block
  unsigned long long* tags;  // a block: `tag` once its partial is written. Null: a launch combines
  unsigned long long tag;    // of this call, drawn so that memory does not hold it by chance

  // By all threads of a block; `all` is the same at each.
  __device__ void finish(Partial all, int64_t first_list, int64_t list_step, bool writes) const {
    const double divisor = reduction == Reduction::kMean && all.counted > 0 ? all.counted : 1.0;
    if (writes) loss[0] = C(all.sum / divisor);
    if (reduction != Reduction::kMean) return;
    for (int64_t list = first_list; list < lists; list += list_step)
      state[list * state_stride] = C(divisor);
  }
};

// One value a warp, or a team.
struct FinishStorage {
  Partial each[kWarp];
};

// Sum of all partials, by all threads of a block: the same order, and value, whichever block it is.
// Read past the first-level cache: other blocks of this launch may have written them.
__device__ inline Partial sum_of(const Partial* partials, int64_t blocks, FinishStorage& storage) {
  Partial all = {0, 0};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
    const volatile Partial* partial = partials + b;
    all.sum += partial->sum, all.counted += partial->counted;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    all.sum += __shfl_xor_sync(kAll, all.sum, step);
    all.counted += __shfl_xor_sync(kAll, all.counted, step);
  }
  if (threadIdx.x % kWarp == 0) storage.each[threadIdx.x / kWarp] = all;
  __syncthreads();
  all = storage.each[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w)
    all.sum += storage.each[w].sum, all.counted += storage.each[w].counted;
  return all;
}

// Every thread of every block comes here once, with its team's sum at the team's thread 0.
//
// Tags stand in for a counter, which would have to be zero before the launch. A block writes its
// partial, then its tag, then reads all tags, with fences in between, so that at least the last
// block to write sees all of them. Should two blocks see them, both write the same results. They
// are wiped in the end: a graph is replayed with the same tag in the same memory.
template <class C>
__device__ inline void combine(const LossSum<C>& to, const Team& team, Partial own) {
  RANKREG_SHARED(FinishStorage, storage);
  const int t = int(threadIdx.x);
  if (team.rank == 0) storage.each[team.index] = own;
  __syncthreads();
  Partial all = storage.each[0];
  for (int other = 1; other < team.count; ++other)
    all.sum += storage.each[other].sum, all.counted += storage.each[other].counted;
  if (gridDim.x == 1) {
    to.finish(all, t, blockDim.x, t == 0);
    return;
  }
  if (t == 0) to.partials[blockIdx.x] = all;
  if (to.tags == nullptr) return;
  if (t == 0) {
    __threadfence();
    static_cast<volatile unsigned long long*>(to.tags)[blockIdx.x] = to.tag;
  }
  __syncthreads();
  __threadfence();
  bool there = true;
  for (unsigned b = unsigned(t); b < gridDim.x; b += blockDim.x)
    there = there && static_cast<volatile unsigned long long*>(to.tags)[b] == to.tag;
  __threadfence();
  if (!__syncthreads_and(there)) return;
  to.finish(sum_of(to.partials, gridDim.x, storage), t, blockDim.x, t == 0);
  for (unsigned b = unsigned(t); b < gridDim.x; b += blockDim.x)
    to.tags[b] = 0;
}

// Blocks share the lists; each sums all partials. partials: one a block of the first launch. Writes
// the loss, and state[list][0] of every list for a mean.
template <class C>
__global__ void rankreg_loss_list_sum_kernel(LossSum<C> to, int64_t blocks) {
  RANKREG_SHARED(FinishStorage, storage);
  to.finish(sum_of(to.partials, blocks, storage), int64_t(blockIdx.x) * blockDim.x + threadIdx.x,
            int64_t(gridDim.x) * blockDim.x, blockIdx.x == 0 && threadIdx.x == 0);
}

// As positive_ranks_list_kernel, but that ranks go into the loss, and that teams take further lists
// in turn. to.loss: one value, or one per
// list. to.state: lists x (1 + kept), contiguous.
// Bytes moved, an item: the score, 1 or 2 of the masks; 4 (1 + kept) a list.
template <class C>
__global__ void __launch_bounds__(kTeamMost, 1)
    rankreg_loss_list_kernel(ShortLists in, RankRegOptions options, int kept, LossSum<C> to) {
  RANKREG_SHARED(TeamStorage, storage);
  const Team team(in.team);
  const TeamMemory<C, 1> memory(in, team);
  Partial own = {0, 0};
  for (int64_t list = list_of(team); list < in.lists; list += int64_t(gridDim.x) * team.count) {
    Held<C> held(in, team);
    read(in, list, held);
    const Found found = count_positives(in, team, storage, held);
    const int positives = found.positives;
    C* const state = to.state + list * to.state_stride;
    for (int s = team.rank; s < kept; s += team.size) {
      if (s >= positives || positives > kept) state[1 + s] = C(0);
    }
    if (team.rank == 0 && to.reduction != Reduction::kMean) state[0] = C(1);
    double value = 0;
    if (positives > 0) {
      clear(team, memory.cells(), positives);
      const Thresholds<C> thresholds(memory.array(0), positives,
                                     positives > ListTuning::kCompareAll);
      const Above<C> above =
          count_above<false>(in, team, storage, held, thresholds, memory.cells());
      if (thresholds.sorted() && positives <= kept) {
        held.each_positive([&](int i, int slot) {
          const C a = score_at<C>(in, list, i);
          state[1 + slot] = is_nan(a) ? a : C(1 + above(slot, a));
        });
      }
      const RankReg formula{options.power, options.by_length ? double(found.unmasked) : 1.0,
                            double(positives)};
      // By threshold: in the order of slots, or of scores.
      Compensated sum;
      const bool single = positives <= kWarp;
      if (!single || team.warp == 0) {
        for (int s = team.rank; s < positives; s += team.size) {
          const bool nan = thresholds.sorted() ? thresholds.key(s) == KeyOf<C>(~KeyOf<C>{0})
                                               : is_nan(thresholds.values()[s]);
          const double rank = nan ? nan_of<double>() : double(1 + int(memory.cells()[s] & 0xffffu));
          if (!thresholds.sorted() && positives <= kept) state[1 + s] = C(rank);
          sum.add(formula.term(rank), 0);
        }
        reduce(team, storage, single, sum);
      }
      value = formula.value(sum.value());
    }
    if (team.rank == 0) {
      if (to.reduction == Reduction::kNone) to.loss[list] = C(value);
      if (positives > 0) own.sum += value, own.counted += 1;
    }
    team.sync();  // of shared memory, for the next list
  }
  if (to.reduction != Reduction::kNone) combine(to, team, own);
}

// A value for one call's tags, unlikely to be in memory already.
inline unsigned long long next_tag() {
  static std::atomic<uint64_t> calls{
      uint64_t(std::chrono::steady_clock::now().time_since_epoch().count()) << 20};
  uint64_t x = (calls.fetch_add(1, std::memory_order_relaxed) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (x ^ x >> 31) | 1;
}

inline void rankreg_loss_list(const View& scores, const View& positives, const View& where,
                              const RankRegOptions& options, Reduction reduction, int64_t lists,
                              int64_t n, int64_t kept, Type rank_type, void* loss, void* state,
                              Context& context) {
  with_compute_type(scores.type, rank_type, [&](auto c) {
    using C = decltype(c);
    ListLaunch plan = plan_lists<C, 1>(scores, positives, where, lists, n, context);
    if (reduction != Reduction::kNone) {
      const int64_t most = int64_t(ListTuning::kLossBlocks) * context.multiprocessors;
      plan.blocks = plan.blocks < most ? plan.blocks : most;
      plan.blocks = plan.blocks > 0 ? plan.blocks : 1;  // there is a loss of no lists, too
    }
    LossSum<C> to = {reduction, lists,   1 + kept, static_cast<C*>(loss), static_cast<C*>(state),
                     nullptr,   nullptr, 0};
    const bool combined = reduction != Reduction::kNone && plan.blocks > 1;
    if (combined) {
      to.partials = context.scratch<Partial>(plan.blocks);
      if (plan.blocks <= ListTuning::kTagged) {
        to.tags = context.scratch<unsigned long long>(plan.blocks);
        to.tag = next_tag();
      }
    }
    launch<rankreg_loss_list_kernel<C>>(context, plan.blocks, plan.threads, plan.shared, plan.in,
                                        options, int(kept), to);
    if (combined && to.tags == nullptr) {
      constexpr int kThreads = 256;
      const int64_t each = (lists + kThreads - 1) / kThreads, most = context.multiprocessors;
      launch<rankreg_loss_list_sum_kernel<C>>(context,
                                              reduction == Reduction::kSum ? 1
                                              : each < most                ? each
                                                                           : most,
                                              kThreads, 0, to, plan.blocks);
    }
  });
}

inline void rankreg_loss_backward_list(const View& grad, const View& scores, const View& positives,
                                       const View& state, const View& where,
                                       const RankRegOptions& options, int64_t lists, int64_t n,
                                       int64_t kept, void* out, Context& context) {
  backward_list<true>(scores, positives, where, {grad, state, options, int(kept)}, lists, n, out,
                      context);
}

}  // namespace gpu
}  // namespace rankreg
