// Rare positives of short lists, each held on chip by one team of threads: a warp, or a block. One
// launch each way, any number of positives.
//
//   forward    r_i = 1 + #{k : a_k > a_i}
//   backward   an item at x that does not move changes rank by
//                D(x) = #{i in P : a+_i > x} - #{i in P : a_i > x};
//              a positive that moves has r'_i = 1 + #{k : a_k > a+_i} + D(a+_i)
//
// Positives that do not move cancel in D, so nobody looks for the movers. Thread t of a team holds
// items (warp * rounds + r) * 128 + lane * 4 + 0..3 of its list, for r < rounds, in registers:
//
//   1  scores and masks are read, once, and positives counted     barrier: where each warp's begin
//   2  thresholds (a, or a and a+) go to shared memory            barrier
//   3  every item meets them                                      barrier
//   4  ranks or gradients are written
//
// Up to kCompareAll positives, step 3 compares each item with each of them. With more, thresholds
// are sorted first, as keys; each item is put into its place among them by binary search, and
// counted there. Most items of a good classifier are below the lowest threshold: one comparison.
#pragma once

#include "../common/formulas.h"
#include "../common/keys.h"
#include "positive_ranks.h"
#include "rank_items.cuh"
#include "rankreg_loss.h"
#include "tuning.h"

namespace rankreg {
namespace gpu {

// NaN, which is above and below nothing, and whose key is all ones.
template <class C>
RANKREG_HD inline C absent() {
  return bit_cast<C>(KeyOf<C>(~KeyOf<C>{0} >> 1));
}

constexpr int kRounds = ListTuning::kRounds;
constexpr int kTeamMost = ListTuning::kTeamMost;

// Four items at a time: a view is read so where its lists are contiguous and aligned.
struct Quads {
  View view;  // lists x n
  bool whole;
};

// Lists, and how they are shared out.
struct ShortLists {
  Quads scores;
  Quads positives, where;  // bool; where may be absent
  int64_t lists;
  int n;
  int team;      // threads a list: whole warps; of one warp, several teams make a block
  int rounds;    // items a thread: 4 * rounds
  int capacity;  // thresholds that shared memory has room for: a power of two
};

// The threads of one list: a warp of the block, or all of it. A warp needs no barrier of the block.
struct Team {
  int size, rank, warp, lane;
  int index, count;  // of the block's teams

