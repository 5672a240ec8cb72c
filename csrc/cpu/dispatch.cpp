// The public functions: each calls its namesake compiled for the instruction set in use.
#include "hinge_violations.h"
#include "isa.h"
#include "positive_ranks.h"
#include "rank.h"
#include "rankreg_loss.h"

namespace rankreg {

// clang-format off
RANKREG_DECLARE_PER_ISA(
  decltype(rankreg::rank) rank;
  decltype(rankreg::blackbox_rank_backward) blackbox_rank_backward;
  decltype(rankreg::positive_ranks) positive_ranks;
  decltype(rankreg::positive_ranks_backward) positive_ranks_backward;
  decltype(rankreg::rankreg_loss) rankreg_loss;
  decltype(rankreg::rankreg_loss_backward) rankreg_loss_backward;
  decltype(rankreg::hinge_violations) hinge_violations;
  decltype(rankreg::hinge_violations_backward) hinge_violations_backward;
)
// clang-format on

namespace {

// The namesakes of one function.
template <class F>
struct PerIsa {
  F* baseline;
  F* avx2;
  F* avx512;

  F* operator*() const {
    switch (isa()) {
      case Isa::kAvx512: return avx512;
      case Isa::kAvx2: return avx2;
      default: return baseline;
    }
  }
};

#if RANKREG_X86
#define RANKREG_PER_ISA(name) \
  (*PerIsa<decltype(baseline::name)>{baseline::name, avx2::name, avx512::name})
#else
#define RANKREG_PER_ISA(name) baseline::name
#endif

}  // namespace

void rank(const View& x, const View& where, bool descending, Ties ties, int64_t lists, int64_t n,
          Type rank_type, void* ranks, const Parallel& parallel) {
  RANKREG_PER_ISA(rank)(x, where, descending, ties, lists, n, rank_type, ranks, parallel);
}

void blackbox_rank_backward(const View& grad, const View& x, const View& ranks, const View& where,
                            double lam, bool descending, Ties ties, int64_t lists, int64_t n,
                            void* out, const Parallel& parallel) {
  RANKREG_PER_ISA(blackbox_rank_backward)
  (grad, x, ranks, where, lam, descending, ties, lists, n, out, parallel);
}

void positive_ranks(const View& scores, const View& positives, const View& where, int64_t lists,
                    int64_t n, Type rank_type, void* ranks, const Parallel& parallel) {
  RANKREG_PER_ISA(positive_ranks)
  (scores, positives, where, lists, n, rank_type, ranks, parallel);
}

void positive_ranks_backward(const View& grad, const View& scores, const View& positives,
                             const View& ranks, const View& where, double lam, int64_t lists,
                             int64_t n, void* out, const Parallel& parallel) {
  RANKREG_PER_ISA(positive_ranks_backward)
  (grad, scores, positives, ranks, where, lam, lists, n, out, parallel);
}

void rankreg_loss(const View& scores, const View& positives, const View& where,
                  const RankRegOptions& options, Reduction reduction, int64_t lists, int64_t n,
                  int64_t kept, Type rank_type, void* loss, void* state, const Parallel& parallel) {
  RANKREG_PER_ISA(rankreg_loss)
  (scores, positives, where, options, reduction, lists, n, kept, rank_type, loss, state, parallel);
}

void rankreg_loss_backward(const View& grad, const View& scores, const View& positives,
                           const View& state, const View& where, const RankRegOptions& options,
                           int64_t lists, int64_t n, int64_t kept, void* out,
                           const Parallel& parallel) {
  RANKREG_PER_ISA(rankreg_loss_backward)
  (grad, scores, positives, state, where, options, lists, n, kept, out, parallel);
}

void hinge_violations(const View& scores, const View& positives, const View& where, double delta,
                      int64_t lists, int64_t n, void* out, const Parallel& parallel) {
  RANKREG_PER_ISA(hinge_violations)
  (scores, positives, where, delta, lists, n, out, parallel);
}

void hinge_violations_backward(const View& grad, const View& scores, const View& positives,
                               const View& where, double delta, int64_t lists, int64_t n, void* out,
                               const Parallel& parallel) {
  RANKREG_PER_ISA(hinge_violations_backward)
  (grad, scores, positives, where, delta, lists, n, out, parallel);
}

}  // namespace rankreg
