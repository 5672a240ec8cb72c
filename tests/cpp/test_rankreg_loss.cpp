// rankreg_loss: value, saved state and gradient of every reduction.
#include "../../csrc/cpu/rankreg_loss.h"
#include "cases.h"
#include "positives.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;
using rankreg::Reduction;

struct Case {
  Type type;
  Type rank_type;
  int64_t lists, n, positives, kept;
  Kind kind;
  int mask;
  int64_t power;
  bool by_length;
  Reduction reduction;
  double lam;
  bool any_layout;
};

void run(const Case& c) {
  Random random = check::start_case(
      "type=", elements::format(c.type).name, " ranks=", elements::format(c.rank_type).name,
      " lists=", c.lists, " n=", c.n, " positives=", c.positives, " kept=", c.kept,
      " kind=", elements::name(c.kind), " mask=", c.mask, " power=", c.power,
      " by_length=", c.by_length, " reduction=", int(c.reduction), " lam=", c.lam);
  const auto array = [&](Type type) {
    return c.any_layout ? Array::any(type, c.lists, c.n, random)
                        : Array::contiguous(type, c.lists, c.n);
  };
  const Type compute_type = c.type == Type::kDouble ? Type::kDouble : Type::kFloat;
  Array x = array(c.type), positives = array(Type::kBool);
  x.fill(c.kind, random).snapshot();
  place(positives, c.positives, random.chance(0.3) ? Placing::kBorders : Placing::kAnywhere,
        random);
  for (int64_t list = 0; c.lists > 1 && list < c.lists; ++list) {  // some lists without a positive
    if (!random.chance(0.2)) continue;
    for (int64_t i = 0; i < c.n; ++i)
      positives.set(list, i, 0);
  }
  positives.snapshot();
  Mask where(c.mask, c.lists, c.n, c.any_layout, random);
  where.snapshot();
  const bool one_value = c.reduction != Reduction::kNone;
  Array upstream(compute_type, c.lists, 1, one_value ? 0 : 1, one_value ? 0 : 1);
  for (int64_t list = 0; list < c.lists; ++list) {
    upstream.set(
        list, 0,
        elements::encode(compute_type, random.pick<double>({1, 1, 0.37, -2, 0, 65536, 1e-4})));
  }
  const rankreg::RankRegOptions options{c.lam, c.power, c.by_length};

  const auto results = on_any_threads(c.lists, c.n, random, [&](const rankreg::Parallel& parallel) {
    std::vector<Output> out;
    out.emplace_back(compute_type, one_value ? 1 : c.lists);
    out.emplace_back(c.rank_type, c.lists * (1 + c.kept));
    rankreg::rankreg_loss(x.view(), positives.view(), where.view(), options, c.reduction, c.lists,
                          c.n, c.kept, c.rank_type, out[0].data(), out[1].data(), parallel);
    out.emplace_back(c.type, c.lists * c.n);
    rankreg::rankreg_loss_backward(upstream.view(), x.view(), positives.view(),
                                   out[1].view(1 + c.kept), where.view(), options, c.lists, c.n,
                                   c.kept, out[2].data(), parallel);
    return out;
  });
  CHECK(x.unchanged() && positives.unchanged() && where.unchanged());

  double sum = 0, divisor = 0;
  std::vector<oracle::RankReg> lists;
  Values losses;
  for (int64_t b = 0; b < c.lists; ++b) {
    lists.push_back(
        oracle::rankreg(x.values(b), flags_of(positives, b), where.flags(b), c.power, c.by_length));
    const oracle::RankReg& list = lists.back();
    const double mean = oracle::rankreg_mean(list, c.power);
    CHECK(check::same(mean, list.value) || std::fabs(mean - list.value) <= 1e-13 * mean);
    losses.push_back(oracle::round_to_compute(c.type, list.value));
    sum += list.value;
    divisor += list.counted;
  }
  if (c.reduction != Reduction::kMean || divisor == 0) divisor = 1;
  if (one_value) losses = {oracle::round_to_compute(c.type, sum / divisor)};
  CHECK_EQUAL(losses, results[0].values(0, int64_t(losses.size())));

  for (int64_t b = 0; b < c.lists; ++b) {
    const oracle::RankReg& list = lists[size_t(b)];
    Values state{divisor};
    for (size_t i = 0; i < list.ranks.size(); ++i) {
      if (list.positives[i]) state.push_back(list.ranks[i]);
    }
    if (int64_t(state.size()) > 1 + c.kept) state = {divisor};  // too many: none is kept
    state.resize(size_t(1 + c.kept), 0);
    CHECK_EQUAL(state, results[1].values(b * (1 + c.kept), 1 + c.kept));
    const double scale = oracle::round_to_compute(c.type, upstream.value(b, 0) / divisor);
    CHECK_EQUAL(
        oracle::rankreg_gradient(list, x.values(b), where.flags(b), c.power, c.lam, scale, c.type),
        results[2].values(b * c.n, c.n));
  }
}

Case any_case(Type type, int64_t lists, int64_t n, int64_t positives, Random& random) {
  const int64_t kept = random.pick<int64_t>({0, 1, std::max<int64_t>(positives - 1, 0), positives,
                                             positives + 1, n, std::min<int64_t>(n, 256)});
  return {type,
          random.chance(0.5) ? Type::kFloat : Type::kDouble,
          lists,
          n,
          positives,
          kept,
          random.pick(elements::all_kinds()),
          random.chance(0.4) ? Mask::kNone : int(random.below(Mask::kShapes)),
          1 + random.below(3),
          random.chance(0.6),
          Reduction(random.below(3)),
          random.pick<double>({0.1, 1, 3.7, 1e-3, 1e4}),
          random.chance(0.5)};
}

}  // namespace

