// blackbox_rank_backward: equal gradients, not close ones.
#include "../../csrc/cpu/rank.h"
#include "cases.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;

// What the gradient of a loss with respect to ranks may look like.
enum Gradient { kZero, kPlain, kCoarse, kSparse, kWithNaN, kWithInf, kHuge, kTiny, kGradients };

struct Case {
  Type type;
  Type rank_type;
  Ties ties;
  bool descending;
  int64_t lists, n;
  Kind kind;
  int gradient;
  int mask;
  double lam;
  bool any_layout;
};

double draw_gradient(int gradient, Random& random) {
  const double plain = 2 * random.unit() - 1;
  switch (gradient) {
    case kZero: return random.chance(0.5) ? 0.0 : -0.0;
    case kCoarse: return double(random.below(9) - 4) / 4;  // meets scores of Kind::kGrid again
    case kSparse: return random.chance(0.05) ? plain : 0;
    case kWithNaN: return random.chance(0.05) ? NAN : plain;
    case kWithInf: return random.chance(0.1) ? (random.chance(0.5) ? INFINITY : -INFINITY) : plain;
    case kHuge: return plain * 3e38;
    case kTiny: return plain * 1e-30;
    default: return plain;
  }
}

void run(const Case& c) {
  Random random = check::start_case(
      "type=", elements::format(c.type).name, " ranks=", elements::format(c.rank_type).name,
      " ties=", int(c.ties), " descending=", c.descending, " lists=", c.lists, " n=", c.n,
      " kind=", elements::name(c.kind), " gradient=", c.gradient, " mask=", c.mask, " lam=", c.lam);
  const auto array = [&](Type type) {
    return c.any_layout ? Array::any(type, c.lists, c.n, random)
                        : Array::contiguous(type, c.lists, c.n);
  };
  Array x = array(c.type), g = array(c.rank_type);
  x.fill(c.kind, random).snapshot();
  for (int64_t list = 0; list < c.lists; ++list) {
    // A list without gradient is skipped, which the next one must not notice.
    const int gradient = c.lists > 1 && random.chance(0.2) ? int(kZero) : c.gradient;
    for (int64_t i = 0; i < c.n; ++i) {
      g.set(list, i, elements::encode(c.rank_type, draw_gradient(gradient, random)));
    }
  }
  g.snapshot();
  Mask where(c.mask, c.lists, c.n, c.any_layout, random);
  where.snapshot();

  // The saved ranks, behind strides of their own.
  Array ranks = Array::contiguous(c.rank_type, c.lists, c.n);
  if (c.any_layout && random.chance(0.5)) ranks = Array(c.rank_type, c.lists, c.n, 1, c.lists);
  for (int64_t list = 0; list < c.lists; ++list) {
    const Values r = oracle::ranks(x.values(list), where.flags(list), c.descending, c.ties);
    for (int64_t i = 0; i < c.n; ++i) {
      ranks.set(list, i, elements::encode(c.rank_type, r[size_t(i)]));
    }
  }
  ranks.snapshot();

  const auto results = on_any_threads(c.lists, c.n, random, [&](const rankreg::Parallel& parallel) {
    std::vector<Output> out;
    out.emplace_back(c.type, c.lists * c.n);
    rankreg::blackbox_rank_backward(g.view(), x.view(), ranks.view(), where.view(), c.lam,
                                    c.descending, c.ties, c.lists, c.n, out[0].data(), parallel);
    return out;
  });
  CHECK(x.unchanged() && g.unchanged() && ranks.unchanged() && where.unchanged());
  for (int64_t list = 0; list < c.lists; ++list) {
    const Values a = x.values(list), gradient = results[0].values(list * c.n, c.n);
    CHECK_EQUAL(oracle::blackbox_gradient(a, g.values(list), c.lam, where.flags(list), c.descending,
                                          c.ties, c.type),
                gradient);
    // Ranks 1..n before and after: the moves cancel.
    if (c.ties == Ties::kOrdinal && c.type == Type::kDouble && c.kind != Kind::kBits &&
        c.kind != Kind::kSpecial && c.gradient != kWithNaN && c.gradient != kWithInf &&
        c.lam == 0.25) {
      double sum = 0;
      for (const double value : gradient)
        sum += value;
      CHECK_VALUE(0, sum);
    }
  }
}

Case any_case(Type type, Ties ties, bool descending, int64_t lists, int64_t n, Random& random) {
  Case c{type,
         random.chance(0.5) ? Type::kFloat : Type::kDouble,
         ties,
         descending,
         lists,
         n,
         random.pick(elements::all_kinds()),
         int(random.below(kGradients)),
         random.chance(0.4) ? Mask::kNone : int(random.below(Mask::kShapes)),
         random.pick<double>({0.25, 1, 3.7, 1e-3, 1e5}),
         random.chance(0.6)};
  if (c.kind == Kind::kGrid && random.chance(0.5)) c.gradient = kCoarse, c.lam = 1;
  return c;
}

}  // namespace

