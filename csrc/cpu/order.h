// The places of keys in their sorted order, without writing the sorted keys anywhere.
//
//   place(keys)_i = #{k : key_k < key_i}         kShare: equal keys share the first of their places
//                   + #{k < i : key_k == key_i}  kOwn: each has its own, in the order of indices
//
// - Short lists: every key is compared with every key.
// - Up to kNetworkMax keys: one 32-bit word per key, [coarse key | index], is sorted by a network
//   without branches. The coarse key is a monotone map of the key to the bits that the index leaves
//   free: linear in the value of a floating-point key where that is finite, else linear in the key.
//   Words whose coarse keys are equal may be in the wrong order; such runs are short and are put in
//   order by the keys themselves. A long run, as a cluster of values causes, is a list of its own.
// - Longer lists: one pass counts how many keys fall into each of up to a thousand cells of such a
//   map, one pass distributes keys and indices over the cells, and neighbouring cells are sorted
//   together as above. A cell too large for that is a list of its own.
//
// Every map is exact: it only decides which keys are compared.
//
// Scratch per key: up to kNetworkMax 8 bytes and the key; beyond, an index, the key and the place,
// 12 bytes, or 16 with 64-bit keys. Traffic beyond the first-level cache: the list twice, key and
// index written and read once, places written once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "../common/keys.h"
#include "network.h"
#include "parallel.h"
#include "target.h"
#include "tuning.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

enum class Equal { kShare, kOwn };

// Where the places of a list's keys go: to place[i], or to place[at[i]].
struct Own {
  RANKREG_INLINE int64_t operator()(int64_t i) const { return i; }
};
struct Listed {
  const uint32_t* at;
  RANKREG_INLINE int64_t operator()(int64_t i) const { return at[i]; }
};

