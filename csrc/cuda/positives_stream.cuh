// Rare positives of long lists: a list is spread over many blocks, and its scores are read once a
// direction. See cpu/positive_ranks_kernels.h for the method and its formulas.
//
//   collect   finds the positives: the masks are read, 16 flags at a time, mostly all false
//   count     forward: every block plants a tree of its list's positives (thresholds.cuh), puts its
//             part of the scores in their places, and adds to the positives' counters
//   step      backward: the same with the breakpoints of the gradient, of which there are three a
//             positive that moves; the gradient by place is written
//
// The last block to be done with a list writes what depends on all of it: ranks, the loss, the
// gradient of the positives. Counters are integers, and lists of positives in index order: nothing
// depends on the order of blocks.
//
// The host does not know the number P of positives. Scratch has room for all items of a list (4
// bytes each, and 4 for each counter), of which P are touched. More positives than a tree holds are
// taken in rounds, each over all scores: correct for every P, and slow for many.
#pragma once

#include <algorithm>

#include "../common/formulas.h"
#include "positive_ranks.h"
#include "rank_items.cuh"
#include "rankreg_loss.h"
#include "thresholds.cuh"
#include "tuning.h"

namespace rankreg {
namespace gpu {
namespace stream {

constexpr int kThreads = 512;
constexpr int kFlags = 16;           // of a group, one load
constexpr int kFlagGroups = 4;       // a thread has on their way; they are counted in 64 bits
constexpr int kMostSegments = 1024;  // of a list

constexpr int kVector = 16;  // bytes of a load

// Loops whose threads mostly have one turn or none are kept from being unrolled: it would double
// the code.

struct Lists {
  View scores, positives, where;
  int64_t lists, n;
};

// n elements of a row in groups of `size`, the first of which may begin before the row, so that
// they are aligned in memory; shared out to `parts` blocks.
struct Groups {
  int size, shift;
  int64_t share, count;

  RANKREG_HD Groups(const void* row, int64_t stride, int element, int size, int64_t n, int parts)
      : size(size),
        shift(stride == 1
                  ? int(reinterpret_cast<uintptr_t>(row) / unsigned(element) % unsigned(size))
                  : 0),
        count((n + size - 1 + shift) / size) {
    share = (count + parts - 1) / parts;
  }
  RANKREG_HD int64_t begin(int part) const {
    const int64_t at = share * part;
    return at < count ? at : count;
  }
  RANKREG_HD int64_t end(int part) const { return begin(part + 1); }
  // The first item of a group, negative where the group begins before the row.
  RANKREG_HD int64_t item(int64_t group) const { return group * size - shift; }
  // The first item of a part; n for one without any.
  RANKREG_HD int64_t first(int part, int64_t n) const {
    const int64_t at = item(share * part);
    return at < 0 ? 0 : at < n ? at : n;
  }
};

template <class T>
RANKREG_HD const T* row_of(const View& view, int64_t list) {
  return static_cast<const T*>(view.data) + list * view.list_stride;
}

RANKREG_HD inline bool aligned(const void* at, int bytes) {
  return reinterpret_cast<uintptr_t>(at) % unsigned(bytes) == 0;
}

// The flags of items [begin, begin + kCount), one bit each; those outside the list are 0.
template <int kCount>
__device__ unsigned flags_of(const View& mask, int64_t list, int64_t begin, int64_t n) {
  const uint8_t* const row = row_of<uint8_t>(mask, list);
  unsigned bits = 0;
  if (mask.stride == 1 && begin >= 0 && begin + kCount <= n && aligned(row + begin, kCount)) {
    // Bytes of 0 and 1: a multiplication moves four of them side by side.
    const auto four = [&](uint32_t word, int at) {
      bits |= (word * 0x01020408u >> 24 & 15u) << at;
    };
    if constexpr (kCount == 16) {
      const uint4 word = *reinterpret_cast<const uint4*>(row + begin);
      if ((word.x | word.y | word.z | word.w) == 0) return 0;
      four(word.x, 0), four(word.y, 4), four(word.z, 8), four(word.w, 12);
    } else if constexpr (kCount == 8) {
      const uint2 word = *reinterpret_cast<const uint2*>(row + begin);
      four(word.x, 0), four(word.y, 4);
    } else if constexpr (kCount == 4) {
      four(*reinterpret_cast<const uint32_t*>(row + begin), 0);
    } else {
      const uint16_t word = *reinterpret_cast<const uint16_t*>(row + begin);
      bits = (word & 1u) | (word >> 7 & 2u);
    }
    return bits;
  }
#pragma unroll 1
  for (int j = 0; j < kCount; ++j) {
    const int64_t i = begin + j;
    if (i >= 0 && i < n) bits |= unsigned(row[i * mask.stride] != 0) << j;
  }
  return bits;
}

// ------------------------------------------------------------------------------------- collect

// The positives of each list, unmasked ones, in index order, in one segment per block of collect.
struct Found {
  uint32_t* index;    // lists x n: a segment begins at its part's first item
  uint32_t* size;     // lists x segments
  uint32_t* present;  // lists x segments: unmasked items, where `by_length` and a mask ask for it
  uint32_t* above;    // lists x n, as `index`: counters, zero for each positive; or null
  uint32_t* after;    // lists x n, likewise
  uint32_t* done;     // lists + 1, all zero: blocks that are done with each list, and lists
  int segments;

