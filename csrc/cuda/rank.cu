#include <stdexcept>

#include "rank.h"

namespace rankreg {
namespace gpu {

void rank(const View&, const View&, bool, Ties, int64_t, int64_t, Type, void*, Context&) {
  throw std::runtime_error("not here yet");
}
void blackbox_rank_backward(const View&, const View&, const View&, const View&, const Lam&, bool,
                            Ties, int64_t, int64_t, void*, Context&) {
  throw std::runtime_error("not here yet");
}

}  // namespace gpu
}  // namespace rankreg
