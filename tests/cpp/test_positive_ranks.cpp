// positive_ranks and its gradient: the closed form without a sort against ranks by definition.
#include "../../csrc/cpu/positive_ranks.h"
#include "cases.h"
#include "positives.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;

// The gradient at the positives; elsewhere it is NaN, which nobody may look at.
enum Gradient {
  kPlain,
  kZero,
  kCoarse,
  kHalfZero,
  kNegative,
  kWithNaN,
  kWithInf,
  kHuge,
  kTiny,
  kGradients
};

struct Case {
  Type type;
  Type rank_type;
  int64_t lists, n, positives;
  Placing placing;
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
    case kHalfZero: return random.chance(0.5) ? plain : 0;
    case kNegative: return -std::fabs(plain) - 0.01;
    case kWithNaN: return random.chance(0.2) ? NAN : plain;
    case kWithInf: return random.chance(0.2) ? (plain > 0 ? INFINITY : -INFINITY) : plain;
    case kHuge: return plain * 3e38;
    case kTiny: return plain * 1e-30;
    default: return plain > 0 ? plain + 0.01 : plain - 0.01;
  }
}

void run(const Case& c) {
  Random random = check::start_case(
      "type=", elements::format(c.type).name, " ranks=", elements::format(c.rank_type).name,
      " lists=", c.lists, " n=", c.n, " positives=", c.positives, " placing=", int(c.placing),
      " kind=", elements::name(c.kind), " gradient=", c.gradient, " mask=", c.mask, " lam=", c.lam);
  const auto array = [&](Type type) {
    return c.any_layout ? Array::any(type, c.lists, c.n, random)
                        : Array::contiguous(type, c.lists, c.n);
  };
  Array x = array(c.type), positives = array(Type::kBool), g = array(c.rank_type);
  x.fill(c.kind, random).snapshot();
  place(positives, c.positives, c.placing, random);
  positives.snapshot();
  for (int64_t list = 0; list < c.lists; ++list) {
    for (int64_t i = 0; i < c.n; ++i) {
      const double value = positives.bits(list, i) ? draw_gradient(c.gradient, random) : NAN;
      g.set(list, i, elements::encode(c.rank_type, value));
    }
  }
  g.snapshot();
  Mask where(c.mask, c.lists, c.n, c.any_layout, random);
  where.snapshot();
  check::describe(" layout=", x.layout(), "/", positives.layout());

  Array saved = Array::contiguous(c.rank_type, c.lists, c.n);
  if (c.any_layout && random.chance(0.5)) saved = Array(c.rank_type, c.lists, c.n, 1, c.lists);
  for (int64_t list = 0; list < c.lists; ++list) {
    const Values ranks = oracle::ranks(x.values(list), where.flags(list), true, Ties::kMin);
    for (int64_t i = 0; i < c.n; ++i) {
      const double rank = positives.bits(list, i) ? ranks[size_t(i)] : 0;
      saved.set(list, i, elements::encode(c.rank_type, rank));
    }
  }
  saved.snapshot();

  const auto results = on_any_threads(c.lists, c.n, random, [&](const rankreg::Parallel& parallel) {
    std::vector<Output> out;
    out.emplace_back(c.rank_type, c.lists * c.n);
    rankreg::positive_ranks(x.view(), positives.view(), where.view(), c.lists, c.n, c.rank_type,
                            out[0].data(), parallel);
    out.emplace_back(c.type, c.lists * c.n);
    rankreg::positive_ranks_backward(g.view(), x.view(), positives.view(), saved.view(),
                                     where.view(), c.lam, c.lists, c.n, out[1].data(), parallel);
    return out;
  });
  CHECK(x.unchanged() && positives.unchanged() && g.unchanged() && saved.unchanged());
  CHECK(where.unchanged());
  for (int64_t list = 0; list < c.lists; ++list) {
    const Flags mask = where.flags(list), of_p = flags_of(positives, list);
    const Values a = x.values(list);
    Values of_g = g.values(list);
    for (size_t i = 0; i < of_g.size(); ++i) {
      if (!of_p[i]) of_g[i] = 0;
    }
    CHECK_EQUAL(saved.values(list), results[0].values(list * c.n, c.n));
    const Values gradient = results[1].values(list * c.n, c.n);
    CHECK_EQUAL(oracle::blackbox_gradient(a, of_g, c.lam, mask, true, Ties::kMin, c.type),
                gradient);
    if (c.n * c.positives <= 100000) {
      CHECK_EQUAL(oracle::closed_form_gradient(a, of_g, of_p, c.lam, mask, c.type), gradient);
    }
  }
}

Case any_case(Type type, int64_t lists, int64_t n, int64_t positives, Random& random) {
  Case c{type,
         random.chance(0.5) ? Type::kFloat : Type::kDouble,
         lists,
         n,
         positives,
         random.chance(0.3) ? Placing::kBorders : Placing::kAnywhere,
         random.pick(elements::all_kinds()),
         int(random.below(kGradients)),
         random.chance(0.4) ? Mask::kNone : int(random.below(Mask::kShapes)),
         random.pick<double>({0.25, 1, 3.7, 1e-3, 1e5}),
         random.chance(0.5)};
  if (c.kind == Kind::kGrid && random.chance(0.5)) c.gradient = kCoarse, c.lam = 1;
  return c;
}

}  // namespace

