// NumPy entry points to the kernels: no torch tensors, no dispatcher.
//
// Each function takes arrays as they lie in memory, with any strides. Where an argument is of
// another kind - no plain ndarray, swapped bytes, misaligned, batch dimensions without a common
// stride, a type without a kernel - it returns None: the Python side then converts and calls again,
// or says what is wrong. The GIL is released while a kernel runs on more than a few elements: the
// caller must leave the arguments alone until the call is over.
#include "numpy.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cpu/positive_ranks.h"
#include "cpu/rank.h"
#include "cpu/rankdata.h"
#include "cpu/rankreg_loss.h"
#include "threads.h"

namespace py = pybind11;

namespace rankreg {
namespace {

constexpr int kMaxDimensions = 64;  // of NumPy 2; 32 before
constexpr int kNumberOfHalf = 23;   // NPY_HALF, which pybind11 has no name for
// A kernel that is shorter than the release and the taking back of the GIL keeps it.
constexpr int64_t kWorthTheGil = 4096;
// Ranks of so many positives are kept for the gradient; a list with more counts them again.
constexpr int64_t kKept = 256;

const py::detail::npy_api& numpy() { return py::detail::npy_api::get(); }

std::optional<Type> type_of(const py::array& x) {
  using Api = py::detail::npy_api;
  const auto* dtype = py::detail::array_descriptor_proxy(py::detail::array_proxy(x.ptr())->descr);
  if (dtype->byteorder != '=' && dtype->byteorder != '|') return std::nullopt;
  const auto integer = [](size_t size, bool is_signed) {
    switch (size) {
      case 1: return is_signed ? Type::kI8 : Type::kU8;
      case 2: return is_signed ? Type::kI16 : Type::kU16;
      case 4: return is_signed ? Type::kI32 : Type::kU32;
      default: return is_signed ? Type::kI64 : Type::kU64;
    }
  };
  switch (dtype->type_num) {
    case Api::NPY_BOOL_: return Type::kBool;
    case Api::NPY_BYTE_: return integer(sizeof(char), true);
    case Api::NPY_UBYTE_: return integer(sizeof(char), false);
    case Api::NPY_SHORT_: return integer(sizeof(short), true);
    case Api::NPY_USHORT_: return integer(sizeof(short), false);
    case Api::NPY_INT_: return integer(sizeof(int), true);
    case Api::NPY_UINT_: return integer(sizeof(int), false);
    case Api::NPY_LONG_: return integer(sizeof(long), true);
    case Api::NPY_ULONG_: return integer(sizeof(long), false);
    case Api::NPY_LONGLONG_: return integer(sizeof(long long), true);
    case Api::NPY_ULONGLONG_: return integer(sizeof(long long), false);
    case kNumberOfHalf: return Type::kHalf;
    case Api::NPY_FLOAT_: return Type::kFloat;
    case Api::NPY_DOUBLE_: return Type::kDouble;
    default: return std::nullopt;
  }
}

int number_of(Type type) {
  using Api = py::detail::npy_api;
  switch (type) {
    case Type::kHalf: return kNumberOfHalf;
    case Type::kFloat: return Api::NPY_FLOAT_;
    case Type::kDouble: return Api::NPY_DOUBLE_;
    default: return Api::NPY_INT64_;
  }
}

py::array empty(int dimensions, const py::ssize_t* shape, Type type,
                const py::ssize_t* strides = nullptr) {
  const auto& api = numpy();
  PyObject* out =
      api.PyArray_NewFromDescr_(api.PyArray_Type_, api.PyArray_DescrFromType_(number_of(type)),
                                dimensions, shape, strides, nullptr, 0, nullptr);
  if (!out) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(out);
}

void* data_of(const py::array& x) { return py::detail::array_proxy(x.ptr())->data; }

bool is_plain(PyObject* x) { return Py_TYPE(x) == numpy().PyArray_Type_; }

// Folds dimensions, listed from the outer to the inner one, into one stride in elements.
bool fold(const py::ssize_t* shape, const py::ssize_t* strides, const int8_t* dimensions, int count,
          py::ssize_t size, int64_t* stride) {
  int64_t folded = 1;
  *stride = 0;
  for (int i = count - 1; i >= 0; --i) {
    const int d = dimensions[i];
    if (shape[d] == 1) continue;
    if (strides[d] % size) return false;
    if (folded == 1) {
      *stride = strides[d] / size;
    } else if (strides[d] / size != *stride * folded) {
      return false;
    }
    folded *= shape[d];
  }
  return true;
}

// The lists of an array along one dimension, or the whole array as one list in C order.
struct Lists {
  View view;
  int64_t lists = 1, n = 1;
  int dimensions = 0;
  const py::ssize_t* shape = nullptr;
  std::array<int8_t, kMaxDimensions> order;  // dimensions, those of the batch first

