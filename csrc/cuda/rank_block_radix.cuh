// Ranks of lists that fit a block's shared memory: a radix sort, least significant digit first.
//
// What is sorted is places: 16-bit numbers of items, while the keys stay where they were loaded. So
// a pass moves 2 bytes an item, whatever the key, and two buffers of places suffice. The digits are
// 8 bits wide and begin at bits in which keys differ at all: bits that all keys share cost nothing.
//
// Absent items are left out by the first pass. The last pass hands out ordinal ranks; for the other
// tie rules it finishes the order, and a bitmap of its groups' first positions gives the ranks.
#pragma once

#include "marks.cuh"
#include "rank_items.cuh"
#include "tuning.h"

namespace rankreg {
namespace gpu {

// Shared memory of block_radix.
template <class Key>
struct BlockRadix {
  static constexpr int kThreadsMost = 512;
  static constexpr int kDigits = 256;
  static constexpr int kWarpsMost = kThreadsMost / kWarp;
  static constexpr int64_t kLongest = 32767;  // twice a rank must fit 16 bits

  struct Fixed {
    Key ones[kWarpsMost], zeros[kWarpsMost];  // bits that are 1, or 0, in a key of the warp's
    uint32_t present[kWarpsMost];             // items of the warp's
    uint32_t sum[kDigits / kWarp];
  };

  Fixed* fixed;
  Key* key;                 // [slots], at slot_of(i)
  uint32_t* counter;        // [2][warps][kDigits]: of this pass and of the next; Marks at last
  uint32_t* present;        // [slots / 32], bit i % 32 of word i / 32: item i takes part
  uint16_t *place, *other;  // [slots], slots in the order of the passes so far; ranks at last

  static int64_t slots(int64_t n) { return (n + kWarp - 1) / kWarp * kWarp; }
  static int64_t bytes(int64_t n, int threads) {
    return int64_t(sizeof(Fixed)) + slots(n) * int64_t(sizeof(Key) + 4) +
           2 * threads / kWarp * kDigits * 4 + slots(n) / 8;
  }
  // 0: the list does not fit.
  static int threads(int64_t n, int64_t shared_most) {
    if (n > kLongest) return 0;
    if (n > kSmallBlockRadixMost && bytes(n, kThreadsMost) <= shared_most) return kThreadsMost;
    return bytes(n, kThreadsMost / 2) <= shared_most ? kThreadsMost / 2 : 0;
  }