void blackbox_small() {
  const int64_t edge = rankreg::kRankTuning[int(rankreg::isa())].counting_max;
  Random random(check::State::get().seed + 3);
  for (const int64_t n : {int64_t{2}, edge - 1, edge, edge + 1, int64_t{257}}) {
    for (const Type type : elements::float_types()) {
      for (const Ties ties : all_ties()) {
        for (const bool descending : {true, false}) {
          for (int gradient = 0; gradient < kGradients; ++gradient) {
            Case c = any_case(type, ties, descending, n == 257 ? 1 : 3, n, random);
            if (c.gradient != kCoarse) c.gradient = gradient;
            run(c);
          }
        }
      }
    }
  }
  for (int i = 0; i < 800; ++i) {
    const int64_t n = random.chance(0.1) ? random.below(1200) : random.below(200);
    run(any_case(random.pick(elements::float_types()), random.pick(all_ties()), random.chance(0.5),
                 1 + random.below(4), n, random));
  }
  for (const int64_t middle : cases::rank_edges()) {
    for (const Ties ties : all_ties()) {
      const int64_t n = middle - 1 + random.below(3);
      run(any_case(random.pick(elements::float_types()), ties, random.chance(0.5), 1, n, random));
    }
  }
  for (const int64_t n : {2047, 2048, 2049, 12000}) {
    for (const Ties ties : all_ties()) {
      run(any_case(random.pick(elements::float_types()), ties, random.chance(0.5), 1, n, random));
    }
  }
}

void blackbox_threaded() {
  const int64_t worth = thresholds().worth_a_thread;
  const int64_t edge = rankreg::kRankTuning[int(rankreg::isa())].counting_max;
  Random random(check::State::get().seed + 4);
  size_t turn = 0;
  for (const int64_t n : long_lists()) {
    for (const Ties ties : all_ties()) {
      Case c = any_case(elements::float_types()[turn % 4], ties, turn % 3 != 0, 1, n, random);
      c.kind = elements::all_kinds()[turn % elements::all_kinds().size()];
      c.gradient = turn % 7 == 6 ? kZero : kPlain + int(turn % (kGradients - 1));
      c.mask = int(turn % 11 % Mask::kShapes);
      run(c);
      ++turn;
    }
  }
  for (const int64_t n : {edge, edge + 1, int64_t{1000}}) {
    for (const Ties ties : all_ties()) {
      if (brief() && ties != Ties::kAverage) continue;
      run(any_case(random.pick(elements::float_types()), ties, random.chance(0.5),
                   2 * worth / n + 1, n, random));
    }
  }
}

void blackbox_edges() {
  for (const Type type : elements::float_types()) {
    for (const Ties ties : all_ties()) {
      for (const int64_t lists : {0, 1, 5}) {
        for (const int64_t n : {0, 1}) {
          for (const int mask : {Mask::kNone, Mask::kAll, Mask::kNothing}) {
            run({type, Type::kFloat, ties, true, lists, n, Kind::kSpecial, kPlain, mask, 1, false});
          }
        }
      }
    }
  }
  check::start_case("types that cannot have a gradient");
  const check::ThreadPerTask threads(3);
  const View value{"\0\0\0\0\0\0\0", Type::kFloat, 1, 1};
  int64_t out = 0;
  for (const Type type : {Type::kI32, Type::kBool}) {
    const View integer{value.data, type, 1, 1};
    CHECK_THROWS(std::invalid_argument,
                 rankreg::blackbox_rank_backward(value, integer, value, {}, 1, true, Ties::kMin, 1,
                                                 1, &out, threads));
    CHECK_THROWS(std::invalid_argument,
                 rankreg::blackbox_rank_backward(value, value, integer, {}, 1, true, Ties::kMin, 1,
                                                 1, &out, threads));
  }
  check::start_case("two items by hand");  // g = 1 at the second, lam 2: 1 + 2 beats 2
  const float a[] = {2, 1}, g[] = {0, 1}, r[] = {1, 2};
  Output gradient(Type::kFloat, 2);
  rankreg::blackbox_rank_backward({g, Type::kFloat, 2, 1}, {a, Type::kFloat, 2, 1},
                                  {r, Type::kFloat, 2, 1}, {}, 2, true, Ties::kMin, 1, 2,
                                  gradient.data(), threads);
  CHECK_EQUAL((Values{0.5, -0.5}), gradient.values(0, 2));
}

}  // namespace tests