  __device__ explicit Team(int threads) : size(threads), lane(int(threadIdx.x) % kWarp) {
    rank = one_warp() ? lane : int(threadIdx.x);
    warp = rank / kWarp;
    index = one_warp() ? int(threadIdx.x) / kWarp : 0;
    count = one_warp() ? int(blockDim.x) / kWarp : 1;
  }
  __device__ bool one_warp() const { return size == kWarp; }
  __device__ int warps() const { return size / kWarp; }
  __device__ void sync() const {
    if (one_warp()) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

// What a thread holds of a list; item 4 r + j of `x` is the list's item begin(r) + j.
template <class C>
struct Held {
  C x[kRounds][4];         // NaN for masked items and those beyond the end
  unsigned positive = 0;   // bit 4 r + j; no masked item is a positive
  unsigned unmasked = 0;   // likewise
  int slot[kRounds] = {};  // of the first positive of a round among the list's, in index order
  int first, step;         // begin(r) = first + r * step

  __device__ Held(const ShortLists& in, const Team& team)
      : first((team.warp * in.rounds * kWarp + team.lane) * 4), step(4 * kWarp) {}
  __device__ int begin(int r) const { return first + r * step; }

  // f(item, slot) for the thread's positives. Few: not unrolled.
  template <class F>
  __device__ void each_positive(const F& f) const {
    unsigned before = ~0u;
    int at = 0;
#pragma unroll 1
    for (unsigned rest = positive; rest != 0; rest &= rest - 1) {
      const unsigned bit = unsigned(__ffs(int(rest))) - 1, r = bit / 4;
      if (r != before) {
#pragma unroll
        for (int q = 0; q < kRounds; ++q)
          at = unsigned(q) == r ? slot[q] : at;
      }
      before = r;
      f(begin(int(r)) + int(bit % 4), at++);
    }
  }
};

// Four numbers as memory holds them, moved in pieces of 16 bytes.
template <class C>
struct alignas(16) Four {
  C x[4];
};

template <class C>
__device__ inline bool narrow(const View& view) {
  return sizeof(C) == 4 && view.type != Type::kFloat;
}

// Bits of four elements of one list, so that all loads are under way before the first is used.
// Half and BFloat16 stay packed: C is float.
template <class C>
__device__ inline void read_four(const Quads& from, int64_t list, int begin, int n, C (&x)[4]) {
  const View& view = from.view;
  const int64_t at = offset(view, list, begin);
  const C* const wide = static_cast<const C*>(view.data) + at;
  const uint16_t* const halves = static_cast<const uint16_t*>(view.data) + at;
  if (!from.whole || begin + 4 > n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (begin + j >= n) break;
      if constexpr (sizeof(C) == 4) {
        x[j] = narrow<C>(view) ? bit_cast<C>(uint32_t(halves[j * view.stride]))
                               : wide[j * view.stride];
      } else {
        x[j] = wide[j * view.stride];
      }
    }
    return;
  }
  if constexpr (sizeof(C) == 4) {
    if (narrow<C>(view)) {
      const uint2 words = *reinterpret_cast<const uint2*>(halves);
      x[0] = bit_cast<C>(words.x), x[1] = bit_cast<C>(words.y);
      return;
    }
  }
  const Four<C> four = *reinterpret_cast<const Four<C>*>(wide);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    x[j] = four.x[j];
}

// The same as numbers.
template <class C>
__device__ inline void widen_four(const Quads& from, int begin, int n, C (&x)[4]) {
  if constexpr (sizeof(C) == 4) {
    if (!narrow<C>(from.view)) return;
    uint32_t words[4];
    if (from.whole && begin + 4 <= n) {
      const uint32_t low = bit_cast<uint32_t>(x[0]), high = bit_cast<uint32_t>(x[1]);
      words[0] = low & 0xffffu, words[1] = low >> 16;
      words[2] = high & 0xffffu, words[3] = high >> 16;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        words[j] = begin + j < n ? bit_cast<uint32_t>(x[j]) : 0u;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint16_t bits = uint16_t(words[j]);
      x[j] = from.view.type == Type::kHalf ? float(Half{bits}) : float(BFloat16{bits});
    }
  }
}

// Four bools as bytes of a word; those beyond the end are 0.
__device__ inline uint32_t read_flags(const Quads& from, int64_t list, int begin, int n) {
  const uint8_t* data = static_cast<const uint8_t*>(from.view.data);
  const int64_t at = offset(from.view, list, begin);
  if (from.whole && begin + 4 <= n) return *reinterpret_cast<const uint32_t*>(data + at);
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (begin + j < n) word |= uint32_t(data[at + j * from.view.stride]) << (8 * j);
  }
  return word;
}

// One score; C holds it exactly.
template <class C>
__device__ inline C score_at(const ShortLists& in, int64_t list, int i) {
  const View& scores = in.scores.view;
  const int64_t at = offset(scores, list, i);
  if constexpr (sizeof(C) == 8) {
    return static_cast<const double*>(scores.data)[at];
  } else {
    return number_at<C>(scores.data, scores.type, at);
  }
}

// The low bits of a word's bytes, the lowest byte first.
__device__ inline unsigned gather_bits(uint32_t word) { return (word * 0x10204080u) >> 28; }

template <class C>
__device__ inline void read(const ShortLists& in, int64_t list, Held<C>& held) {
  uint32_t positive[kRounds], unmasked[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int begin = held.begin(r);
    positive[r] = unmasked[r] = 0;
    if (r >= in.rounds || begin >= in.n) continue;
    read_four(in.scores, list, begin, in.n, held.x[r]);
    positive[r] = read_flags(in.positives, list, begin, in.n);
    const int inside = in.n - begin;
    unmasked[r] = in.where.view.data ? read_flags(in.where, list, begin, in.n)
                  : inside >= 4      ? 0x01010101u
                                     : 0x01010101u & ((1u << (8 * inside)) - 1);
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int begin = held.begin(r);
    if (r < in.rounds && begin < in.n) widen_four(in.scores, begin, in.n, held.x[r]);
    const unsigned present = gather_bits(unmasked[r]);
    held.unmasked |= present << (4 * r);
    held.positive |= (gather_bits(positive[r]) & present) << (4 * r);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      held.x[r][j] = present >> j & 1u ? held.x[r][j] : absent<C>();
  }
}

// Static shared memory of a block; used by a team of more than one warp.
struct TeamStorage {
  unsigned word[kWarp];            // one a warp
  double sum[kWarp], lost[kWarp];  // one a warp
};

struct Found {
  int positives;  // |P|
  int unmasked;
};

// Fills held.slot. One barrier.
template <class C>
__device__ inline Found count_positives(const ShortLists& in, const Team& team,
                                        TeamStorage& storage, Held<C>& held) {
  const unsigned earlier = (1u << team.lane) - 1;
  int own = 0;  // the warp's positives
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    held.slot[r] = own;
    if (r >= in.rounds) continue;
    const unsigned four = held.positive >> (4 * r) & 15u;
    if (!__any_sync(kAll, four != 0)) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned ballot = __ballot_sync(kAll, int(four >> j & 1u));
      held.slot[r] += __popc(ballot & earlier);
      own += __popc(ballot);
    }
  }
  int unmasked = in.n;
  if (in.where.view.data) {
    unmasked = __popc(held.unmasked);
    for (int step = kWarp / 2; step > 0; step /= 2)
      unmasked += __shfl_xor_sync(kAll, unmasked, step);
  }
  if (team.one_warp()) return {own, unmasked};
  // Both are at most 2^14.
  if (team.lane == 0) storage.word[team.warp] = unsigned(own) | unsigned(unmasked) << 16;
  team.sync();
  unsigned all = 0, before = 0;
#pragma unroll 1
  for (int w = 0; w < team.warps(); ++w) {
    before = w == team.warp ? all : before;
    all += w == 0 || in.where.view.data ? storage.word[w] : storage.word[w] & 0xffffu;
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r)
    held.slot[r] += int(before & 0xffffu);
  return {int(all & 0xffffu), int(all >> 16)};
}