  RANKREG_HD static Groups groups(const Lists& in, int64_t list, int segments) {
    return Groups(row_of<uint8_t>(in.positives, list), in.positives.stride, 1, kFlags, in.n,
                  segments);
  }
};

struct CollectStorage {
  ScanStorage<uint64_t> scan;
  uint64_t total;
  uint32_t present;
};

// Blocks: lists x segments, of threads that take one group of flags after another. Writes all of
// `found`; zeroes `zeros`, lists x n elements of `words` words each, unless null.
// Bytes moved, per item: 1, 1 more with a mask, and the zeros.
template <int kBlock>
__global__ void __launch_bounds__(kBlock, 2)
    collect(Lists in, Found found, uint32_t* zeros, int words) {
  RANKREG_SHARED(CollectStorage, storage);
  const int t = int(threadIdx.x);
  const int64_t list = blockIdx.x / unsigned(found.segments);
  const int segment = int(blockIdx.x % unsigned(found.segments));
  const Groups groups = Found::groups(in, list, found.segments);
  const int64_t begin = groups.begin(segment), end = groups.end(segment);
  const int64_t first = groups.first(segment, in.n), last = groups.first(segment + 1, in.n);
  const int64_t base = list * in.n + first;

  if (t == 0) {
    storage.present = 0;
    if (segment == 0) found.done[list] = 0;
    if (blockIdx.x == 0) found.done[in.lists] = 0;
  }
  if (zeros) {
    uint32_t* const row = zeros + base * words;
    const Groups quads(row, 1, 4, 4, (last - first) * words, 1);
#pragma unroll 1
    for (int64_t quad = t; quad < quads.count; quad += kBlock) {
      const int64_t at = quads.item(quad);
      if (at >= 0 && at + 4 <= (last - first) * words) {
        *reinterpret_cast<uint4*>(row + at) = uint4{0, 0, 0, 0};
      } else {
        for (int64_t i = at < 0 ? 0 : at; i < at + 4 && i < (last - first) * words; ++i)
          row[i] = 0;
      }
    }
  }

  const bool masked = in.where.data != nullptr;
  uint32_t size = 0, present = 0;
  for (int64_t tile = begin; tile < end; tile += kBlock * kFlagGroups) {
    unsigned bits[kFlagGroups];
#pragma unroll
    for (int u = 0; u < kFlagGroups; ++u) {
      const int64_t group = tile + u * kBlock + t;
      bits[u] = group < end ? flags_of<kFlags>(in.positives, list, groups.item(group), in.n) : 0;
    }
    if (masked) {
#pragma unroll
      for (int u = 0; u < kFlagGroups; ++u) {
        const int64_t group = tile + u * kBlock + t;
        if (group >= end || !(found.present || bits[u])) continue;
        const unsigned unmasked = flags_of<kFlags>(in.where, list, groups.item(group), in.n);
        present += uint32_t(__popc(unmasked));
        bits[u] &= unmasked;
      }
    }
    unsigned any = 0;
    uint64_t counts = 0;
#pragma unroll
    for (int u = 0; u < kFlagGroups; ++u) {
      any |= bits[u];
      counts |= uint64_t(__popc(bits[u])) << 16 * u;
    }
    if (!__syncthreads_or(any != 0)) continue;  // after what the tile before wrote in the storage
    uint64_t before;
    const uint64_t upto = block_scan<kBlock, Sum>(counts, uint64_t{0}, storage.scan, &before);
    if (t == kBlock - 1) storage.total = upto;
    __syncthreads();
    const uint64_t total = storage.total;
#pragma unroll
    for (int u = 0; u < kFlagGroups; ++u) {
      int64_t at = base + size + (before >> 16 * u & 0xffffu);
      const int64_t item = groups.item(tile + u * kBlock + t);
      for (unsigned rest = bits[u]; rest; rest &= rest - 1, ++at) {
        found.index[at] = uint32_t(item + __ffs(int(rest)) - 1);
        if (found.above) found.above[at] = 0;
        if (found.after) found.after[at] = 0;
      }
      size += uint32_t(total >> 16 * u & 0xffffu);
    }
  }
  __syncthreads();
  if (found.present) atomicAdd(&storage.present, present);
  __syncthreads();
  if (t == 0) {
    found.size[list * found.segments + segment] = size;
    if (found.present) found.present[list * found.segments + segment] = storage.present;
  }
}

// ---------------------------------------------------------------------------------------- blocks

struct BlockStorage {
  ScanStorage<uint32_t> scan;
  uint32_t total;
  uint32_t last;
  double sum[2][kThreads / kWarp];
};

// Sum over the block, in all threads.
__device__ inline uint32_t block_sum(uint32_t value, BlockStorage& storage) {
  __syncthreads();
  uint32_t before;
  const uint32_t upto = block_scan<kThreads, Sum>(value, 0u, storage.scan, &before);
  if (int(threadIdx.x) == kThreads - 1) storage.total = upto;
  __syncthreads();
  return storage.total;
}

// Whether this block is the `total`-th to say so; then it sees what the others have written.
__device__ inline bool last_block(uint32_t* counter, uint32_t total, BlockStorage& storage) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) storage.last = atomicAdd(counter, 1u) + 1 == total;
  __syncthreads();
  if (storage.last) __threadfence();
  return storage.last != 0;
}

// What other blocks of this launch have written.
template <class T>
__device__ T written(const T* at) {
  return *static_cast<const volatile T*>(at);
}

// The positives of a block's list, by their number in index order.
struct Positives {
  const Found& found;
  const Groups groups;
  int64_t list, n;
  uint32_t* first;  // shared, segments + 1: the number of each segment's first positive
  uint32_t size;

  // All threads of the block.
  __device__ Positives(const Lists& in, const Found& found, int64_t list, uint32_t* shared,
                       BlockStorage& storage)
      : found(found),
        groups(Found::groups(in, list, found.segments)),
        list(list),
        n(in.n),
        first(shared) {
    constexpr int kShare = kMostSegments / kThreads;
    uint32_t own[kShare], sum = 0, before;
    for (int j = 0; j < kShare; ++j) {
      const int s = int(threadIdx.x) * kShare + j;
      own[j] = s < found.segments ? found.size[list * found.segments + s] : 0;
      sum += own[j];
    }
    block_scan<kThreads, Sum>(sum, 0u, storage.scan, &before);
    for (int j = 0; j < kShare; ++j) {
      const int s = int(threadIdx.x) * kShare + j;
      if (s < found.segments) first[s] = before;
      before += own[j];
      if (s == found.segments - 1) first[found.segments] = before;
    }
    __syncthreads();
    size = first[found.segments];
  }