void rankreg_loss_small() {
  const int64_t tile = thresholds().tile;
  Random random(check::State::get().seed + 7);
  for (const Type type : elements::float_types()) {
    for (int64_t power = 1; power <= 3; ++power) {
      for (const bool by_length : {true, false}) {
        for (const Reduction reduction : {Reduction::kNone, Reduction::kSum, Reduction::kMean}) {
          for (const int64_t count : {0, 1, 7, 8, 9, 40}) {
            Case c = any_case(type, 1 + random.below(5), 60, count, random);
            c.power = power;
            c.by_length = by_length;
            c.reduction = reduction;
            run(c);
          }
        }
      }
    }
    for (const int64_t n : {int64_t{700}, tile - 1, tile, tile + 1}) {
      for (const int64_t count : positive_counts()) {
        if (count <= n) run(any_case(type, 1, n, count, random));
      }
    }
  }
  for (int i = 0; i < 1200; ++i) {
    const int64_t n = random.chance(0.1) ? random.below(1200) : random.below(100);
    run(any_case(random.pick(elements::float_types()), 1 + random.below(5), n,
                 random.below(random.chance(0.7) ? std::min<int64_t>(n, 12) + 1 : n + 1), random));
  }
}

void rankreg_loss_threaded() {
  const int64_t worth = thresholds().worth_a_thread;
  Random random(check::State::get().seed + 8);
  size_t turn = 0;
  for (const int64_t n : long_lists()) {
    for (const int64_t count : {int64_t{0}, int64_t{9}, int64_t{60}, int64_t{600}, n / 3}) {
      Case c = any_case(elements::float_types()[turn % 4], 1, n, count, random);
      c.kind = elements::all_kinds()[turn % elements::all_kinds().size()];
      c.mask = turn % 2 ? int(turn % Mask::kShapes) : int(Mask::kNone);
      c.kept = turn % 3 ? std::min<int64_t>(c.n, 256) : 3;
      run(c);
      ++turn;
    }
  }
  for (const int64_t n : {int64_t{100}, int64_t{1000}}) {  // many lists, shared out
    for (const int64_t count : {int64_t{4}, int64_t{90}}) {
      for (const Reduction reduction : {Reduction::kNone, Reduction::kMean}) {
        Case c =
            any_case(random.pick(elements::float_types()), 2 * worth / n + 1, n, count, random);
        c.reduction = reduction;
        run(c);
      }
    }
  }
}

void rankreg_loss_edges() {
  for (const Type type : elements::float_types()) {
    for (const Reduction reduction : {Reduction::kNone, Reduction::kSum, Reduction::kMean}) {
      for (const int64_t lists : {0, 1, 5}) {
        for (const int64_t n : {0, 1, 2, 40}) {
          for (const int64_t count : {int64_t{0}, n}) {
            for (int mask = 0; mask < Mask::kShapes; ++mask) {
              Case c{type, Type::kFloat,  lists,     n, count, n, Kind::kSpecial, mask,
                     2,    mask % 2 == 0, reduction, 1, false};
              run(c);
              c.kind = Kind::kConstant;
              run(c);
            }
          }
        }
      }
    }
  }
  const check::ThreadPerTask threads(3);
  check::start_case("no data at all");
  float loss = -1, state[2] = {-1, -1};
  rankreg::rankreg_loss({nullptr, Type::kFloat, 0, 1}, {nullptr, Type::kBool, 0, 1}, {},
                        {1, 2, true}, Reduction::kMean, 2, 0, 0, Type::kFloat, &loss, state,
                        threads);
  CHECK_EQUAL((Values{0, 1, 1}), (Values{loss, state[0], state[1]}));
  check::start_case("three items by hand");
  // The positive's rank is 3 of 3: R = 1, h = 2/3, lam = 3 moves it from 0 to the top.
  const float a[] = {1.5f, 1, 0}, one = 1;
  const uint8_t p[] = {0, 0, 1};
  const View scores{a, Type::kFloat, 3, 1}, positives{p, Type::kBool, 3, 1};
  Output value(Type::kFloat, 1), saved(Type::kFloat, 2), gradient(Type::kFloat, 3);
  rankreg::rankreg_loss(scores, positives, {}, {3, 2, true}, Reduction::kMean, 1, 3, 1,
                        Type::kFloat, value.data(), saved.data(), threads);
  rankreg::rankreg_loss_backward({&one, Type::kFloat, 0, 0}, scores, positives, saved.view(2), {},
                                 {3, 2, true}, 1, 3, 1, gradient.data(), threads);
  CHECK_EQUAL((Values{1}), value.values(0, 1));
  CHECK_EQUAL((Values{1, 3}), saved.values(0, 2));
  // A step of one place is 1 / (3 * 3).
  CHECK_EQUAL((Values{double(1.0f / 9), double(1.0f / 9), double(-2.0f / 9)}),
              gradient.values(0, 3));
  check::start_case("types that cannot have a loss");
  CHECK_THROWS(
      std::invalid_argument,
      rankreg::rankreg_loss({a, Type::kI32, 3, 1}, positives, {}, {1, 2, true}, Reduction::kMean, 1,
                            3, 1, Type::kFloat, value.data(), saved.data(), threads));
  CHECK_THROWS(std::invalid_argument,
               rankreg::rankreg_loss(scores, positives, {}, {1, 2, true}, Reduction::kMean, 1, 3, 1,
                                     Type::kHalf, value.data(), saved.data(), threads));
}

}  // namespace tests
