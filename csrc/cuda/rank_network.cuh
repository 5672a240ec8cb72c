// Ranks of whole batches of short and middling lists: each is sorted by a bitonic network in the
// registers of a group of threads, and the sorted order becomes ranks.
//
// What is sorted is words of a key and the index of its item, so equal keys keep the items' order
// whatever the network does to them. Words that stand for no item are all ones, which no item's is:
// the top bit of its index is 0.
#pragma once

#include "block.cuh"
#include "item_tile.cuh"

namespace rankreg {
namespace gpu {

// 16-bit keys: key << 16 | index.
using NarrowWord = uint32_t;

// Keys and indices apart, so that a comparison serves both outcomes of an exchange.
template <class Key>
struct PairWord {
  Key key;
  uint32_t index;
};

template <class Key>
struct WordFor {
  using type = PairWord<Key>;
};
template <>
struct WordFor<uint16_t> {
  using type = NarrowWord;
};
template <class Key>
using WordOf = typename WordFor<Key>::type;

__device__ __forceinline__ NarrowWord word_of(uint16_t key, int i) {
  return uint32_t(key) << 16 | uint32_t(i);
}
template <class Key>
__device__ __forceinline__ PairWord<Key> word_of(Key key, int i) {
  return {key, uint32_t(i)};
}

template <class Key>
__device__ __forceinline__ WordOf<Key> no_word() {
  if constexpr (sizeof(Key) == 2) {
    return ~uint32_t{0};
  } else {
    return {Key(~Key{0}), ~uint32_t{0}};
  }
}

__device__ __forceinline__ int index_in(NarrowWord word) { return int(word & 0xffffu); }
template <class Key>
__device__ __forceinline__ int index_in(const PairWord<Key>& word) {
  return int(word.index);
}

__device__ __forceinline__ bool is_item(NarrowWord word) { return (word & 0x8000u) == 0; }
template <class Key>
__device__ __forceinline__ bool is_item(const PairWord<Key>& word) {
  return int32_t(word.index) >= 0;
}

// Whether a new key starts at a word; the first word of no item counts as such.
__device__ __forceinline__ bool differs(NarrowWord word, NarrowWord before) {
  return ((word ^ before) & 0xffff8000u) != 0;
}
template <class Key>
__device__ __forceinline__ bool differs(const PairWord<Key>& word, const PairWord<Key>& before) {
  const Key other_kind = Key((word.index ^ before.index) >> 31);
  return ((word.key ^ before.key) | other_kind) != 0;
}

__device__ __forceinline__ bool less(NarrowWord a, NarrowWord b) { return a < b; }
__device__ __forceinline__ bool less(const PairWord<uint32_t>& a, const PairWord<uint32_t>& b) {
  return (uint64_t{a.key} << 32 | a.index) < (uint64_t{b.key} << 32 | b.index);
}
__device__ __forceinline__ bool less(const PairWord<uint64_t>& a, const PairWord<uint64_t>& b) {
  // No && and no ||, which would branch.
  return bool(int(a.key < b.key) | (int(a.key == b.key) & int(a.index < b.index)));
}

__device__ __forceinline__ NarrowWord chosen(bool first, NarrowWord a, NarrowWord b) {
  return first ? a : b;
}
template <class Key>
__device__ __forceinline__ PairWord<Key> chosen(bool first, const PairWord<Key>& a,
                                                const PairWord<Key>& b) {
  return {first ? a.key : b.key, first ? a.index : b.index};
}

__device__ __forceinline__ NarrowWord of_lane_xor(NarrowWord word, int lanes) {
  return __shfl_xor_sync(kAll, word, lanes);
}
template <class Key>
__device__ __forceinline__ PairWord<Key> of_lane_xor(const PairWord<Key>& word, int lanes) {
  return {__shfl_xor_sync(kAll, word.key, lanes), __shfl_xor_sync(kAll, word.index, lanes)};
}
__device__ __forceinline__ NarrowWord of_lane_before(NarrowWord word) {
  return __shfl_up_sync(kAll, word, 1u);
}
template <class Key>
__device__ __forceinline__ PairWord<Key> of_lane_before(const PairWord<Key>& word) {
  return {__shfl_up_sync(kAll, word.key, 1u), __shfl_up_sync(kAll, word.index, 1u)};
}

template <class Word>
constexpr int kWordBytes = sizeof(Word) == 16 ? 12 : int(sizeof(Word));

// The words of a block in shared memory, warp by warp: kItems rows of a word a lane, so that no
// bank is met twice and rows are a constant apart. Wide words lie in two parts.
template <class Word, int kItems>
struct SharedWords {
  static constexpr int kWarpBytes = kItems * kWarp * kWordBytes<Word>;
  unsigned char* base;