  // Where in Found the positive `o` stands.
  __device__ int64_t entry(uint32_t o) const {
    int low = 0, high = found.segments;  // first[low] <= o < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= o ? low : high) = middle;
    }
    return list * n + groups.first(low, n) + (o - first[low]);
  }
};

// Unmasked items of a list, or 1: Z. All threads of the block.
__device__ inline double length_of(const Found& found, int64_t list, int64_t n, bool by_length,
                                   BlockStorage& storage) {
  if (!by_length) return 1;
  if (!found.present) return double(n);
  uint32_t sum = 0;
  for (int s = int(threadIdx.x); s < found.segments; s += kThreads)
    sum += found.present[list * found.segments + s];
  return double(block_sum(sum, storage));
}

template <class T>
__device__ Compute<T> score_at(const Lists& in, int64_t list, int64_t i) {
  return widen(row_of<T>(in.scores, list)[i * in.scores.stride]);
}

template <class T>
constexpr int kGroup = kVector / int(sizeof(T));

__device__ inline float widened(float value) { return value; }
__device__ inline double widened(double value) { return value; }
__device__ inline float widened(BFloat16 value) { return widen(value); }
__device__ inline float widened(Half value) {
#if defined(__CUDA_ARCH__)
  float out;  // exact, in one instruction
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
  return out;
#else
  return widen(value);
#endif
}

// A vector of scores as they are in memory, or of gradients.
template <class T>
struct alignas(kVector) Group {
  static constexpr int kBits = 8 * int(sizeof(T));
  uint64_t low, high;

  __device__ T operator[](int j) const {
    constexpr int kHalf = kGroup<T> / 2;
    return bit_cast<T>(KeyOf<T>((j < kHalf ? low : high) >> kBits * (j % kHalf)));
  }
  // The first item leaves, and this one is the last. A loop can fill a group so, unlike an array in
  // registers.
  __device__ void push(T item) {
    if constexpr (sizeof(T) == 8) {
      low = high;
      high = bit_cast<uint64_t>(item);
    } else {
      low = low >> kBits | high << (64 - kBits);
      high = high >> kBits | uint64_t(bit_cast<KeyOf<T>>(item)) << (64 - kBits);
    }
  }
};

// The group from item `begin` on, and a bit for each item present in it: unmasked, and in the list.
template <class T>
__device__ unsigned load_group(const Lists& in, int64_t list, int64_t begin, Group<T>& group) {
  constexpr int kItems = kGroup<T>;
  const T* const row = row_of<T>(in.scores, list);
  unsigned present = (1u << kItems) - 1;
  if (in.scores.stride == 1 && begin >= 0 && begin + kItems <= in.n) {
    group = *reinterpret_cast<const Group<T>*>(row + begin);
  } else {
    group = Group<T>{0, 0};
#pragma unroll 1
    for (int j = 0; j < kItems; ++j) {
      const int64_t i = begin + j;
      const bool inside = i >= 0 && i < in.n;
      group.push(inside ? row[i * in.scores.stride] : T{});
      present &= ~(unsigned(!inside) << j);
    }
  }
  if (in.where.data != nullptr) present &= flags_of<kItems>(in.where, list, begin, in.n);
  return present;
}

// Absent items become NaN.
template <class T>
__device__ void widen_group(const Group<T>& group, unsigned present, Compute<T> (&x)[kGroup<T>]) {
#pragma unroll
  for (int j = 0; j < kGroup<T>; ++j)
    x[j] = widened(group[j]);
  if (present == (1u << kGroup<T>)-1) return;
#pragma unroll
  for (int j = 0; j < kGroup<T>; ++j)
    x[j] = present >> j & 1u ? x[j] : nan_of<Compute<T>>();
}

template <class T>
__device__ Groups score_groups(const Lists& in, int64_t list, int parts) {
  return Groups(row_of<T>(in.scores, list), in.scores.stride, int(sizeof(T)), kGroup<T>, in.n,
                parts);
}

// f(first item, scores, present) of each group of a part of the list. While one is worked on, the
// next two are on their way.
template <class T, class F>
__device__ void each_group(const Lists& in, int64_t list, int part, int parts, const F& f) {
  constexpr uint32_t kAhead = 2 * kThreads;
  const Groups groups = score_groups<T>(in, list, parts);
  const uint32_t begin = uint32_t(groups.begin(part)), end = uint32_t(groups.end(part));
  Group<T> group{0, 0}, next{0, 0}, last{0, 0};
  unsigned present = 0, next_present = 0, last_present = 0;
#pragma unroll 1
  for (uint32_t ahead = begin + threadIdx.x; ahead < end + kAhead; ahead += kThreads) {
    group = next, present = next_present;
    next = last, next_present = last_present;
    if (ahead < end) last_present = load_group<T>(in, list, groups.item(ahead), last);
    if (ahead < begin + kAhead) continue;
    Compute<T> x[kGroup<T>];
    widen_group<T>(group, present, x);
    f(groups.item(ahead - kAhead), x, present);
  }
}

// Nobody asks for place 0.
template <int kItems>
__device__ void tally(const int (&place)[kItems], uint32_t* bins) {
#pragma unroll
  for (int j = 0; j < kItems; ++j)
    atomicAdd(&bins[place[j]], 1u);
}

// Dynamic shared memory: four arrays of `capacity`, then Positives::first.
template <class C>
struct Room {
  C *node, *items, *spare;
  C* kept;         // what the positives of the tree are, for as long as it stands
  uint32_t* bins;  // in the place of `items`, once the tree is planted
  uint32_t* first;

