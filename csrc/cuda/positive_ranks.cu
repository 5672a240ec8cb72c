#include <stdexcept>

#include "positive_ranks.h"

namespace rankreg {
namespace gpu {

void positive_ranks(const View&, const View&, const View&, int64_t, int64_t, Type, void*,
                    Context&) {
  throw std::runtime_error("not here yet");
}
void positive_ranks_backward(const View&, const View&, const View&, const View&, const View&,
                             const Lam&, int64_t, int64_t, void*, Context&) {
  throw std::runtime_error("not here yet");
}

}  // namespace gpu
}  // namespace rankreg