// Uninitialised memory that grows and is kept.
template <class T>
class Buffer {
 public:
  T* of(int64_t size) {
    if (size > size_) {
      data_.reset(new T[size_t(size)]);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

// The floating-point type whose values the keys stand for, if any: float and double have one.
template <class Key, class Value>
RANKREG_INLINE Value value_of(Key key) {  // inverse of ascending_key; of -x for a descending key
  constexpr Key top = Key(Key{1} << (8 * sizeof(Key) - 1));
  return bit_cast<Value>(Key(key & top ? key ^ top : ~key));
}

inline int bits_of(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// A monotone map of keys in [low, high] to [0, 2^bits), bits <= 31; one-to-one if exact.
template <class Key, class Value>
class Coarse {
 public:
  Coarse(Key low, Key high, int bits) : low_(low), high_(high) {
    shift_ = std::max(0, bits_of(uint64_t(high - low)) - bits);
    exact = shift_ == 0;
    if constexpr (kHasValue) {
      if (exact) return;
      const Value first = value_of<Key, Value>(low), last = value_of<Key, Value>(high);
      // A little less than 2^bits, so that no rounding reaches it.
      const Value top = Value(int64_t{1} << bits) * Value(1 - 1.0 / (1 << 20));
      const Value scale = top / (last - first);
      if (scale > 0 && scale <= std::numeric_limits<Value>::max() &&
          last - first <= std::numeric_limits<Value>::max()) {
        by_value_ = true;
        first_ = first;
        scale_ = scale;
      }
    }
  }

  // f(map): a map of a key, with the kind of map fixed.
  template <class F>
  RANKREG_INLINE void with_map(const F& f) const {
    if constexpr (kHasValue) {
      if (by_value_) {
        const Value first = first_, scale = scale_;
        return f([=](Key key) RANKREG_ALWAYS {
          return uint32_t(int32_t((value_of<Key, Value>(key) - first) * scale));
        });
      }
    }
    const Key low = low_;
    const int shift = shift_;
    f([=](Key key) RANKREG_ALWAYS { return uint32_t(Key(key - low) >> shift); });
  }

  // The same for keys outside [low, high] too, which go to its ends.
  template <class F>
  RANKREG_INLINE void with_clamped_map(const F& f) const {
    const Key low = low_, high = high_;
    with_map([&](auto map) RANKREG_ALWAYS {
      f([=](Key key) RANKREG_ALWAYS { return map(std::min(std::max(key, low), high)); });
    });
  }

  bool exact = true;

 private:
  static constexpr bool kHasValue = !std::is_same<Value, void>::value;
  using Stored = typename std::conditional<kHasValue, Value, float>::type;
  Key low_ = 0, high_ = 0;
  int shift_ = 0;
  bool by_value_ = false;
  Stored first_ = 0, scale_ = 0;
};

template <class Key>
void range_of(const Key* key, int64_t n, Key* low, Key* high) {
  Key least = key[0], most = key[0];
  for (int64_t i = 1; i < n; ++i) {
    least = std::min(least, key[i]);
    most = std::max(most, key[i]);
  }
  *low = least;
  *high = most;
}

constexpr int64_t kCountingMax = kRankTuning[RANKREG_ISA].counting_max;
constexpr int64_t kNetworkMax = kRankTuning[RANKREG_ISA].network_max;

// Longest run of equal coarse keys that is put in order by insertion.
constexpr int64_t kRunMax = 16;

// Callers leave room for this many places and indices beyond those of a list: padding goes there.
constexpr int64_t kRoom = kNetworkBlock;

template <class Key, class Value>
class Placer {
 public:
  // Places of key[0..n), counted from `base`, to place[index(i)]; anything to place[index(i)] for
  // n <= i < n + kRoom. Returns whether keys are equal; not asked of kOwn.
  template <class Index>
  bool place(const Key* key, int64_t n, Equal kind, uint32_t base, const Index& index,
             uint32_t* place) {
    if (n <= kCountingMax && kind == Equal::kShare) return count(key, n, base, index, place);
    Key low, high;
    range_of(key, n, &low, &high);
    if (low == high) {
      for (int64_t i = 0; i < n; ++i)
        place[index(i)] = base + (kind == Equal::kOwn ? uint32_t(i) : 0);
      return n > 1;
    }
    return sort(key, n, low, high, kind, base, index, place);
  }

 private:
  template <class Index>
  bool count(const Key* key, int64_t n, uint32_t base, const Index& index, uint32_t* place) {
    uint32_t out[kCountingMax];
    if constexpr (sizeof(Key) <= 4) {
      uint32_t padded[kCountingMax];
      std::copy(key, key + n, padded);
      std::fill(padded + n, padded + kCountingMax, uint32_t{0});
      for (int64_t begin = 0; begin < n; begin += 2 * kLanes) {  // two vectors hide their latency
        const Words a = Words::load(padded + begin), b = Words::load(padded + begin + kLanes);
        Words less_a = Words::all(base), less_b = less_a;
        for (int64_t k = 0; k < n; ++k) {
          const Words other = Words::all(padded[k]);
          less_a = add_if_less(less_a, other, a);
          less_b = add_if_less(less_b, other, b);
        }
        less_a.store(out + begin);
        less_b.store(out + begin + kLanes);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const Key mine = key[i];
        Key less = 0;
        for (int64_t k = 0; k < n; ++k)
          less += key[k] < mine;
        out[i] = base + uint32_t(less);
      }
    }
    for (int64_t i = 0; i < n; ++i)
      place[index(i)] = out[i];
    return true;  // perhaps
  }

  // Sorted words: 2^row_bits rows of kLanes words per block, see network.h.
  struct Sorted {
    uint32_t* word;
    int64_t n, blocks;
    int row_bits, index_bits;

    uint32_t rows() const { return uint32_t{1} << row_bits; }
    uint32_t block() const { return rows() * kLanes; }
    const uint32_t* row(int64_t block, int64_t r) const {
      return word + ((block << row_bits) + r) * kLanes;
    }
    // Index of the item at a place.
    uint32_t item(int64_t place) const {
      const uint32_t e = uint32_t(place) & (block() - 1);
      return index_of(word[place - e + (e & (rows() - 1)) * kLanes + (e >> row_bits)]);
    }
    uint32_t index_of(uint32_t word) const { return word & ((uint32_t{1} << index_bits) - 1); }
  };

  template <class Index>
  bool sort(const Key* key, int64_t n, Key low, Key high, Equal kind, uint32_t base,
            const Index& index, uint32_t* place) {
    Sorted sorted{nullptr, n, 1, 0, 0};
    while (sorted.rows() < uint32_t(Words::kRows) && sorted.block() < n)
      ++sorted.row_bits;
    sorted.blocks = (n + sorted.block() - 1) / sorted.block();
    const int64_t size = sorted.blocks * sorted.block();
    sorted.index_bits = bits_of(uint64_t(size - 1));
    sorted.word = words_.of(size);
    const Coarse<Key, Value> coarse(low, high, Words::kBits - sorted.index_bits);
    fill_words(key, coarse, sorted, size);
    sort_words(sorted);
    const int64_t same = kind == Equal::kShare || !coarse.exact ? count_same(sorted) : 0;

    if (same > 0 && coarse.exact) {
      uint32_t first = 0, at = 0, before = ~sorted.word[0];
      for (int64_t b = 0; b < sorted.blocks; ++b) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          for (int64_t r = 0; r < sorted.rows(); ++r, ++at) {
            const uint32_t word = sorted.row(b, r)[lane];
            first = (word ^ before) >> sorted.index_bits ? at : first;
            before = word;
            place[index(sorted.index_of(word))] = base + first;
          }
        }
      }
      return true;
    }

    if (same > n / 16) return place_runs(key, sorted, kind, base, index, place);

    const uint32_t step = sorted.rows();
    for (int64_t b = 0; b < sorted.blocks; ++b) {
      for (uint32_t r = 0; r < step; ++r) {
        const uint32_t* const word = sorted.row(b, r);
        const uint32_t at = base + uint32_t(b) * sorted.block() + r;
        for (uint32_t lane = 0; lane < uint32_t(kLanes); ++lane)
          place[index(sorted.index_of(word[lane]))] = at + lane * step;
      }
    }
    return same > 0 && place_few_runs(key, sorted, kind, base, index, place);
  }

  static void fill_words(const Key* key, const Coarse<Key, Value>& coarse, const Sorted& sorted,
                         int64_t size) {
    const int bits = sorted.index_bits;
    coarse.with_map([&](auto map) RANKREG_ALWAYS {
      for (int64_t i = 0; i < sorted.n; ++i)
        sorted.word[i] = map(key[i]) << bits | uint32_t(i);
    });
    // Padding has the largest coarse key and indices beyond the list, so it comes last.
    const uint32_t most = ~uint32_t{0} >> (32 - Words::kBits + bits) << bits;
    for (int64_t i = sorted.n; i < size; ++i)
      sorted.word[i] = most | uint32_t(i);
  }

  static void sort_words(const Sorted& sorted) {
    if (sorted.blocks > 1) return sort_blocks(sorted.word, sorted.blocks);
    switch (sorted.rows()) {
      case 1: return sort_block<1>(sorted.word);
      case 2: return sort_block<2>(sorted.word);
      case 4: return sort_block<4>(sorted.word);
      case 8: return sort_block<8>(sorted.word);
      default: return sort_block<Words::kRows>(sorted.word);
    }
  }

  // f(block, row, mask): bit `lane` of the mask is set where the element has the coarse key of the
  // one before it.
  template <class F>
  static RANKREG_INLINE void for_rows(const Sorted& sorted, const F& f) {
    uint32_t before[kLanes + 1];  // the columns' predecessors
    before[0] = ~sorted.word[0];
    for (int64_t b = 0; b < sorted.blocks; ++b) {
      const uint32_t* const last = sorted.row(b, sorted.rows() - 1);
      std::copy(last, last + kLanes, before + 1);
      Words above = Words::load(before);
      before[0] = before[kLanes];
      const int64_t left = sorted.n - b * sorted.block();
      for (int64_t r = 0; r < sorted.rows(); ++r) {
        const Words here = Words::load(sorted.row(b, r));
        uint32_t mask = same_above(above, here, sorted.index_bits);
        above = here;
        // Not of the padding: the first lanes hold the list's own.
        const int64_t lanes = (left - r + sorted.rows() - 1) >> sorted.row_bits;
        mask &= uint32_t((uint64_t{1} << std::min<int64_t>(std::max<int64_t>(lanes, 0), 32)) - 1);
        f(b, r, mask);
      }
    }
  }

  // How many elements have the coarse key of the one before them.
  static int64_t count_same(const Sorted& sorted) {
    int64_t count = 0;
    for_rows(sorted, [&](int64_t, int64_t, uint32_t mask)
                         RANKREG_ALWAYS { count += __builtin_popcount(mask); });
    return count;
  }

  // The few runs of equal coarse keys, found through a bit per place.
  template <class Index>
  bool place_few_runs(const Key* key, const Sorted& sorted, Equal kind, uint32_t base,
                      const Index& index, uint32_t* place) {
    const int64_t n = sorted.n;
    uint64_t* const same = same_.of(n / 64 + 1);
    std::fill(same, same + n / 64 + 1, uint64_t{0});
    for_rows(sorted, [&](int64_t b, int64_t r, uint32_t mask) RANKREG_ALWAYS {
      for (; mask; mask &= mask - 1) {
        const int64_t at = b * sorted.block() + (__builtin_ctz(mask) << sorted.row_bits) + r;
        same[at / 64] |= uint64_t{1} << (at % 64);
      }
    });
    uint32_t* const item = item_.of(n);
    bool equal = false;
    int64_t end = 0;  // of the last run
    for (int64_t w = 0; w <= n / 64; ++w) {
      for (uint64_t bits = same[w]; bits; bits &= bits - 1) {
        const int64_t second = w * 64 + __builtin_ctzll(bits), begin = second - 1;
        if (second < end) continue;
        item[0] = sorted.item(begin);
        item[1] = sorted.item(second);
        end = second + 1;
        for (; end < n && (same[end / 64] >> (end % 64) & 1); ++end)
          item[end - begin] = sorted.item(end);
        equal |= place_run(key, item, end - begin, kind, base + uint32_t(begin), index,
                           uint32_t(index(n)), place);
      }
    }
    return equal;
  }

  // All places, one after the other.
  template <class Index>
  bool place_runs(const Key* key, const Sorted& sorted, Equal kind, uint32_t base,
                  const Index& index, uint32_t* place) {
    const int64_t n = sorted.n;
    uint32_t* const word = item_.of(n);
    int64_t at = 0;
    for (int64_t b = 0; b < sorted.blocks; ++b) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t rows = std::min<int64_t>(sorted.rows(), n - at);
        for (int64_t r = 0; r < rows; ++r)
          word[at++] = sorted.row(b, r)[lane];
      }
    }
    bool equal = false;
    for (int64_t begin = 0; begin < n;) {
      const uint32_t first = word[begin];
      int64_t end = begin;
      do {
        word[end] = sorted.index_of(word[end]);
        ++end;
      } while (end < n && (word[end] ^ first) >> sorted.index_bits == 0);
      if (end - begin == 1) {
        place[index(word[begin])] = base + uint32_t(begin);
      } else {
        equal |= place_run(key, word + begin, end - begin, kind, base + uint32_t(begin), index,
                           uint32_t(index(n)), place);
      }
      begin = end;
    }
    return equal;
  }