void positive_ranks_small() {
  const int64_t tile = thresholds().tile;
  const std::vector<int64_t> counts = positive_counts();
  Random random(check::State::get().seed + 5);
  for (const int64_t n : {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{8}, int64_t{9}, int64_t{17},
                          int64_t{63}, int64_t{64}, int64_t{65}, int64_t{150}, tile - 1, tile,
                          tile + 1, tile + 33, 2 * tile + 40}) {
    for (const int64_t count : counts) {
      if (count > n) continue;
      for (const Type type : elements::float_types()) {
        run(any_case(type, n > 200 ? 1 : 3, n, count, random));
        Case c = any_case(type, 1, n, count,
                          random);  // with every positive a threshold, every one moving
        c.mask = Mask::kNone;
        c.any_layout = false;
        c.kind = Kind::kSpread;
        c.gradient = kPlain;
        c.lam = 1;
        run(c);
      }
    }
  }
  // Thresholds close together, all equal, NaN or infinite among them, whatever the way.
  for (const Kind kind : elements::all_kinds()) {
    for (int gradient = 0; gradient < kGradients; ++gradient) {
      for (const int64_t count : {3, 9, 40, 130, 300, 1500}) {
        Case c = any_case(random.pick(elements::float_types()), 1, 2 * count + 30, count, random);
        c.kind = kind;
        c.gradient = gradient;
        run(c);
      }
    }
  }
  for (int i = 0; i < 1000; ++i) {
    const int64_t n = random.chance(0.1) ? random.below(1200) : random.below(100);
    run(any_case(random.pick(elements::float_types()), 1 + random.below(4), n,
                 random.below(random.chance(0.7) ? std::min<int64_t>(n, 12) + 1 : n + 1), random));
  }
}

void positive_ranks_threaded() {
  const int64_t worth = thresholds().worth_a_thread;
  Random random(check::State::get().seed + 6);
  size_t turn = 0;
  for (const int64_t n : long_lists()) {
    for (const int64_t count :
         {int64_t{0}, int64_t{9}, int64_t{60}, int64_t{250}, int64_t{4000}, n / 3}) {
      Case c = any_case(elements::float_types()[turn % 4], 1, n, count, random);
      c.kind = elements::all_kinds()[turn % elements::all_kinds().size()];
      c.gradient = turn % 3 ? int(turn % kGradients) : int(kPlain);
      c.placing = turn % 2 ? Placing::kBorders : Placing::kAnywhere;
      c.mask = turn % 2 ? int(turn % Mask::kShapes) : int(Mask::kNone);
      run(c);
      ++turn;
    }
  }
  run({Type::kFloat, Type::kFloat, 3, 2 * worth, 20, Placing::kBorders, Kind::kGrid, kCoarse,
       Mask::kHalf, 1, true});
  for (const int64_t n : {int64_t{100}, int64_t{1000}}) {  // many lists, shared out
    for (const int64_t count : {4, 20, 200}) {
      if (count > n) continue;
      run(any_case(random.pick(elements::float_types()), 2 * worth / n + 1, n, count, random));
    }
  }
}

void positive_ranks_edges() {
  for (const Type type : elements::float_types()) {
    for (const int64_t lists : {0, 1, 5}) {
      for (const int64_t n : {0, 1, 40}) {
        for (const int64_t count : {int64_t{0}, n}) {
          for (int mask = 0; mask < Mask::kShapes; ++mask) {
            for (const Kind kind : {Kind::kSpecial, Kind::kConstant}) {
              run({type, Type::kFloat, lists, n, count, Placing::kAnywhere, kind, kPlain, mask, 1,
                   false});
            }
          }
        }
      }
    }
  }
  check::start_case("types that cannot have a gradient");
  const check::ThreadPerTask threads(3);
  const View value{"\0\0\0\0\0\0\0", Type::kFloat, 1, 1}, flag{"\1", Type::kBool, 1, 1};
  const View integer{value.data, Type::kI32, 1, 1}, half{value.data, Type::kHalf, 1, 1};
  int64_t out = 0;
  CHECK_THROWS(std::invalid_argument,
               rankreg::positive_ranks(integer, flag, {}, 1, 1, Type::kFloat, &out, threads));
  CHECK_THROWS(std::invalid_argument,
               rankreg::positive_ranks(value, flag, {}, 1, 1, Type::kHalf, &out, threads));
  CHECK_THROWS(std::invalid_argument, rankreg::positive_ranks_backward(value, value, flag, half, {},
                                                                       1, 1, 1, &out, threads));
  check::start_case("three items by hand");  // the last is positive and passes both
  const float a[] = {2, 1, 0}, g[] = {NAN, NAN, 3}, r[] = {0, 0, 3};
  const uint8_t p[] = {0, 0, 1};
  const View scores{a, Type::kFloat, 3, 1}, positives{p, Type::kBool, 3, 1};
  Output ranks(Type::kFloat, 3), gradient(Type::kFloat, 3);
  rankreg::positive_ranks(scores, positives, {}, 1, 3, Type::kFloat, ranks.data(), threads);
  rankreg::positive_ranks_backward({g, Type::kFloat, 3, 1}, scores, positives,
                                   {r, Type::kFloat, 3, 1}, {}, 1, 1, 3, gradient.data(), threads);
  CHECK_EQUAL((Values{0, 0, 3}), ranks.values(0, 3));
  CHECK_EQUAL((Values{1, 1, -2}), gradient.values(0, 3));
}

}  // namespace tests