  __device__ explicit Room(int capacity)
      : node(dynamic_shared<C>()),
        items(node + capacity),
        spare(items + capacity),
        kept(spare + capacity),
        bins(reinterpret_cast<uint32_t*>(items)),
        first(reinterpret_cast<uint32_t*>(kept + capacity)) {}
};

// The capacity, a power of two, and the bytes of shared memory that it takes.
struct Size {
  int capacity;
  int64_t shared;

  template <class C>
  static Size of(const Context& context, int segments) {
    int64_t bytes = kStreamTuning.tree_bytes;
    while (bytes > context.shared_most / kStreamTuning.tree_share && bytes > kLeast)
      bytes /= 2;
    return {int(bytes / int64_t(sizeof(C))), 4 * bytes + 4 * (segments + 1)};
  }

 private:
  static constexpr int64_t kLeast = 256;
};

template <class C>
__device__ C or_infinity(C value) {
  return is_nan(value) ? infinity<C>() : value;
}

// Found::above of each positive += the scores above it in this part of the list.
template <class T>
__device__ void count_above(const Lists& in, const Positives& positives, int part, int parts,
                            int capacity, const Room<Compute<T>>& room, BlockStorage& storage) {
  using C = Compute<T>;
  const Found& found = positives.found;
  const uint32_t most = uint32_t(capacity - 1);
  for (uint32_t from = 0; from < positives.size;) {
    const int size = int(positives.size - from < most ? positives.size - from : most);
    __syncthreads();
#pragma unroll 1
    for (int i = int(threadIdx.x); i < size; i += kThreads) {
      const uint32_t item = found.index[positives.entry(from + uint32_t(i))];
      room.kept[i] = score_at<T>(in, positives.list, item);
      room.items[i] = or_infinity(room.kept[i]);
    }
    const Tree<C> tree = plant<kThreads>(room.node, room.items, room.spare, size);
#pragma unroll 1
    for (int p = int(threadIdx.x); p <= size; p += kThreads)
      room.bins[p] = 0;
    __syncthreads();
    const C lowest = tree.lowest();
    each_group<T>(in, positives.list, part, parts, [&](int64_t, const C(&x)[kGroup<T>], unsigned) {
      bool any = false;
#pragma unroll
      for (int j = 0; j < kGroup<T>; ++j)
        any |= x[j] > lowest;
      if (!any) return;
      int place[kGroup<T>];
      tree.template places<false>(x, place);
      tally(place, room.bins);
    });
    count_after<kThreads>(room.bins, size + 1, storage.scan);
#pragma unroll 1
    for (int i = int(threadIdx.x); i < size; i += kThreads) {
      if (is_nan(room.kept[i])) continue;
      const uint32_t count = room.bins[tree.template place<false>(room.kept[i])];
      if (count) atomicAdd(&found.above[positives.entry(from + uint32_t(i))], count);
    }
    from += uint32_t(size);
  }
}

// The same for few positives: every score meets every threshold, two instructions each. Of up to 8,
// that is no more than a search in a tree, four a level and what counts the place.
constexpr int kCompareMost = 8;

template <class T>
__device__ void compare_all(const Lists& in, const Positives& found, int part, int parts,
                            uint32_t* bins, uint32_t* above) {
  using C = Compute<T>;
  uint32_t count[kCompareMost];
  // Of the list, found by a thread each.
  C* const shared = reinterpret_cast<C*>(bins) + kCompareMost;
  const int t = int(threadIdx.x), size = int(found.size);
  if (t < kCompareMost) {
    bins[t] = 0;
    shared[t] = infinity<C>();
    if (t < size) {
      shared[t] = score_at<T>(in, found.list, found.found.index[found.entry(uint32_t(t))]);
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCompareMost; ++k)
    count[k] = 0;
  each_group<T>(in, found.list, part, parts, [&](int64_t, const C(&x)[kGroup<T>], unsigned) {
#pragma unroll
    for (int k = 0; k < kCompareMost; ++k) {
      const C threshold = shared[k];
#pragma unroll
      for (int j = 0; j < kGroup<T>; ++j)
        count[k] += x[j] > threshold;
    }
  });
#pragma unroll
  for (int k = 0; k < kCompareMost; ++k) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
      count[k] += __shfl_xor_sync(kAll, count[k], lanes);
    if (t % kWarp == 0 && count[k]) atomicAdd(&bins[k], count[k]);
  }
  __syncthreads();
  if (t < size && bins[t]) atomicAdd(&above[found.entry(uint32_t(t))], bins[t]);
}

// ----------------------------------------------------------------------------------------- count

// Blocks: lists x parts. Each counts the scores of its part above each positive of the list. The
// last block of a list calls finish.list().
// Bytes moved, per item: the score, 1 with a mask.
template <class T, class Finish>
__global__ void __launch_bounds__(kThreads, 2)
    count(Lists in, Found found, int parts, int capacity, Finish finish) {
  using C = Compute<T>;
  RANKREG_SHARED(BlockStorage, storage);
  const Room<C> room(capacity);
  const int64_t list = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  const Positives positives(in, found, list, room.first, storage);
  if (!finish.wanted(positives.size)) return;  // the whole list, and all of its blocks

  if (positives.size > kCompareMost) {
    count_above<T>(in, positives, part, parts, capacity, room, storage);
  } else if (positives.size > 0) {
    compare_all<T>(in, positives, part, parts, room.bins, found.above);
  }
  if (!finish.at_all()) return;
  if (last_block(&found.done[list], uint32_t(parts), storage))
    finish.template list<T>(in, positives, storage);
}

