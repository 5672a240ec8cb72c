// Registers the CPU kernels. Arguments were validated in Python; the checks here are a second line.
#include <deque>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/stable.h"
#include "cpu/positive_ranks.h"
#include "cpu/rank.h"
#include "cpu/rankreg_loss.h"

namespace rankreg {
namespace {

using Optional = std::optional<Tensor>;

class TorchThreads final : public Parallel {
 public:
  int threads() const override { return int(torch::stable::get_num_threads()); }

 protected:
  void run(int64_t tasks, void (*body)(const void*, int64_t), const void* context) const override {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        body(context, task);
    });
  }
};

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Bool: return Type::kBool;
    case ScalarType::Byte: return Type::kU8;
    case ScalarType::UInt16: return Type::kU16;
    case ScalarType::UInt32: return Type::kU32;
    case ScalarType::UInt64: return Type::kU64;
    case ScalarType::Char: return Type::kI8;
    case ScalarType::Short: return Type::kI16;
    case ScalarType::Int: return Type::kI32;
    case ScalarType::Long: return Type::kI64;
    case ScalarType::Half: return Type::kHalf;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Float: return Type::kFloat;
    case ScalarType::Double: return Type::kDouble;
    default: STD_TORCH_CHECK(false, "rankreg_ext: unsupported dtype"); return Type::kBool;
  }
}

// The lists of a call: those of `x`, along its last dimension. Other arguments are viewed as lists
// of the same number; batch dimensions without a common stride cost that argument one copy.
struct Lists {
  int64_t lists = 1, n = 0;
  std::vector<int64_t> batch;  // sizes before the last dimension
  std::deque<Tensor> copies;

  explicit Lists(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cpu() && x.dim() >= 1, "rankreg_ext: a CPU tensor of lists is required");
    n = x.size(x.dim() - 1);
    for (int64_t d = 0; d + 1 < x.dim(); ++d)
      batch.push_back(x.size(d));
    for (const int64_t size : batch)
      lists *= size;
  }

  // Sizes of a result: (*batch, last).
  std::vector<int64_t> sizes(int64_t last) const {
    std::vector<int64_t> out(batch);
    out.push_back(last);
    return out;
  }

  View view(const Tensor& x, int64_t last) {
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == int64_t(batch.size()) + 1 &&
                        x.size(x.dim() - 1) == last && x.numel() == lists * last,
                    "rankreg_ext: all tensors must be CPU tensors of the shape of the scores");
    // Fold the batch dimensions from the inner to the outer one.
    int64_t list_stride = 0, folded = 1;
    for (int64_t d = int64_t(batch.size()) - 1; d >= 0; --d) {
      STD_TORCH_CHECK(x.size(d) == batch[size_t(d)], "rankreg_ext: shapes must agree");
      if (x.size(d) == 1) continue;
      if (folded == 1) {
        list_stride = x.stride(d);
      } else if (x.stride(d) != list_stride * folded) {
        copies.push_back(torch::stable::contiguous(x));
        return View{copies.back().const_data_ptr(), type_of(x), last, 1};
      }
      folded *= x.size(d);
    }
    return View{x.const_data_ptr(), type_of(x), list_stride, x.stride(x.dim() - 1)};
  }
  View view(const Tensor& x) { return view(x, n); }

  View mask(const Tensor& x) {
    STD_TORCH_CHECK(type_of(x) == Type::kBool, "rankreg_ext: masks must be bool");
    return view(x);
  }
  View mask(const Optional& x) { return x ? mask(*x) : View{}; }
};

double lam_of(double lam, const Optional& tensor) {
  if (!tensor) return lam;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->numel() == 1,
                  "rankreg_ext: a lam tensor must be a 0-dim CPU tensor");
  const void* data = tensor->const_data_ptr();
  double value = 0;
  dispatch_float(type_of(*tensor), [&](auto tag) {
    value = double(widen(*static_cast<const typename decltype(tag)::type*>(data)));
  });
  return value;
}

ScalarType rank_dtype(const Tensor& x, int64_t n, Ties ties = Ties::kMin) {
  const bool wide = x.scalar_type() == ScalarType::Double || !float_ranks_suffice(n, ties);
  return wide ? ScalarType::Double : ScalarType::Float;
}

ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor rank_op(Tensor x, bool descending, int64_t ties, Optional where) {
  Lists call(x);
  const Ties rule = Ties(ties);
  Tensor out = torch::stable::new_empty(x, call.sizes(call.n), rank_dtype(x, call.n, rule));
  rank(call.view(x), call.mask(where), descending, rule, call.lists, call.n, type_of(out),
       out.mutable_data_ptr(), TorchThreads());
  return out;
}

Tensor blackbox_rank_op(Tensor x, double, Optional, bool descending, int64_t ties, Optional where) {
  return rank_op(x, descending, ties, where);
}

