// What rank_kernels.h keeps to itself: the 64-bit indices of lists beyond 2^32 items are tried on
// short ones.
#include "../../csrc/cpu/isa.h"
#define RANKREG_ISA RANKREG_BASELINE
#define RANKREG_ISA_NAME internals_of_rank
#include "../../csrc/cpu/rank_kernels.h"
#include "cases.h"
#include "tests.h"

int64_t cases::counting_max() { return rankreg::RANKREG_ISA_NAME::kCountingMax; }

namespace tests {
namespace {

using namespace cases;
namespace kernels = rankreg::RANKREG_ISA_NAME;

template <class T>
void wide_indices(Type type, Ties ties, int64_t lists, int64_t n) {
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
  const Outputs wide = on_any_threads(lists, n, random, [&](const rankreg::Parallel& parallel) {
    Outputs out;
    out.emplace_back(rank_type, lists * n);
    R* ranks = static_cast<R*>(out[0].data());
    kernels::rank_lists<uint64_t>(
        lists, n, ties, parallel,
        [&](int64_t list) {
          return kernels::Scores<T>{rankreg::Row<T>(x.view(), list),
                                    rankreg::Mask(where.view(), list), descending};
        },
        [&](int64_t list) {
          return kernels::RankSink<R>{ranks + list * n, rankreg::Mask(where.view(), list)};
        },
        [](int64_t) { return false; });
    if constexpr (rankreg::kIsFloat<T>) {
      using C = rankreg::Compute<T>;
      out.emplace_back(type, lists * n);
      T* gradient = static_cast<T*>(out[1].data());
      const View saved = out[0].view(n);
      kernels::rank_lists<uint64_t>(
          lists, n, ties, parallel,
          [&](int64_t list) {
            return kernels::MovedScores<T, R>{
                rankreg::Row<T>(x.view(), list), rankreg::Row<R>(g.view(), list),
                rankreg::Mask(where.view(), list), C(lam), descending};
          },
          [&](int64_t list) {
            return kernels::GradientSink<T, R>{gradient + list * n, rankreg::Row<R>(saved, list),
                                               rankreg::Mask(where.view(), list), C(lam)};
          },
          [](int64_t) { return false; });
    }
    return out;
  });
  for (int64_t list = 0; list < lists; ++list) {
    const Flags mask = where.flags(list);
    if (!rankreg::kIsFloat<T>) {
      CHECK_EQUAL(oracle::ranks(x.integers<int64_t>(list), mask, descending, ties),
                  wide[0].values(list * n, n));
      continue;
    }
    const Values a = x.values(list);
    CHECK_EQUAL(oracle::ranks(a, mask, descending, ties), wide[0].values(list * n, n));
    CHECK_EQUAL(oracle::blackbox_gradient(a, g.values(list), lam, mask, descending, ties, type),
                wide[1].values(list * n, n));
  }
}

}  // namespace

void wide_indices() {
  const int64_t edge = thresholds().counting_max, shared = 2 * thresholds().worth_a_thread;
  for (const Ties ties : all_ties()) {
    if (!threaded_only()) {
      for (const int64_t n : {int64_t{1}, int64_t{2}, edge - 1, edge, edge + 1, int64_t{700}}) {
        wide_indices<float>(Type::kFloat, ties, 3, n);
        wide_indices<double>(Type::kDouble, ties, 2, n);
        wide_indices<rankreg::Half>(Type::kHalf, ties, 2, n);
        wide_indices<int64_t>(Type::kI64, ties, 2, n);
      }
    }
    wide_indices<float>(Type::kFloat, ties, 1, shared + 1);
  }
  wide_indices<double>(Type::kDouble, Ties::kDense, 1, shared);
}

}  // namespace tests
