// A test driver without a framework: named tests, seeded cases, comparisons that say what differed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace check {

// splitmix64: the same numbers on every platform, unlike the distributions of <random>.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }
  double unit() { return double(bits() >> 11) * 0x1p-53; }
  bool chance(double p) { return unit() < p; }

  template <class T>
  T pick(const std::vector<T>& from) {
    return from[size_t(below(int64_t(from.size())))];
  }

 private:
  uint64_t state_;
};

// Thrown by the first failure of a self-test, which then has what it was after.
struct Planted {};

struct State {
  std::string test, current;  // test and case that run now
  uint64_t seed = 0;          // of the whole run; each case has a seed of its own from it
  int64_t cases = 0, comparisons = 0, failures = 0;
  int64_t tasks = 0;           // that ran in threads of their own
  bool threaded_only = false;  // leave out what one thread alone can show
  bool brief = false;          // fewer long lists
  bool self_test = false;      // a failure is expected, and ends the test
  bool plant = false;          // the next expected value is to be falsified

  static State& get() {
    static State state;
    return state;
  }
};

inline void fail(const char* file, int line, const std::string& what) {
  State& state = State::get();
  if (state.self_test) throw Planted();
  fprintf(stderr, "%s:%d: FAILED %s [%s] (--only %s --seed %llu): %s\n", file, line,
          state.test.c_str(), state.current.c_str(), state.test.c_str(),
          static_cast<unsigned long long>(state.seed), what.c_str());
  if (++state.failures >= 20) {
    fprintf(stderr, "too many failures\n");
    exit(1);
  }
}

// Starts a case: CHECKs name it by `text` from here on. Returns its random numbers.
template <class... Parts>
Random start_case(const Parts&... text) {
  State& state = State::get();
  uint64_t name = 0xcbf29ce484222325u;  // tests draw independently of each other
  for (const char c : state.test)
    name = (name ^ uint64_t(c)) * 0x100000001b3u;
  const uint64_t seed = Random(state.seed ^ name ^ (uint64_t(++state.cases) << 32)).bits();
  std::ostringstream out;
  (out << ... << text);
  out << " case=" << state.cases << " case_seed=" << seed;
  state.current = out.str();
  return Random(seed);
}

template <class... Parts>
void describe(const Parts&... text) {
  std::ostringstream out;
  (out << ... << text);
  State::get().current += out.str();
}

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

inline void equal(const char* file, int line, const char* what, std::vector<double> expected,
                  const std::vector<double>& got) {
  State& state = State::get();
  if (state.plant && !expected.empty()) {
    double& value = expected[expected.size() / 2];
    value = std::isnan(value) ? 1 : std::isinf(value) ? 0 : value + 1 + std::fabs(value);
    state.plant = false;
  }
  state.comparisons += int64_t(expected.size());
  if (expected.size() != got.size()) return fail(file, line, std::string(what) + ": sizes differ");
  size_t first = 0, different = 0;
  for (size_t i = expected.size(); i-- > 0;) {
    if (!same(expected[i], got[i])) first = i, ++different;
  }
  if (different == 0) return;
  std::ostringstream out;
  out.precision(17);
  out << what << ": " << different << " of " << expected.size() << " values differ, first at "
      << first << ": expected " << expected[first] << ", got " << got[first];
  fail(file, line, out.str());
}

}  // namespace check

#define CHECK(condition)                                 \
  ((condition) ? void(++check::State::get().comparisons) \
               : check::fail(__FILE__, __LINE__, #condition))
// Values that must be equal, NaN being equal to NaN.
#define CHECK_EQUAL(expected, got) check::equal(__FILE__, __LINE__, #got, expected, got)
#define CHECK_VALUE(expected, got) \
  check::equal(__FILE__, __LINE__, #got, {double(expected)}, {double(got)})
#define CHECK_THROWS(exception, statement)                                  \
  do {                                                                      \
    bool thrown = false;                                                    \
    try {                                                                   \
      statement;                                                            \
    } catch (const exception&) {                                            \
      thrown = true;                                                        \
    }                                                                       \
    if (!thrown) check::fail(__FILE__, __LINE__, #statement " must throw"); \
  } while (0)
