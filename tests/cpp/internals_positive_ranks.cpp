// What positive_ranks_kernels.h keeps to itself: its thresholds and its table.
#include "../../csrc/cpu/isa.h"
#define RANKREG_ISA RANKREG_BASELINE
#define RANKREG_ISA_NAME internals_of_positive_ranks
#include "../../csrc/cpu/positive_ranks_kernels.h"
#include "cases.h"
#include "tests.h"

int64_t cases::tile() { return rankreg::RANKREG_ISA_NAME::kTile; }
int64_t cases::compare_all_max() { return rankreg::RANKREG_ISA_NAME::kCompareAllMax; }

namespace tests {
namespace {

using namespace cases;
namespace kernels = rankreg::RANKREG_ISA_NAME;

// place(key) = 2 #{distinct thresholds < key} + [key is one of them], counted one by one.
template <class Key>
void check_table(const std::vector<Key>& thresholds, const std::vector<Key>& keys) {
  using C = typename std::conditional<sizeof(Key) == 4, float, double>::type;
  const kernels::Table<C> table(thresholds);
  std::vector<Key> distinct;
  for (const Key key : thresholds) {
    if (std::find(distinct.begin(), distinct.end(), key) == distinct.end()) distinct.push_back(key);
  }
  CHECK_VALUE(2 * distinct.size() + 1, table.places());
  Values expected, got;
  for (const Key key : keys) {
    int64_t below = 0, equal = 0;
    for (const Key threshold : distinct)
      below += threshold < key, equal += threshold == key;
    expected.push_back(double(2 * below + equal));
    got.push_back(double(table.place(key)));
  }
  CHECK_EQUAL(expected, got);
}

template <class Key>
void check_tables() {
  constexpr Key kLast = std::numeric_limits<Key>::max();
  for (const int64_t size : {1, 2, 3, 8, 100, 600}) {
    for (int shape = 0; shape < 6; ++shape) {
      Random random = check::start_case("bytes=", sizeof(Key), " size=", size, " shape=", shape);
      std::vector<Key> thresholds;
      const Key base = Key(random.bits());
      for (int64_t i = 0; i < size; ++i) {
        const Key any = Key(random.bits());
        switch (shape) {
          case 0: thresholds.push_back(any); break;                            // anywhere
          case 1: thresholds.push_back(base); break;                           // one value
          case 2: thresholds.push_back(Key(kLast / 2 + any % 100)); break;     // a cluster
          case 3: thresholds.push_back(any % 2 ? 0 : kLast); break;            // the two ends
          case 4: thresholds.push_back(i ? Key(kLast - any % 50) : 0); break;  // an outlier below
          default: thresholds.push_back(i ? any % 50 : kLast);                 // an outlier above
        }
      }
      std::vector<Key> keys{0, 1, kLast, kLast - 1, kLast / 2};
      for (const Key threshold : thresholds) {
        for (const int near : {-1, 0, 1})
          keys.push_back(Key(threshold + Key(near)));
      }
      for (int i = 0; i < 50; ++i)
        keys.push_back(Key(random.bits()));
      check_table(thresholds, keys);
    }
  }
}

}  // namespace

void threshold_table() {
  check_tables<uint32_t>();
  check_tables<uint64_t>();
}

}  // namespace tests
