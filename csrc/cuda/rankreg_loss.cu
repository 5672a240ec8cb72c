// Short lists are held on chip, one launch each way; longer ones are streamed by many blocks.
#include "positives_stream.cuh"
#include "rankreg_loss.h"
#include "rankreg_loss_list.cuh"

namespace rankreg {
namespace gpu {

void rankreg_loss(const View& scores, const View& positives, const View& where,
                  const RankRegOptions& options, Reduction reduction, int64_t lists, int64_t n,
                  int64_t kept, Type rank_type, void* loss, void* state, Context& context) {
  if (list_fits(scores.type, n, context)) {
    rankreg_loss_list(scores, positives, where, options, reduction, lists, n, kept, rank_type, loss,
                      state, context);
  } else {
    rankreg_loss_stream(scores, positives, where, options, reduction, lists, n, kept, rank_type,
                        loss, state, context);
  }
}

void rankreg_loss_backward(const View& grad, const View& scores, const View& positives,
                           const View& state, const View& where, const RankRegOptions& options,
                           int64_t lists, int64_t n, int64_t kept, void* out, Context& context) {
  if (list_fits(scores.type, n, context)) {
    rankreg_loss_backward_list(grad, scores, positives, state, where, options, lists, n, kept, out,
                               context);
  } else {
    rankreg_loss_backward_stream(grad, scores, positives, state, where, options, lists, n, kept,
                                 out, context);
  }
}

}  // namespace gpu
}  // namespace rankreg
