// What the kernels of positive_ranks keep to themselves: thresholds, sorting, and places.
#include "../../csrc/cpu/isa.h"
#define RANKREG_ISA RANKREG_BASELINE
#define RANKREG_ISA_NAME internals_of_positive_ranks
#include "../../csrc/cpu/positive_ranks_kernels.h"
#include "cases.h"
#include "tests.h"

namespace kernels = rankreg::RANKREG_ISA_NAME;

int64_t cases::tile() { return kernels::kTile; }

std::vector<int64_t> cases::positive_counts() {
  std::vector<int64_t> out{0, 1, 2, 3, 4, 7, 8, 9};
  const auto around = [&](int64_t count) {
    for (const int64_t c : {count - 1, count, count + 1})
      out.push_back(c);
  };
  for (const int64_t most : rankreg::kCompareAll)
    around(most);
  for (const int64_t most : rankreg::kCompareAllDouble)
    around(most);
  for (const int64_t most : rankreg::kSearchMost) {
    around(most);
    around(most / 3);  // each positive makes three breakpoints of the gradient
  }
  for (const int64_t most : rankreg::kCompareBytesMost) {
    if (most > 0) around(most);
  }
  around(rankreg::kSeveralTablesMost);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

namespace tests {
namespace {

using namespace cases;

enum Shape {
  kAnywhere,
  kOne,
  kCluster,
  kEnds,
  kOutlierBelow,
  kOutlierAbove,
  kTooWide,  // the distance of the outermost is infinite
  kWithInfinities,
  kSubnormal,
  kNested,
  kShapes
};

template <class C>
C draw(int shape, int64_t i, Random& random) {
  const C unit = C(2 * random.unit() - 1);
  switch (shape) {
    case kAnywhere: return unit;
    case kOne: return C(0.25);
    case kCluster: return 1 + unit * std::numeric_limits<C>::epsilon() * 100;
    case kEnds: return (unit > 0 ? 1 : -1) * std::numeric_limits<C>::infinity();
    case kOutlierBelow: return i ? unit : std::numeric_limits<C>::lowest();
    case kOutlierAbove: return i ? unit : std::numeric_limits<C>::max();
    case kTooWide: return unit * std::numeric_limits<C>::max();
    case kWithInfinities: return i % 9 ? unit : draw<C>(kEnds, i, random);
    case kSubnormal: return unit * std::numeric_limits<C>::min();
    default: return std::ldexp(1 + unit / 1024, -int(random.below(100)));
  }
}

// Places, and the counts and values by place, against #{distinct breakpoints <= x} one by one.
template <class C>
void check_places(const std::vector<C>& breakpoints, const std::vector<C>& x, int64_t sampled,
                  int64_t repeats) {
  using Key = rankreg::KeyOf<C>;
  std::vector<Key> keys, spare;
  for (const C b : breakpoints)
    keys.push_back(rankreg::ascending_key(b));
  kernels::Places<C> places;
  const int64_t n = int64_t(x.size());
  places.build(keys, spare, x.data(), sampled, repeats * n);

  std::vector<C> distinct;
  for (const C b : breakpoints) {
    if (std::find(distinct.begin(), distinct.end(), b) == distinct.end()) distinct.push_back(b);
  }
  CHECK_VALUE(distinct.size() + 1, places.size());
  std::vector<int64_t> got;
  places.places(x, got);
  Values expected, counts(distinct.size() + 1, 0.0), written;
  for (const C score : x) {
    const auto below = [score](C b) { return b <= score; };
    const auto place = std::count_if(distinct.begin(), distinct.end(), below);
    expected.push_back(double(place));
    counts[size_t(place)] += double(repeats);
    written.push_back(std::isnan(score) ? NAN : double(C(place) / 3));
  }
  CHECK_EQUAL(expected, Values(got.begin(), got.end()));

  std::vector<C> table(size_t(places.slots())), out(x.size());
  for (int64_t p = 0; p < places.size(); ++p)
    table[size_t(places.slot(p))] = C(p) / 3;
  kernels::PlaceCounts counted;
  places.start(counted);
  for (int64_t r = 0; r < repeats; ++r) {
    for (int64_t begin = 0; begin < n; begin += kernels::kTile) {
      const int64_t size = std::min(kernels::kTile, n - begin);
      places.template pass<true>(&x[size_t(begin)], size, counted, table.data(), C(NAN),
                                 &out[size_t(begin)]);
    }
  }
  places.finish(counted);
  CHECK_EQUAL(written, Values(out.begin(), out.end()));
  counted.at[0] = int64_t(counts[0]);  // nobody asks how many are at the first place
  CHECK_EQUAL(counts, Values(counted.at.begin(), counted.at.end()));
}

template <class C>
void check_places() {
  for (const int64_t size : {1, 2, 3, 8, 15, 16, 17, 100, 600, 1025, 2049}) {
    for (int shape = 0; shape < kShapes; ++shape) {
      Random random = check::start_case("bytes=", sizeof(C), " size=", size, " shape=", shape);
      std::vector<C> breakpoints, x{0, -C(0), C(NAN), 1, -1};
      const C infinity = std::numeric_limits<C>::infinity();
      x.push_back(infinity), x.push_back(-infinity);
      for (int64_t i = 0; i < size; ++i) {
        const C b = draw<C>(shape, i, random);
        breakpoints.push_back(b);
        for (const C near : {std::nextafter(b, -infinity), b, std::nextafter(b, infinity)})
          x.push_back(near);
      }
      for (int i = 0; i < 50; ++i)
        x.push_back(draw<C>(int(random.below(kShapes)), i, random));
      // Without a sample one map serves all cells, however badly.
      for (const size_t sampled : {size_t{0}, std::min<size_t>(x.size(), 256)})
        check_places(breakpoints, x, int64_t(sampled), 1 + random.below(3));
    }
  }
}

template <class Key>
void check_sort() {
  for (const int64_t size : {0, 1, 2, 95, 96, 97, 1999, 2000, 5000}) {
    for (const uint64_t mask : {~uint64_t{0}, uint64_t{7}, uint64_t{0xff00}, uint64_t{0}}) {
      Random random = check::start_case("bytes=", sizeof(Key), " size=", size, " mask=", mask);
      std::vector<Key> keys, spare;
      for (int64_t i = 0; i < size; ++i)
        keys.push_back(Key(random.bits() & mask) >> 1);
      std::vector<Key> expected = keys;
      std::sort(expected.begin(), expected.end());
      expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
      kernels::sort_distinct(keys, spare);
      CHECK_EQUAL(Values(expected.begin(), expected.end()), Values(keys.begin(), keys.end()));
    }
  }
}

}  // namespace

void places_of_scores() {
  check_places<float>();
  check_places<double>();
}

void sorted_keys() {
  check_sort<uint32_t>();
  check_sort<uint64_t>();
}

}  // namespace tests
