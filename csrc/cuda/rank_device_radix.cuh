// Ranks of lists of any length: keys and indices are written to memory, sorted by the whole GPU,
// and a tile of sorted positions a block turns into ranks. A sort takes one list, or many, whose
// number then stands before the key.
//
// Scratch, per element of one sort: 16 bytes; 24 for 64-bit keys, and for 32-bit ones of several
// lists. Sorts come one after another and share it. Besides: a few MiB at most for the sort itself,
// and 1 byte per 1024 elements.
//
// Bytes, per element of 32 bits: 12 to load, 68 in the sort's histogram and four passes, 12 for the
// ranks where they fit the cache; the floor is 8.
//
// Absent items come last in their list. Floating-point keys are never all ones, so that this is
// theirs. Integers may be: those that a mask leaves out are moved behind the others before the
// sort, which is stable, and their number is kept.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "block.cuh"
#include "device_sort.cuh"
#include "item_tile.cuh"
#include "marks.cuh"
#include "tuning.h"

namespace rankreg {
namespace gpu {

// A tile: consecutive positions of one list, which a block takes. Tiles of a list are neighbours.
struct Tiles {
  static constexpr int kThreads = 256;
  static constexpr int kScanThreads = 1024;  // of the block that scans a list's tiles
  static constexpr int kSize = 4096;
  static constexpr int kWords = kSize / kWarp;
  // Of the kernel that waits for memory most, on a multiprocessor: all the threads that one has.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr int kRankBlocks = 4;
#else
  static constexpr int kRankBlocks = 6;
#endif

  uint32_t size;  // of a list: n
  uint32_t each;  // tiles of a list

  explicit Tiles(int64_t n) : size(uint32_t(n)), each(uint32_t((n + kSize - 1) / kSize)) {}

  __device__ uint32_t list() const { return blockIdx.x / each; }
  __device__ uint32_t begin() const { return blockIdx.x % each * kSize; }
};

struct TileMemory {
  uint32_t marks[4 * Tiles::kWords];
  uint32_t reach[2];  // first position of the first group, end of the last one
};

// The block's sum, for its last thread.
template <int kThreads>
__device__ uint32_t block_total(uint32_t value, ScanStorage<uint32_t>& storage) {
  uint32_t others;
  return block_scan<kThreads, Sum>(value, 0u, storage, &others);
}

// Items of each tile that the mask leaves in. count: [lists of the sort][tiles.each]. (A template,
// as a kernel of a header must be.)
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    count_present(View where, int64_t first_list, Tiles tiles, uint32_t* count) {
  RANKREG_SHARED(ScanStorage<uint32_t>, storage);
  const int64_t list = first_list + tiles.list();
  uint32_t present = 0;
  for (uint32_t j = threadIdx.x; j < Tiles::kSize; j += kThreads) {
    const uint32_t i = tiles.begin() + j;
    present += i < tiles.size && present_at(where, list, i);
  }
  const uint32_t total = block_total<kThreads>(present, storage);
  if (threadIdx.x == kThreads - 1) count[blockIdx.x] = total;
}

// Groups that begin in each tile. key: [lists][n], sorted within each list; count: [lists][each].
template <class Key>
__global__ void __launch_bounds__(Tiles::kThreads)
    count_groups(const Key* key, Tiles tiles, uint32_t* count) {
  RANKREG_SHARED(ScanStorage<uint32_t>, storage);
  const Key* const row = key + int64_t(tiles.list()) * tiles.size;
  uint32_t groups = 0;
  for (uint32_t j = threadIdx.x; j < Tiles::kSize; j += Tiles::kThreads) {
    const uint32_t p = tiles.begin() + j;
    groups += p < tiles.size && (p == 0 || row[p] != row[p - 1]);
  }
  const uint32_t total = block_total<Tiles::kThreads>(groups, storage);
  if (threadIdx.x == Tiles::kThreads - 1) count[blockIdx.x] = total;
}

// A block a list: the sums of what is before each tile, in place, and of all, if `total` is given.
// count: [lists][each]; total: [lists].
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    scan_tiles(uint32_t* count, uint32_t each, uint32_t* total) {
  RANKREG_SHARED(ScanStorage<uint32_t>, storage);
  RANKREG_SHARED(uint32_t, all);
  uint32_t* const mine = count + int64_t(blockIdx.x) * each;
  uint32_t carry = 0;
  for (uint32_t first = 0; first < each; first += kThreads) {
    const uint32_t i = first + threadIdx.x;
    uint32_t before;
    const uint32_t upto = block_scan<kThreads, Sum>(i < each ? mine[i] : 0u, 0u, storage, &before);
    if (i < each) mine[i] = carry + before;
    if (threadIdx.x == kThreads - 1) all = upto;
    __syncthreads();
    carry += all;
    __syncthreads();
  }
  if (total && threadIdx.x == 0) total[blockIdx.x] = carry;
}

// What the sort is by: the item's key, under the number of its list.
struct SortKey {
  int bytes;       // of an item's own key
  bool ones_last;  // a key of all ones is that of an absent item

