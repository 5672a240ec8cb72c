// Ranks of lists that fit a block's shared memory: a radix sort, least significant digit first.
//
// What is sorted is places: 16-bit numbers of items, while the keys stay where they were loaded. So
// a pass moves 2 bytes an item, whatever the key, and two buffers of places suffice. The digits are
// 8 bits wide and begin at bits in which keys differ at all: bits that all keys share cost nothing.
//
// Absent items are left out by the first pass. The last pass hands out ordinal ranks; for the other
// tie rules it finishes the order, and a bitmap of its groups' first positions gives the ranks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "item_tile.cuh"
#include "marks.cuh"
#include "tuning.h"

namespace rankreg {
namespace gpu {

constexpr uint32_t kRadixDigits = 256;

// Shared memory of block_radix.
template <class Key>
struct BlockRadix {
  static constexpr int kThreadsMost = 512;
  static constexpr int kWarpsMost = kThreadsMost / kWarp;
  static constexpr int64_t kLongest = 32767;  // twice a rank must fit 16 bits

  struct Fixed {
    Key ones[kWarpsMost], zeros[kWarpsMost];  // bits that are 1, or 0, in a key of the warp's
    uint32_t present[kWarpsMost];             // items of the warp's
    uint32_t sum[kRadixDigits / kWarp];       // items of 32 digits
  };

  Fixed* fixed;
  Key* key;                 // [slots], at slot_of(i)
  uint32_t* counter;        // [2][warps][256]: of this pass and of the next; Marks at last
  uint32_t* present;        // [slots / 32], bit i % 32 of word i / 32: item i takes part
  uint16_t *place, *other;  // [slots], slots in the order of the passes so far; ranks at last

  static int64_t slots(int64_t n) { return (n + kWarp - 1) / kWarp * kWarp; }
  static int64_t bytes(int64_t n, int threads) {
    return int64_t(sizeof(Fixed)) + slots(n) * int64_t(sizeof(Key) + 4) +
           2 * threads / kWarp * int64_t(kRadixDigits) * 4 + slots(n) / 8;
  }
  // 0: the list does not fit.
  static int threads(int64_t n, int64_t shared_most) {
    if (n > kLongest) return 0;
    if (n > kSmallBlockRadixMost && bytes(n, kThreadsMost) <= shared_most) return kThreadsMost;
    return bytes(n, kThreadsMost / 2) <= shared_most ? kThreadsMost / 2 : 0;
  }

  __device__ explicit BlockRadix(uint32_t slots) {
    fixed = dynamic_shared<Fixed>();
    key = reinterpret_cast<Key*>(fixed + 1);
    counter = reinterpret_cast<uint32_t*>(key + slots);
    present = counter + 2 * blockDim.x / kWarp * kRadixDigits;
    place = reinterpret_cast<uint16_t*>(present + slots / kWarp);
    other = place + slots;
  }
};

// Keys of items 2^k apart must not meet in a bank: passes over evenly spaced scores would read them
// together. Its own inverse, and a permutation of each 32.
__device__ inline uint32_t slot_of(uint32_t i) { return i ^ ((i >> 5 ^ i >> 10) & 31); }

__device__ inline int lowest_bit(uint64_t bits) {
  return bits ? __ffsll((long long)(bits)) - 1 : 0;
}

// The lanes whose `word` has the same bit number `bit` as that of this lane. Assembly because, left
// to itself, the compiler takes 7 instructions for it and not 3.
template <int bit>
__device__ inline unsigned lanes_of_bit(uint32_t word) {
#if defined(__CUDA_ARCH__)
  unsigned lanes;
  asm volatile(
      "{\n"
      " .reg .pred set;\n"
      " .reg .b32 own;\n"
      " and.b32 own, %1, %2;\n"
      " setp.ne.u32 set, own, 0;\n"
      " vote.sync.ballot.b32 %0, set, 0xffffffff;\n"
      " @!set not.b32 %0, %0;\n"
      "}"
      : "=r"(lanes)
      : "r"(word), "n"(1 << bit));
  return lanes;
#else
  const bool set = word >> bit & 1u;
  const unsigned lanes = __ballot_sync(kAll, set);
  return set ? lanes : ~lanes;
#endif
}

// The lanes whose words end in the same 8 bits as that of this lane. By ballots, whose time does
// not depend on the digits, as that of a match instruction is said to.
__device__ inline unsigned lanes_alike(uint32_t word) {
  unsigned lanes = lanes_of_bit<0>(word);
  lanes &= lanes_of_bit<1>(word);
  lanes &= lanes_of_bit<2>(word);
  lanes &= lanes_of_bit<3>(word);
  // Of another word, or the compiler holds 7 bits in the 7 predicates there are, and gives up.
  lanes &= lanes_of_bit<0>(word >> 4);
  lanes &= lanes_of_bit<1>(word >> 4);
  lanes &= lanes_of_bit<2>(word >> 4);
  lanes &= lanes_of_bit<3>(word >> 4);
  return lanes;
}

// Positions [0, size) in stretches of whole words, one a warp.
struct Stretches {
  uint32_t words, each, reciprocal;

