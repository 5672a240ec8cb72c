// The places of keys in their sorted order, without writing the sorted keys anywhere.
//
//   place(keys)_i = #{k : key_k < key_i}         kFirst: equal keys share the first of their places
//                   + #{k < i : key_k == key_i}  kOwn: each has its own, in the order of indices
//
// - Short lists: every key is compared with every key.
// - Up to kNetworkMax keys: one 32-bit word per key, [coarse key | index], is sorted by a network
//   without branches. The coarse key is a monotone map of the key to the bits that the index leaves
//   free: linear in the value of a floating-point key where that is finite, else linear in the key.
//   Words whose coarse keys are equal may be in the wrong order; such runs are short and are put in
//   order by the keys themselves. A long run, as a cluster of values causes, is a list of its own.
// - Longer lists: one pass counts how many keys fall into each of a few thousand cells of such a
//   map, one pass distributes [coarse key | index] pairs over the cells, and neighbouring cells
//   are sorted together as above. A cell too large for that is a list of its own.
//
// Every map is exact: it only decides which keys are compared.
//
// Scratch per key: 12 bytes up to kNetworkMax (20 for 64-bit keys); 8 beyond, and the places.
// Traffic beyond the first-level cache: the list twice, a pair written and read once, places once.
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

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

enum class Places { kFirst, kOwn };

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
  Coarse() = default;

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

// Keys up to which every key meets every key, and up to which one network sorts a list.
constexpr int64_t kCountingMax = RANKREG_ISA == RANKREG_BASELINE ? 24 : 32;
constexpr int64_t kNetworkMax = RANKREG_ISA == RANKREG_BASELINE ? 4096 : 16384;

// Longest run of equal coarse keys that is put in order by insertion.
constexpr int64_t kRunMax = 16;

template <class Key, class Value>
class Placer {
 public:
  // Places of key[0..n) to place[index(i)], counted from `base`. Returns whether keys are equal;
  // not asked of kOwn.
  template <class Index>
  bool place(const Key* key, int64_t n, Places kind, uint32_t base, const Index& index,
             uint32_t* place) {
    if (n <= kCountingMax && kind == Places::kFirst) return count(key, n, base, index, place);
    Key low, high;
    range_of(key, n, &low, &high);
    if (low == high) {
      for (int64_t i = 0; i < n; ++i)
        place[index(i)] = base + (kind == Places::kOwn ? uint32_t(i) : 0);
      return n > 1;
    }
    return sort(key, n, low, high, kind, base, index, place);
  }

 private:
  template <class Index>
  bool count(const Key* key, int64_t n, uint32_t base, const Index& index, uint32_t* place) {
    uint32_t out[kCountingMax];
    for (int64_t i = 0; i < n; ++i) {
      const Key mine = key[i];
      Key less = 0;
      for (int64_t k = 0; k < n; ++k)
        less = Key(less + (key[k] < mine));
      out[i] = uint32_t(less);
    }
    for (int64_t i = 0; i < n; ++i)
      place[index(i)] = base + out[i];
    return true;  // perhaps
  }

  // Sorted words: `rows` rows of kLanes words per block, see network.h.
  struct Sorted {
    uint32_t* word;
    int64_t n, rows, blocks;

    int64_t block() const { return rows * kLanes; }
    const uint32_t* row(int64_t block, int64_t r) const {
      return word + (block * rows + r) * kLanes;
    }
    uint32_t at(int64_t place) const {
      const int64_t b = place / block(), e = place % block();
      return word[b * block() + e % rows * kLanes + e / rows];
    }
  };

