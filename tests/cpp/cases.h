// What the tests of all kernels share: masks, flags, the thread variants, internal thresholds.
#pragma once

#include <optional>

#include "../../csrc/cpu/tuning.h"
#include "elements.h"
#include "oracle.h"
#include "threads.h"

namespace cases {

using check::Random;
using elements::Array;
using elements::Kind;
using elements::Output;
using oracle::Flags;
using oracle::Values;
using rankreg::Ties;
using rankreg::Type;
using rankreg::View;

// Where the kernels change their ways; read from the sources, so that the tests follow their
// tuning.
struct Thresholds {
  int64_t tile;            // count.h: scores at a time
  int64_t worth_a_thread;  // parallel.h: half of the smallest work that is shared out
};
int64_t tile();  // internals_positive_ranks.cpp

// Numbers of positives on both sides of where positive_ranks changes its way, ascending.
std::vector<int64_t> positive_counts();  // internals_positive_ranks.cpp

inline Thresholds thresholds() { return {tile(), rankreg::kWorthAThread}; }

// Lengths at which rank changes its way, for the instruction set in use, and the vectors and blocks
// of all.
inline std::vector<int64_t> rank_edges() {
  const rankreg::RankTuning& tuning = rankreg::kRankTuning[int(rankreg::isa())];
  return {16, 64, 128, 256, 512, tuning.counting_max, tuning.whole_max};
}

inline bool brief() { return check::State::get().brief; }
inline bool threaded_only() { return check::State::get().threaded_only; }

// Lists around the length that two threads share, and one that five do.
inline std::vector<int64_t> long_lists() {
  const int64_t worth = rankreg::kWorthAThread;
  if (brief()) return {2 * worth + 1, 5 * worth + 3};
  return {2 * worth - 1, 2 * worth, 2 * worth + 1, 3 * worth + 7, 5 * worth + 3};
}

inline const std::vector<Ties>& all_ties() {
  static const std::vector<Ties> ties{Ties::kMin, Ties::kMax, Ties::kAverage, Ties::kDense,
                                      Ties::kOrdinal};
  return ties;
}

inline Flags flags_of(const Array& array, int64_t list) {
  Flags out(static_cast<size_t>(array.n()));
  for (int64_t i = 0; i < array.n(); ++i)
    out[size_t(i)] = uint8_t(array.bits(list, i));
  return out;
}

// An optional `where`.
class Mask {
 public:
  enum Shape { kNone, kHalf, kFew, kMany, kAll, kNothing, kLateHalf, kEdges, kShapes };

  Mask(int shape, int64_t lists, int64_t n, bool any_layout, Random& random) : shape_(shape) {
    if (shape == kNone) return;
    array_.emplace(any_layout ? Array::any(Type::kBool, lists, n, random)
                              : Array::contiguous(Type::kBool, lists, n));
    for (int64_t list = 0; list < lists; ++list) {
      for (int64_t i = 0; i < n; ++i) {
        const bool random_share = random.chance(shape == kFew ? 0.03 : shape == kMany ? 0.97 : 0.5);
        const bool keep = shape == kAll        ? true
                          : shape == kNothing  ? false
                          : shape == kLateHalf ? 2 * i >= n
                          : shape == kEdges    ? i < n / 5 || i >= n - n / 5
                                               : random_share;
        array_->set(list, i, keep);
      }
    }
  }

  View view() const { return array_ ? array_->view() : View{}; }
  Flags flags(int64_t list) const { return array_ ? flags_of(*array_, list) : Flags(); }
  void snapshot() {
    if (array_) array_->snapshot();
  }
  bool unchanged() const { return !array_ || array_->unchanged(); }
  int shape() const { return shape_; }

 private:
  int shape_;
  std::optional<Array> array_;
};

// compute(parallel) -> outputs. The serial result; where the work is shared out at all, any number
// of threads and any order of the tasks must give the same.
template <class Compute>
auto on_any_threads(int64_t lists, int64_t n, Random& random, const Compute& compute) {
  auto serial = compute(rankreg::Serial());
  if (lists * n < 2 * rankreg::kWorthAThread) return serial;
  const auto agree = [&](const rankreg::Parallel& parallel) {
    const auto other = compute(parallel);
    for (size_t i = 0; i < serial.size(); ++i)
      CHECK(serial[i].identical(other[i]));
  };
  for (const int threads : {2, 3, 5}) {
    if (threads == 3 && brief()) continue;
    const check::ThreadPerTask parallel(threads);
    agree(parallel);
    check::State::get().tasks += parallel.tasks();
  }
  if (!brief()) {
    agree(check::Reordered(1, 0));
    agree(check::Reordered(3, 0));
    agree(check::Reordered(5, random.bits() | 1));
  }
  return serial;
}

}  // namespace cases
