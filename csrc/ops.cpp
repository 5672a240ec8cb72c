// Registers the CPU kernels. Arguments were validated in Python; the checks here are a second line.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "common/stable.h"
#include "cpu/positive_ranks.h"
#include "cpu/rank.h"
#include "cpu/rankreg_loss.h"
#include "threads.h"

namespace rankreg {
namespace {

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

}  // namespace

const Parallel& torch_threads() {
  static const TorchThreads threads;
  return threads;
}

namespace {

using Optional = std::optional<Tensor>;

Type type_of(ScalarType dtype) {
  switch (dtype) {
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
Type type_of(const Tensor& x) { return type_of(x.scalar_type()); }

// A tensor made here, and the way out for it: the handle itself is handed to torch, where a Tensor
// would be copied first. (A StableIValue boxes as itself.)
class Output {
 public:
  explicit Output(AtenTensorHandle handle) : handle_(handle) {}
  void* data() const {
    void* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle_.get(), &data));
    return data;
  }
  StableIValue release() { return reinterpret_cast<uintptr_t>(handle_.release()); }

 private:
  struct Delete {
    void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
  };
  std::unique_ptr<AtenTensorOpaque, Delete> handle_;
};

// Sizes of a tensor, in place for the usual few dimensions.
class Sizes {
 public:
  explicit Sizes(size_t count) : count_(count) {
    if (count > kInPlace) spilled_.resize(count);
  }
  int64_t* data() { return count_ > kInPlace ? spilled_.data() : in_place_; }
  int64_t& operator[](size_t i) { return data()[i]; }
  size_t size() const { return count_; }

 private:
  static constexpr size_t kInPlace = 6;
  size_t count_;
  int64_t in_place_[kInPlace];
  std::vector<int64_t> spilled_;
};

// What a view needs to know of a tensor, asked for once. Sizes and strides are the tensor's own.
struct Facts {
  int64_t dim = 0;
  int64_t *sizes = nullptr, *strides = nullptr;

  explicit Facts(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cpu(), "rankreg_ext: a CPU tensor is required");
    dim = x.dim();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(x.get(), &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(x.get(), &strides));
  }
};

// The lists of a call: those of `x`, along its last dimension. Other arguments are viewed as lists
// of the same number; batch dimensions without a common stride cost that argument one copy.
class Lists {
 public:
  int64_t lists = 1, n = 0;

  explicit Lists(const Tensor& x) : x_(x), facts_(x) {
    STD_TORCH_CHECK(facts_.dim >= 1, "rankreg_ext: a tensor of lists is required");
    n = facts_.sizes[facts_.dim - 1];
    for (int64_t d = 0; d + 1 < facts_.dim; ++d)
      lists *= facts_.sizes[d];
  }

  // Uninitialised and contiguous: (*batch, last), or (*batch) without `last`.
  Output empty(ScalarType dtype, std::optional<int64_t> last) const {
    const size_t batch = size_t(facts_.dim - 1);
    Sizes sizes(batch + (last ? 1 : 0));
    std::copy(facts_.sizes, facts_.sizes + batch, sizes.data());
    if (last) sizes[batch] = *last;
    return empty(dtype, sizes);
  }
  Output scalar(ScalarType dtype) const {
    Sizes none(0);
    return empty(dtype, none);
  }

  // (*batch, last).
  View view(const Tensor& x, int64_t last) { return view(x, Facts(x), last); }
  View view(const Tensor& x) { return view(x, n); }
  View scores() { return view(x_, facts_, n); }

  // (*batch): one value per list.
  View values(const Tensor& x) {
    const Facts facts(x);
    STD_TORCH_CHECK(facts.dim == facts_.dim - 1, "rankreg_ext: one value per list is required");
    return folded(x, facts, 1, 0);
  }

  View mask(const Tensor& x) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Bool, "rankreg_ext: masks must be bool");
    return view(x);
  }
  View mask(const Optional& x) { return x ? mask(*x) : View{}; }

 private:
  const Tensor& x_;
  const Facts facts_;
  std::vector<Tensor> copies_;

  Output empty(ScalarType dtype, Sizes& sizes) const {
    // Straight to the typed function: torch::stable::new_empty looks the op up by its name.
    int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
    int32_t layout = aoti_torch_layout_strided(), device = aoti_torch_device_type_cpu();
    AtenTensorHandle out = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(
        x_.get(), sizes.data(), int64_t(sizes.size()), &type, &layout, &device, 0, nullptr, &out));
    return Output(out);
  }

  View view(const Tensor& x, const Facts& facts, int64_t last) {
    STD_TORCH_CHECK(facts.dim == facts_.dim && facts.sizes[facts.dim - 1] == last,
                    "rankreg_ext: all tensors must have the shape of the scores");
    return folded(x, facts, last, facts.strides[facts.dim - 1]);
  }

  // Folds the batch dimensions of (*batch, last) or (*batch) from the inner to the outer one.
  View folded(const Tensor& x, const Facts& facts, int64_t last, int64_t stride) {
    const int64_t batch = facts_.dim - 1;
    STD_TORCH_CHECK(std::equal(facts_.sizes, facts_.sizes + batch, facts.sizes),
                    "rankreg_ext: shapes must agree");
    int64_t list_stride = 0, folded = 1;
    for (int64_t d = batch - 1; d >= 0; --d) {
      if (facts.sizes[d] == 1) continue;
      if (folded == 1) {
        list_stride = facts.strides[d];
      } else if (facts.strides[d] != list_stride * folded) {
        copies_.push_back(torch::stable::contiguous(x));
        return View{copies_.back().const_data_ptr(), type_of(x), last, 1};
      }
      folded *= facts.sizes[d];
    }
    return View{x.const_data_ptr(), type_of(x), list_stride, stride};
  }
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