  __device__ __forceinline__ unsigned char* of_warp(int warp) const {
    return base + warp * kWarpBytes;
  }
  __device__ __forceinline__ void put(int thread, int row, const Word& word) const {
    unsigned char* const at = of_warp(thread / kWarp);
    const int slot = row * kWarp + thread % kWarp;
    if constexpr (std::is_same<Word, PairWord<uint64_t>>::value) {
      reinterpret_cast<uint64_t*>(at)[slot] = word.key;
      reinterpret_cast<uint32_t*>(at + kItems * kWarp * 8)[slot] = word.index;
    } else {
      reinterpret_cast<Word*>(at)[slot] = word;
    }
  }
  __device__ __forceinline__ Word get(int thread, int row) const {
    const unsigned char* const at = of_warp(thread / kWarp);
    const int slot = row * kWarp + thread % kWarp;
    if constexpr (std::is_same<Word, PairWord<uint64_t>>::value) {
      return {reinterpret_cast<const uint64_t*>(at)[slot],
              reinterpret_cast<const uint32_t*>(at + kItems * kWarp * 8)[slot]};
    } else {
      return reinterpret_cast<const Word*>(at)[slot];
    }
  }
};

template <class Word>
__device__ __forceinline__ void in_order(Word& a, Word& b) {
  const bool swap = less(b, a);
  const Word low = chosen(swap, b, a);
  b = chosen(swap, a, b);
  a = low;
}
// The lower or the higher of two words.
template <class Word>
__device__ __forceinline__ Word kept(const Word& mine, const Word& other, bool low) {
  return chosen(less(other, mine) == low, other, mine);
}

// Sorts a bitonic run of kRun words in each kRun of them.
template <int kRun, int kItems, class Word>
__device__ __forceinline__ void merge_in_thread(Word (&word)[kItems]) {
  if constexpr (kRun > 1) {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if ((j & kRun / 2) == 0) in_order(word[j], word[j + kRun / 2]);
    }
    merge_in_thread<kRun / 2>(word);
  }
}
// Sorts each kRun words, of which the halves are sorted once the smaller runs are.
template <int kRun, int kItems, class Word>
__device__ __forceinline__ void sort_in_thread(Word (&word)[kItems]) {
  if constexpr (kRun > 1) {
    sort_in_thread<kRun / 2>(word);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if ((j & kRun / 2) == 0) in_order(word[j], word[j ^ (kRun - 1)]);
    }
    merge_in_thread<kRun / 2>(word);
  }
}

// Sorts the words of a group of threads, thread t holding positions t * kItems + j. Sorted runs of
// `span` / 2 threads become runs of `span`: each word meets its mirror image in the run, so that
// all comparisons look the same way, then those at halved distances.
template <int kItems, class Word>
__device__ __forceinline__ void sort_in_group(Word (&word)[kItems], const Group& group,
                                              const SharedWords<Word, kItems>& shared) {
  const int t = group.thread();
  sort_in_thread<kItems>(word);
  for (int span = 2; span <= group.size; span *= 2) {
    for (int mask = span - 1, half = span / 2; half > 0; half /= 2, mask = half) {
      const bool mirrored = half == span / 2, low = (t & half) == 0;
      if (half >= kWarp) {
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          shared.put(t, j, word[j]);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          const int row = mirrored ? kItems - 1 - j : j;
          word[j] = kept(word[j], shared.get(t ^ mask, row), low);
        }
        __syncthreads();
      } else if (mirrored) {
#pragma unroll
        for (int j = 0; j < kItems / 2; ++j) {
          Word& mine = word[j];
          Word& mirror = word[kItems - 1 - j];
          const Word first = of_lane_xor(mirror, mask), second = of_lane_xor(mine, mask);
          mine = kept(mine, first, low);
          mirror = kept(mirror, second, low);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          word[j] = kept(word[j], of_lane_xor(word[j], mask), low);
      }
    }
    merge_in_thread<kItems>(word);
  }
}