  // Places of the items of one run, given in the order of their indices.
  template <class Index>
  bool place_run(const Key* key, uint32_t* item, int64_t size, Equal kind, uint32_t base,
                 const Index& index, uint32_t nowhere, uint32_t* place) {
    const Key one = key[item[0]];
    int64_t alike = 1;
    while (alike < size && key[item[alike]] == one)
      ++alike;
    if (alike == size) {
      for (int64_t i = 0; i < size; ++i)
        place[index(item[i])] = base + (kind == Equal::kOwn ? uint32_t(i) : 0);
      return true;
    }
    if (size <= kRunMax) {  // a stable insertion by key
      for (int64_t i = alike; i < size; ++i) {
        const uint32_t moving = item[i];
        int64_t to = i;
        for (; to > 0 && key[item[to - 1]] > key[moving]; --to)
          item[to] = item[to - 1];
        item[to] = moving;
      }
      bool equal = false;
      uint32_t first = 0;
      for (int64_t i = 0; i < size; ++i) {
        const bool tied = i > 0 && key[item[i]] == key[item[i - 1]];
        equal |= tied;
        if (!tied || kind == Equal::kOwn) first = uint32_t(i);
        place[index(item[i])] = base + first;
      }
      return equal;
    }
    if (!inner_) inner_.reset(new Placer);
    Key* const keys = inner_->run_key_.of(size);
    uint32_t* const at = inner_->run_at_.of(size + kRoom);
    for (int64_t i = 0; i < size; ++i) {
      keys[i] = key[item[i]];
      at[i] = uint32_t(index(item[i]));
    }
    std::fill(at + size, at + size + kRoom, nowhere);
    return inner_->place(keys, size, kind, base, Listed{at}, place);
  }

