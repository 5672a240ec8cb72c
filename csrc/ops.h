// The ops for any device, from what torch hands over to the kernels of a back-end. Arguments were
// validated in Python; the checks here are a second line.
//
// A back-end B has the functions of cpu/rank.h, cpu/positive_ranks.h, cpu/rankreg_loss.h and
// cpu/hinge_violations.h as static members, with B::Lam for lam and delta and `B::Call&` for the
// threads: made from a call's Lists, it lives as long as the call. B::lam() makes a Lam of what the
// op got.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "common/stable.h"
#include "common/types.h"
#include "common/view.h"

namespace rankreg {

using Optional = std::optional<Tensor>;

inline Type type_of(ScalarType dtype) {
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
inline Type type_of(const Tensor& x) { return type_of(x.scalar_type()); }

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
    dim = x.dim();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(x.get(), &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(x.get(), &strides));
  }
};

// Where tensors of a call must live, and where its results go.
struct Place {
  int32_t device_type, device_index;

  explicit Place(const Tensor& x) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device_index));
  }
  bool operator==(const Place& other) const {
    return device_type == other.device_type && device_index == other.device_index;
  }
};

// The lists of a call: those of `x`, along its last dimension. Other arguments are viewed as lists
// of the same number; batch dimensions without a common stride cost that argument one copy.
class Lists {
 public:
  int64_t lists = 1, n = 0;