// NaN goes to the end: no item's key is all ones.
template <class C>
__device__ inline KeyOf<C> sort_key(C value) {
  return is_nan(value) ? KeyOf<C>(~KeyOf<C>{0}) : ascending_key(value);
}

// Thresholds of the positives: by slot while every item meets every one of them, sorted keys of
// `length`, a power of two, for a search. Both are views of the same shared memory. Keys are padded
// by one in 33: the lanes of a warp, which search at distances of powers of two, then read
// different banks.
template <class C>
struct Thresholds {
  using Key = KeyOf<C>;
  void* data;
  int size;    // positives
  int length;  // of the sorted keys; what is beyond `size` is all ones. 0: not sorted

  __device__ Thresholds(void* memory, int positives, bool sorted)
      : data(memory), size(positives), length(0) {
    if (sorted)
#pragma unroll 1
      for (length = 32; length < positives;)
        length *= 2;
  }
  __device__ bool sorted() const { return length != 0; }
  __device__ C* values() const { return static_cast<C*>(data); }
  __device__ Key& key(int i) const {
    return static_cast<Key*>(data)[unsigned(i) + unsigned(i) / unsigned(kWarp)];
  }

  __device__ void put(int slot, C value) const {
    if (sorted()) {
      key(slot) = sort_key(value);
    } else {
      values()[slot] = value;
    }
  }
  // Beyond the positives; before the barrier that sort() asks for.
  __device__ void pad(const Team& team) const {
#pragma unroll 1
    for (int i = size + team.rank; i < length; i += team.size)
      key(i) = Key(~Key{0});
  }