  Buffer<uint32_t> words_, item_;
  Buffer<uint64_t> same_;
  std::unique_ptr<Placer> inner_;  // of long runs, whose keys and indices are
  Buffer<Key> run_key_;
  Buffer<uint32_t> run_at_;
};

// Longest list: its places, and those of the padding, are 32-bit numbers.
constexpr int64_t kPlacesMax = std::numeric_limits<uint32_t>::max() - (1 << 20);

constexpr int64_t kKeyTile = 2048;   // keys at a time; they stay in the first-level cache
constexpr int64_t kTogether = 1024;  // keys in neighbouring cells that are sorted together
constexpr int kCellBits = 10;        // at most; the counters fit the first-level cache

// From this length on the 65,536 keys of 16-bit scores are counted one by one.
constexpr int64_t kHistogramMin = 1 << 15;

// Gives the keys of a list. Asked by tiles, so that what follows is compiled once per kind of key.
template <class KeyType>
struct Source {
  using Key = KeyType;
  virtual ~Source() = default;

  // The key of item i; false if it takes no part.
  virtual bool one(int64_t i, Key* key) const = 0;

  // Keys and indices of those of at most kKeyTile items [begin, end) that take part; how many.
  virtual int64_t tile(int64_t begin, int64_t end, Key* key, uint32_t* index) const = 0;
};