  __device__ Stretches(uint32_t size, uint32_t warps)
      : words((size + kWarp - 1) / kWarp), each((words + warps - 1) / warps) {
    reciprocal = ((1u << 20) + each - 1) / each;  // exact for up to 1024 words
  }
  __device__ uint32_t begin(uint32_t warp) const { return min_of(warp * each) * kWarp; }
  __device__ uint32_t end(uint32_t warp) const { return min_of((warp + 1) * each) * kWarp; }
  __device__ uint32_t warp_of(uint32_t position) const {
    return (position / kWarp * reciprocal) >> 20;
  }

 private:
  __device__ uint32_t min_of(uint32_t word) const { return word < words ? word : words; }
};

// The memory's `key` and `present`: item i and every threads-th after it. Returns the number of
// items that take part; `ones` and `zeros` get the bits that are 1, or 0, in any of their keys. By
// the whole block; what it has written may be read when it returns.
template <class Key>
__device__ uint32_t load_block(const Items& items, int64_t list, uint32_t n,
                               const BlockRadix<Key>& memory, Key* ones, Key* zeros) {
  constexpr int kAhead = 4;
  const uint32_t t = threadIdx.x, lane = t % kWarp, warp = t / kWarp, threads = blockDim.x;
  const uint32_t slots = (n + kWarp - 1) / kWarp * kWarp;
  Key some_ones = 0, some_zeros = 0;
  uint32_t present = 0;
#pragma unroll 1
  for (uint32_t first = t; first < slots; first += kAhead * threads) {
    Key key[kAhead];
    const uint32_t taken = load_items<Key>(items, list, int(first), int(threads), int(n), key);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t i = first + uint32_t(j) * threads;
      if (i >= slots) break;  // the whole warp
      const bool is = taken >> j & 1u;
      const unsigned word = __ballot_sync(kAll, is);
      if (lane == 0) memory.present[i / kWarp] = word;
      present += uint32_t(__popc(word));
      memory.key[slot_of(i)] = is ? key[j] : Key(0);
      some_ones = Key(some_ones | (is ? key[j] : Key(0)));
      some_zeros = Key(some_zeros | (is ? Key(~key[j]) : Key(0)));
    }
  }
  for (int step = 1; step < kWarp; step *= 2) {
    some_ones = Key(some_ones | __shfl_xor_sync(kAll, some_ones, step));
    some_zeros = Key(some_zeros | __shfl_xor_sync(kAll, some_zeros, step));
  }
  if (lane == 0) {
    memory.fixed->ones[warp] = some_ones;
    memory.fixed->zeros[warp] = some_zeros;
    memory.fixed->present[warp] = present;
  }
  __syncthreads();
  *ones = *zeros = 0;
  uint32_t size = 0;
#pragma unroll 1
  for (uint32_t w = 0; w < threads / kWarp; ++w) {
    *ones = Key(*ones | memory.fixed->ones[w]);
    *zeros = Key(*zeros | memory.fixed->zeros[w]);
    size += memory.fixed->present[w];
  }
  return size;
}

// Counts of each warp's digits become the positions of its first items of each digit: by digit,
// then by warp. counter: [warps][256], complete; sum: [8]. Eight whole warps have a digit a thread.
// By the whole block; what it has written may be read when it returns.
__device__ inline void positions_of_counts(uint32_t* counter, uint32_t* sum) {
  const uint32_t t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  const uint32_t warps = blockDim.x / kWarp;
  uint32_t own = 0, upto = 0;
  if (t < kRadixDigits) {
#pragma unroll 4
    for (uint32_t w = 0; w < warps; ++w) {
      const uint32_t count = counter[w * kRadixDigits + t];
      counter[w * kRadixDigits + t] = own;
      own += count;
    }
    upto = own;
    for (unsigned step = 1; step < kWarp; step *= 2) {
      const uint32_t smaller = __shfl_up_sync(kAll, upto, step);
      if (lane >= step) upto += smaller;
    }
    if (lane == kWarp - 1) sum[warp] = upto;
  }
  __syncthreads();
  if (t < kRadixDigits) {
    uint32_t base = upto - own;
#pragma unroll 1
    for (uint32_t w = 0; w < warp; ++w)
      base += sum[w];
#pragma unroll 4
    for (uint32_t w = 0; w < warps; ++w)
      counter[w * kRadixDigits + t] += base;
  }
  __syncthreads();
}

// One pass, as a warp does it.
template <class Key>
struct Pass {
  const Key* key;  // by slot
  const uint32_t* present;
  const uint16_t* from;    // slots by position; of the first pass: none, items come in their order
  uint16_t* to;            // the same, or ranks by slot
  uint32_t* position;      // [256], the warp's next one of each digit
  uint32_t* next_counter;  // [warps][256], of digits in the next pass
  Stretches later;         // of the next pass
  int shift, next_shift;
  uint32_t size;
  bool first, last, ordinal;