// The rank of a positive, once it has been counted; NaN for a NaN score.
template <class T>
__device__ double rank_of(const Lists& in, const Positives& positives, int64_t entry) {
  const Found& found = positives.found;
  if (is_nan(score_at<T>(in, positives.list, found.index[entry]))) return nan_of<double>();
  return 1.0 + double(written(&found.above[entry]));
}

// ranks: lists x n of `type`, zero so far.
struct FinishRanks {
  void* ranks;
  Type type;

  __device__ bool wanted(uint32_t) const { return true; }
  __device__ bool at_all() const { return true; }

  template <class T>
  __device__ void list(const Lists& in, const Positives& positives, BlockStorage&) const {
#pragma unroll 1
    for (uint32_t o = threadIdx.x; o < positives.size; o += kThreads) {
      const int64_t entry = positives.entry(o);
      const int64_t at = positives.list * in.n + positives.found.index[entry];
      const double rank = rank_of<T>(in, positives, entry);
      if (type == Type::kFloat) {
        static_cast<float*>(ranks)[at] = float(rank);
      } else {
        static_cast<double*>(ranks)[at] = rank;
      }
    }
  }
};

// A sum and what its additions lost.
struct Compensated {
  double sum = 0, lost = 0;

  __device__ void add(const Compensated& other) {
    const double next = sum + other.sum, part = next - sum;
    lost += other.lost + ((sum - (next - part)) + (other.sum - part));
    sum = next;
  }
  // Infinities and NaN lose nothing.
  __device__ double value() const { return sum - sum == 0 ? sum + lost : sum; }
};

// Of all threads, in thread 0, in an order that is always the same.
__device__ inline Compensated block_sum(Compensated value, BlockStorage& storage) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    Compensated other;
    other.sum = __shfl_down_sync(kAll, value.sum, unsigned(lanes));
    other.lost = __shfl_down_sync(kAll, value.lost, unsigned(lanes));
    value.add(other);
  }
  __syncthreads();
  if (lane == 0) storage.sum[0][warp] = value.sum, storage.sum[1][warp] = value.lost;
  __syncthreads();
  Compensated all;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    Compensated other;
    other.sum = storage.sum[0][w];
    other.lost = storage.sum[1][w];
    all.add(other);
  }
  return all;
}

// loss: one value, or one a list; state: lists x (1 + kept) of `type`; values: lists, and counted.
// Without a loss: only the counters, and only those of lists with more than `kept` positives.
struct FinishLoss {
  int64_t power;
  bool by_length;
  Reduction reduction;
  int64_t kept;
  Type type;
  void *loss, *state;
  double* values;
  uint32_t* counted;  // whether each list has a positive

  __device__ bool wanted(uint32_t size) const { return loss || int64_t(size) > kept; }
  __device__ bool at_all() const { return loss != nullptr; }

  __device__ void store_state(int64_t at, double value) const {
    if (type == Type::kFloat) {
      static_cast<float*>(state)[at] = float(value);
    } else {
      static_cast<double*>(state)[at] = value;
    }
  }

  template <class T>
  __device__ void list(const Lists& in, const Positives& positives, BlockStorage& storage) const {
    using C = Compute<T>;
    const int64_t list = positives.list;
    const uint32_t size = positives.size;
    const double length = length_of(positives.found, list, in.n, by_length, storage);
    const RankReg formula{power, length, double(size)};
    const int64_t saved = list * (1 + kept);
    const bool keeps = int64_t(size) <= kept;  // all of them, or none
    Compensated sum;
#pragma unroll 1
    for (uint32_t o = threadIdx.x; o < size; o += kThreads) {
      const double rank = rank_of<T>(in, positives, positives.entry(o));
      Compensated term;
      term.sum = formula.term(rank);
      sum.add(term);
      if (keeps) store_state(saved + 1 + o, rank);
    }
    for (int64_t i = (keeps ? size : 0) + int64_t(threadIdx.x); i < kept; i += kThreads)
      store_state(saved + 1 + i, 0);
    sum = block_sum(sum, storage);
    if (threadIdx.x == 0) {
      const double value = size ? formula.value(sum.value()) : 0;
      if (reduction == Reduction::kNone) {
        static_cast<C*>(loss)[list] = C(value);
        store_state(saved, 1);
      }
      values[list] = value;
      counted[list] = size != 0;
    }
    if (reduction == Reduction::kNone) return;
    if (!last_block(&positives.found.done[in.lists], uint32_t(in.lists), storage)) return;

    Compensated total;
    uint32_t lists = 0;
    for (int64_t i = int64_t(threadIdx.x); i < in.lists; i += kThreads) {
      Compensated term;
      term.sum = written(&values[i]);
      total.add(term);
      lists += written(&counted[i]);
    }
    total = block_sum(total, storage);
    lists = block_sum(lists, storage);
    const double divisor = reduction == Reduction::kMean && lists ? double(lists) : 1;
    if (threadIdx.x == 0) static_cast<C*>(loss)[0] = C(total.value() / divisor);
    for (int64_t i = int64_t(threadIdx.x); i < in.lists; i += kThreads)
      store_state(i * (1 + kept), divisor);
  }
};

// ------------------------------------------------------------------------------------------ step

// What the gradient of one list is made of.
template <class C>
struct Scale {
  C lam, divisor, upstream;
  RankReg formula;  // of a loss

  __device__ C value(int32_t step) const { return gradient(double(step), 0.0, divisor, upstream); }
};

// A positive about to move.
template <class C>
struct Move {
  int64_t entry, item;
  double rank;
  C from, to;

  // Others are items like any other.
  __device__ bool moves() const { return !is_nan(from) && to != from; }
};

// By grad, with ranks: lists x n each, of the ranks' type.
struct GivenMoves {
  View grad, ranks;
  Lam lam;

