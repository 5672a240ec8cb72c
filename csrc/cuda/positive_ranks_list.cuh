// positive_ranks and its gradient for short lists; see positives_list.cuh.
#pragma once

#include "positive_ranks.h"
#include "positives_list.cuh"

namespace rankreg {
namespace gpu {

// A team of threads a list: a warp, or the block.
// scores, positives, where: lists x n, strided. ranks: lists x n, contiguous; 0 but at positives.
// Bytes moved, an item: the score, 1 or 2 of the masks, the rank.
template <class C>
__global__ void __launch_bounds__(kTeamMost, 1)
    positive_ranks_list_kernel(ShortLists in, Output<C, false> ranks) {
  RANKREG_SHARED(TeamStorage, storage);
  const Team team(in.team);
  const TeamMemory<C, 1> memory(in, team);
  const int64_t list = list_of(team);
  if (list >= in.lists) return;  // a warp that shares no barrier
  Held<C> held(in, team);
  read(in, list, held);
  const int positives = count_positives(in, team, storage, held).positives;
  const C zeros[4] = {};
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (r < in.rounds && held.begin(r) < in.n) ranks.put_four(list, held.begin(r), in.n, zeros);
  }
  if (positives > 0) {
    clear(team, memory.cells(), positives);
    const Thresholds<C> thresholds(memory.array(0), positives, positives > ListTuning::kCompareAll);
    const Above<C> above = count_above<false>(in, team, storage, held, thresholds, memory.cells());
    held.each_positive([&](int i, int slot) {
      const C a = score_at<C>(in, list, i);
      ranks.put(list * in.n + i, is_nan(a) ? a : C(1 + above(slot, a)));
    });
  }
}

inline void positive_ranks_list(const View& scores, const View& positives, const View& where,
                                int64_t lists, int64_t n, Type rank_type, void* ranks,
                                Context& context) {
  if (lists == 0 || n == 0) return;
  with_compute_type(scores.type, rank_type, [&](auto c) {
    using C = decltype(c);
    const ListLaunch plan = plan_lists<C, 1>(scores, positives, where, lists, n, context);
    launch<positive_ranks_list_kernel<C>>(context, plan.blocks, plan.threads, plan.shared, plan.in,
                                          output_of<C, false>(ranks, rank_type, lists, n));
  });
}

inline void positive_ranks_backward_list(const View& grad, const View& scores,
                                         const View& positives, const View& ranks,
                                         const View& where, const Lam& lam, int64_t lists,
                                         int64_t n, void* out, Context& context) {
  backward_list<false>(scores, positives, where, {grad, ranks, {lam, 1, false}, 0}, lists, n, out,
                       context);
}

}  // namespace gpu
}  // namespace rankreg
