#include <stdexcept>

#include "rankreg_loss.h"

namespace rankreg {
namespace gpu {

void rankreg_loss(const View&, const View&, const View&, const RankRegOptions&, Reduction, int64_t,
                  int64_t, int64_t, Type, void*, void*, Context&) {
  throw std::runtime_error("not here yet");
}
void rankreg_loss_backward(const View&, const View&, const View&, const View&, const View&,
                           const RankRegOptions&, int64_t, int64_t, int64_t, void*, Context&) {
  throw std::runtime_error("not here yet");
}

}  // namespace gpu
}  // namespace rankreg