  template <class C>
  __device__ Scale<C> scale(const Lists&, const Positives&, BlockStorage&) const {
    const C value = lam_of<C>(lam);
    return {value, value, C(1), RankReg{0, 1, 1}};
  }
  template <class T, class C>
  __device__ Move<C> of(const Lists& in, const Positives& positives, uint32_t o,
                        const Scale<C>& scale) const {
    Move<C> move;
    move.entry = positives.entry(o);
    move.item = positives.found.index[move.entry];
    move.from = score_at<T>(in, positives.list, move.item);
    move.rank = at(ranks, positives.list, move.item);
    move.to = perturb(move.from, scale.lam, C(at(grad, positives.list, move.item)));
    return move;
  }

 private:
  __device__ static double at(const View& view, int64_t list, int64_t i) {
    const int64_t at = offset(view, list, i);
    return view.type == Type::kFloat ? double(static_cast<const float*>(view.data)[at])
                                     : static_cast<const double*>(view.data)[at];
  }
};

// By the loss's own gradient. grad: lists, of the compute type; state: lists x (1 + kept), of the
// ranks' type; with more positives, the ranks are counted in Found::above.
struct LossMoves {
  View grad, state;
  Lam lam;
  int64_t power;
  bool by_length;
  int64_t kept;

  template <class C>
  __device__ Scale<C> scale(const Lists& in, const Positives& positives,
                            BlockStorage& storage) const {
    const int64_t list = positives.list;
    const double length = length_of(positives.found, list, in.n, by_length, storage);
    const RankReg formula{power, length, double(positives.size)};
    const C value = lam_of<C>(lam);
    const C upstream = static_cast<const C*>(grad.data)[list * grad.list_stride];
    return {value, formula.divisor(value), upstream / C(saved(list, 0)), formula};
  }
  template <class T, class C>
  __device__ Move<C> of(const Lists& in, const Positives& positives, uint32_t o,
                        const Scale<C>& scale) const {
    Move<C> move;
    move.entry = positives.entry(o);
    move.item = positives.found.index[move.entry];
    move.from = score_at<T>(in, positives.list, move.item);
    move.rank = int64_t(positives.size) <= kept ? saved(positives.list, 1 + int64_t(o))
                                                : rank_of<T>(in, positives, move.entry);
    move.to = perturb(move.from, scale.lam, C(scale.formula.inner_gradient(move.rank)));
    return move;
  }

 private:
  __device__ double saved(int64_t list, int64_t i) const {
    const int64_t at = offset(state, list, i);
    return state.type == Type::kFloat ? double(static_cast<const float*>(state.data)[at])
                                      : static_cast<const double*>(state.data)[at];
  }
};

// The gradient of a group of items that do not move, from item `begin` of the list's row on:
// value_of(j), NaN for NaN, 0 for masked ones.
template <class T, class F>
__device__ void store_gradients(T* row, int64_t begin, int64_t n, const Compute<T> (&x)[kGroup<T>],
                                unsigned present, const F& value_of) {
  const T nan = Narrow<T>::from(nan_of<Compute<T>>()), zero = Narrow<T>::from(0);
  T value[kGroup<T>];
#pragma unroll
  for (int j = 0; j < kGroup<T>; ++j) {
    const T found = value_of(j);
    value[j] = x[j] == x[j] ? found : nan;
  }
  if (present != (1u << kGroup<T>)-1) {
#pragma unroll
    for (int j = 0; j < kGroup<T>; ++j)
      value[j] = present >> j & 1u ? value[j] : zero;
  }
  Group<T> group{0, 0};
#pragma unroll
  for (int j = 0; j < kGroup<T>; ++j)
    group.push(value[j]);
  if (begin >= 0 && begin + kGroup<T> <= n && aligned(row + begin, kVector)) {
    *reinterpret_cast<Group<T>*>(row + begin) = group;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < kGroup<T>; ++j) {
    if (begin + j >= 0 && begin + j < n) row[begin + j] = group[0];
    group.push(T{});
  }
}

// Fills `kept` with where each of `size` positives is and goes to, NaN for those that do not move
// and, as goal, for those that cease to be.
template <class C, class MoveOf>
__device__ void keep_moves(uint32_t from, int size, const MoveOf& move_of, C* kept) {
#pragma unroll 1
  for (int o = int(threadIdx.x); o < size; o += kThreads) {
    const Move<C> move = move_of(from + uint32_t(o));
    const bool moves = move.moves();
    kept[2 * o] = moves ? move.from : nan_of<C>();
    kept[2 * o + 1] = moves ? move.to : nan_of<C>();
  }
}

// steps[place] of the step function D: -1 where a positive leaves, 1 where it arrives. Modulo 2^32.
template <class C>
__device__ void add_step(const Tree<C>& tree, C from, C to, uint32_t* steps) {
  if (!is_nan(from)) atomicAdd(&steps[tree.template place<true>(from)], ~0u);
  if (!is_nan(to)) atomicAdd(&steps[tree.template place<true>(to)], 1u);
}

// D at each item of a list between rounds: in the place of its gradient, where that is wide enough.
template <class T>
struct Steps {
  static constexpr bool kInPlace = sizeof(T) >= sizeof(uint32_t);
  T* row;
  uint32_t* wide;

  __device__ uint32_t operator[](int64_t i) const {
    if constexpr (kInPlace) {
      return uint32_t(bit_cast<KeyOf<T>>(row[i]));
    } else {
      return wide[i];
    }
  }
  __device__ void store(int64_t i, uint32_t step) const {
    if constexpr (kInPlace) {
      row[i] = bit_cast<T>(KeyOf<T>(step));
    } else {
      wide[i] = step;
    }
  }
};