Tensor blackbox_rank_backward_op(Tensor grad, Tensor x, Tensor ranks, double lam,
                                 Optional lam_tensor, bool descending, int64_t ties,
                                 Optional where) {
  Lists call(x);
  STD_TORCH_CHECK(type_of(grad) == type_of(ranks), "rankreg_ext: grad must have the ranks' dtype");
  Tensor out = torch::stable::new_empty(x, call.sizes(call.n));
  blackbox_rank_backward(call.view(grad), call.view(x), call.view(ranks), call.mask(where),
                         lam_of(lam, lam_tensor), descending, Ties(ties), call.lists, call.n,
                         out.mutable_data_ptr(), TorchThreads());
  return out;
}

Tensor positive_ranks_op(Tensor scores, Tensor positives, double, Optional, Optional where) {
  Lists call(scores);
  Tensor out = torch::stable::new_empty(scores, call.sizes(call.n), rank_dtype(scores, call.n));
  positive_ranks(call.view(scores), call.mask(positives), call.mask(where), call.lists, call.n,
                 type_of(out), out.mutable_data_ptr(), TorchThreads());
  return out;
}

Tensor positive_ranks_backward_op(Tensor grad, Tensor scores, Tensor positives, Tensor ranks,
                                  double lam, Optional lam_tensor, Optional where) {
  Lists call(scores);
  STD_TORCH_CHECK(type_of(grad) == type_of(ranks), "rankreg_ext: grad must have the ranks' dtype");
  Tensor out = torch::stable::new_empty(scores, call.sizes(call.n));
  positive_ranks_backward(call.view(grad), call.view(scores), call.mask(positives),
                          call.view(ranks), call.mask(where), lam_of(lam, lam_tensor), call.lists,
                          call.n, out.mutable_data_ptr(), TorchThreads());
  return out;
}

std::tuple<Tensor, Tensor> rankreg_loss_op(Tensor scores, Tensor positives, double lam,
                                           Optional lam_tensor, int64_t power, int64_t normalize,
                                           Optional where, int64_t reduction) {
  constexpr int64_t kStateCapacity = 256;  // STATE_CAPACITY of rankreg_ext/_ops.py
  Lists call(scores);
  const int64_t kept = std::min(call.n, kStateCapacity);
  const Reduction reduce = Reduction(reduction);
  Tensor loss = torch::stable::new_empty(
      scores, reduce == Reduction::kNone ? call.batch : std::vector<int64_t>(),
      compute_dtype(scores));
  Tensor state = torch::stable::new_empty(scores, call.sizes(1 + kept), rank_dtype(scores, call.n));
  rankreg_loss(call.view(scores), call.mask(positives), call.mask(where),
               RankRegOptions{lam_of(lam, lam_tensor), power, normalize != 0}, reduce, call.lists,
               call.n, kept, type_of(state), loss.mutable_data_ptr(), state.mutable_data_ptr(),
               TorchThreads());
  return {loss, state};
}

Tensor rankreg_loss_backward_op(Tensor grad, Tensor scores, Tensor positives, Tensor state,
                                double lam, Optional lam_tensor, int64_t power, int64_t normalize,
                                Optional where) {
  Lists call(scores);
  STD_TORCH_CHECK(grad.scalar_type() == compute_dtype(scores),
                  "rankreg_ext: grad must have the loss's dtype");
  // One upstream value for all lists, or one per list.
  View upstream{grad.const_data_ptr(), type_of(grad), 0, 0};
  if (grad.numel() != 1) upstream = call.view(torch::stable::unsqueeze(grad, grad.dim()), 1);
  Tensor out = torch::stable::new_empty(scores, call.sizes(call.n));
  const int64_t kept = state.size(state.dim() - 1) - 1;
  rankreg_loss_backward(upstream, call.view(scores), call.mask(positives),
                        call.view(state, 1 + kept), call.mask(where),
                        RankRegOptions{lam_of(lam, lam_tensor), power, normalize != 0}, call.lists,
                        call.n, kept, out.mutable_data_ptr(), TorchThreads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rankreg_ext, CPU, m) {
  m.impl("rank", TORCH_BOX(&rank_op));
  m.impl("blackbox_rank", TORCH_BOX(&blackbox_rank_op));
  m.impl("blackbox_rank_backward", TORCH_BOX(&blackbox_rank_backward_op));
  m.impl("positive_ranks", TORCH_BOX(&positive_ranks_op));
  m.impl("positive_ranks_backward", TORCH_BOX(&positive_ranks_backward_op));
  m.impl("rankreg_loss", TORCH_BOX(&rankreg_loss_op));
  m.impl("rankreg_loss_backward", TORCH_BOX(&rankreg_loss_backward_op));
}

}  // namespace rankreg