  // #{thresholds whose key is below x}, each step for all `kCount` searches at once.
  template <int kCount>
  __device__ void below(const Key (&x)[kCount], int (&place)[kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      place[j] = 0;
#pragma unroll 1
    for (int step = length / 2; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        place[j] += key(place[j] + step - 1) < x[j] ? step : 0;
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      place[j] += key(place[j]) < x[j] ? 1 : 0;
  }
  __device__ int below(Key x) const {
    const Key one[1] = {x};
    int place[1];
    below(one, place);
    return place[0];
  }
};

// After a barrier that follows the last put(); ends with one.
template <class C>
__device__ inline void sort(const Team& team, const Thresholds<C>& thresholds) {
  using Key = KeyOf<C>;
  if (thresholds.size <= ListTuning::kCountingSort && thresholds.size <= team.size) {
    const Key own = team.rank < thresholds.size ? thresholds.key(team.rank) : Key{0};
    int place = 0;
    if (team.rank < thresholds.size) {
      for (int k = 0; k < thresholds.size; ++k) {
        const Key other = thresholds.key(k);
        place += other < own || (other == own && k < team.rank);
      }
    }
    team.sync();
    if (team.rank < thresholds.size) thresholds.key(place) = own;
    team.sync();
    return;
  }
  // Bitonic network: of each pair the lower key goes to the lower index, in runs of `run` mirrored.
#pragma unroll 1
  for (int run = 2; run <= thresholds.length; run *= 2) {
#pragma unroll 1
    for (int step = run / 2; step > 0; step /= 2) {
      const bool mirrored = step == run / 2;
#pragma unroll 1
      for (int p = team.rank; p < thresholds.length / 2; p += team.size) {
        const int low = p & (step - 1), a = 2 * p - low;
        const int b = mirrored ? a + 2 * (step - low) - 1 : a + step;
        const Key x = thresholds.key(a), y = thresholds.key(b);
        if (y < x) thresholds.key(a) = y, thresholds.key(b) = x;
      }
      team.sync();
    }
  }
}

// cells[slot] += #{items above the threshold}. Float counters: exact, and an instruction shorter.
template <class C>
__device__ inline void count_each(const ShortLists& in, const Team& team, const Held<C>& held,
                                  const Thresholds<C>& thresholds, unsigned* cells) {
#pragma unroll 1
  for (int base = 0; base < thresholds.size; base += 8) {
    C threshold[8];
    float count[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      threshold[k] = thresholds.values()[base + k];  // beyond the last: read, and not used
      count[k] = 0;
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r >= in.rounds) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          count[k] += held.x[r][j] > threshold[k] ? 1.0f : 0.0f;
      }
    }
    // Lanes halve the counters that they sum three times, and then have one each, of lane / 4.
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
      const bool upper = (team.lane & (4 * half)) != 0;
#pragma unroll
      for (int k = 0; k < half; ++k) {
        const float keep = upper ? count[k + half] : count[k];
        const float give = upper ? count[k] : count[k + half];
        count[k] = keep + __shfl_xor_sync(kAll, give, 4 * half);
      }
    }
    count[0] += __shfl_xor_sync(kAll, count[0], 2);
    count[0] += __shfl_xor_sync(kAll, count[0], 1);
    const int slot = base + team.lane / 4;
    if (team.lane % 4 == 0 && slot < thresholds.size) atomicAdd(&cells[slot], unsigned(count[0]));
  }
}

// cells[i] becomes the sum of cells i + 1.., for i <= size, in the low half of each; the high half
// stays. After a barrier; ends with one.
__device__ inline void sum_after(const Team& team, TeamStorage& storage, unsigned* cells,
                                 int size) {
  const int each = (size + team.size) / team.size;
  const int begin = team.rank * each;
  const int end = begin + each < size + 1 ? begin + each : size + 1;
  unsigned own = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i)
    own += cells[i] & 0xffffu;
  unsigned from = own;
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned other = __shfl_down_sync(kAll, from, unsigned(step));
    from += team.lane + step < kWarp ? other : 0u;
  }
  unsigned after = from - own;
  if (!team.one_warp()) {
    if (team.lane == 0) storage.word[team.warp] = from;
    team.sync();
#pragma unroll 1
    for (int w = team.warp + 1; w < team.warps(); ++w)
      after += storage.word[w];
  }