  explicit Lists(const Tensor& x) : x_(x), facts_(x), place_(x) {
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
  Output bytes(int64_t count) const {
    Sizes size(1);
    size[0] = count;
    return empty(ScalarType::Byte, size);
  }
  const Place& place() const { return place_; }

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
  const Place place_;
  std::vector<Tensor> copies_;

  Output empty(ScalarType dtype, Sizes& sizes) const {
    // Straight to the typed function: torch::stable::new_empty looks the op up by its name.
    int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
    int32_t layout = aoti_torch_layout_strided(), device = place_.device_type;
    AtenTensorHandle out = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_aten_new_empty(x_.get(), sizes.data(), int64_t(sizes.size()), &type, &layout,
                                  &device, place_.device_index, nullptr, &out));
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
    STD_TORCH_CHECK(Place(x) == place_, "rankreg_ext: all tensors must be on one device");
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

inline ScalarType rank_dtype(const Tensor& x, int64_t n, Ties ties = Ties::kMin) {
  const bool wide = x.scalar_type() == ScalarType::Double || !float_ranks_suffice(n, ties);
  return wide ? ScalarType::Double : ScalarType::Float;
}

inline ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class B>
struct Ops {
  static StableIValue rank(const Tensor& x, bool descending, int64_t ties, const Optional& where) {
    Lists lists(x);
    typename B::Call call(lists);
    const Ties rule = Ties(ties);
    const ScalarType dtype = rank_dtype(x, lists.n, rule);
    Output out = lists.empty(dtype, lists.n);
    B::rank(lists.scores(), lists.mask(where), descending, rule, lists.lists, lists.n,
            type_of(dtype), out.data(), call);
    return out.release();
  }

  static StableIValue blackbox_rank(const Tensor& x, double, const Optional&, bool descending,
                                    int64_t ties, const Optional& where) {
    return rank(x, descending, ties, where);
  }

  static StableIValue blackbox_rank_backward(const Tensor& grad, const Tensor& x,
                                             const Tensor& ranks, double lam,
                                             const Optional& lam_tensor, bool descending,
                                             int64_t ties, const Optional& where) {
    Lists lists(x);
    typename B::Call call(lists);
    STD_TORCH_CHECK(grad.scalar_type() == ranks.scalar_type(),
                    "rankreg_ext: grad must have the ranks' dtype");
    Output out = lists.empty(x.scalar_type(), lists.n);
    B::blackbox_rank_backward(lists.view(grad), lists.scores(), lists.view(ranks),
                              lists.mask(where), B::lam(lam, lam_tensor), descending, Ties(ties),
                              lists.lists, lists.n, out.data(), call);
    return out.release();
  }

  static StableIValue positive_ranks(const Tensor& scores, const Tensor& positives, double,
                                     const Optional&, const Optional& where) {
    Lists lists(scores);
    typename B::Call call(lists);
    const ScalarType dtype = rank_dtype(scores, lists.n);
    Output out = lists.empty(dtype, lists.n);
    B::positive_ranks(lists.scores(), lists.mask(positives), lists.mask(where), lists.lists,
                      lists.n, type_of(dtype), out.data(), call);
    return out.release();
  }

  static StableIValue positive_ranks_backward(const Tensor& grad, const Tensor& scores,
                                              const Tensor& positives, const Tensor& ranks,
                                              double lam, const Optional& lam_tensor,
                                              const Optional& where) {
    Lists lists(scores);
    typename B::Call call(lists);
    STD_TORCH_CHECK(grad.scalar_type() == ranks.scalar_type(),
                    "rankreg_ext: grad must have the ranks' dtype");
    Output out = lists.empty(scores.scalar_type(), lists.n);
    B::positive_ranks_backward(lists.view(grad), lists.scores(), lists.mask(positives),
                               lists.view(ranks), lists.mask(where), B::lam(lam, lam_tensor),
                               lists.lists, lists.n, out.data(), call);
    return out.release();
  }

  static std::tuple<StableIValue, StableIValue> rankreg_loss(
      const Tensor& scores, const Tensor& positives, double lam, const Optional& lam_tensor,
      int64_t power, int64_t normalize, const Optional& where, int64_t reduction) {
    constexpr int64_t kStateCapacity = 256;  // STATE_CAPACITY of rankreg_ext/_ops.py
    Lists lists(scores);
    typename B::Call call(lists);
    const int64_t kept = std::min(lists.n, kStateCapacity);
    const Reduction reduce = Reduction(reduction);
    const ScalarType dtype = rank_dtype(scores, lists.n);
    Output loss = reduce == Reduction::kNone ? lists.empty(compute_dtype(scores), std::nullopt)
                                             : lists.scalar(compute_dtype(scores));
    Output state = lists.empty(dtype, 1 + kept);
    B::rankreg_loss(lists.scores(), lists.mask(positives), lists.mask(where),
                    {B::lam(lam, lam_tensor), power, normalize != 0}, reduce, lists.lists, lists.n,
                    kept, type_of(dtype), loss.data(), state.data(), call);
    return {loss.release(), state.release()};
  }

  static StableIValue rankreg_loss_backward(const Tensor& grad, const Tensor& scores,
                                            const Tensor& positives, const Tensor& state,
                                            double lam, const Optional& lam_tensor, int64_t power,
                                            int64_t normalize, const Optional& where) {
    Lists lists(scores);
    typename B::Call call(lists);
    STD_TORCH_CHECK(grad.scalar_type() == compute_dtype(scores),
                    "rankreg_ext: grad must have the loss's dtype");
    // One upstream value for all lists, or one per list.
    const View upstream =
        grad.numel() == 1 ? View{grad.const_data_ptr(), type_of(grad), 0, 0} : lists.values(grad);
    Output out = lists.empty(scores.scalar_type(), lists.n);
    const int64_t kept = state.size(state.dim() - 1) - 1;
    B::rankreg_loss_backward(upstream, lists.scores(), lists.mask(positives),
                             lists.view(state, 1 + kept), lists.mask(where),
                             {B::lam(lam, lam_tensor), power, normalize != 0}, lists.lists, lists.n,
                             kept, out.data(), call);
    return out.release();
  }

  static StableIValue hinge_violations(const Tensor& scores, const Tensor& positives, double delta,
                                       const Optional& delta_tensor, const Optional& where) {
    Lists lists(scores);
    typename B::Call call(lists);
    Output out = lists.empty(compute_dtype(scores), lists.n);
    B::hinge_violations(lists.scores(), lists.mask(positives), lists.mask(where),
                        B::lam(delta, delta_tensor), lists.lists, lists.n, out.data(), call);
    return out.release();
  }

  static StableIValue hinge_violations_backward(const Tensor& grad, const Tensor& scores,
                                                const Tensor& positives, double delta,
                                                const Optional& delta_tensor,
                                                const Optional& where) {
    Lists lists(scores);
    typename B::Call call(lists);
    STD_TORCH_CHECK(grad.scalar_type() == compute_dtype(scores),
                    "rankreg_ext: grad must have the dtype of the sums");
    Output out = lists.empty(scores.scalar_type(), lists.n);
    B::hinge_violations_backward(lists.view(grad), lists.scores(), lists.mask(positives),
                                 lists.mask(where), B::lam(delta, delta_tensor), lists.lists,
                                 lists.n, out.data(), call);
    return out.release();
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("rank", TORCH_BOX(&rank));
    m.impl("blackbox_rank", TORCH_BOX(&blackbox_rank));
    m.impl("blackbox_rank_backward", TORCH_BOX(&blackbox_rank_backward));
    m.impl("positive_ranks", TORCH_BOX(&positive_ranks));
    m.impl("positive_ranks_backward", TORCH_BOX(&positive_ranks_backward));
    m.impl("rankreg_loss", TORCH_BOX(&rankreg_loss));
    m.impl("rankreg_loss_backward", TORCH_BOX(&rankreg_loss_backward));
    m.impl("hinge_violations", TORCH_BOX(&hinge_violations));
    m.impl("hinge_violations_backward", TORCH_BOX(&hinge_violations_backward));
  }
};

}  // namespace rankreg
