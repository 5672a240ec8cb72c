// Short lists are held on chip, one launch each way; longer ones are streamed by many blocks.
#include "positive_ranks.h"
#include "positive_ranks_list.cuh"
#include "positives_stream.cuh"

namespace rankreg {
namespace gpu {

void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, Context& context) {
  if (list_fits(scores.type, n, context)) {
    positive_ranks_list(scores, positives, where, lists, n, rank_type, ranks, context);
  } else {
    positive_ranks_stream(scores, positives, where, lists, n, rank_type, ranks, context);
  }
}

void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, const Lam& lam, int64_t lists,
                             int64_t n, void* out, Context& context) {
  if (list_fits(scores.type, n, context)) {
    positive_ranks_backward_list(grad, scores, positives, ranks, where, lam, lists, n, out,
                                 context);
  } else {
    positive_ranks_backward_stream(grad, scores, positives, ranks, where, lam, lists, n, out,
                                   context);
  }
}

}  // namespace gpu
}  // namespace rankreg
