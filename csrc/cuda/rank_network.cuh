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

// 64-bit keys: the index does not fit beside them.
struct WideWord {
  uint64_t key;
  uint32_t index;
};

template <class Key>
struct WordFor;
template <>
struct WordFor<uint16_t> {
  using type = uint32_t;
};
template <>
struct WordFor<uint32_t> {
  using type = uint64_t;
};
template <>
struct WordFor<uint64_t> {
  using type = WideWord;
};
template <class Key>
using WordOf = typename WordFor<Key>::type;

__device__ __forceinline__ uint32_t word_of(uint16_t key, int i) {
  return uint32_t(key) << 16 | uint32_t(i);
}
__device__ __forceinline__ uint64_t word_of(uint32_t key, int i) {
  return uint64_t(key) << 32 | uint32_t(i);
}
__device__ __forceinline__ WideWord word_of(uint64_t key, int i) { return {key, uint32_t(i)}; }

template <class Word>
__device__ __forceinline__ Word no_word() {
  if constexpr (std::is_same<Word, WideWord>::value) {
    return {~uint64_t{0}, ~uint32_t{0}};
  } else {
    return Word(~Word{0});
  }
}

__device__ __forceinline__ int index_in(uint32_t word) { return int(word & 0xffffu); }
__device__ __forceinline__ int index_in(uint64_t word) { return int(uint32_t(word)); }
__device__ __forceinline__ int index_in(const WideWord& word) { return int(word.index); }

__device__ __forceinline__ bool is_item(uint32_t word) { return (word & 0x8000u) == 0; }
__device__ __forceinline__ bool is_item(uint64_t word) { return int32_t(uint32_t(word)) >= 0; }
__device__ __forceinline__ bool is_item(const WideWord& word) { return int32_t(word.index) >= 0; }

// Whether a new key starts at a word; the first word of no item counts as such.
__device__ __forceinline__ bool differs(uint32_t word, uint32_t before) {
  return ((word ^ before) & 0xffff8000u) != 0;
}
__device__ __forceinline__ bool differs(uint64_t word, uint64_t before) {
  return ((word ^ before) & 0xffffffff80000000u) != 0;
}
__device__ __forceinline__ bool differs(const WideWord& word, const WideWord& before) {
  return word.key != before.key || is_item(word) != is_item(before);
}

__device__ __forceinline__ bool less(uint32_t a, uint32_t b) { return a < b; }
__device__ __forceinline__ bool less(uint64_t a, uint64_t b) { return a < b; }
__device__ __forceinline__ bool less(const WideWord& a, const WideWord& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

template <class Word>
__device__ __forceinline__ Word chosen(bool first, const Word& a, const Word& b) {
  return first ? a : b;
}
__device__ __forceinline__ WideWord chosen(bool first, const WideWord& a, const WideWord& b) {
  return {first ? a.key : b.key, first ? a.index : b.index};
}

template <class Word>
__device__ __forceinline__ Word of_lane_xor(const Word& word, int lanes) {
  return __shfl_xor_sync(kAll, word, lanes);
}
__device__ __forceinline__ WideWord of_lane_xor(const WideWord& word, int lanes) {
  return {__shfl_xor_sync(kAll, word.key, lanes), __shfl_xor_sync(kAll, word.index, lanes)};
}
template <class Word>
__device__ __forceinline__ Word of_lane_before(const Word& word) {
  return __shfl_up_sync(kAll, word, 1u);
}
__device__ __forceinline__ WideWord of_lane_before(const WideWord& word) {
  return {__shfl_up_sync(kAll, word.key, 1u), __shfl_up_sync(kAll, word.index, 1u)};
}

// Words in shared memory; wide ones lie apart, so that lanes meet no bank twice.
template <class Word>
struct SharedWords {
  Word* words;
  __device__ SharedWords(void* at, int) : words(static_cast<Word*>(at)) {}
  __device__ __forceinline__ void put(int at, const Word& word) const { words[at] = word; }
  __device__ __forceinline__ Word get(int at) const { return words[at]; }
};
template <>
struct SharedWords<WideWord> {
  uint64_t* keys;
  uint32_t* indices;
  __device__ SharedWords(void* at, int count)
      : keys(static_cast<uint64_t*>(at)), indices(reinterpret_cast<uint32_t*>(keys + count)) {}
  __device__ __forceinline__ void put(int at, const WideWord& word) const {
    keys[at] = word.key;
    indices[at] = word.index;
  }
  __device__ __forceinline__ WideWord get(int at) const { return {keys[at], indices[at]}; }
};

template <class Word>
constexpr int kWordBytes = sizeof(Word) == 16 ? 12 : int(sizeof(Word));

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
__device__ __forceinline__ uint32_t kept(uint32_t mine, uint32_t other, bool low) {
  return low ? (mine < other ? mine : other) : (mine < other ? other : mine);
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
                                              const SharedWords<Word>& shared) {
  const int t = group.thread();
  sort_in_thread<kItems>(word);
  for (int span = 2; span <= group.size; span *= 2) {
    for (int mask = span - 1, half = span / 2; half > 0; half /= 2, mask = half) {
      const bool mirrored = half == span / 2, low = (t & half) == 0;
      if (half >= kWarp) {
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          shared.put(j * group.size + t, word[j]);
        __syncthreads();
        const int other = t ^ mask;
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          const int there = mirrored ? kItems - 1 - j : j;
          word[j] = kept(word[j], shared.get(there * group.size + other), low);
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
// lanes of a warp, or the whole block. Blocks take lists in turn.
// items, sink: lists x n. Bytes moved: an element of x (and of what moves it, and of `ranks`) and
// of the output each; the network itself stays in registers and shared memory.
template <class Key, int kItems, int kMostThreads>
__global__ void __launch_bounds__(kMostThreads)
    rank_by_network(Items items, Sink sink, Ties ties, int64_t lists, int n, int group_size) {
  using Word = WordOf<Key>;
  auto* const storage = dynamic_shared<NetworkShared<Word>>();
  const Group group{group_size};
  const int t = group.thread(), own = int(threadIdx.x) / group_size;
  const int64_t together = int(blockDim.x) / group_size;
  const SharedWords<Word> words(storage + 1, int(blockDim.x) * kItems);
  uint32_t* const ranks = reinterpret_cast<uint32_t*>(storage + 1) + own * group_size * kItems;

  for (int64_t base = blockIdx.x * together; base < lists; base += gridDim.x * together) {
    const int64_t list = base + own;
    const int size = list < lists ? n : 0;
    Word word[kItems];
    uint32_t taken;
    {
      Key key[kItems];
      taken = load_items(items, list, t, group_size, size, key);
#pragma unroll
      for (int j = 0; j < kItems; ++j)
        word[j] = taken >> j & 1u ? word_of(key[j], t + j * group_size) : no_word<Word>();
    }
    sort_in_group(word, group, words);

    Word before = of_lane_before(word[kItems - 1]);
    if (group_size > kWarp) {
      const int warp = t / kWarp, lane = t % kWarp;
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
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (is_item(word[j])) ranks[index_in(word[j])] = twice[j];
    }
    group.sync();
    constexpr int kTogether = 4;
    for (int k = 0; k < kItems; k += kTogether) {
      const int first = t + k * group_size;
      const uint32_t bits = taken >> k & ((1u << kTogether) - 1u);
      uint32_t some[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        some[j] = bits >> j & 1u ? ranks[first + j * group_size] : 0u;
      store_items(sink, list, size, first, group_size, bits, some);
    }
    group.sync();
  }
}

}  // namespace gpu
}  // namespace rankreg