  __device__ explicit BlockRadix(int slots) {
    fixed = dynamic_shared<Fixed>();
    key = reinterpret_cast<Key*>(fixed + 1);
    counter = reinterpret_cast<uint32_t*>(key + slots);
    present = counter + 2 * blockDim.x / kWarp * kDigits;
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

// The lanes that are `live` and have the digit of this one. By ballots: their time does not depend
// on the digits.
__device__ inline unsigned peers_of(uint32_t digit, bool live) {
  unsigned peers = __ballot_sync(kAll, live);
#pragma unroll
  for (int bit = 0; bit < 8; ++bit) {
    const bool set = digit >> bit & 1u;
    const unsigned with = __ballot_sync(kAll, set);
    peers &= set ? with : ~with;
  }
  return peers;
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

// One block a list, of whole warps, 256 threads at least; a warp takes a stretch of positions, 32
// at a time. items, sink: lists x n. Dynamic shared memory: BlockRadix<Key>.
//
// Bytes: each element is read once and written once, besides the mask twice.
//
// Estimate of instructions, by counting those of sm_90: about 70 an item and pass, so 280 for
// 32-bit keys in random order, and 40 to load, to store and for ties. Requests to shared memory
// meet in banks as 32 random ones do, 3.5 at a time: 4 of them a pass, or 14 cycles of a
// multiprocessor for 32 items.
template <class Key>
__global__ void __launch_bounds__(BlockRadix<Key>::kThreadsMost)
    block_radix(Items items, Sink sink, Ties ties, int n) {
  using C = std::conditional_t<sizeof(Key) == 8, double, float>;
  constexpr int kDigits = BlockRadix<Key>::kDigits;
  constexpr uint32_t kAhead = 4;
  const uint32_t slots = uint32_t(n + kWarp - 1) / kWarp * kWarp;
  const BlockRadix<Key> memory{int(slots)};
  const int64_t list = blockIdx.x;
  const uint32_t t = threadIdx.x, lane = t % kWarp, warp = t / kWarp, threads = blockDim.x;
  const uint32_t warps = threads / kWarp;
  const unsigned below = (1u << lane) - 1;

  // Load.
  uint32_t *counter = memory.counter, *next_counter = counter + warps * kDigits;
  for (uint32_t c = t; c < warps * kDigits; c += threads)
    counter[c] = 0;
  {
    const C lam = items.moved() ? lam_of<C>(items.lam) : C(0);
    Key ones = 0, zeros = 0;
    uint32_t present = 0;
    for (uint32_t i = t; i < slots; i += threads) {
      Key key = 0;
      const bool is = i < uint32_t(n) && items.key<Key, C>(list, i, lam, &key);
      if (is) {
        ones = Key(ones | key);
        zeros = Key(zeros | Key(~key));
      } else if (i < uint32_t(n)) {
        sink.store_absent(list, n, i);
      }
      memory.key[slot_of(i)] = key;
      const unsigned word = __ballot_sync(kAll, is);
      if (lane == 0) memory.present[i / kWarp] = word;
      present += uint32_t(__popc(word));
    }
    for (int step = 1; step < kWarp; step *= 2) {
      ones = Key(ones | __shfl_xor_sync(kAll, ones, step));
      zeros = Key(zeros | __shfl_xor_sync(kAll, zeros, step));
    }
    if (lane == 0) {
      memory.fixed->ones[warp] = ones;
      memory.fixed->zeros[warp] = zeros;
      memory.fixed->present[warp] = present;
    }
  }
  __syncthreads();
  Key ones = 0, zeros = 0;
  uint32_t size = 0;
  for (uint32_t w = 0; w < warps; ++w) {
    ones = Key(ones | memory.fixed->ones[w]);
    zeros = Key(zeros | memory.fixed->zeros[w]);
    size += memory.fixed->present[w];
  }
  if (size == 0) return;  // the whole block
  Key todo = Key(ones & zeros);

  // The first pass counts its digits here, each other one in the pass before it.
  Stretches stretches(uint32_t(n), warps);
  const Stretches later(size, warps);
  int shift = lowest_bit(todo);
  for (uint32_t i = stretches.begin(warp) + lane; i < stretches.end(warp); i += kWarp) {
    const uint32_t digit = uint32_t(memory.key[slot_of(i)] >> shift) % kDigits;
    if (memory.present[i / kWarp] >> lane & 1u) atomicAdd(&counter[warp * kDigits + digit], 1u);
  }
  __syncthreads();

  uint16_t *from = memory.other, *to = memory.place;
  for (bool first = true, last = false; !last; first = false) {
    todo = Key(todo & ~(Key(kDigits - 1) << shift));
    last = todo == 0;
    const int next_shift = lowest_bit(todo);

    // Counters become positions: by digit, then by warp. Eight whole warps have a digit a thread.
    uint32_t own = 0, upto = 0;
    if (t < kDigits) {
      for (uint32_t w = 0; w < warps; ++w) {
        const uint32_t count = counter[w * kDigits + t];
        counter[w * kDigits + t] = own;
        own += count;
      }
      upto = own;
      for (unsigned step = 1; step < kWarp; step *= 2) {
        const uint32_t smaller = __shfl_up_sync(kAll, upto, step);
        if (lane >= step) upto += smaller;
      }
      if (lane == kWarp - 1) memory.fixed->sum[warp] = upto;
    }
    for (uint32_t c = t; c < warps * kDigits; c += threads)
      next_counter[c] = 0;
    __syncthreads();
    if (t < kDigits) {
      uint32_t base = upto - own;
      for (uint32_t w = 0; w < warp; ++w)
        base += memory.fixed->sum[w];
      for (uint32_t w = 0; w < warps; ++w)
        counter[w * kDigits + t] += base;
    }
    __syncthreads();

    uint32_t* const position = counter + warp * kDigits;
    const uint32_t end = stretches.end(warp);
    for (uint32_t p = stretches.begin(warp) + lane; p < end; p += kAhead * kWarp) {
      uint32_t item[kAhead];
      Key key[kAhead];
      unsigned peers[kAhead];
      bool live[kAhead];
#pragma unroll
      for (uint32_t u = 0; u < kAhead; ++u) {
        const uint32_t q = p + u * kWarp;
        live[u] = q < end;
        item[u] = 0;
        if (first) {
          live[u] = live[u] && (memory.present[q / kWarp] >> lane & 1u);
          if (live[u]) item[u] = slot_of(q);
        } else {
          live[u] = live[u] && q < size;
          if (live[u]) item[u] = from[q];
        }
        key[u] = memory.key[item[u]];
      }
#pragma unroll
      for (uint32_t u = 0; u < kAhead; ++u)
        peers[u] = peers_of(uint32_t(key[u] >> shift) % kDigits, live[u]);
#pragma unroll
      for (uint32_t u = 0; u < kAhead; ++u) {
        uint32_t* const mine = &position[uint32_t(key[u] >> shift) % kDigits];
        const uint32_t before = uint32_t(__popc(peers[u] & below));
        uint32_t at = 0;
        if (live[u]) at = *mine + before;
        __syncwarp();
        if (live[u] && before == 0) *mine = at + uint32_t(__popc(peers[u]));
        __syncwarp();
        if (!live[u]) continue;
        if (last && ties == Ties::kOrdinal) {
          to[item[u]] = uint16_t(2 * (at + 1));
        } else {
          to[at] = uint16_t(item[u]);
        }
        if (!last) {
          const uint32_t digit = uint32_t(key[u] >> next_shift) % kDigits;
          atomicAdd(&next_counter[later.warp_of(at) * kDigits + digit], 1u);
        }
      }
    }
    __syncthreads();

    stretches = later;
    shift = next_shift;
    uint32_t* const spare = counter;
    counter = next_counter;
    next_counter = spare;
    uint16_t* const sorted = to;
    to = from;
    from = sorted;
  }

  // `from` has ordinal ranks by slot, or slots by position.
  if (ties != Ties::kOrdinal) {
    const Marks heads = Marks::at(memory.counter, int(later.words));
    for (uint32_t p = t; p < later.words * kWarp; p += threads) {
      const Key key = p < size ? memory.key[from[p]] : Key(0);
      Key before = __shfl_up_sync(kAll, key, 1u);
      if (lane == 0 && p > 0) before = memory.key[from[p - 1]];
      const unsigned word = __ballot_sync(kAll, p < size && (p == 0 || key != before));
      if (lane == 0) heads.bits[p / kWarp] = word;
    }
    __syncthreads();
    heads.fill(ties, int(later.words));
    __syncthreads();
    for (uint32_t p = t; p < size; p += threads) {
      uint32_t twice = 0;
      if (ties == Ties::kMin || ties == Ties::kAverage) twice = heads.last_upto(p);
      if (ties == Ties::kMax || ties == Ties::kAverage) {
        const uint32_t next = heads.next_after(p);
        twice += next < size ? next : size;
      }
      if (ties == Ties::kDense) twice = heads.count_upto(p);
      to[from[p]] = uint16_t(ties == Ties::kAverage ? twice : 2 * twice);
    }
    __syncthreads();
    from = to;
  }

  for (uint32_t i = t; i < uint32_t(n); i += threads) {
    if (memory.present[i / kWarp] >> lane & 1u) sink.store(list, n, i, from[slot_of(i)]);
  }
}

template <class Key>
bool rank_block_radix_as(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                         Context& context) {
  const int threads = BlockRadix<Key>::threads(n, context.shared_most);
  if (threads == 0) return false;
  launch<block_radix<Key>>(context, lists, threads, BlockRadix<Key>::bytes(n, threads), items, sink,
                           ties, int(n));
  return true;
}

// One launch. False if a list does not fit a block's shared memory: nothing has been done then.
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