  __device__ uint64_t absent() const { return ~uint64_t{0} >> (64 - 8 * bytes); }
  template <class Key>
  __device__ Key of(uint64_t key, uint32_t list) const {
    return Key(sizeof(Key) == size_t(bytes) ? key : key | uint64_t(list) << (8 * bytes));
  }
  template <class Key>
  __device__ bool is_absent(Key key) const {
    return ones_last && (uint64_t(key) & absent()) == absent();
  }
};

// Keys and indices of a tile of items, whose own keys are of type Own; absent items get their
// result here. key, value: [lists][n]. With `before`, [lists][each], and `present`, [lists]: a
// mask's absent items go to the end.
//
// Bytes: each element is read, and sizeof(Key) + 4 written; with `before` the mask is read twice.
template <class Own, class Key>
__global__ void __launch_bounds__(Tiles::kThreads)
    load_keys(Items items, Sink sink, int64_t first_list, Tiles tiles, SortKey sort_key,
              const uint32_t* before, const uint32_t* present, Key* key, uint32_t* value) {
  RANKREG_SHARED(TileMemory, memory);
  constexpr int kAhead = 4;
  const Marks marks = Marks::at(memory.marks, Tiles::kWords);
  const uint32_t row = tiles.list(), begin = tiles.begin();
  const uint32_t end = tiles.size - begin > Tiles::kSize ? begin + Tiles::kSize : tiles.size;
  const int64_t list = first_list + row, start = int64_t(row) * tiles.size;
  if (before) {
    const uint32_t lane = threadIdx.x % kWarp;
    for (uint32_t j = threadIdx.x; j < Tiles::kSize; j += Tiles::kThreads) {
      const uint32_t i = begin + j;
      const unsigned word = __ballot_sync(kAll, i < end && present_at(items.where, list, i));
      if (lane == 0) marks.bits[j / kWarp] = word;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) marks.fill_count(Tiles::kWords);
    __syncthreads();
  }
#pragma unroll 1
  for (uint32_t first = begin + threadIdx.x; first < end; first += kAhead * Tiles::kThreads) {
    Own own[kAhead];
    uint32_t taken = 0;
    if (sizeof(Own) == 4 && items.moved() && items.grad.type == Type::kDouble) {
      // Ranks beyond 2^24 are double for scores of float too, and so is their gradient, which
      // load_items takes to be of the scores' compute type.
      const float lam = lam_of<float>(items.lam);
#pragma unroll 1
      for (int j = 0; j < kAhead; ++j) {
        const uint32_t i = first + uint32_t(j) * Tiles::kThreads;
        if (i >= end) break;
        const float moved = items.value(list, i, lam);
        own[j] = Own(best_first_key(moved, items.descending));
        taken |= uint32_t(!is_nan(moved)) << j;
      }
    } else {
      taken = load_items<Own>(items, list, int(first), Tiles::kThreads, int(end), own);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t i = first + uint32_t(j) * Tiles::kThreads;
      if (i >= end) break;
      const bool is = taken >> j & 1u;
      uint32_t at = i;
      if (before) {
        const uint32_t upto = before[blockIdx.x] + marks.count_upto(i - begin);
        at = is ? upto - 1 : present[row] + (i - upto);
      }
      key[start + at] = sort_key.of<Key>(is ? uint64_t(own[j]) : sort_key.absent(), row);
      value[start + at] = i;
    }
    for (uint32_t absent = ~taken & ((1u << kAhead) - 1); absent; absent &= absent - 1) {
      const uint32_t i = first + uint32_t(__ffs(int(absent)) - 1) * Tiles::kThreads;
      if (i < end) sink.store_absent(list, tiles.size, i);
    }
  }
}

// The first position in [begin, end) whose key is not below `key`, or, `above`, is above it; `end`
// if there is none. A whole warp, 32 positions a step.
template <class Key>
__device__ uint32_t warp_search(const Key* sorted, uint32_t begin, uint32_t end, Key key,
                                bool above) {
  const uint32_t lane = threadIdx.x % kWarp;
  while (begin < end) {
    const uint32_t step = (end - begin - 1) / kWarp + 1;
    const uint64_t probe = uint64_t(begin) + uint64_t(lane + 1) * step - 1;
    const bool before = probe < end && (sorted[probe] < key || (above && sorted[probe] == key));
    const uint32_t passed = uint32_t(__popc(__ballot_sync(kAll, before)));
    const uint64_t next = uint64_t(begin) + uint64_t(passed) * step;
    begin = next < end ? uint32_t(next) : end;
    end = next + step - 1 < end ? uint32_t(next + step - 1) : end;
  }
  return begin;
}

// Ranks of a tile of sorted positions. key, value: [lists][n], sorted within each list. present:
// [lists], items that come first, or null: all do. before: [lists][each], the groups before each
// tile, for dense ranks.
//
// A bitmap of the groups' first positions answers for groups within the tile. Of those that reach
// beyond it there are two; a warp each searches for their ends, in at most 7 steps.
//
// Bytes: sizeof(Key) + 4 are read in order; ranks, and for a gradient the former ranks, are met at
// random, which costs a sector of 32 bytes each where they do not fit the cache.
template <class Key>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kRankBlocks)
    ranks_of_sorted_keys(const Key* key, const uint32_t* value, const uint32_t* present,
                         const uint32_t* before, Tiles tiles, SortKey sort_key, Ties ties,
                         int64_t first_list, Sink sink) {
  RANKREG_SHARED(TileMemory, memory);
  const Marks heads = Marks::at(memory.marks, Tiles::kWords);
  const uint32_t row = tiles.list(), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t begin = tiles.begin(), size = present ? present[row] : tiles.size;
  const uint32_t end = size - begin > Tiles::kSize ? begin + Tiles::kSize : size;
  const int64_t start = int64_t(row) * tiles.size;
  const Key* const mine = key + start;
  if (begin >= size) return;  // the whole block

  if (ties != Ties::kOrdinal) {
    if (warp == 0) {  // where the group of the first position begins
      const bool open = begin > 0 && mine[begin - 1] == mine[begin] &&
                        (ties == Ties::kMin || ties == Ties::kAverage);
      const uint32_t at = open ? warp_search(mine, 0u, begin, mine[begin], false) : begin;
      if (lane == 0) memory.reach[0] = at;
    }
    if (warp == 1) {  // where that of the last one ends
      const bool open = end < size && mine[end] == mine[end - 1] &&
                        (ties == Ties::kMax || ties == Ties::kAverage);
      const uint32_t at = open ? warp_search(mine, end, size, mine[end - 1], true) : end;
      if (lane == 0) memory.reach[1] = at;
    }
    for (uint32_t j = threadIdx.x; j < Tiles::kSize; j += Tiles::kThreads) {
      const uint32_t p = begin + j;
      const Key own = p < end ? mine[p] : Key(0);
      Key former = __shfl_up_sync(kAll, own, 1u);
      if (lane == 0 && p > 0 && p < end) former = mine[p - 1];
      const unsigned word = __ballot_sync(kAll, p < end && (p == 0 || own != former));
      if (lane == 0) heads.bits[j / kWarp] = word;
    }
    __syncthreads();
    heads.fill(ties, Tiles::kWords);
    __syncthreads();
  }

  for (uint32_t j = threadIdx.x; j < end - begin; j += Tiles::kThreads) {
    const uint64_t p = begin + j;
    if (sort_key.is_absent(mine[p])) continue;
    uint64_t twice = 2 * (p + 1);
    if (ties == Ties::kDense) {
      twice = 2 * (uint64_t(before[blockIdx.x]) + heads.count_upto(j));
    } else if (ties != Ties::kOrdinal) {
      uint64_t first = 0, last = 0;
      if (ties != Ties::kMax) {
        const uint32_t head = heads.last_upto(j);
        first = head ? uint64_t(begin) + head : uint64_t(memory.reach[0]) + 1;
      }
      if (ties != Ties::kMin) {
        const uint32_t next = heads.next_after(j);
        last = next == Marks::kNone ? memory.reach[1] : begin + next;
      }
      twice = ties == Ties::kMin ? 2 * first : ties == Ties::kMax ? 2 * last : first + last;
    }
    sink.store(first_list + row, tiles.size, value[start + p], twice);
  }
}

inline int bits_of_lists(int64_t lists) {
  int bits = 0;
  while (int64_t{1} << bits < lists)
    ++bits;
  return bits;
}

// Own: an item's key. Key: holds it and, if `together` > 1, the number of one of so many lists
// above it.
template <class Own, class Key>
void rank_device_radix_as(const Items& items, const Sink& sink, Ties ties, int64_t lists, int64_t n,
                          int64_t together, Context& context) {
  const Tiles tiles(n);
  const SortKey sort_key{key_bytes(items.x.type, items.moved()), is_float(items.x.type)};
  const bool partition = !is_float(items.x.type) && items.where.data != nullptr;
  const bool dense = ties == Ties::kDense;
  const auto bits = [&](int64_t rows) { return 8 * sort_key.bytes + bits_of_lists(rows); };

  SortPairs<Key> pairs;
  Key* const key = context.scratch<Key>(together * n);
  Key* const spare_key = context.scratch<Key>(together * n);
  uint32_t* const value = context.scratch<uint32_t>(together * n);
  uint32_t* const spare_value = context.scratch<uint32_t>(together * n);
  uint32_t* const count =
      partition || dense ? context.scratch<uint32_t>(together * tiles.each) : nullptr;
  uint32_t* const present = partition ? context.scratch<uint32_t>(together) : nullptr;
  // The last sort may be of fewer lists; nobody promises that it needs no more storage.
  const int64_t rest = lists % together ? lists % together : together;
  const int64_t bytes = std::max(DeviceSort::storage<Key>(together * n, bits(together)),
                                 DeviceSort::storage<Key>(rest * n, bits(rest)));
  void* const storage = context.allocate(bytes);

  for (int64_t list = 0; list < lists; list += together) {
    const int64_t rows = std::min(together, lists - list), blocks = rows * tiles.each;
    if (partition) {
      launch<count_present<Tiles::kThreads>>(context, blocks, Tiles::kThreads, 0, items.where, list,
                                             tiles, count);
      launch<scan_tiles<Tiles::kScanThreads>>(context, rows, Tiles::kScanThreads, 0, count,
                                              tiles.each, present);
    }
    pairs = {key, spare_key, value, spare_value};
    launch<load_keys<Own, Key>>(context, blocks, Tiles::kThreads, 0, items, sink, list, tiles,
                                sort_key, partition ? count : nullptr, present, pairs.key,
                                pairs.value);
    DeviceSort::sort(storage, bytes, pairs, rows * n, bits(rows), context.stream);
    if (dense) {
      launch<count_groups<Key>>(context, blocks, Tiles::kThreads, 0, pairs.key, tiles, count);
      launch<scan_tiles<Tiles::kScanThreads>>(context, rows, Tiles::kScanThreads, 0, count,
                                              tiles.each, nullptr);
    }
    launch<ranks_of_sorted_keys<Key>>(context, blocks, Tiles::kThreads, 0, pairs.key, pairs.value,
                                      present, count, tiles, sort_key, ties, list, sink);
  }
}

inline void rank_device_radix_tuned(const Items& items, const Sink& sink, Ties ties, int64_t lists,
                                    int64_t n, const DeviceRadixTuning& tuning, Context& context) {
  if (lists == 0 || n == 0) return;
  constexpr int64_t kMost = 0x7fffffff - Tiles::kSize;  // all positions of all tiles are ints
  if (n > kMost) {
    throw std::runtime_error("rankreg_ext: a list of " + std::to_string(n) +
                             " elements is too long for a GPU, which ranks up to " +
                             std::to_string(kMost));
  }
  const int width = key_bytes(items.x.type, items.moved());
  // 16-bit keys sort as 32-bit ones, of which they leave 16 bits to the list's number; 64-bit keys
  // leave none.
  int64_t together = n > tuning.together_most || width == 8 ? 1 : tuning.elements_most / n;
  if (width == 2) together = std::min(together, int64_t{1} << 16);
  together = std::max(int64_t{1}, std::min(together, lists));
  if (width == 8) {
    rank_device_radix_as<uint64_t, uint64_t>(items, sink, ties, lists, n, 1, context);
  } else if (width == 2) {
    rank_device_radix_as<uint16_t, uint32_t>(items, sink, ties, lists, n, together, context);
  } else if (together > 1) {
    rank_device_radix_as<uint32_t, uint64_t>(items, sink, ties, lists, n, together, context);
  } else {
    rank_device_radix_as<uint32_t, uint32_t>(items, sink, ties, lists, n, 1, context);
  }
}

// Launches: 2 and those of the sort for each of its calls; 2 more for dense ranks, and 2 for
// integers with a mask.
inline void rank_device_radix(const Items& items, const Sink& sink, Ties ties, int64_t lists,
                              int64_t n, Context& context) {
  rank_device_radix_tuned(items, sink, ties, lists, n, DeviceRadixTuning(), context);
}

}  // namespace gpu
}  // namespace rankreg