  static std::optional<Lists> of(PyObject* object, std::optional<int> axis) {
    if (!is_plain(object)) return std::nullopt;
    const auto x = py::reinterpret_borrow<py::array>(object);
    const std::optional<Type> type = type_of(x);
    Lists out;
    out.dimensions = int(x.ndim());
    if (!type || out.dimensions > kMaxDimensions) return std::nullopt;
    if (!(x.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return std::nullopt;
    out.shape = x.shape();
    out.view.data = data_of(x);
    out.view.type = *type;
    for (int d = 0; d < out.dimensions; ++d)
      out.order[size_t(d)] = int8_t(d);
    const py::ssize_t size = x.itemsize();
    const bool empty = x.size() == 0;  // NumPy then leaves any strides
    if (!axis) {
      for (int d = 0; d < out.dimensions; ++d)
        out.n *= out.shape[d];
      if (!empty &&
          !fold(out.shape, x.strides(), out.order.data(), out.dimensions, size, &out.view.stride))
        return std::nullopt;
      return out;
    }
    const int last = out.dimensions - 1, at = *axis < 0 ? *axis + out.dimensions : *axis;
    if (at < 0 || at > last) return std::nullopt;
    std::swap(out.order[size_t(at)], out.order[size_t(last)]);
    out.n = out.shape[at];
    for (int d = 0; d < last; ++d)
      out.lists *= out.shape[out.order[size_t(d)]];
    const int8_t* order = out.order.data();
    if (!empty && (!fold(out.shape, x.strides(), order, last, size, &out.view.list_stride) ||
                   !fold(out.shape, x.strides(), order + last, 1, size, &out.view.stride)))
      return std::nullopt;
    return out;
  }

  bool same_shape(const Lists& other) const {
    return dimensions == other.dimensions && std::equal(shape, shape + dimensions, other.shape);
  }

  // Of the shape of the array; each list contiguous, the lists one behind the other.
  py::array empty_like(Type type) const {
    if (dimensions == 0 || order[size_t(dimensions - 1)] == dimensions - 1)
      return empty(dimensions, shape, type);
    std::array<py::ssize_t, kMaxDimensions> strides;
    py::ssize_t stride = type == Type::kFloat ? 4 : 8;
    for (int i = dimensions - 1; i >= 0; --i) {
      strides[size_t(order[size_t(i)])] = stride;
      stride *= shape[order[size_t(i)]];
    }
    return empty(dimensions, shape, type, strides.data());
  }

  // f(threads), without the GIL where it is worth that.
  template <class F>
  void run(const F& f) const {
    if (lists * n < kWorthTheGil) return f(Serial());
    const py::gil_scoped_release released;
    f(torch_threads());
  }
};

// Names as scipy has them, interned: a caller's literal is the same object.
constexpr const char* kMethods[] = {"min", "max", "average", "dense", "ordinal"};
constexpr const char* kPolicies[] = {"propagate", "omit", "raise"};
PyObject *methods[std::size(kMethods)], *policies[std::size(kPolicies)];

template <size_t count>
int index_of(PyObject* name, PyObject* const (&names)[count]) {
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return int(i);
  }
  if (!PyUnicode_Check(name)) return -1;
  for (size_t i = 0; i < count; ++i) {
    if (PyUnicode_Compare(name, names[i]) == 0) return int(i);
  }
  return -1;
}

std::optional<py::array> rankdata_of(PyObject* a, PyObject* method, PyObject* axis,
                                     PyObject* nan_policy) {
  const int rule = index_of(method, methods), policy = index_of(nan_policy, policies);
  std::optional<int> dimension;
  if (axis != Py_None) {
    if (!PyLong_CheckExact(axis)) return std::nullopt;
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(axis, &overflow);
    if (overflow || value < -kMaxDimensions || value >= kMaxDimensions) return std::nullopt;
    dimension = int(value);
  }
  if (rule < 0 || policy < 0) return std::nullopt;
  const std::optional<Lists> x = Lists::of(a, dimension);
  if (!x || x->lists * x->n == 0) return std::nullopt;

  const Ties ties = Ties(rule);
  NanRule nan = policy == 0 ? NanRule::kSpread : NanRule::kAbsent;
  Type type = Type::kDouble;
  if (ties != Ties::kAverage || policy == 2) {
    bool found = false;
    x->run([&](const Parallel& threads) { found = any_nan(x->view, x->lists, x->n, threads); });
    if (found && policy == 2) throw py::value_error("The input contains nan values");
    if (!found) nan = NanRule::kAbsent;
    if (!found && ties != Ties::kAverage) type = Type::kI64;
  }
  const py::ssize_t flat = x->n;
  py::array out = dimension ? x->empty_like(type) : empty(1, &flat, type);
  x->run([&](const Parallel& threads) {
    rankdata(x->view, ties, nan, x->lists, x->n, type, data_of(out), threads);
  });
  return out;
}

// A plain C function, not a pybind11 one: on ten elements the latter's call costs as much as the
// ranks.
PyObject* rankdata_entry(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "rankdata takes a, method, axis, nan_policy");
    return nullptr;
  }
  try {
    std::optional<py::array> out =
        rankdata_of(arguments[0], arguments[1], arguments[2], arguments[3]);
    return out ? out->release().ptr() : py::none().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// The mask of `x`, or the absent one; nullopt if it is none that the kernels take.
std::optional<View> mask_of(const py::object& mask, const Lists& x) {
  if (mask.is_none()) return View{};
  const std::optional<Lists> lists = Lists::of(mask.ptr(), -1);
  if (!lists || lists->view.type != Type::kBool || !lists->same_shape(x)) return std::nullopt;
  return lists->view;
}

bool is_float(Type type) {
  return type == Type::kHalf || type == Type::kFloat || type == Type::kDouble;
}

Type rank_type(const Lists& x, Ties ties = Ties::kMin) {
  const bool wide = x.view.type == Type::kDouble || !float_ranks_suffice(x.n, ties);
  return wide ? Type::kDouble : Type::kFloat;
}

py::object rank_of(const py::object& x, bool descending, int ties, const py::object& where) {
  const std::optional<Lists> lists = Lists::of(x.ptr(), -1);
  if (!lists) return py::none();
  const std::optional<View> mask = mask_of(where, *lists);
  if (!mask) return py::none();
  const Type type = rank_type(*lists, Ties(ties));
  py::array out = lists->empty_like(type);
  lists->run([&](const Parallel& threads) {
    rank(lists->view, *mask, descending, Ties(ties), lists->lists, lists->n, type, data_of(out),
         threads);
  });
  return std::move(out);
}

py::object positive_ranks_of(const py::object& scores, const py::object& positives,
                             const py::object& where) {
  const std::optional<Lists> lists = Lists::of(scores.ptr(), -1);
  if (!lists || !is_float(lists->view.type) || positives.is_none()) return py::none();
  const std::optional<View> of = mask_of(positives, *lists), mask = mask_of(where, *lists);
  if (!of || !mask) return py::none();
  const Type type = rank_type(*lists);
  py::array out = lists->empty_like(type);
  lists->run([&](const Parallel& threads) {
    positive_ranks(lists->view, *of, *mask, lists->lists, lists->n, type, data_of(out), threads);
  });
  return std::move(out);
}

// (loss, gradient or None): the gradient of the loss, or of each list's own where nothing reduces.
py::object rankreg_loss_of(const py::object& scores, const py::object& positives, double lam,
                           int64_t power, bool by_length, const py::object& where, int reduction,
                           bool with_gradient) {
  const std::optional<Lists> lists = Lists::of(scores.ptr(), -1);
  if (!lists || !is_float(lists->view.type) || positives.is_none()) return py::none();
  const std::optional<View> of = mask_of(positives, *lists), mask = mask_of(where, *lists);
  if (!of || !mask) return py::none();

  const int64_t kept = with_gradient ? std::min(lists->n, kKept) : 0;
  const Type type = rank_type(*lists), score_type = lists->view.type;
  const Type compute = score_type == Type::kDouble ? Type::kDouble : Type::kFloat;
  const RankRegOptions options{lam, power, by_length};
  const Reduction reduce = Reduction(reduction);
  py::array loss =
      empty(reduce == Reduction::kNone ? lists->dimensions - 1 : 0, lists->shape, compute);
  const py::ssize_t state_size = lists->lists * (1 + kept);
  py::array state = empty(1, &state_size, type);
  py::object gradient = py::none();
  if (with_gradient) gradient = empty(lists->dimensions, lists->shape, score_type);
  void* out = with_gradient ? py::detail::array_proxy(gradient.ptr())->data : nullptr;
  lists->run([&](const Parallel& threads) {
    rankreg_loss(lists->view, *of, *mask, options, reduce, lists->lists, lists->n, kept, type,
                 data_of(loss), data_of(state), threads);
    if (!with_gradient) return;
    const double wide = 1;
    const float narrow = 1;
    const View one{compute == Type::kDouble ? static_cast<const void*>(&wide) : &narrow, compute, 0,
                   0};
    rankreg_loss_backward(one, lists->view, *of, View{data_of(state), type, 1 + kept, 1}, *mask,
                          options, lists->lists, lists->n, kept, out, threads);
  });
  return py::make_tuple(std::move(loss), std::move(gradient));
}

}  // namespace

void bind_numpy(py::module_& module) {
  for (size_t i = 0; i < std::size(kMethods); ++i)
    methods[i] = PyUnicode_InternFromString(kMethods[i]);
  for (size_t i = 0; i < std::size(kPolicies); ++i)
    policies[i] = PyUnicode_InternFromString(kPolicies[i]);
  static PyMethodDef functions[] = {
      {"rankdata", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&rankdata_entry)),
       METH_FASTCALL, "rankdata(a, method, axis, nan_policy) of rankreg_ext.compat.scipy_stats."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), functions) != 0) throw py::error_already_set();
  module.def("rank", &rank_of, "rank(x, descending, ties, where), lists along the last axis.");
  module.def("positive_ranks", &positive_ranks_of, "positive_ranks(scores, positives, where).");
  module.def("rankreg_loss", &rankreg_loss_of,
             "rankreg_loss(scores, positives, lam, power, by_length, where, reduction, "
             "with_gradient) -> (loss, gradient or None).");
}

}  // namespace rankreg