// What a block keeps in shared memory besides words.
template <class Word>
struct NetworkShared {
  RankStorage scans;
  Word last[kWarp];  // of each warp
};

// Words, then ranks, of the lists of a block.
template <class Key, int kItems>
inline int64_t network_shared(int threads) {
  using Word = WordOf<Key>;
  static_assert(sizeof(NetworkShared<Word>) % 16 == 0, "words are aligned");
  return int64_t(sizeof(NetworkShared<Word>)) + int64_t{threads} * kItems * kWordBytes<Word>;
}

// A list per group of `group_size` threads, a power of two with group_size * kItems >= n: up to 32
// lanes of a warp, or the whole block. The first block's first list is `from`.
// items, sink: lists x n. Bytes moved: an element of x (and of what moves it, and of `ranks`) and
// of the output each; the network itself stays in registers and shared memory.
template <class Key, int kItems, int kMostThreads>
__global__ void __launch_bounds__(kMostThreads)
    rank_by_network(Items items, Sink sink, Ties ties, int64_t from, int64_t lists, int n,
                    int group_size) {
  using Word = WordOf<Key>;
  auto* const storage = dynamic_shared<NetworkShared<Word>>();
  const Group group{group_size};
  const int t = group.thread(), warp = int(threadIdx.x) / kWarp;
  const int own = int(threadIdx.x) / group_size, together = int(blockDim.x) / group_size;
  const SharedWords<Word, kItems> words{reinterpret_cast<unsigned char*>(storage + 1)};
  // Where the group's first word is; with several groups in a warp, within that warp's part.
  uint32_t* const ranks =
      reinterpret_cast<uint32_t*>(words.of_warp(group_size > kWarp ? 0 : warp)) +
      (group_size > kWarp ? 0 : int(threadIdx.x) % kWarp / group_size * group_size * kItems);
  // Thread t loads and stores items first + j * step.
  const int step = group_size > kWarp ? kWarp : group_size;
  const int first = t / kWarp * kWarp * kItems + t % kWarp;
  constexpr int kTogether = sizeof(Key) == 8 ? 2 : 4;  // of a thread, 16 bytes under way at a time

  const int64_t list = from + int64_t{blockIdx.x} * together + own;
  const int size = list < lists ? n : 0;
  // By way of shared memory, because a loop cannot choose a register.
  uint32_t taken = 0;
#pragma unroll 1
  for (int k = 0; k < kItems; k += kTogether) {
    Key key[kTogether];
    const int i = first + k * step;
    const uint32_t bits = load_items(items, list, i, step, size, key);
    taken |= bits << k;
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      words.put(int(threadIdx.x), k + j,
                bits >> j & 1u ? word_of(key[j], i + j * step) : no_word<Key>());
  }
  Word word[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j)
    word[j] = words.get(int(threadIdx.x), j);
  sort_in_group(word, group, words);

  Word before = of_lane_before(word[kItems - 1]);
  if (group_size > kWarp) {
    const int lane = t % kWarp;
    if (lane == kWarp - 1) storage->last[warp] = word[kItems - 1];
    __syncthreads();
    if (lane == 0 && warp > 0) before = storage->last[warp - 1];
  }
  uint32_t heads = uint32_t(t == 0 || differs(word[0], before));
#pragma unroll
  for (int j = 1; j < kItems; ++j)
    heads |= uint32_t(differs(word[j], word[j - 1])) << j;

  // Where words of no item begin, a group of their own does: it ends the last item's.
  uint32_t twice[kItems];
  ranks_of_sorted(ties, heads, group_size * kItems, group, storage->scans, twice);
  __syncwarp();  // lanes have read the words that ranks take the place of; warps, a barrier ago
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (is_item(word[j])) ranks[index_in(word[j])] = twice[j];
  }
  group.sync();
#pragma unroll 1
  for (int k = 0; k < kItems; k += kTogether) {
    const int i = first + k * step;
    const uint32_t bits = taken >> k & ((1u << kTogether) - 1u);
    const uint32_t* rank = ranks + i;
    uint32_t some[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j, rank += step)
      some[j] = bits >> j & 1u ? *rank : 0u;
    store_items<Key>(sink, list, size, i, step, bits, some);
  }
}

}  // namespace gpu
}  // namespace rankreg