// A part of a list.
template <class Key>
struct Sublist final : Source<Key> {
  const Key* key;
  const uint32_t* at;

  Sublist(const Key* keys, const uint32_t* indices) : key(keys), at(indices) {}

  bool one(int64_t i, Key* out) const override {
    *out = key[i];
    return true;
  }
  int64_t tile(int64_t begin, int64_t end, Key* keys, uint32_t* index) const override {
    std::copy(key + begin, key + end, keys);
    std::copy(at + begin, at + end, index);
    return end - begin;
  }
};

// Groups of cells that a thread ranks one after the other, tasks for short, per thread; each has a
// place for its padding, a cache line apart.
constexpr int64_t kTasks = 8, kApart = 16;

// Room for such places, after those of a list.
inline int64_t long_room(int64_t n, const Parallel& parallel) {
  return kTasks * kApart * chunks_of(n, parallel);
}

// Places of lists of any length up to kPlacesMax.
template <class Key, class Value>
class LongPlacer {
 public:
  // Places of the keys of a source of n items, at the indices of those that take part, and anything
  // to the long_room() places from place[n] on; `present` becomes their number. Returns whether
  // keys are equal.
  bool place(const Source<Key>& source, int64_t n, Equal kind, uint32_t* place, int64_t* present,
             const Parallel& parallel) {
    if constexpr (sizeof(Key) == 2) {
      if (n >= kHistogramMin) return place_by_key(source, n, kind, place, present, parallel);
    }
    Key low, high;
    if (!sampled_range(source, n, &low, &high) && !full_range(source, n, &low, &high)) {
      return place_alike(source, n, kind, place, present);
    }
    const int bits = cell_bits(n);
    return distribute(source, n, Coarse<Key, Value>(low, high, bits), int64_t{1} << bits, kind, 0,
                      uint32_t(n), place, present, parallel);
  }

 private:
  static int cell_bits(int64_t n) { return std::min(kCellBits, bits_of(uint64_t(n / 1024))); }

  // Of a thousand items: keys beyond that range go to the outermost cells.
  static bool sampled_range(const Source<Key>& source, int64_t n, Key* low, Key* high) {
    bool any = false;
    const int64_t step = n / 1000 + 1;
    for (int64_t i = 0; i < n; i += step) {
      Key key;
      if (!source.one(i, &key)) continue;
      *low = any ? std::min(*low, key) : key;
      *high = any ? std::max(*high, key) : key;
      any = true;
    }
    return any && *low < *high;
  }

