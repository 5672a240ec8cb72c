// Two ways of running the tasks of a kernel that are hard on it.
#pragma once

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "../../csrc/cpu/parallel.h"
#include "check.h"

namespace check {

// Every task in a thread of its own, all of them alive at once. Nothing but creation and join
// orders two tasks, so ThreadSanitizer sees every pair of them that touches the same memory.
class ThreadPerTask final : public rankreg::Parallel {
 public:
  explicit ThreadPerTask(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  int64_t tasks() const { return tasks_; }  // run so far

 protected:
  void run(int64_t tasks, void (*body)(const void*, int64_t), const void* context) const override {
    tasks_ += tasks;
    std::atomic<int64_t> started{0};
    std::vector<std::thread> all;
    for (int64_t task = 0; task < tasks; ++task) {
      all.emplace_back([&started, tasks, body, context, task] {
        started.fetch_add(1, std::memory_order_relaxed);
        while (started.load(std::memory_order_relaxed) < tasks)
          std::this_thread::yield();
        body(context, task);
      });
    }
    for (std::thread& thread : all)
      thread.join();
  }

 private:
  int threads_;
  mutable int64_t tasks_ = 0;
};

// One thread, but the last task first (seed 0) or a shuffled order.
class Reordered final : public rankreg::Parallel {
 public:
  Reordered(int threads, uint64_t seed) : threads_(threads), random_(seed), shuffle_(seed != 0) {}
  int threads() const override { return threads_; }

 protected:
  void run(int64_t tasks, void (*body)(const void*, int64_t), const void* context) const override {
    std::vector<int64_t> order(static_cast<size_t>(tasks));
    std::iota(order.rbegin(), order.rend(), 0);
    for (size_t i = order.size(); shuffle_ && i > 1; --i) {
      std::swap(order[i - 1], order[size_t(random_.below(int64_t(i)))]);
    }
    for (const int64_t task : order)
      body(context, task);
  }

 private:
  int threads_;
  mutable Random random_;
  bool shuffle_;
};

}  // namespace check