// Writes the gradient of what does not move, and counts in Found::after the scores above where each
// positive goes to. With more positives than a tree holds: in rounds.
template <class T, class MoveOf>
__device__ void step_part(const Lists& in, const Positives& positives, int part, int parts,
                          int capacity, const Room<Compute<T>>& room, BlockStorage& storage,
                          const Scale<Compute<T>>& scale, const MoveOf& move_of,
                          const Steps<T>& so_far) {
  using C = Compute<T>;
  const int t = int(threadIdx.x);
  const uint32_t most = uint32_t(capacity - 1) / 3;
  const bool at_once = positives.size <= most;
  T* const values = reinterpret_cast<T*>(room.spare);               // by place: gradients, at once
  uint32_t* const steps = reinterpret_cast<uint32_t*>(room.spare);  // in rounds: D
  uint32_t from = 0;
  bool last;
  do {
    last = positives.size - from <= most;
    const int count = int(last ? positives.size - from : most), size = 3 * count;
    __syncthreads();
    keep_moves(from, count, move_of, room.kept);
#pragma unroll 1
    for (int o = t; o < count; o += kThreads) {  // the thread's own
      const C to = room.kept[2 * o + 1];
      room.items[3 * o] = or_infinity(room.kept[2 * o]);
      room.items[3 * o + 1] = or_infinity(to);
      room.items[3 * o + 2] = to < infinity<C>() ? next_above(to) : infinity<C>();
    }
    const Tree<C> tree = plant<kThreads>(room.node, room.items, room.spare, size);
#pragma unroll 1
    for (int p = t; p <= size; p += kThreads)
      room.bins[p] = 0;
    __syncthreads();
#pragma unroll 1
    for (int o = t; o < count; o += kThreads)
      add_step(tree, room.kept[2 * o], room.kept[2 * o + 1], room.bins);
    count_after<kThreads>(room.bins, size + 1, storage.scan);
#pragma unroll 1
    for (int p = t; p <= size; p += kThreads) {
      if (at_once) {
        values[p] = Narrow<T>::from(scale.value(int32_t(room.bins[p])));
      } else {
        steps[p] = room.bins[p];
      }
      room.bins[p] = 0;
    }
    __syncthreads();

    const C lowest = size ? tree.lowest() : infinity<C>();
    each_group<T>(in, positives.list, part, parts,
                  [&](int64_t begin, const C(&x)[kGroup<T>], unsigned present) {
                    int place[kGroup<T>];
                    bool any = false;
#pragma unroll
                    for (int j = 0; j < kGroup<T>; ++j) {
                      any |= x[j] >= lowest;
                      place[j] = 0;
                    }
                    if (any) {
                      tree.template places<true>(x, place);
                      tally(place, room.bins);
                    }
                    if (at_once) {
                      store_gradients<T>(so_far.row, begin, in.n, x, present,
                                         [&](int j) { return values[place[j]]; });
                      return;
                    }
                    uint32_t step[kGroup<T>];
#pragma unroll
                    for (int j = 0; j < kGroup<T>; ++j) {
                      const int64_t i = begin + j;
                      const bool inside = i >= 0 && i < in.n;
                      step[j] = steps[place[j]] + (from == 0 || !inside ? 0 : so_far[i]);
                      if (!last && inside) so_far.store(i, step[j]);
                    }
                    if (last) {
                      store_gradients<T>(so_far.row, begin, in.n, x, present, [&](int j) {
                        return Narrow<T>::from(scale.value(int32_t(step[j])));
                      });
                    }
                  });
    __syncthreads();
    // All positives were counted where they were; every part corrects that for its share.
#pragma unroll 1
    for (int64_t o = int64_t(part) * kThreads + t; o < positives.size;
         o += int64_t(parts) * kThreads) {
      const Move<C> move = move_of(uint32_t(o));
      if (move.moves()) add_step(tree, move.from, move.to, room.bins);
    }
    count_after<kThreads>(room.bins, size + 1, storage.scan);
#pragma unroll 1
    for (int o = t; o < count; o += kThreads) {
      const C to = room.kept[2 * o + 1];
      if (is_nan(to)) continue;
      const uint32_t above = room.bins[tree.template place<true>(to)];
      if (above) {
        atomicAdd(&positives.found.after[positives.entry(from + uint32_t(o))], above);
      }
    }
    from += uint32_t(count);
  } while (!last);
}

// Blocks: lists x parts. out: lists x n; steps: the same, for Steps, or null where that is in out.
// Bytes moved, per item: the score and its gradient, 1 with a mask; in rounds, D each way as well.
template <class T, class Moves>
__global__ void __launch_bounds__(kThreads, 2)
    step(Lists in, Found found, int parts, int capacity, Moves moves, T* out, uint32_t* steps) {
  using C = Compute<T>;
  RANKREG_SHARED(BlockStorage, storage);
  const Room<C> room(capacity);
  const int64_t list = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  const Positives positives(in, found, list, room.first, storage);
  const Scale<C> scale = moves.template scale<C>(in, positives, storage);
  const auto move_of = [&](uint32_t o) { return moves.template of<T>(in, positives, o, scale); };
  T* const row = out + list * in.n;
  const Steps<T> so_far{row, steps ? steps + list * in.n : nullptr};
  step_part<T>(in, positives, part, parts, capacity, room, storage, scale, move_of, so_far);
  if (!last_block(&found.done[list], uint32_t(parts), storage)) return;
#pragma unroll 1
  for (uint32_t o = threadIdx.x; o < positives.size; o += kThreads) {
    const Move<C> move = move_of(o);
    if (!move.moves()) continue;
    const double moved =
        is_nan(move.to) ? nan_of<double>() : 1.0 + double(written(&found.after[move.entry]));
    row[move.item] = Narrow<T>::from(gradient(moved, move.rank, scale.divisor, scale.upstream));
  }
}

// ------------------------------------------------------------------------------------------ host

// Blocks a list for `groups` of its items, of which a thread takes one at least.
inline int parts_of(const Context& context, int64_t lists, int64_t groups, int blocks_each) {
  const int64_t wanted = (int64_t(context.multiprocessors) * blocks_each + lists - 1) / lists;
  const int64_t most = std::max<int64_t>(1, (groups + kThreads - 1) / kThreads);
  return int(std::min(wanted, most));
}

