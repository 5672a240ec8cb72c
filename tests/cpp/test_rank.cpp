// rank: every tie rule, direction, type, layout and mask against the oracle.
#include "../../csrc/cpu/rank.h"
#include "cases.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;

struct Case {
  Type type;
  Type rank_type;
  Ties ties;
  bool descending;
  int64_t lists, n;
  Kind kind;
  int mask;
  bool any_layout;
};

void run(const Case& c) {
  Random random = check::start_case(
      "type=", elements::format(c.type).name, " ranks=", elements::format(c.rank_type).name,
      " ties=", int(c.ties), " descending=", c.descending, " lists=", c.lists, " n=", c.n,
      " kind=", elements::name(c.kind), " mask=", c.mask);
  Array x = c.any_layout ? Array::any(c.type, c.lists, c.n, random)
                         : Array::contiguous(c.type, c.lists, c.n);
  x.fill(c.kind, random).snapshot();
  Mask where(c.mask, c.lists, c.n, c.any_layout, random);
  where.snapshot();
  check::describe(" layout=", x.layout());

  const auto results = on_any_threads(c.lists, c.n, random, [&](const rankreg::Parallel& parallel) {
    std::vector<Output> out;
    out.emplace_back(c.rank_type, c.lists * c.n);
    rankreg::rank(x.view(), where.view(), c.descending, c.ties, c.lists, c.n, c.rank_type,
                  out[0].data(), parallel);
    return out;
  });
  CHECK(x.unchanged() && where.unchanged());
  for (int64_t list = 0; list < c.lists; ++list) {
    const Flags mask = where.flags(list);
    const Values expected =
        c.type == Type::kI64 ? oracle::ranks(x.integers<int64_t>(list), mask, c.descending, c.ties)
        : c.type == Type::kU64
            ? oracle::ranks(x.integers<uint64_t>(list), mask, c.descending, c.ties)
            : oracle::ranks(x.values(list), mask, c.descending, c.ties);
    CHECK_EQUAL(expected, results[0].values(list * c.n, c.n));
  }
}

Case any_case(Type type, Ties ties, bool descending, int64_t lists, int64_t n, Random& random) {
  return {type,
          random.chance(0.5) ? Type::kFloat : Type::kDouble,
          ties,
          descending,
          lists,
          n,
          random.pick(elements::all_kinds()),
          random.chance(0.4) ? Mask::kNone : int(random.below(Mask::kShapes)),
          random.chance(0.6)};
}

}  // namespace

void rank_small() {
  const int64_t edge = rankreg::kRankTuning[int(rankreg::isa())].counting_max;
  Random random(check::State::get().seed);
  const auto everything = [&](int64_t lists, int64_t n) {
    for (const Type type : elements::all_types()) {
      for (const Ties ties : all_ties()) {
        for (const bool descending : {true, false}) {
          run(any_case(type, ties, descending, lists, n, random));
        }
      }
    }
  };
  for (const int64_t n : {int64_t{2}, edge - 1, edge, edge + 1})
    everything(3, n);
  everything(1, 257);
  // Every kind, with masks that leave as many items as the threshold has.
  for (const Kind kind : elements::all_kinds()) {
    for (const Ties ties : all_ties()) {
      for (int mask = 0; mask < Mask::kShapes; ++mask) {
        Case c = any_case(random.pick(elements::all_types()), ties, random.chance(0.5), 2, 2 * edge,
                          random);
        c.kind = kind;
        c.mask = mask;
        run(c);
      }
    }
  }
  for (int i = 0; i < 1000; ++i) {
    const int64_t n = random.chance(0.1) ? random.below(1200) : random.below(200);
    run(any_case(random.pick(elements::all_types()), random.pick(all_ties()), random.chance(0.5),
                 1 + random.below(4), n, random));
  }
  // Around every length at which the kernel changes its way, and every kind of list beyond.
  for (const int64_t middle : cases::rank_edges()) {
    for (const int64_t n : {middle - 1, middle, middle + 1}) {
      for (const Ties ties : all_ties()) {
        run(any_case(random.pick(elements::all_types()), ties, random.chance(0.5), 1, n, random));
      }
    }
  }
  for (const Kind kind : elements::all_kinds()) {
    for (const Type type : elements::all_types()) {
      for (const int64_t n : {777, 2049, 5000, 20000}) {
        if (n > 5000 && brief()) continue;
        Case c = any_case(type, random.pick(all_ties()), random.chance(0.5), 1, n, random);
        c.kind = kind;
        run(c);
      }
    }
  }
}

