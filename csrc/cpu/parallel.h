// Threads as an argument: kernels know tasks, the caller knows where they run.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rankreg {

class Parallel {
 public:
  virtual ~Parallel() = default;
  virtual int threads() const = 0;

  // f(task) for every task in [0, tasks), in any order, possibly at the same time.
  template <class F>
  void each(int64_t tasks, const F& f) const {
    if (tasks == 1) {
      f(int64_t{0});
    } else if (tasks > 1) {
      run(
          tasks, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
          &f);
    }
  }

 protected:
  virtual void run(int64_t tasks, void (*body)(const void*, int64_t),
                   const void* context) const = 0;
};

class Serial final : public Parallel {
 public:
  int threads() const override { return 1; }

 protected:
  // Never asked for by kernels, which then have one task; inlined, it only grows their code.
  __attribute__((noinline)) void run(int64_t tasks, void (*body)(const void*, int64_t),
                                     const void* context) const override {
    for (int64_t task = 0; task < tasks; ++task)
      body(context, task);
  }
};

// A part of [0, n), one of `parts` nearly equal ones.
struct Part {
  int64_t begin, end;
  Part(int64_t n, int64_t part, int64_t parts)
      : begin(n / parts * part + std::min(part, n % parts)),
        end(begin + n / parts + (part < n % parts ? 1 : 0)) {}
};

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 15;

// Into how many parts to split a list.
inline int64_t chunks_of(int64_t n, const Parallel& parallel) {
  return std::max<int64_t>(1, std::min<int64_t>(parallel.threads(), n / kWorthAThread));
}

// body(first, last, inner) over blocks of lists. Few long lists are done one after the other, each
// with all threads (`inner`); many lists are shared out, each done by one thread.
template <class Body>
void for_lists(int64_t lists, int64_t n, const Parallel& parallel, const Body& body) {
  const int64_t threads = parallel.threads();
  if (threads <= 1 || lists * n < 2 * kWorthAThread) {
    body(int64_t{0}, lists, Serial());
  } else if (lists < 2 * threads && n >= kWorthAThread) {
    body(int64_t{0}, lists, parallel);
  } else {
    const int64_t blocks = std::min(lists, 4 * threads);
    parallel.each(blocks, [&](int64_t block) {
      const Part part(lists, block, blocks);
      body(part.begin, part.end, Serial());
    });
  }
}

}  // namespace rankreg