#pragma unroll 1
  for (int i = end - 1; i >= begin; --i) {
    const unsigned cell = cells[i];
    cells[i] = (cell & 0xffff0000u) | after;
    after += cell & 0xffffu;
  }
  team.sync();
}

// What has been counted: the number of items above a threshold.
template <class C>
struct Above {
  Thresholds<C> thresholds;
  const unsigned* cells;

  __device__ int operator()(int slot, C value) const {
    const int cell = thresholds.sorted() ? thresholds.below(sort_key(value)) : slot;
    return int(cells[cell] & 0xffffu);
  }
};

// cells[0..size] = 0; before a barrier.
__device__ inline void clear(const Team& team, unsigned* cells, int size) {
#pragma unroll 1
  for (int i = team.rank; i <= size; i += team.size)
    cells[i] = 0;
}

// All items against the positives' scores. The cells are clear; two barriers, or those of sorting.
template <bool sorted, class C>
__device__ inline Above<C> count_above(const ShortLists& in, const Team& team, TeamStorage& storage,
                                       const Held<C>& held, const Thresholds<C>& thresholds,
                                       unsigned* cells) {
  if (held.positive) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      int slot = held.slot[r];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (held.positive >> (4 * r + j) & 1u) thresholds.put(slot++, held.x[r][j]);
      }
    }
  }
  thresholds.pad(team);
  team.sync();
  if (!sorted && !thresholds.sorted()) {
    count_each(in, team, held, thresholds, cells);
    team.sync();
    return {thresholds, cells};
  }
  sort(team, thresholds);
  const KeyOf<C> lowest = thresholds.key(0);
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (r >= in.rounds) break;
    KeyOf<C> key[4];
    bool some = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      key[j] = is_nan(held.x[r][j]) ? KeyOf<C>{0} : ascending_key(held.x[r][j]);
      some = some || key[j] > lowest;
    }
    if (!some) continue;
    int place[4];
    thresholds.below(key, place);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (place[j] > 0) atomicAdd(&cells[place[j]], 1u);
    }
  }
  team.sync();
  sum_after(team, storage, cells, thresholds.size);
  return {thresholds, cells};
}

// An array of lists x n, contiguous, of type C, or of narrower scores where C is float. Four items
// at a time where it is aligned.
template <class C, bool narrower>
struct Output {
  void* data;
  Type type;
  bool whole;

  __device__ bool narrow() const { return narrower && sizeof(C) == 4 && type != Type::kFloat; }
  __device__ uint16_t narrowed(C value) const {
    return type == Type::kHalf ? Half::from(float(value)).bits : BFloat16::from(float(value)).bits;
  }
  __device__ void put(int64_t at, C value) const {
    if (narrow()) {
      static_cast<uint16_t*>(data)[at] = narrowed(value);
    } else {
      static_cast<C*>(data)[at] = value;
    }
  }

  // Items begin..begin + 3 of a list, as far as it has them.
  __device__ void put_four(int64_t list, int begin, int n, const C (&x)[4]) const {
    const int64_t at = list * n + begin;
    if (!whole || begin + 4 > n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (begin + j < n) put(at + j, x[j]);
      }
    } else if (narrow()) {
      unsigned bits[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        bits[j] = narrowed(x[j]);
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + at) = {bits[0] | bits[1] << 16,
                                                                      bits[2] | bits[3] << 16};
    } else {
      Four<C>* const four = reinterpret_cast<Four<C>*>(static_cast<C*>(data) + at);
      *four = {x[0], x[1], x[2], x[3]};
    }
  }
};

// Shared memory of a team: `kArrays` arrays of thresholds, padded, and capacity + 1 cells.
RANKREG_HD constexpr int64_t padded(int64_t capacity) { return capacity + capacity / kWarp; }