  template <class Index>
  bool sort(const Key* key, int64_t n, Key low, Key high, Places kind, uint32_t base,
            const Index& index, uint32_t* place) {
    const int index_bits = bits_of(uint64_t(n - 1));
    const Coarse<Key, Value> coarse(low, high, Words::kBits - index_bits);
    const Sorted sorted = sorted_words(key, n, coarse, index_bits);
    const uint32_t mask = (uint32_t{1} << index_bits) - 1;
    const bool same = (kind == Places::kFirst || !coarse.exact) && any_same(sorted, index_bits);

    if (same && coarse.exact) {
      uint32_t first = 0, at = 0, before = 0;
      for (int64_t b = 0; b < sorted.blocks; ++b) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          for (int64_t r = 0; r < sorted.rows && at < uint32_t(n); ++r, ++at) {
            const uint32_t word = sorted.row(b, r)[lane], top = word >> index_bits;
            first = at == 0 || top != before ? at : first;
            before = top;
            place[index(word & mask)] = base + first;
          }
        }
      }
      return true;
    }

    for (int64_t b = 0; b < sorted.blocks; ++b) {
      for (int64_t r = 0; r < sorted.rows; ++r) {
        const uint32_t* word = sorted.row(b, r);
        const uint32_t at = uint32_t(b * sorted.block() + r), step = uint32_t(sorted.rows);
        const int64_t lanes = std::min<int64_t>(kLanes, (n - at + step - 1) / step);
        if (lanes == kLanes) {
          for (uint32_t lane = 0; lane < uint32_t(kLanes); ++lane)
            place[index(word[lane] & mask)] = base + at + lane * step;
        } else {
          for (uint32_t lane = 0; int64_t(lane) < lanes; ++lane)
            place[index(word[lane] & mask)] = base + at + lane * step;
        }
      }
    }
    return same && repair(key, sorted, index_bits, kind, base, index, place);
  }

  Sorted sorted_words(const Key* key, int64_t n, const Coarse<Key, Value>& coarse, int index_bits) {
    int64_t rows = 1;
    while (rows < Words::kRows && rows * kLanes < n)
      rows *= 2;
    const int64_t blocks = (n + rows * kLanes - 1) / (rows * kLanes);
    const int64_t size = blocks * rows * kLanes;
    uint32_t* const word = words_.of(size);
    coarse.with_map([&](auto map) RANKREG_ALWAYS {
      for (int64_t i = 0; i < n; ++i)
        word[i] = map(key[i]) << index_bits | uint32_t(i);
    });
    std::fill(word + n, word + size, ~uint32_t{0} >> (32 - Words::kBits));
    switch (rows) {
      case 1: sort_block<1>(word); break;
      case 2: sort_block<2>(word); break;
      case 4: sort_block<4>(word); break;
      case 8:
        if (Words::kRows > 8) {
          sort_block<8>(word);
          break;
        }
        [[fallthrough]];
      default: sort_blocks(word, blocks);
    }
    return Sorted{word, n, rows, blocks};
  }

  // f(block, row, mask): bit `lane` of the mask is set where the element has the coarse key of the
  // one before it.
  template <class F>
  static RANKREG_INLINE void for_rows(const Sorted& sorted, int index_bits, const F& f) {
    uint32_t before[kLanes + 1];  // the columns' predecessors
    before[0] = ~sorted.word[0];
    for (int64_t b = 0; b < sorted.blocks; ++b) {
      const uint32_t* const last = sorted.row(b, sorted.rows - 1);
      std::copy(last, last + kLanes, before + 1);
      Words above = Words::load(before);
      before[0] = before[kLanes];
      for (int64_t r = 0; r < sorted.rows; ++r) {
        const Words here = Words::load(sorted.row(b, r));
        uint32_t mask = same_above(above, here, index_bits);
        above = here;
        if ((b + 1) * sorted.block() > sorted.n) {  // the last words are none of the list's
          const int64_t left = sorted.n - b * sorted.block() - r;
          const int64_t lanes = left <= 0 ? 0 : (left + sorted.rows - 1) / sorted.rows;
          if (lanes < kLanes) mask &= (uint32_t{1} << lanes) - 1;
        }
        f(b, r, mask);
      }
    }
  }

  static bool any_same(const Sorted& sorted, int index_bits) {
    uint32_t any = 0;
    for_rows(sorted, index_bits,
             [&](int64_t, int64_t, uint32_t mask) RANKREG_ALWAYS { any |= mask; });
    return any != 0;
  }

  template <class Index>
  bool repair(const Key* key, const Sorted& sorted, int index_bits, Places kind, uint32_t base,
              const Index& index, uint32_t* place) {
    const int64_t n = sorted.n;
    uint64_t* const same = same_.of(n / 64 + 1);
    std::fill(same, same + n / 64 + 1, uint64_t{0});
    for_rows(sorted, index_bits, [&](int64_t b, int64_t r, uint32_t mask) RANKREG_ALWAYS {
      for (; mask; mask &= mask - 1) {
        const int64_t at = b * sorted.block() + __builtin_ctz(mask) * sorted.rows + r;
        same[at / 64] |= uint64_t{1} << (at % 64);
      }
    });
    bool equal = false;
    const uint32_t mask = (uint32_t{1} << index_bits) - 1;
    int64_t end = 0;  // of the last run
    for (int64_t w = 0; w <= n / 64; ++w) {
      for (uint64_t bits = same[w]; bits; bits &= bits - 1) {
        const int64_t second = w * 64 + __builtin_ctzll(bits);
        if (second < end) continue;
        const int64_t begin = second - 1;
        end = second + 1;
        while (end < n && (same[end / 64] >> (end % 64) & 1))
          ++end;
        const int64_t size = end - begin;
        if (size > kRunMax) {
          equal |= place_run(key, sorted, mask, begin, size, kind, base, index, place);
          continue;
        }
        // In the order of indices already, so a stable insertion by key.
        uint32_t item[kRunMax];
        for (int64_t i = 0; i < size; ++i) {
          const uint32_t one = sorted.at(begin + i) & mask;
          int64_t to = i;
          for (; to > 0 && key[item[to - 1]] > key[one]; --to)
            item[to] = item[to - 1];
          item[to] = one;
        }
        uint32_t first = 0;
        for (int64_t i = 0; i < size; ++i) {
          const bool tied = i > 0 && key[item[i]] == key[item[i - 1]];
          equal |= tied;
          if (!tied || kind == Places::kOwn) first = uint32_t(begin + i);
          place[index(item[i])] = base + first;
        }
      }
    }
    return equal;
  }

  template <class Index>
  bool place_run(const Key* key, const Sorted& sorted, uint32_t mask, int64_t begin, int64_t size,
                 Places kind, uint32_t base, const Index& index, uint32_t* place) {
    if (!inner_) inner_.reset(new Placer);
    const std::unique_ptr<uint32_t[]> items(new uint32_t[size_t(size)]);
    const std::unique_ptr<Key[]> keys(new Key[size_t(size)]);
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t item = sorted.at(begin + i) & mask;
      keys[size_t(i)] = key[item];
      items[size_t(i)] = uint32_t(index(item));
    }
    return inner_->place(keys.get(), size, kind, base + uint32_t(begin), Listed{items.get()},
                         place);
  }

  Buffer<uint32_t> words_;
  Buffer<uint64_t> same_;
  std::unique_ptr<Placer> inner_;  // of runs
};

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