  // f(keys, indices, count) for the items of [begin, end), a tile at a time.
  template <class F>
  static void for_tiles(const Source<Key>& source, int64_t begin, int64_t end, const F& f) {
    Key key[kKeyTile];
    uint32_t index[kKeyTile];
    for (int64_t at = begin; at < end; at += kKeyTile)
      f(key, index, source.tile(at, std::min(end, at + kKeyTile), key, index));
  }

  static bool full_range(const Source<Key>& source, int64_t n, Key* low, Key* high) {
    Key least = std::numeric_limits<Key>::max(), most = 0;
    for_tiles(source, 0, n, [&](const Key* key, const uint32_t*, int64_t count) {
      if (count == 0) return;
      Key tile_least, tile_most;
      range_of(key, count, &tile_least, &tile_most);
      least = std::min(least, tile_least);
      most = std::max(most, tile_most);
    });
    *low = least;
    *high = most;
    return least < most;
  }

  // All keys are equal.
  static bool place_alike(const Source<Key>& source, int64_t n, Equal kind, uint32_t* place,
                          int64_t* present) {
    uint32_t own = 0;
    for_tiles(source, 0, n, [&](const Key*, const uint32_t* index, int64_t count) {
      for (int64_t i = 0; i < count; ++i, ++own)
        place[index[i]] = kind == Equal::kOwn ? own : 0;
    });
    *present = own;
    return own > 1;
  }

  // One counter per key: no order is made at all.
  bool place_by_key(const Source<Key>& source, int64_t n, Equal kind, uint32_t* place,
                    int64_t* present, const Parallel& parallel) {
    constexpr int64_t keys = int64_t{1} << (8 * sizeof(Key));
    const int64_t chunks = chunks_of(n, parallel);
    uint32_t* const counts = counts_.of(chunks * keys);
    parallel.each(chunks, [&](int64_t c) {
      const Part part(n, c, chunks);
      uint32_t* const count = counts + c * keys;
      std::fill(count, count + keys, 0u);
      for_tiles(source, part.begin, part.end, [&](const Key* key, const uint32_t*, int64_t size) {
        for (int64_t i = 0; i < size; ++i)
          ++count[key[i]];
      });
    });
    bool equal = false;
    uint32_t before = 0;  // keys placed already
    for (int64_t key = 0; key < keys; ++key) {
      uint32_t here = 0;
      for (int64_t c = 0; c < chunks; ++c) {
        uint32_t& slot = counts[c * keys + key];
        const uint32_t count = slot;
        slot = before + (kind == Equal::kOwn ? here : 0);
        here += count;
      }
      equal |= here > 1;
      before += here;
    }
    *present = before;
    parallel.each(chunks, [&](int64_t c) {
      const Part part(n, c, chunks);
      uint32_t* const next = counts + c * keys;
      for_tiles(source, part.begin, part.end,
                [&](const Key* key, const uint32_t* index, int64_t size) {
                  if (kind == Equal::kOwn) {
                    for (int64_t i = 0; i < size; ++i)
                      place[index[i]] = next[key[i]]++;
                  } else {
                    for (int64_t i = 0; i < size; ++i)
                      place[index[i]] = next[key[i]];
                  }
                });
    });
    return equal;
  }