template <class C, int kArrays>
RANKREG_HD inline int64_t team_bytes(int64_t capacity) {
  return (padded(capacity) * kArrays * int64_t(sizeof(C)) + 4 * (capacity + 1) + 15) / 16 * 16;
}

template <class C, int kArrays>
struct TeamMemory {
  unsigned char* base;
  int64_t array_bytes;

  __device__ TeamMemory(const ShortLists& in, const Team& team)
      : base(dynamic_shared<unsigned char>() + team.index * team_bytes<C, kArrays>(in.capacity)),
        array_bytes(padded(in.capacity) * int64_t(sizeof(C))) {}
  __device__ void* array(int which) const { return base + array_bytes * which; }
  __device__ unsigned* cells() const { return static_cast<unsigned*>(array(kArrays)); }
};

// The team's first list, and its only one if there are teams enough.
__device__ inline int64_t list_of(const Team& team) {
  return int64_t(blockIdx.x) * team.count + team.index;
}

// Where the gradient of the ranks, and the ranks, come from. Both are of the compute type, which
// ranks of short lists have.
struct GradientOf {
  View grad;               // lists x n; for the loss: lists x 1
  View ranks;              // lists x n; for the loss: the state, lists x (1 + kept)
  RankRegOptions options;  // for ranks: lam alone
  int kept;
};

