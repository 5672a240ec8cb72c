// Runs the tests.
//
//   driver                 all of them
//   driver --threaded      those in which several threads touch the same lists (ThreadSanitizer)
//   driver --brief         all of them, but fewer long lists (AddressSanitizer)
//   driver --self-test     falsifies one expected value in every test, which must then fail
//   driver --plant NAME    does what a sanitizer must end the process for: overrun, undefined, race
//   --seed N, --only NAME, --isa NAME (otherwise: each that this machine can run)
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>

#include "../../csrc/cpu/isa.h"
#include "check.h"
#include "tests.h"

namespace {

struct Test {
  const char* name;
  void (*run)();
  bool threaded;
  bool per_isa;
};

const Test kTests[] = {
    {"oracle_agrees_with_itself", tests::oracle_agrees_with_itself, false, false},
    {"half_round_trip", tests::half_round_trip, false, false},
    {"bfloat16_round_trip", tests::bfloat16_round_trip, false, false},
    {"half_rounding", tests::half_rounding, false, false},
    {"bfloat16_rounding", tests::bfloat16_rounding, false, false},
    {"keys", tests::keys, false, false},
    {"parts_and_lists", tests::parts_and_lists, true, false},
    {"rank_small", tests::rank_small, false, true},
    {"rank_threaded", tests::rank_threaded, true, true},
    {"rank_many_lists", tests::rank_many_lists, true, true},
    {"rank_edges", tests::rank_edges, false, true},
    {"blackbox_small", tests::blackbox_small, false, true},
    {"blackbox_threaded", tests::blackbox_threaded, true, true},
    {"blackbox_edges", tests::blackbox_edges, false, true},
    {"huge_lists", tests::huge_lists, false, false},
    {"rankdata_small", tests::rankdata_small, false, true},
    {"rankdata_threaded", tests::rankdata_threaded, true, true},
    {"positive_ranks_small", tests::positive_ranks_small, false, true},
    {"positive_ranks_threaded", tests::positive_ranks_threaded, true, true},
    {"positive_ranks_edges", tests::positive_ranks_edges, false, true},
    {"places_of_scores", tests::places_of_scores, false, false},
    {"sorted_keys", tests::sorted_keys, false, false},
    {"rankreg_loss_small", tests::rankreg_loss_small, false, true},
    {"rankreg_loss_threaded", tests::rankreg_loss_threaded, true, true},
    {"rankreg_loss_edges", tests::rankreg_loss_edges, false, true},
};

// Each does one thing wrong, and then ends as if nothing had happened.
int plant(const char* name) {
  volatile int sink = 0;
  if (strcmp(name, "overrun") == 0) {
    const std::unique_ptr<volatile unsigned char[]> bytes(new volatile unsigned char[17]());
    sink = bytes[17 + sink];
  } else if (strcmp(name, "undefined") == 0) {
    volatile int largest = std::numeric_limits<int>::max();
    sink = largest + 1;
  } else if (strcmp(name, "race") == 0) {
    int shared = 0;
    std::thread one([&] { ++shared; }), two([&] { ++shared; });
    one.join();
    two.join();
    sink = shared;
  } else {
    fprintf(stderr, "nothing called %s can be planted\n", name);
    return 2;
  }
  printf("planted %s, and nothing noticed (%d)\n", name, sink);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  check::State& state = check::State::get();
  state.seed = 20231;
  const char* only = nullptr;
  const char* only_isa = nullptr;
  for (int i = 1; i < count; ++i) {
    const char* argument = arguments[i];
    const char* next = i + 1 < count ? arguments[i + 1] : "";
    if (strcmp(argument, "--threaded") == 0) {
      state.threaded_only = state.brief = true;
    } else if (strcmp(argument, "--brief") == 0) {
      state.brief = true;
    } else if (strcmp(argument, "--self-test") == 0) {
      state.self_test = true;
    } else if (strcmp(argument, "--plant") == 0) {
      return plant(next);
    } else if (strcmp(argument, "--seed") == 0) {
      state.seed = strtoull(next, nullptr, 10), ++i;
    } else if (strcmp(argument, "--only") == 0) {
      only = next, ++i;
    } else if (strcmp(argument, "--isa") == 0) {
      only_isa = next, ++i;
    } else {
      fprintf(stderr, "unknown argument %s\n", argument);
      return 2;
    }
  }

  int run = 0, undetected = 0;
  int64_t cases = 0, comparisons = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto seconds_since = [](std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (const rankreg::Isa isa : rankreg::isas()) {
    if (only_isa && strcmp(only_isa, rankreg::name(isa)) != 0) continue;
    rankreg::use_isa(isa);
    const bool first = isa == rankreg::Isa::kBaseline || only_isa;
    for (const Test& test : kTests) {
      if (only && strcmp(only, test.name) != 0) continue;
      if (state.threaded_only && !test.threaded) continue;
      if (!first && !test.per_isa) continue;
      const auto begin = std::chrono::steady_clock::now();
      state.test = test.name;
      state.current = "";
      state.cases = state.comparisons = state.tasks = 0;
      state.plant = state.self_test;
      ++run;
      try {
        test.run();
        if (state.self_test) {
          fprintf(stderr, "FAILED self-test: %s did not notice a false expected value\n",
                  test.name);
          ++undetected;
        }
      } catch (const check::Planted&) {
        if (state.plant) {  // it failed before anything was planted
          fprintf(stderr, "FAILED self-test: %s fails by itself\n", test.name);
          ++undetected;
        }
      }
      if (test.threaded && !state.self_test && state.tasks == 0) {
        check::fail(__FILE__, __LINE__, "no threads were used, so this shows nothing about them");
      }
      cases += state.cases;
      comparisons += state.comparisons;
      if (!state.self_test) {
        printf("%-8s %-28s %7lld cases %11lld comparisons %6lld threads %6.2f s\n",
               rankreg::name(isa), test.name, static_cast<long long>(state.cases),
               static_cast<long long>(state.comparisons), static_cast<long long>(state.tasks),
               seconds_since(begin));
        fflush(stdout);
      }
    }
  }
  if (run == 0) {
    fprintf(stderr, "no test is called %s on %s\n", only ? only : "anything",
            only_isa ? only_isa : "any instruction set");
    return 2;
  }
  if (state.self_test) {
    printf("self-test: %d of %d tests notice a false expected value\n", run - undetected, run);
  } else {
    printf("%d tests, %lld cases, %lld comparisons, %lld failures, %.1f s\n", run,
           static_cast<long long>(cases), static_cast<long long>(comparisons),
           static_cast<long long>(state.failures), seconds_since(start));
  }
  return state.failures || undetected ? 1 : 0;
}