StableIValue rank_op(const Tensor& x, bool descending, int64_t ties, const Optional& where) {
  Lists call(x);
  const Ties rule = Ties(ties);
  const ScalarType dtype = rank_dtype(x, call.n, rule);
  Output out = call.empty(dtype, call.n);
  rank(call.scores(), call.mask(where), descending, rule, call.lists, call.n, type_of(dtype),
       out.data(), torch_threads());
  return out.release();
}

StableIValue blackbox_rank_op(const Tensor& x, double, const Optional&, bool descending,
                              int64_t ties, const Optional& where) {
  return rank_op(x, descending, ties, where);
}

StableIValue blackbox_rank_backward_op(const Tensor& grad, const Tensor& x, const Tensor& ranks,
                                       double lam, const Optional& lam_tensor, bool descending,
                                       int64_t ties, const Optional& where) {
  Lists call(x);
  STD_TORCH_CHECK(grad.scalar_type() == ranks.scalar_type(),
                  "rankreg_ext: grad must have the ranks' dtype");
  Output out = call.empty(x.scalar_type(), call.n);
  blackbox_rank_backward(call.view(grad), call.scores(), call.view(ranks), call.mask(where),
                         lam_of(lam, lam_tensor), descending, Ties(ties), call.lists, call.n,
                         out.data(), torch_threads());
  return out.release();
}

StableIValue positive_ranks_op(const Tensor& scores, const Tensor& positives, double,
                               const Optional&, const Optional& where) {
  Lists call(scores);
  const ScalarType dtype = rank_dtype(scores, call.n);
  Output out = call.empty(dtype, call.n);
  positive_ranks(call.scores(), call.mask(positives), call.mask(where), call.lists, call.n,
                 type_of(dtype), out.data(), torch_threads());
  return out.release();
}

StableIValue positive_ranks_backward_op(const Tensor& grad, const Tensor& scores,
                                        const Tensor& positives, const Tensor& ranks, double lam,
                                        const Optional& lam_tensor, const Optional& where) {
  Lists call(scores);
  STD_TORCH_CHECK(grad.scalar_type() == ranks.scalar_type(),
                  "rankreg_ext: grad must have the ranks' dtype");
  Output out = call.empty(scores.scalar_type(), call.n);
  positive_ranks_backward(call.view(grad), call.scores(), call.mask(positives), call.view(ranks),
                          call.mask(where), lam_of(lam, lam_tensor), call.lists, call.n, out.data(),
                          torch_threads());
  return out.release();
}

std::tuple<StableIValue, StableIValue> rankreg_loss_op(const Tensor& scores,
                                                       const Tensor& positives, double lam,
                                                       const Optional& lam_tensor, int64_t power,
                                                       int64_t normalize, const Optional& where,
                                                       int64_t reduction) {
  constexpr int64_t kStateCapacity = 256;  // STATE_CAPACITY of rankreg_ext/_ops.py
  Lists call(scores);
  const int64_t kept = std::min(call.n, kStateCapacity);
  const Reduction reduce = Reduction(reduction);
  const ScalarType dtype = rank_dtype(scores, call.n);
  Output loss = reduce == Reduction::kNone ? call.empty(compute_dtype(scores), std::nullopt)
                                           : call.scalar(compute_dtype(scores));
  Output state = call.empty(dtype, 1 + kept);
  rankreg_loss(call.scores(), call.mask(positives), call.mask(where),
               RankRegOptions{lam_of(lam, lam_tensor), power, normalize != 0}, reduce, call.lists,
               call.n, kept, type_of(dtype), loss.data(), state.data(), torch_threads());
  return {loss.release(), state.release()};
}

StableIValue rankreg_loss_backward_op(const Tensor& grad, const Tensor& scores,
                                      const Tensor& positives, const Tensor& state, double lam,
                                      const Optional& lam_tensor, int64_t power, int64_t normalize,
                                      const Optional& where) {
  Lists call(scores);
  STD_TORCH_CHECK(grad.scalar_type() == compute_dtype(scores),
                  "rankreg_ext: grad must have the loss's dtype");
  // One upstream value for all lists, or one per list.
  const View upstream =
      grad.numel() == 1 ? View{grad.const_data_ptr(), type_of(grad), 0, 0} : call.values(grad);
  Output out = call.empty(scores.scalar_type(), call.n);
  const int64_t kept = state.size(state.dim() - 1) - 1;
  rankreg_loss_backward(upstream, call.scores(), call.mask(positives), call.view(state, 1 + kept),
                        call.mask(where),
                        RankRegOptions{lam_of(lam, lam_tensor), power, normalize != 0}, call.lists,
                        call.n, kept, out.data(), torch_threads());
  return out.release();
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