  // Positions p, p + 32 and so on; `sure`: an item that takes part is at each of them.
  template <int kWords, bool sure>
  __device__ __forceinline__ void take(uint32_t p) const {
    const unsigned below = (1u << threadIdx.x % kWarp) - 1;
    uint32_t item[kWords], digits[kWords];  // digits: of this pass, then of the next
    unsigned peers[kWords];
    bool live = true;
    if (!sure) {
      static_assert(sure || kWords == 1, "one word of which it is not known");
      live = first ? present[p / kWarp] >> p % kWarp & 1u : p < size;
    }
#pragma unroll
    for (int u = 0; u < kWords; ++u) {
      const uint32_t q = p + uint32_t(u) * kWarp;
      item[u] = !live ? 0u : first ? slot_of(q) : from[q];
    }
#pragma unroll
    for (int u = 0; u < kWords; ++u) {
      const Key own = key[item[u]];
      const uint32_t now = uint32_t(own >> shift), then = uint32_t(own >> next_shift);
      digits[u] = now % kRadixDigits | then % kRadixDigits << 8;
    }
#pragma unroll
    for (int u = 0; u < kWords; ++u) {
      peers[u] = lanes_alike(digits[u]);
      if (!sure) peers[u] &= __ballot_sync(kAll, live);
    }
#pragma unroll
    for (int u = 0; u < kWords; ++u) {
      uint32_t* const next = &position[digits[u] % kRadixDigits];
      const uint32_t before = uint32_t(__popc(peers[u] & below));
      const uint32_t at = live ? *next + before : 0;
      __syncwarp();
      if (live && before == 0) *next = at + uint32_t(__popc(peers[u]));
      __syncwarp();
      if (!live) continue;
      if (last && ordinal) {
        to[item[u]] = uint16_t(2 * (at + 1));
      } else {
        to[at] = uint16_t(item[u]);
      }
      if (!last) atomicAdd(&next_counter[later.warp_of(at) * kRadixDigits + (digits[u] >> 8)], 1u);
    }
  }
};

// Sorts the loaded list, of which `size` items take part, by the bits `todo`, in passes of eight.
// Returns the slots by position or, for ordinal ranks, twice the ranks by slot; *spare is the other
// buffer. By the whole block; what it has written may be read when it returns.
template <class Key>
__device__ uint16_t* sort_block(const BlockRadix<Key>& memory, uint32_t n, uint32_t size, Key todo,
                                bool ordinal, uint16_t** spare) {
  constexpr uint32_t kAhead = 4;
  const uint32_t t = threadIdx.x, lane = t % kWarp, warp = t / kWarp, threads = blockDim.x;
  const uint32_t warps = threads / kWarp;
  uint32_t *counter = memory.counter, *next_counter = counter + warps * kRadixDigits;
  uint16_t *from = memory.other, *to = memory.place;
  Stretches stretches(n, warps);
  const Stretches later(size, warps);
  int shift = lowest_bit(todo);

  // The first pass counts its digits here, each other one in the pass before it.
#pragma unroll 1
  for (uint32_t d = lane; d < kRadixDigits; d += kWarp)
    counter[warp * kRadixDigits + d] = 0;
  __syncwarp();
#pragma unroll 4
  for (uint32_t i = stretches.begin(warp) + lane; i < stretches.end(warp); i += kWarp) {
    const uint32_t digit = uint32_t(memory.key[slot_of(i)] >> shift) % kRadixDigits;
    if (memory.present[i / kWarp] >> lane & 1u)
      atomicAdd(&counter[warp * kRadixDigits + digit], 1u);
  }

  for (bool first = true, last = false; !last; first = false) {
    todo = Key(todo & ~(Key(kRadixDigits - 1) << shift));
    last = todo == 0;
    const int next_shift = lowest_bit(todo);
#pragma unroll 1
    for (uint32_t c = t; c < warps * kRadixDigits; c += threads)
      next_counter[c] = 0;
    __syncthreads();
    positions_of_counts(counter, memory.fixed->sum);

    uint32_t* const position = counter + warp * kRadixDigits;
    const Pass<Key> pass{memory.key, memory.present, from, to,    position, next_counter, later,
                         shift,      next_shift,     size, first, last,     ordinal};
    const uint32_t end = stretches.end(warp), sure = first && size < n ? 0 : size;
    uint32_t p = stretches.begin(warp);
#pragma unroll 1
    for (; p + kAhead * kWarp <= end && p + kAhead * kWarp <= sure; p += kAhead * kWarp)
      pass.template take<kAhead, true>(p + lane);
#pragma unroll 1
    for (; p < end; p += kWarp)
      pass.template take<1, false>(p + lane);
    __syncthreads();

    stretches = later;
    shift = next_shift;
    uint32_t* const counted = next_counter;
    next_counter = counter;
    counter = counted;
    uint16_t* const sorted = to;
    to = from;
    from = sorted;
  }
  *spare = to;
  return from;
}

// Twice the ranks, by slot, of items whose slots are sorted. place: [size]. By the whole block;
// what it has written may be read when it returns.
template <class Key>
__device__ void rank_sorted_block(const BlockRadix<Key>& memory, const uint16_t* place,
                                  uint32_t size, Ties ties, uint16_t* twice) {
  const uint32_t t = threadIdx.x, lane = t % kWarp, threads = blockDim.x;
  const uint32_t words = (size + kWarp - 1) / kWarp;
  const Marks heads = Marks::at(memory.counter, int(words));
#pragma unroll 1
  for (uint32_t p = t; p < words * kWarp; p += threads) {
    const Key key = p < size ? memory.key[place[p]] : Key(0);
    Key before = __shfl_up_sync(kAll, key, 1u);
    if (lane == 0 && p > 0) before = memory.key[place[p - 1]];
    const unsigned word = __ballot_sync(kAll, p < size && (p == 0 || key != before));
    if (lane == 0) heads.bits[p / kWarp] = word;
  }
  __syncthreads();
  heads.fill(ties, int(words));
  __syncthreads();
#pragma unroll 1
  for (uint32_t p = t; p < size; p += threads) {
    uint32_t rank = 0;  // of an average, twice
    if (ties == Ties::kMin || ties == Ties::kAverage) rank = heads.last_upto(p);
    if (ties == Ties::kMax || ties == Ties::kAverage) {
      const uint32_t next = heads.next_after(p);
      rank += next < size ? next : size;
    }
    if (ties == Ties::kDense) rank = heads.count_upto(p);
    twice[place[p]] = uint16_t(ties == Ties::kAverage ? rank : 2 * rank);
  }
  __syncthreads();
}

// One block a list, of 256 threads or more; a warp takes a stretch of positions, 32 at a time.
// items, sink: lists x n. Dynamic shared memory: BlockRadix<Key>.
//
// Bytes: each element is read once and written once. The kernel is bound by instructions and by
// shared memory. Estimate: 67 instructions an item and pass, counted in the code for sm_90, and
// about 125 besides, so 393 for 32-bit keys in random order; their 5 requests to shared memory an
// item and pass meet in the banks as random ones do, 3.5 at a time.
template <class Key>
__global__ void __launch_bounds__(BlockRadix<Key>::kThreadsMost, 2)
    block_radix(Items items, Sink sink, Ties ties, int64_t first_list, int n) {
  constexpr int kAhead = 4;
  const uint32_t t = threadIdx.x, lane = t % kWarp, threads = blockDim.x;
  const int64_t list = first_list + blockIdx.x;
  const BlockRadix<Key> memory((uint32_t(n) + kWarp - 1) / kWarp * kWarp);
  Key ones, zeros;
  const uint32_t size = load_block(items, list, uint32_t(n), memory, &ones, &zeros);
  uint16_t* ranks = nullptr;
  if (size > 0) {
    uint16_t* spare;
    const bool ordinal = ties == Ties::kOrdinal;
    ranks = sort_block(memory, uint32_t(n), size, Key(ones & zeros), ordinal, &spare);
    if (!ordinal) {
      rank_sorted_block(memory, ranks, size, ties, spare);
      ranks = spare;
    }
  }
#pragma unroll 1
  for (uint32_t first = t; first < uint32_t(n); first += kAhead * threads) {
    uint32_t taken = 0, twice[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t i = first + uint32_t(j) * threads;
      const bool is = i < uint32_t(n) && (memory.present[i / kWarp] >> lane & 1u);
      twice[j] = is ? ranks[slot_of(i)] : 0u;
      taken |= uint32_t(is) << j;
    }
    store_items<Key>(sink, list, n, int(first), int(threads), taken, twice);
  }
}

template <class Key>
bool rank_block_radix_as(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                         Context& context) {
  const int threads = BlockRadix<Key>::threads(n, context.shared_most);
  if (threads == 0) return false;
  for (int64_t from = 0; from < lists; from += kMostBlocks) {
    launch<block_radix<Key>>(context, std::min(kMostBlocks, lists - from), threads,
                             BlockRadix<Key>::bytes(n, threads), items, sink, ties, from, int(n));
  }
  return true;
}

// One launch, below 2^31 lists. False if a list does not fit a block's shared memory: nothing has
// been done then.
inline bool rank_block_radix(const Items& items, const Sink& sink, Ties ties, int64_t lists,
                             int64_t n, Context& context) {
  if (lists == 0 || n == 0) return true;
  switch (key_bytes(items.x.type, items.moved())) {
    case 2: return rank_block_radix_as<uint16_t>(items, sink, ties, lists, n, context);
    case 4: return rank_block_radix_as<uint32_t>(items, sink, ties, lists, n, context);
    default: return rank_block_radix_as<uint64_t>(items, sink, ties, lists, n, context);
  }
}

}  // namespace gpu
}  // namespace rankreg
