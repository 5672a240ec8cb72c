// What rank_kernels.h keeps to itself: the way of lists beyond 2^32 items is tried on short ones.
#include "../../csrc/cpu/isa.h"
#define RANKREG_ISA RANKREG_BASELINE
#define RANKREG_ISA_NAME internals_of_rank
#include "../../csrc/cpu/rank_kernels.h"
#include "cases.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;
namespace kernels = rankreg::RANKREG_ISA_NAME;

template <class T>
void huge_list(Type type, Ties ties, int64_t lists, int64_t n) {
  Random random = check::start_case("type=", elements::format(type).name, " ties=", int(ties),
                                    " lists=", lists, " n=", n);
  const bool descending = random.chance(0.5);
  const double lam = 0.5;
  const Kind kind = random.pick(elements::all_kinds());
  const Type rank_type = std::is_same<T, double>::value ? Type::kDouble : Type::kFloat;
  using R = typename std::conditional<std::is_same<T, double>::value, double, float>::type;
  const Array x = std::move(Array::any(type, lists, n, random).fill(kind, random));
  const Array g = std::move(Array::any(rank_type, lists, n, random).fill(Kind::kGrid, random));
  const Mask where(int(random.below(Mask::kShapes)), lists, n, true, random);
  check::describe(" kind=", elements::name(kind), " mask=", where.shape());

  using Outputs = std::vector<Output>;
  Outputs huge;
  huge.emplace_back(rank_type, lists * n);
  R* ranks = static_cast<R*>(huge[0].data());
  for (int64_t list = 0; list < lists; ++list) {
    const rankreg::Mask mask(where.view(), list);
    kernels::rank_huge_list(kernels::Scores<T>(rankreg::Row<T>(x.view(), list), mask, descending),
                            kernels::RankSink<R>(ranks + list * n, mask), n, ties);
  }
  if constexpr (rankreg::kIsFloat<T>) {
    using C = rankreg::Compute<T>;
    huge.emplace_back(type, lists * n);
    T* gradient = static_cast<T*>(huge[1].data());
    const View saved = huge[0].view(n);
    for (int64_t list = 0; list < lists; ++list) {
      const rankreg::Mask mask(where.view(), list);
      kernels::rank_huge_list(
          kernels::MovedScores<T, R>(rankreg::Row<T>(x.view(), list),
                                     rankreg::Row<R>(g.view(), list), mask, C(lam), descending),
          kernels::GradientSink<T, R>(gradient + list * n, rankreg::Row<R>(saved, list), mask,
                                      C(lam)),
          n, ties);
    }
  }
  for (int64_t list = 0; list < lists; ++list) {
    const Flags mask = where.flags(list);
    if (!rankreg::kIsFloat<T>) {
      CHECK_EQUAL(oracle::ranks(x.integers<int64_t>(list), mask, descending, ties),
                  huge[0].values(list * n, n));
      continue;
    }
    const Values a = x.values(list);
    CHECK_EQUAL(oracle::ranks(a, mask, descending, ties), huge[0].values(list * n, n));
    CHECK_EQUAL(oracle::blackbox_gradient(a, g.values(list), lam, mask, descending, ties, type),
                huge[1].values(list * n, n));
  }
}

}  // namespace

void huge_lists() {
  for (const Ties ties : all_ties()) {
    for (const int64_t n : {1, 2, 30, 700}) {
      huge_list<float>(Type::kFloat, ties, 3, n);
      huge_list<double>(Type::kDouble, ties, 2, n);
      huge_list<rankreg::Half>(Type::kHalf, ties, 2, n);
      huge_list<int64_t>(Type::kI64, ties, 2, n);
    }
  }
}

}  // namespace tests
