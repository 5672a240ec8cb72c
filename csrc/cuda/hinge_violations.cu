// One way for lists of any length.
#include "hinge_violations.cuh"

namespace rankreg {
namespace gpu {

void hinge_violations(const View& scores, const View& positives, const View& where,
                      const Lam& delta, int64_t lists, int64_t n, void* out, Context& context) {
  if (lists == 0 || n == 0) return;
  stream::Call call(context, scores, positives, where, lists, n, false);
  const Type type = scores.type == Type::kDouble ? Type::kDouble : Type::kFloat;
  call.find(out, type == Type::kFloat ? 1 : 2);
  const hinge::Task task{call.in, call.found, delta, hinge::parts_of(context, lists, n)};
  // As many units as blocks, or as many groups as there can be.
  const int64_t room = hinge::kGroup * int64_t(task.parts) + n + hinge::kGroup;
  double* const partial = context.scratch<double>(lists * room);
  const int64_t blocks = lists * task.parts, shared = (call.found.segments + 1) * 4;
  launch<hinge::sums<hinge::kThreads>>(context, blocks, hinge::kThreads, shared, task, partial,
                                       room);
  launch<hinge::q<hinge::kThreads>>(context, blocks, hinge::kThreads, shared, task, partial, room,
                                    out, type);
}

void hinge_violations_backward(const View& grad, const View& scores, const View& positives,
                               const View& where, const Lam& delta, int64_t lists, int64_t n,
                               void* out, Context& context) {
  if (lists == 0 || n == 0) return;
  stream::Call call(context, scores, positives, where, lists, n, false);
  call.found.above = call.counters();
  call.find(nullptr, 0);
  const hinge::Task task{call.in, call.found, delta, hinge::parts_of(context, lists, n)};
  const int64_t blocks = lists * task.parts, shared = (call.found.segments + 1) * 4;
  launch<hinge::items<hinge::kThreads>>(context, blocks, hinge::kThreads, shared, task, grad, out);
  launch<hinge::own<hinge::kThreads>>(context, blocks, hinge::kThreads, shared, task, grad, out);
}

}  // namespace gpu
}  // namespace rankreg