struct Call {
  Context& context;
  Lists in;
  Found found{};

  Call(Context& context, const View& scores, const View& positives, const View& where,
       int64_t lists, int64_t n, bool count_present)
      : context(context), in{scores, positives, where, lists, n} {
    if (n > 0xffffffffll)
      throw std::runtime_error("rankreg_ext: a list may have 4294967295 items at most");
    found.segments =
        std::min(parts_of(context, lists, (n + kFlags - 1) / kFlags, kStreamTuning.collect_blocks),
                 kMostSegments);
    found.index = context.scratch<uint32_t>(lists * n);
    found.size = context.scratch<uint32_t>(lists * found.segments);
    if (count_present && where.data)
      found.present = context.scratch<uint32_t>(lists * found.segments);
    found.done = context.scratch<uint32_t>(lists + 1);
  }
  uint32_t* counters() { return context.scratch<uint32_t>(in.lists * in.n); }

  void find(void* zeros, int words) {
    launch<collect<kThreads>>(context, in.lists * found.segments, kThreads, 0, in, found,
                              static_cast<uint32_t*>(zeros), words);
  }

  template <class T>
  int parts(int blocks_each) const {
    return parts_of(context, in.lists, (in.n + kGroup<T> - 1) / kGroup<T>, blocks_each);
  }
  template <class Finish>
  void rank(const Finish& finish) {
    dispatch_float(in.scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const int parts = this->parts<T>(kStreamTuning.count_blocks);
      const Size size = Size::of<Compute<T>>(context, found.segments);
      launch<count<T, Finish>>(context, in.lists * parts, kThreads, size.shared, in, found, parts,
                               size.capacity, finish);
    });
  }
  template <class Moves>
  void move(const Moves& moves, void* out) {
    dispatch_float(in.scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const int parts = this->parts<T>(kStreamTuning.step_blocks);
      const Size size = Size::of<Compute<T>>(context, found.segments);
      launch<step<T, Moves>>(context, in.lists * parts, kThreads, size.shared, in, found, parts,
                             size.capacity, moves, static_cast<T*>(out),
                             Steps<T>::kInPlace ? nullptr : counters());
    });
  }
};

// One block. The loss of lists without items, and its state.
template <class C, class R>
__global__ void no_items(C* loss, int64_t losses, R* state, int64_t lists) {
  for (int64_t i = int64_t(threadIdx.x); i < losses; i += int64_t(blockDim.x))
    loss[i] = 0;
  for (int64_t i = int64_t(threadIdx.x); i < lists; i += int64_t(blockDim.x))
    state[i] = 1;
}

}  // namespace stream

// Templates, so that a file that calls one compiles no kernel of the others.

template <class Call = stream::Call>
void positive_ranks_stream(const View& scores, const View& positives, const View& where,
                           int64_t lists, int64_t n, Type rank_type, void* ranks,
                           Context& context) {
  if (lists == 0 || n == 0) return;
  Call call(context, scores, positives, where, lists, n, false);
  call.found.above = call.counters();
  call.find(ranks, rank_type == Type::kFloat ? 1 : 2);
  call.rank(stream::FinishRanks{ranks, rank_type});
}

template <class Call = stream::Call>
void positive_ranks_backward_stream(const View& grad, const View& scores, const View& positives,
                                    const View& ranks, const View& where, const Lam& lam,
                                    int64_t lists, int64_t n, void* out, Context& context) {
  if (lists == 0 || n == 0) return;
  Call call(context, scores, positives, where, lists, n, false);
  call.found.after = call.counters();
  call.find(nullptr, 0);
  call.move(stream::GivenMoves{grad, ranks, lam}, out);
}

template <class Call = stream::Call>
void rankreg_loss_stream(const View& scores, const View& positives, const View& where,
                         const RankRegOptions& options, Reduction reduction, int64_t lists,
                         int64_t n, int64_t kept, Type rank_type, void* loss, void* state,
                         Context& context) {
  if (lists == 0 || n == 0) {
    const int64_t losses = reduction == Reduction::kNone ? lists : 1;
    dispatch_rank(scores.type == Type::kDouble ? Type::kDouble : Type::kFloat, [&](auto tag) {
      using C = typename decltype(tag)::type;
      dispatch_rank(rank_type, [&](auto rank_tag) {
        using R = typename decltype(rank_tag)::type;
        launch<stream::no_items<C, R>>(context, 1, stream::kThreads, 0, static_cast<C*>(loss),
                                       losses, static_cast<R*>(state), lists);
      });
    });
    return;
  }
  Call call(context, scores, positives, where, lists, n, options.by_length);
  call.found.above = call.counters();
  call.find(nullptr, 0);
  call.rank(stream::FinishLoss{options.power, options.by_length, reduction, kept, rank_type, loss,
                               state, context.scratch<double>(lists),
                               context.scratch<uint32_t>(lists)});
}

template <class Call = stream::Call>
void rankreg_loss_backward_stream(const View& grad, const View& scores, const View& positives,
                                  const View& state, const View& where,
                                  const RankRegOptions& options, int64_t lists, int64_t n,
                                  int64_t kept, void* out, Context& context) {
  if (lists == 0 || n == 0) return;
  Call call(context, scores, positives, where, lists, n, options.by_length);
  call.found.after = call.counters();
  if (kept < n) call.found.above = call.counters();
  call.find(nullptr, 0);
  if (kept < n) {
    stream::FinishLoss only_counters{};
    only_counters.kept = kept;
    call.rank(only_counters);
  }
  call.move(stream::LossMoves{grad, state, options.lam, options.power, options.by_length, kept},
            out);
}

}  // namespace gpu
}  // namespace rankreg
