// rankdata: ranks as integers, and both NaN rules, over lists in blocks and lists in threads.
#include "../../csrc/cpu/rankdata.h"
#include "cases.h"
#include "tests.h"

namespace tests {
namespace {

using namespace cases;
using rankreg::NanRule;

bool holds_nan(const Values& values) {
  return std::any_of(values.begin(), values.end(), [](double v) { return std::isnan(v); });
}

void run(Type type, Ties ties, NanRule nan, int64_t lists, int64_t n, Kind kind, Random& random) {
  check::start_case("type=", elements::format(type).name, " ties=", int(ties), " nan=", int(nan),
                    " lists=", lists, " n=", n, " kind=", elements::name(kind));
  Array x =
      random.chance(0.6) ? Array::any(type, lists, n, random) : Array::contiguous(type, lists, n);
  x.fill(kind, random).snapshot();
  check::describe(" layout=", x.layout());
  bool some = false;
  for (int64_t list = 0; list < lists; ++list)
    some |= holds_nan(x.values(list));
  const Type ranks =
      some || ties == Ties::kAverage || random.chance(0.3) ? Type::kDouble : Type::kI64;

  const auto results = on_any_threads(lists, n, random, [&](const rankreg::Parallel& parallel) {
    CHECK(rankreg::any_nan(x.view(), lists, n, parallel) == some);
    std::vector<Output> out;
    out.emplace_back(ranks, lists * n);
    rankreg::rankdata(x.view(), ties, nan, lists, n, ranks, out[0].data(), parallel);
    return out;
  });
  CHECK(x.unchanged());
  for (int64_t list = 0; list < lists; ++list) {
    const Values values = x.values(list);
    Values expected = type == Type::kI64 ? oracle::ranks(x.integers<int64_t>(list), {}, false, ties)
                      : type == Type::kU64
                          ? oracle::ranks(x.integers<uint64_t>(list), {}, false, ties)
                          : oracle::ranks(values, {}, false, ties);
    if (nan == NanRule::kSpread && holds_nan(values))
      std::fill(expected.begin(), expected.end(), std::nan(""));
    CHECK_EQUAL(expected, results[0].values(list * n, n));
  }
}

void run_any(int64_t lists, int64_t n, Random& random) {
  run(random.pick(elements::all_types()), random.pick(all_ties()),
      random.chance(0.5) ? NanRule::kSpread : NanRule::kAbsent, lists, n,
      random.pick(elements::all_kinds()), random);
}

}  // namespace

void rankdata_small() {
  Random random(check::State::get().seed);
  for (const Type type : elements::all_types()) {
    for (const Ties ties : all_ties()) {
      for (const NanRule nan : {NanRule::kSpread, NanRule::kAbsent}) {
        for (const Kind kind : elements::all_kinds())
          run(type, ties, nan, 1 + random.below(4), random.below(40), kind, random);
      }
    }
  }
  // Scans end after 1024 elements, blocks of lists after 8192.
  for (const int64_t n : {1023, 1024, 1025, 4097, 8192, 8193})
    run_any(3, n, random);
  for (const int64_t lists : {63, 64, 65, 200})
    run_any(lists, 128, random);
}

void rankdata_threaded() {
  Random random(check::State::get().seed + 1);
  for (const int64_t n : long_lists()) {
    run_any(1, n, random);
    run_any(2, n, random);
  }
  for (int i = 0; i < 8; ++i)
    run_any(500 + random.below(500), 150, random);
}

}  // namespace tests
