// The scheduler of cuda_emulator.h.
#include "cuda_emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define RANKREG_ASAN 1
#else
#define RANKREG_ASAN 0
#endif

emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = RANKREG_ASAN ? 256 * 1024 : 64 * 1024;
constexpr unsigned char kPoison = 0xa5;

// ---------------------------------------------------------------------------------- fibers

#if defined(__x86_64__)

// Saves the registers that a call must keep on the stack, and takes another stack with its own.
extern "C" void rankreg_switch(void** save, void* load);
asm(R"(
.text
.globl rankreg_switch
.hidden rankreg_switch
.type rankreg_switch, @function
rankreg_switch:
  .cfi_startproc
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
.size rankreg_switch, .-rankreg_switch
)");

struct Place {
  void* stack = nullptr;

  void prepare(char* memory, size_t size, void (*entry)()) {
    // As if entry() had been called: the stack is 8 modulo 16 on its first instruction.
    void** top = reinterpret_cast<void**>(memory + size) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i)
      *--top = nullptr;
    stack = top;
  }
  static void change(Place& from, Place& to) { rankreg_switch(&from.stack, to.stack); }
};

#else

struct Place {
  ucontext_t context;

  void prepare(char* memory, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Place& from, Place& to) { swapcontext(&from.context, &to.context); }
};

#endif

struct Stack {
  char* memory;
  Stack() {
    void* got = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    memory = static_cast<char*>(got);
  }
  ~Stack() { munmap(memory, kStack); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
};

// What the lanes of one warp function brought along, until all of them have seen it.
struct Slab {
  uint64_t words[kWarp];
};

struct Thread {
  Place place;
  std::unique_ptr<Stack> stack;
  void* fake_stack = nullptr;
  Wait wait = Wait::kNone;
  bool finished = false;
  unsigned mask = 0;
  uint64_t value = 0;
  Slab slab;  // filled by the lane that arrives last
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  int count = 0, current = 0;
  Place scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  const std::function<void()>* kernel = nullptr;
  std::vector<int> order;
  bool progress = false;
  int finished = 0, at_barrier = 0;
  Wait barrier_kind = Wait::kBarrier;
  int64_t barrier_sum = 0, barrier_result = 0;
  std::unique_ptr<unsigned char[]> dynamic;
  Shared shared = {};
  size_t static_bytes = 0;
  std::map<const void*, std::unique_ptr<unsigned char[]>> statics;
};

Block block;
uint64_t seed_of_order = 0, random_state = 0;
int64_t launch_count = 0;
bool running = false;
std::string failure;  // what the kernel threw

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

template <class T>
void shuffle_order(std::vector<T>& order) {
  if (seed_of_order == 0) return;
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[size_t(next_random() % i)]);
}

const char* name(Wait wait) {
  switch (wait) {
    case Wait::kBarrier: return "__syncthreads";
    case Wait::kCountBarrier: return "__syncthreads_count";
    case Wait::kWarp: return "__syncwarp";
    case Wait::kShuffle: return "__shfl_sync";
    case Wait::kBallot: return "__ballot_sync";
    default: return "nothing";
  }
}

void to_scheduler(bool for_good) {
  Thread& self = *block.threads[size_t(block.current)];
#if RANKREG_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, block.scheduler_bottom,
                                 block.scheduler_size);
#endif
  (void)for_good;
  Place::change(self.place, block.scheduler);
#if RANKREG_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

void entry() {
#if RANKREG_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_bottom, &block.scheduler_size);
#endif
  try {
    (*block.kernel)();
  } catch (const std::exception& error) {
    if (failure.empty()) failure = error.what();
  }
  Thread& self = *block.threads[size_t(block.current)];
  self.finished = true;
  ++block.finished;
  to_scheduler(true);
}

void resume(int thread) {
  Thread& next = *block.threads[size_t(thread)];
  block.current = thread;
  threadIdx.x = unsigned(thread);
#if RANKREG_ASAN
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, next.stack->memory, kStack);
#endif
  Place::change(block.scheduler, next.place);
#if RANKREG_ASAN
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void wait_here(Wait kind) {
  Thread& self = *block.threads[size_t(block.current)];
  self.wait = kind;
  while (self.wait != Wait::kNone)
    to_scheduler(false);
}

std::string stuck() {
  std::map<std::string, std::pair<int, int>> waits;  // how many, the first of them
  for (int t = 0; t < block.count; ++t) {
    const Thread& thread = *block.threads[size_t(t)];
    const std::string what = thread.finished ? "returned" : name(thread.wait);
    auto& entry = waits.emplace(what, std::make_pair(0, t)).first->second;
    ++entry.first;
  }
  std::string text = "block " + std::to_string(blockIdx.x) + " cannot go on:";
  for (const auto& wait : waits) {
    const bool returned = wait.first == "returned";
    text += " " + std::to_string(wait.second.first) + " threads " +
            (returned ? "have returned" : "wait at " + wait.first) + " (thread " +
            std::to_string(wait.second.second) + " first);";
  }
  return text;
}