// Long lists, which threads share: chunk borders inside groups of equals, chunks without any item,
// fewer chunks once the masked items are gone.
void rank_threaded() {
  const int64_t worth = thresholds().worth_a_thread;
  Random random(check::State::get().seed + 1);
  const std::vector<Type> types = threaded_only()
                                      ? std::vector<Type>{Type::kFloat, Type::kI64}
                                      : std::vector<Type>{Type::kBool,  Type::kI8,  Type::kBFloat16,
                                                          Type::kFloat, Type::kU64, Type::kDouble};
  size_t turn = 0;
  for (const int64_t n : long_lists()) {
    for (const Ties ties : all_ties()) {
      Case c = any_case(types[turn % types.size()], ties, turn % 2 == 0, 1, n, random);
      c.kind = elements::all_kinds()[turn % elements::all_kinds().size()];
      c.mask = int(turn % Mask::kShapes);
      run(c);
      ++turn;
    }
  }
  // Equals that reach over a whole chunk and beyond, under every tie rule.
  for (const Ties ties : all_ties()) {
    for (const Kind kind : {Kind::kConstant, Kind::kTwo, Kind::kGrid}) {
      if (brief() && (kind == Kind::kConstant) != (ties == Ties::kDense)) continue;
      run({Type::kFloat, Type::kFloat, ties, true, 1, 5 * worth, kind, Mask::kNone, false});
    }
  }
  for (const int mask : {Mask::kHalf, Mask::kLateHalf, Mask::kEdges, Mask::kNothing, Mask::kFew}) {
    run({Type::kFloat, Type::kFloat, Ties::kDense, true, 1, 5 * worth + 1, Kind::kSpecial, mask,
         false});
  }
  run({Type::kHalf, Type::kDouble, Ties::kOrdinal, false, 3, 2 * worth, Kind::kBits, Mask::kHalf,
       true});
}

// Many lists, shared out among the threads.
void rank_many_lists() {
  const int64_t edge = rankreg::kRankTuning[int(rankreg::isa())].counting_max,
                work = 2 * thresholds().worth_a_thread;
  Random random(check::State::get().seed + 2);
  for (const int64_t n : {int64_t{1}, edge, edge + 1, int64_t{1000}}) {
    if (threaded_only() && n == 1) continue;
    for (const Ties ties : all_ties()) {
      if (n == 1 && ties != Ties::kDense) continue;
      run(any_case(random.pick(elements::all_types()), ties, random.chance(0.5), work / n + 1, n,
                   random));
    }
  }
}

void rank_edges() {
  const check::ThreadPerTask threads(3);
  for (const Type type : elements::all_types()) {
    for (const Ties ties : all_ties()) {
      for (const int64_t lists : {0, 1, 5}) {
        for (const int64_t n : {0, 1}) {
          for (const int mask : {Mask::kNone, Mask::kAll, Mask::kNothing}) {
            run({type, Type::kFloat, ties, true, lists, n, Kind::kSpecial, mask, false});
          }
        }
      }
    }
  }
  check::start_case("no data at all");
  rankreg::rank({nullptr, Type::kFloat, 0, 0}, {}, true, Ties::kMin, 4, 0, Type::kFloat, nullptr,
                threads);
  rankreg::rank({nullptr, Type::kFloat, 7, 1}, {}, true, Ties::kMin, 0, 7, Type::kFloat, nullptr,
                threads);
  check::start_case("types that ranks cannot have");
  float x = 0, out = 0;
  for (const Type type : {Type::kHalf, Type::kI32, Type::kBool}) {
    CHECK_THROWS(std::invalid_argument, rankreg::rank({&x, Type::kFloat, 1, 1}, {}, true,
                                                      Ties::kMin, 1, 1, type, &out, threads));
  }
  check::start_case("one list by hand");
  const float scores[] = {0.5f, -0.0f, NAN, 0.0f, INFINITY, -INFINITY};
  Output ranks(Type::kFloat, 6);
  rankreg::rank({scores, Type::kFloat, 6, 1}, {}, true, Ties::kMin, 1, 6, Type::kFloat,
                ranks.data(), threads);
  CHECK_EQUAL((Values{2, 3, NAN, 3, 1, 5}), ranks.values(0, 6));
}

}  // namespace tests