  template <class Cells>
  bool distribute(const Source<Key>& source, int64_t n, const Cells& coarse, int64_t cells,
                  Equal kind, uint32_t base, uint32_t nowhere, uint32_t* place, int64_t* present,
                  const Parallel& parallel) {
    const int64_t chunks = chunks_of(n, parallel);
    uint32_t* const counts = counts_.of(chunks * cells);
    Key* const sorted_key = key_.of(n);
    uint32_t* const sorted_index = index_.of(n);
    // f(chunk's counter of a key's cell, key, index) for all items.
    const auto for_cells = [&](int64_t c, const auto& f) {
      const Part part(n, c, chunks);
      uint32_t* const count = counts + c * cells;
      coarse.with_clamped_map([&](auto map) {
        for_tiles(source, part.begin, part.end,
                  [&](const Key* key, const uint32_t* index, int64_t size) {
                    uint16_t cell[kKeyTile];
                    for (int64_t i = 0; i < size; ++i)
                      cell[i] = uint16_t(map(key[i]));
                    for (int64_t i = 0; i < size; ++i)
                      f(count[cell[i]], key[i], index[i]);
                  });
      });
    };
    parallel.each(chunks, [&](int64_t c) {
      std::fill(counts + c * cells, counts + (c + 1) * cells, 0u);
      for_cells(c, [](uint32_t& count, Key, uint32_t) RANKREG_ALWAYS { ++count; });
    });

    // Groups of neighbouring cells, as items [ends[g - 1], ends[g]).
    std::vector<uint32_t> ends;
    uint32_t begin = 0, position = 0;
    for (int64_t cell = 0; cell < cells; ++cell) {
      uint32_t here = 0;
      for (int64_t c = 0; c < chunks; ++c)
        here += counts[c * cells + cell];
      if (position > begin && position - begin + here > kTogether) {
        ends.push_back(position);
        begin = position;
      }
      for (int64_t c = 0; c < chunks; ++c) {
        uint32_t& slot = counts[c * cells + cell];
        const uint32_t count = slot;
        slot = position;
        position += count;
      }
    }
    ends.push_back(position);
    *present = position;

    parallel.each(chunks, [&](int64_t c) {
      for_cells(c, [=](uint32_t& next, Key key, uint32_t index) RANKREG_ALWAYS {
        const uint32_t at = next++;
        sorted_key[at] = key;
        sorted_index[at] = index;
      });
    });

    // Groups are shared out in runs of about equally many items.
    const int64_t tasks =
        chunks == 1 ? 1 : std::min<int64_t>(kTasks * chunks, int64_t(ends.size()));
    if (int64_t(tasks_.size()) < tasks) tasks_.resize(size_t(tasks));
    std::vector<uint8_t> equal(size_t(tasks), 0);
    parallel.each(tasks, [&](int64_t t) {
      const Part part(*present, t, tasks);
      const auto first = std::upper_bound(ends.begin(), ends.end(), uint32_t(part.begin));
      uint32_t from = first == ends.begin() ? 0 : *(first - 1);
      if (from < part.begin) from = *first;  // that group belongs to the task before
      bool any = false;
      for (auto end = std::upper_bound(ends.begin(), ends.end(), from);
           end != ends.end() && from < part.end; from = *end++) {
        any |= place_group(tasks_[size_t(t)], sorted_key + from, sorted_index + from, *end - from,
                           kind, base + from, nowhere + uint32_t(t) * kApart, place);
      }
      equal[size_t(t)] = any;
    });
    return std::find(equal.begin(), equal.end(), 1) != equal.end();
  }

  struct Task {
    Placer<Key, Value> placer;
    Buffer<uint32_t> at;
    std::unique_ptr<LongPlacer> deeper;
  };

  static bool place_group(Task& task, const Key* key, const uint32_t* index, int64_t size,
                          Equal kind, uint32_t base, uint32_t nowhere, uint32_t* place) {
    if (size <= kNetworkMax) {
      uint32_t* const at = task.at.of(size + kRoom);
      std::copy(index, index + size, at);
      std::fill(at + size, at + size + kRoom, nowhere);
      return task.placer.place(key, size, kind, base, Listed{at}, place);
    }
    // Linear in the key, whose range every level narrows by as many bits.
    const Sublist<Key> part(key, index);
    Key low, high;
    range_of(key, size, &low, &high);
    if (low == high) {
      for (int64_t i = 0; i < size; ++i)
        place[index[i]] = base + (kind == Equal::kOwn ? uint32_t(i) : 0);
      return true;
    }
    if (!task.deeper) task.deeper.reset(new LongPlacer);
    const int bits = cell_bits(size);
    int64_t present;
    return task.deeper->distribute(part, size, Coarse<Key, void>(low, high, bits),
                                   int64_t{1} << bits, kind, base, nowhere, place, &present,
                                   Serial());
  }

  Buffer<Key> key_;
  Buffer<uint32_t> index_, counts_;
  std::vector<Task> tasks_;
};

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