void run_block(unsigned index, const std::function<void()>& kernel) {
  blockIdx.x = index;
  block.kernel = &kernel;
  block.finished = block.at_barrier = 0;
  block.barrier_sum = 0;
  block.statics.clear();
  block.static_bytes = 0;
  // Never null, and never zero bytes long: the address is what counts.
  block.dynamic.reset(new unsigned char[block.shared.dynamic ? block.shared.dynamic : 1]);
  memset(block.dynamic.get(), kPoison, block.shared.dynamic);
  for (int t = 0; t < block.count; ++t) {
    Thread& thread = *block.threads[size_t(t)];
    thread.wait = Wait::kNone;
    thread.finished = false;
#if RANKREG_ASAN
    __asan_unpoison_memory_region(thread.stack->memory, kStack);  // left by the block before
#endif
    thread.place.prepare(thread.stack->memory, kStack, entry);
  }
  while (block.finished < block.count) {
    block.progress = false;
    shuffle_order(block.order);
    for (const int t : block.order) {
      Thread& thread = *block.threads[size_t(t)];
      if (thread.finished || thread.wait != Wait::kNone) continue;
      block.progress = true;
      resume(t);
    }
    if (!failure.empty()) throw std::runtime_error(std::exchange(failure, std::string()));
    if (!block.progress) throw std::runtime_error(stuck());
  }
}

struct Running {
  Running() {
    if (running) throw std::runtime_error("a kernel launched a kernel");
    running = true;
  }
  ~Running() { running = false; }
};

}  // namespace

int current_lane() { return block.current % kWarp; }

void set_seed(uint64_t seed) {
  seed_of_order = seed;
  random_state = seed * 0x9e3779b97f4a7c15u + 1;
}

int64_t launches() { return launch_count; }

void* dynamic_shared() { return block.dynamic.get(); }

void* static_shared(const void* tag, size_t bytes) {
  auto& memory = block.statics[tag];
  if (!memory) {
    block.static_bytes += bytes;
    if (block.static_bytes > block.shared.static_most ||
        block.static_bytes + block.shared.dynamic > block.shared.most)
      throw std::runtime_error("a block asks for too much shared memory");
    memory.reset(new unsigned char[bytes]);
    memset(memory.get(), kPoison, bytes);
  }
  return memory.get();
}

int64_t barrier(Wait kind, int64_t value) {
  if (block.at_barrier == 0) block.barrier_kind = kind;
  if (block.barrier_kind != kind)
    throw std::runtime_error("threads of a block wait at different barriers");
  block.barrier_sum += value;
  if (++block.at_barrier < block.count) {
    wait_here(kind);
    return block.barrier_result;
  }
  block.barrier_result = std::exchange(block.barrier_sum, 0);
  block.at_barrier = 0;
  for (const auto& other : block.threads)
    other->wait = Wait::kNone;
  // The last to arrive must not be the first to go on each time.
  Thread& self = *block.threads[size_t(block.current)];
  self.wait = Wait::kNone;
  block.progress = true;
  to_scheduler(false);
  return block.barrier_result;
}

const uint64_t* exchange(unsigned mask, Wait kind, uint64_t value) {
  const int lane = current_lane(), first = block.current - lane;
  if (!(mask >> lane & 1u))
    throw std::runtime_error("a lane outside the mask called a warp function");
  Thread& self = *block.threads[size_t(block.current)];
  self.mask = mask;
  self.value = value;
  self.wait = kind;
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1u)) continue;
    if (first + i >= block.count) throw std::runtime_error("a mask names lanes beyond the block");
    const Thread& other = *block.threads[size_t(first + i)];
    const bool warp_function = other.wait != Wait::kNone && other.wait != Wait::kBarrier &&
                               other.wait != Wait::kCountBarrier;
    if (!warp_function) {
      wait_here(kind);
      return self.slab.words;
    }
    if (other.wait != kind || other.mask != mask)
      throw std::runtime_error(std::string("lanes of a warp call different functions: ") +
                               name(kind) + " and " + name(other.wait) +
                               (other.mask != mask ? ", or with different masks" : ""));
  }
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1u)) continue;
    Thread& other = *block.threads[size_t(first + i)];
    for (int j = 0; j < kWarp; ++j) {
      if (mask >> j & 1u) other.slab.words[j] = block.threads[size_t(first + j)]->value;
    }
  }
  for (int i = 0; i < kWarp; ++i) {
    if (mask >> i & 1u) block.threads[size_t(first + i)]->wait = Wait::kNone;
  }
  return self.slab.words;
}

void run(int64_t blocks, int threads, const Shared& shared, const std::function<void()>& kernel) {
  const Running guard;
  ++launch_count;
  if (threads < 1 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  blockDim = {unsigned(threads), 1, 1};
  gridDim = {unsigned(blocks), 1, 1};
  block.count = threads;
  if (shared.dynamic > shared.most)
    throw std::runtime_error("a block asks for too much shared memory");
  block.shared = shared;
  while (block.threads.size() < size_t(threads)) {
    block.threads.emplace_back(new Thread);
    block.threads.back()->stack.reset(new Stack);
  }
  block.order.clear();
  for (int t = 0; t < threads; ++t)
    block.order.push_back(t);
  for (const auto& thread : block.threads)
    thread->wait = Wait::kNone;
  std::vector<unsigned> order;
  for (int64_t b = 0; b < blocks; ++b)
    order.push_back(unsigned(b));
  shuffle_order(order);
  for (const unsigned index : order)
    run_block(index, kernel);
}

}  // namespace emulator