// Both backward ops. A team of threads a list: a warp, or the block. scores, positives, where:
// lists x n, strided. out: lists x n, contiguous, of the scores' type. Bytes moved, an item: the
// score, 1 or 2 of the masks, the gradient.
template <class C, bool loss>
__global__ void __launch_bounds__(kTeamMost, 1)
    positives_backward_list_kernel(ShortLists in, GradientOf of, Output<C, true> out) {
  RANKREG_SHARED(TeamStorage, storage);
  using Key = KeyOf<C>;
  const Team team(in.team);
  const TeamMemory<C, 2> memory(in, team);
  const C lam = lam_of<C>(of.options.lam);
  unsigned* const cells = memory.cells();
  const int64_t list = list_of(team);
  if (list >= in.lists) return;  // a warp that shares no barrier
  Held<C> held(in, team);
  read(in, list, held);
  C outer = C(1), reduced = C(1);  // on their way together with the list
  if (loss) {
    outer = static_cast<const C*>(of.grad.data)[list * of.grad.list_stride];
    reduced = static_cast<const C*>(of.ranks.data)[list * of.ranks.list_stride];
  }
  const Found found = count_positives(in, team, storage, held);
  const int positives = found.positives;
  // A list with more positives than were kept ranks them again.
  const bool again = loss && positives > of.kept;
  const bool sorted = again || positives > ListTuning::kCompareAll;
  const Thresholds<C> before(memory.array(0), positives, sorted);
  const Thresholds<C> after(memory.array(1), positives, sorted);
  const RankReg formula{of.options.power, of.options.by_length ? double(found.unmasked) : 1.0,
                        double(positives)};
  const C divisor = loss ? formula.divisor(lam) : lam;
  const C upstream = loss ? outer / reduced : C(1);
  clear(team, cells, positives);
  if (again) {  // the ranks go to the cells' high half
    const Above<C> above = count_above<true>(in, team, storage, held, before, cells);
    held.each_positive([&](int i, int slot) {
      const C a = score_at<C>(in, list, i);
      atomicOr(&cells[slot], unsigned(is_nan(a) ? 0 : 1 + above(slot, a)) << 16);
    });
    team.sync();
#pragma unroll 1
    for (int i = team.rank; i <= positives; i += team.size)
      cells[i] &= 0xffff0000u;
    team.sync();
  }
  const auto rank_of = [&](int i, int slot) {
    if (again) return C(cells[slot] >> 16);
    return static_cast<const C*>(of.ranks.data)[offset(of.ranks, list, loss ? 1 + slot : i)];
  };
  const auto moved = [&](int i, C a, C rank) {
    const C g = loss ? C(formula.inner_gradient(double(rank)))
                     : static_cast<const C*>(of.grad.data)[offset(of.grad, list, i)];
    return perturb(a, lam, g);
  };
  held.each_positive([&](int i, int slot) {
    const C a = score_at<C>(in, list, i);
    if (!again) before.put(slot, a);
    // A NaN score has a NaN rank, which the cells cannot hold.
    after.put(slot, is_nan(a) ? a : moved(i, a, rank_of(i, slot)));
  });
  if (!again) before.pad(team);
  after.pad(team);
  team.sync();

  // held.x becomes D, NaN staying NaN.
  int rise = 0;  // positives that have a place after the move, less those before it
  if (positives == 0) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        held.x[r][j] = is_nan(held.x[r][j]) ? held.x[r][j] : C(0);
  } else if (!before.sorted()) {
    count_each(in, team, held, after, cells);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r >= in.rounds) break;
      float change[4] = {};
      for (int k = 0; k < positives; ++k) {
        const C from = before.values()[k], to = after.values()[k];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          change[j] += to > held.x[r][j] ? 1.0f : 0.0f;
          change[j] -= from > held.x[r][j] ? 1.0f : 0.0f;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        held.x[r][j] = is_nan(held.x[r][j]) ? held.x[r][j] : C(change[j]);
    }
  } else {
    if (!again) sort(team, before);
    sort(team, after);
    rise = after.below(Key(~Key{0})) - before.below(Key(~Key{0}));
    const Key lowest = before.key(0) < after.key(0) ? before.key(0) : after.key(0);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r >= in.rounds) break;
      Key next[4];  // the key above the item's: what is below it is not above the item
      int left[4], reached[4], above[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        next[j] = is_nan(held.x[r][j]) ? Key{0} : Key(ascending_key(held.x[r][j]) + 1);
      bool some = false;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        left[j] = reached[j] = 0;
        some = some || next[j] > lowest;
      }
      if (some) {
        before.below(next, left);
        after.below(next, reached);
        bool tied = false;  // with a threshold: above those before it only
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          above[j] = reached[j];
          next[j] = reached[j] > 0 ? Key(next[j] - 1) : Key{0};
          tied = tied || (reached[j] > 0 && after.key(reached[j] - 1) == next[j]);
        }
        if (tied) after.below(next, above);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (above[j] > 0) atomicAdd(&cells[above[j]], 1u);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        held.x[r][j] = is_nan(held.x[r][j]) ? held.x[r][j] : C(rise - (reached[j] - left[j]));
    }
  }
  team.sync();
  if (positives > 0 && before.sorted()) sum_after(team, storage, cells, positives);

#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (r >= in.rounds || held.begin(r) >= in.n) break;
    C value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      value[j] = gradient(held.x[r][j], C(0), divisor, upstream);
      value[j] = held.unmasked >> (4 * r + j) & 1u ? value[j] : C(0);
    }
    out.put_four(list, held.begin(r), in.n, value);
  }
  held.each_positive([&](int i, int slot) {
    const C a = score_at<C>(in, list, i);
    if (is_nan(a)) return;
    const C rank = rank_of(i, slot), to = moved(i, a, rank);
    if (to == a) return;  // it stays, and has been written like any other item
    C moved_rank = to;    // NaN after the move: absent
    if (!is_nan(to)) {
      int change;
      if (before.sorted()) {
        const Key next = Key(ascending_key(to) + 1);
        change = rise - (after.below(next) - before.below(next));
      } else {
        change = 0;
        for (int k = 0; k < positives; ++k)
          change += int(after.values()[k] > to) - int(before.values()[k] > to);
      }
      moved_rank = C(1 + Above<C>{after, cells}(slot, to) + change);
    }
    out.put(list * in.n + i, gradient(moved_rank, rank, divisor, upstream));
  });
}

inline int64_t list_capacity(int64_t n) {
  int64_t capacity = 32;
  while (capacity < n)
    capacity *= 2;
  return capacity;
}

// Whether the kernels of this file take lists of this length.
inline bool list_fits(Type type, int64_t n, const Context& context) {
  const bool wide = type == Type::kDouble;
  if (n > ListTuning::kMost) return false;
  const int64_t capacity = list_capacity(n);
  return (wide ? team_bytes<double, 2>(capacity) : team_bytes<float, 2>(capacity)) +
             int64_t(sizeof(TeamStorage)) <=
         context.shared_most;
}

inline int64_t bytes_of(Type type) {
  return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : type == Type::kBool ? 1 : 2;
}

// Lists are read four items at a time, in at most 16 bytes.
inline Quads quads_of(const View& view, int64_t lists) {
  const int64_t size = bytes_of(view.type), unit = 4 * size < 16 ? 4 * size : 16;
  const bool aligned = reinterpret_cast<uintptr_t>(view.data) % uintptr_t(unit) == 0 &&
                       (lists <= 1 || view.list_stride * size % unit == 0);
  return {view, view.data != nullptr && view.stride == 1 && aligned};
}

template <class C, bool narrower>
Output<C, narrower> output_of(void* data, Type type, int64_t lists, int64_t n) {
  View view;
  view.data = data, view.type = type, view.list_stride = n, view.stride = 1;
  return {data, type, quads_of(view, lists).whole};
}

struct ListLaunch {
  ShortLists in;
  int64_t blocks, shared;
  int threads;
};

template <class C, int kArrays>
ListLaunch plan_lists(const View& scores, const View& positives, const View& where, int64_t lists,
                      int64_t n, const Context& context) {
  if (n > ListTuning::kMost) throw std::invalid_argument("rankreg_ext: not a short list");
  ListLaunch plan;
  plan.in = {quads_of(scores, lists),
             quads_of(positives, lists),
             quads_of(where, lists),
             lists,
             int(n),
             0,
             0,
             int(list_capacity(n))};
  const int64_t quads = n < 1 ? 1 : (n + 3) / 4;
  const bool spread = lists <= int64_t(ListTuning::kSpread) * context.multiprocessors;
  const int64_t warps = (quads + kWarp - 1) / kWarp;
  const int64_t needed = (quads + kTeamMost - 1) / kTeamMost;
  int64_t rounds = spread ? needed : warps < kRounds ? warps : int64_t{kRounds};
  plan.in.rounds = int(rounds);
  plan.in.team = int((warps + rounds - 1) / rounds) * kWarp;
  const int64_t bytes = team_bytes<C, kArrays>(plan.in.capacity);
  int64_t teams = 1;
  if (plan.in.team == kWarp) {
    while (teams < ListTuning::kWarpLists && teams < lists && 2 * teams * bytes <= 49152)
      teams *= 2;
  }
  plan.threads = int(teams) * plan.in.team;
  plan.shared = teams * bytes;
  plan.blocks = (lists + teams - 1) / teams;
  return plan;
}

// Calls f with a number of the compute type of the scores, which the ranks must have, too.
template <class F>
void with_compute_type(Type scores, Type ranks, const F& f) {
  if (ranks != (scores == Type::kDouble ? Type::kDouble : Type::kFloat))
    throw std::invalid_argument("rankreg_ext: ranks of short lists have the compute type");
  if (scores == Type::kDouble) {
    f(double{});
  } else {
    f(float{});
  }
}

template <bool loss>
void backward_list(const View& scores, const View& positives, const View& where,
                   const GradientOf& of, int64_t lists, int64_t n, void* out, Context& context) {
  if (lists == 0 || n == 0) return;
  with_compute_type(scores.type, of.ranks.type, [&](auto c) {
    using C = decltype(c);
    const ListLaunch plan = plan_lists<C, 2>(scores, positives, where, lists, n, context);
    launch<positives_backward_list_kernel<C, loss>>(context, plan.blocks, plan.threads, plan.shared,
                                                    plan.in, of,
                                                    output_of<C, true>(out, scores.type, lists, n));
  });
}

}  // namespace gpu
}  // namespace rankreg
