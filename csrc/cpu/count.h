// The inner loops of positive_ranks, over one tile of scores in the first-level cache: the same
// functions for every instruction set and element type, with intrinsics where they pay.
//
//   widen_tile        half precision to float
//   count_above       #{x_j > t_i} for each of some thresholds, every pair compared
//   Search::places    #{b_i <= x_j} for each score: the steps of a binary search, their breakpoints
//                     looked up in registers
//   count_places      how many scores are at each place
//   write_by_place    an output value looked up by the place
//
// A NaN score is above nothing and at place 0, which nobody counts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../common/keys.h"
#include "target.h"
#include "tuning.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

constexpr int64_t kTile = 2048;       // scores: 8 KiB of floats
constexpr int64_t kBytes = 64;        // places are written in whole blocks of so many
constexpr int64_t kMostPlaces = 128;  // of a Search

// Counters as wide as the scores keep the vectors full; a tile cannot overflow them.
template <class C>
using Counter = typename std::conditional<sizeof(C) == 4, int32_t, int64_t>::type;

#if RANKREG_ISA == RANKREG_AVX512
// The first `size` of 16 lanes.
inline __mmask16 lanes(int64_t size) {
  return size >= 16 ? __mmask16(0xffff) : __mmask16((1u << std::max<int64_t>(size, 0)) - 1);
}

// The first `size` of 16 scores, then NaN.
inline __m512 load_some(const float* x, int64_t size) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), lanes(size),
                              x);
}
#endif

// Of 64 flags. Bit i: flags[i] is not 0.
inline uint64_t set_flags(const uint8_t* flags) {
#if RANKREG_ISA == RANKREG_AVX512
  const __m512i all = _mm512_loadu_si512(flags);
  return _cvtmask64_u64(_mm512_test_epi8_mask(all, all));
#elif RANKREG_ISA == RANKREG_AVX2
  const auto zeros = [&](int i) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags + i));
    return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(half, _mm256_setzero_si256())));
  };
  return ~(uint64_t(zeros(32)) << 32 | zeros(0));
#else
  uint64_t words[8], any = 0, out = 0;
  memcpy(words, flags, sizeof(words));
  for (const uint64_t word : words)
    any |= word;
  for (int i = 0; any != 0 && i < 64; ++i)
    out |= uint64_t(flags[i] != 0) << i;
  return out;
#endif
}

// buffer[j] = x[j] in float.
inline void widen_tile(const Half* x, int64_t size, float* buffer) {
  int64_t j = 0;
#if RANKREG_ISA == RANKREG_AVX512
  for (; j + 16 <= size; j += 16) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + j));
    _mm512_storeu_ps(buffer + j, _mm512_cvtph_ps(bits));
  }
#elif RANKREG_ISA == RANKREG_AVX2
  for (; j + 8 <= size; j += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j));
    _mm256_storeu_ps(buffer + j, _mm256_cvtph_ps(bits));
  }
#endif
  for (; j < size; ++j)
    buffer[j] = float(x[j]);
}

inline void widen_tile(const BFloat16* x, int64_t size, float* buffer) {
  for (int64_t j = 0; j < size; ++j)
    buffer[j] = float(x[j]);
}

inline void widen_tile(const float* x, int64_t size, float* buffer) {
  std::copy(x, x + size, buffer);
}
inline void widen_tile(const double* x, int64_t size, double* buffer) {
  std::copy(x, x + size, buffer);
}

// counts[i] += #{j : x_j > t_i}, for `block` thresholds in registers.
template <int block, class C>
void count_block(const C* x, int64_t size, const C* t, int64_t* counts) {
#if RANKREG_ISA == RANKREG_AVX512
  if constexpr (std::is_same<C, float>::value) {
    __m512 threshold[block];
    __m512i count[block];
    for (int i = 0; i < block; ++i)
      threshold[i] = _mm512_set1_ps(t[i]), count[i] = _mm512_setzero_si512();
    const __m512i one = _mm512_set1_epi32(1);
    const auto add = [&](__m512 v) {
      for (int i = 0; i < block; ++i) {
        const __mmask16 above = _mm512_cmp_ps_mask(v, threshold[i], _CMP_GT_OQ);
        count[i] = _mm512_mask_add_epi32(count[i], above, count[i], one);
      }
    };
    int64_t j = 0;
    for (; j + 16 <= size; j += 16)
      add(_mm512_loadu_ps(x + j));
    if (j < size) add(load_some(x + j, size - j));
    for (int i = 0; i < block; ++i)
      counts[i] += _mm512_reduce_add_epi32(count[i]);
    return;
  }
#endif
  C threshold[block];
  Counter<C> count[block] = {};
  std::copy(t, t + block, threshold);
  for (int64_t j = 0; j < size; ++j) {
    const C v = x[j];
    for (int i = 0; i < block; ++i)
      count[i] += v > threshold[i];
  }
  for (int i = 0; i < block; ++i)
    counts[i] += count[i];
}

// counts[i] += #{j : x_j > t_i}.
template <class C>
void count_above(const C* x, int64_t size, const C* t, int64_t thresholds, int64_t* counts) {
  int64_t i = 0;
  for (; i + 8 <= thresholds; i += 8)
    count_block<8>(x, size, t + i, counts + i);
  if (i + 4 <= thresholds) count_block<4>(x, size, t + i, counts + i), i += 4;
  if (i + 2 <= thresholds) count_block<2>(x, size, t + i, counts + i), i += 2;
  if (i < thresholds) count_block<1>(x, size, t + i, counts + i);
}

// Of ascending, distinct breakpoints b: the place of a score is #{i : b_i <= x}.
//
// This one, for any machine, compares a score with all of them.
template <class C, int isa = RANKREG_ISA>
class Search {
 public:
  static constexpr int64_t kMost = kSearchMost[RANKREG_BASELINE];

  void build(const C* b, int64_t size) {
    blocks_ = (size + kBlock - 1) / kBlock;
    std::fill(b_, b_ + blocks_ * kBlock, std::numeric_limits<C>::quiet_NaN());
    std::copy(b, b + size, b_);
  }

  // out holds whole blocks of kBytes: what lies beyond `size` becomes 0.
  void places(const C* x, int64_t size, uint8_t* out) const {
    Counter<C> place[kTile] = {};
    for (int64_t block = 0; block < blocks_; ++block) {
      C b[kBlock];  // a copy that `place` cannot alias, so that it stays in registers
      std::copy(b_ + block * kBlock, b_ + (block + 1) * kBlock, b);
      for (int64_t j = 0; j < size; ++j) {
        Counter<C> count = 0;
        for (int i = 0; i < kBlock; ++i)
          count += b[i] <= x[j];
        place[j] += count;
      }
    }
    for (int64_t j = 0; j < size; ++j)
      out[j] = uint8_t(place[j]);
    for (int64_t j = size; j % kBytes != 0; ++j)
      out[j] = 0;
  }

 private:
  static constexpr int kBlock = 8;
  int64_t blocks_ = 0;
  C b_[kMost];
};

#if RANKREG_ISA != RANKREG_BASELINE
// In registers a search goes down a complete tree of 1 to kLevels levels, padded with NaN, which
// nothing reaches. Bit l of a `path` is the branch taken at level l, so the path so far is the
// index of the next breakpoint in its level. Which path ends at which place is a table of bytes.
template <int levels>
struct Tree {
  // A level takes a whole register at least.
  static constexpr int kStart[8] = {0, 16, 32, 48, 64, 80, 112, 176};
  alignas(64) float level[kStart[levels]];
  alignas(64) uint8_t place_of[1 << levels > 64 ? 1 << levels : 64];
  int depth;

  void build(const float* b, int64_t size) {
    depth = 1;
    while ((int64_t{1} << depth) <= size)
      ++depth;
    place_of[0] = 0;
    for (int l = 0; l < depth; ++l) {
      for (int path = 0; path < 1 << l; ++path) {
        const int place = place_of[path] | 1 << (depth - 1 - l);  // of those that go right here
        place_of[path | 1 << l] = uint8_t(place);
        level[kStart[l] + path] =
            place <= size ? b[place - 1] : std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
};
#endif

#if RANKREG_ISA == RANKREG_AVX512
template <>
class Search<float, RANKREG_AVX512> {
 public:
  static constexpr int64_t kMost = kSearchMost[RANKREG_AVX512];

  void build(const float* b, int64_t size) { tree_.build(b, size); }

  void places(const float* x, int64_t size, uint8_t* out) const {
    switch (tree_.depth) {
      case 1: return descend<1>(x, size, out);
      case 2: return descend<2>(x, size, out);
      case 3: return descend<3>(x, size, out);
      case 4: return descend<4>(x, size, out);
      case 5: return descend<5>(x, size, out);
      case 6: return descend<6>(x, size, out);
      default: return descend<7>(x, size, out);
    }
  }

 private:
  template <int depth>
  void descend(const float* x, int64_t size, uint8_t* out) const {
    __m512 t[11];
    for (int i = 0; i < 11; ++i)
      t[i] = 16 * i < Tree<7>::kStart[depth] ? _mm512_load_ps(tree_.level + 16 * i) : t[0];
    const __m512 root = _mm512_set1_ps(tree_.level[0]);
    const __m512i low = _mm512_load_si512(tree_.place_of);
    const __m512i high = _mm512_load_si512(tree_.place_of + 64);
    const auto path_of = [&](__m512 v) {
      __m512i path = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(root, v, _CMP_LE_OQ), 1);
      const auto step = [&](__m512 b, int l) {
        const __mmask16 right = _mm512_cmp_ps_mask(b, v, _CMP_LE_OQ);
        path = _mm512_mask_or_epi32(path, right, path, _mm512_set1_epi32(1 << l));
      };
      if (depth > 1) step(_mm512_permutexvar_ps(path, t[1]), 1);
      if (depth > 2) step(_mm512_permutexvar_ps(path, t[2]), 2);
      if (depth > 3) step(_mm512_permutexvar_ps(path, t[3]), 3);
      if (depth > 4) step(_mm512_permutexvar_ps(path, t[4]), 4);
      if (depth > 5) step(_mm512_permutex2var_ps(t[5], path, t[6]), 5);
      if (depth > 6) {
        const __m512 lower = _mm512_permutex2var_ps(t[7], path, t[8]);
        const __m512 upper = _mm512_permutex2var_ps(t[9], path, t[10]);
        const __mmask16 high_half = _mm512_test_epi32_mask(path, _mm512_set1_epi32(1 << 5));
        step(_mm512_mask_mov_ps(lower, high_half, upper), 6);
      }
      return _mm512_cvtepi32_epi8(path);
    };
    for (int64_t j = 0; j < size; j += 64) {
      __m128i path[4];
      for (int i = 0; i < 4; ++i) {
        const float* at = x + j + 16 * i;
        path[i] = path_of(j + 64 <= size ? _mm512_loadu_ps(at) : load_some(at, x + size - at));
      }
      const __m512i paths =
          _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(path[1], path[0])),
                             _mm256_set_m128i(path[3], path[2]), 1);
      _mm512_storeu_si512(out + j, depth > 6 ? _mm512_permutex2var_epi8(low, paths, high)
                                             : _mm512_permutexvar_epi8(paths, low));
    }
  }

  Tree<7> tree_;
};
#elif RANKREG_ISA == RANKREG_AVX2
// table[p] of 16 bytes each, for p < 32.
inline __m256i lookup_bytes(__m256i p, __m256i low, __m256i high) {
  const __m256i in_high = _mm256_slli_epi16(p, 3);  // bit 4 of a byte to its top
  return _mm256_blendv_epi8(_mm256_shuffle_epi8(low, p), _mm256_shuffle_epi8(high, p), in_high);
}

template <>
class Search<float, RANKREG_AVX2> {
 public:
  static constexpr int64_t kMost = kSearchMost[RANKREG_AVX2];

  void build(const float* b, int64_t size) { tree_.build(b, size); }

  void places(const float* x, int64_t size, uint8_t* out) const {
    switch (tree_.depth) {
      case 1: return descend<1>(x, size, out);
      case 2: return descend<2>(x, size, out);
      case 3: return descend<3>(x, size, out);
      case 4: return descend<4>(x, size, out);
      default: return descend<5>(x, size, out);
    }
  }

 private:
  template <int depth>
  void descend(const float* x, int64_t size, uint8_t* out) const {
    const auto level = [&](int l, int i) {
      return _mm256_load_ps(tree_.level + (l < depth ? Tree<5>::kStart[l] + 8 * i : 0));
    };
    const __m256 root = _mm256_set1_ps(tree_.level[0]);
    const __m256 t1 = level(1, 0), t2 = level(2, 0), t3 = level(3, 0);
    const __m256 t4 = level(4, 0), t4_high = level(4, 1);
    const auto table = [&](int i) {
      return _mm256_broadcastsi128_si256(
          _mm_load_si128(reinterpret_cast<const __m128i*>(tree_.place_of + 16 * i)));
    };
    const __m256i low = table(0), high = table(1);
    const auto path_of = [&](const float* at) {
      const __m256 v = _mm256_loadu_ps(at);
      const auto reached = [&](__m256 b) {
        return _mm256_castps_si256(_mm256_cmp_ps(b, v, _CMP_LE_OQ));
      };
      __m256i path = _mm256_srli_epi32(reached(root), 31);
      const auto step = [&](__m256 b, int l) {
        path = _mm256_or_si256(path, _mm256_and_si256(reached(b), _mm256_set1_epi32(1 << l)));
      };
      if (depth > 1) step(_mm256_permutevar8x32_ps(t1, path), 1);
      if (depth > 2) step(_mm256_permutevar8x32_ps(t2, path), 2);
      if (depth > 3) step(_mm256_permutevar8x32_ps(t3, path), 3);
      if (depth > 4) {
        const __m256 in_high = _mm256_castsi256_ps(_mm256_slli_epi32(path, 28));  // bit 3 on top
        step(_mm256_blendv_ps(_mm256_permutevar8x32_ps(t4, path),
                              _mm256_permutevar8x32_ps(t4_high, path), in_high),
             4);
      }
      return path;
    };
    const auto places_of = [&](const float* at) {
      const __m256i a = _mm256_packs_epi32(path_of(at), path_of(at + 8));
      const __m256i b = _mm256_packs_epi32(path_of(at + 16), path_of(at + 24));
      const __m256i mixed = _mm256_packs_epi16(a, b);
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      return lookup_bytes(_mm256_permutevar8x32_epi32(mixed, order), low, high);
    };
    int64_t j = 0;
    for (; j + 32 <= size; j += 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), places_of(x + j));
    for (; j % kBytes != 0 || j < size; j += 32) {
      float rest[32];
      for (int64_t i = 0; i < 32; ++i)
        rest[i] = j + i < size ? x[j + i] : std::numeric_limits<float>::quiet_NaN();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), places_of(rest));
    }
  }

  Tree<5> tree_;
};
#endif

// counts[i] += #{j : places[j] == first + i}, for `block` places.
#if RANKREG_ISA != RANKREG_BASELINE
template <int block>
void count_places_block(const uint8_t* places, int64_t size, int64_t first, int64_t* counts) {
  int64_t count[block] = {};
#if RANKREG_ISA == RANKREG_AVX512
  __m512i place[block];
  for (int i = 0; i < block; ++i)
    place[i] = _mm512_set1_epi8(char(first + i));
  for (int64_t j = 0; j < size; j += 64) {
    const __m512i v = _mm512_loadu_si512(places + j);
    for (int i = 0; i < block; ++i)
      count[i] += _mm_popcnt_u64(_cvtmask64_u64(_mm512_cmpeq_epi8_mask(v, place[i])));
  }
#else
  __m256i place[block];
  for (int i = 0; i < block; ++i)
    place[i] = _mm256_set1_epi8(char(first + i));
  for (int64_t j = 0; j < size; j += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places + j));
    for (int i = 0; i < block; ++i) {
      const int equal = _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, place[i]));
      count[i] += _mm_popcnt_u32(unsigned(equal));
    }
  }
#endif
  for (int i = 0; i < block; ++i)
    counts[i] += count[i];
}
#endif

// counts[p] += #{j : places[j] == p} for 0 < p < most; counts[0] is of no meaning. `places` holds
// whole blocks of kBytes, 0 beyond `size`.
inline void count_places(const uint8_t* places, int64_t size, int64_t most, int64_t* counts) {
  const int64_t bytes = (size + kBytes - 1) / kBytes * kBytes;
#if RANKREG_ISA != RANKREG_BASELINE
  if (most <= kCompareBytesMost[RANKREG_ISA]) {
    int64_t p = 1;
    for (; p + 8 <= most; p += 8)
      count_places_block<8>(places, bytes, p, counts + p);
    for (; p + 2 <= most; p += 2)
      count_places_block<2>(places, bytes, p, counts + p);
    if (p < most) count_places_block<1>(places, bytes, p, counts + p);
    return;
  }
#endif
  // Four tables, so that equal neighbours do not wait for each other.
  uint32_t tables[4][kMostPlaces] = {};
  for (int64_t j = 0; j < bytes; j += 8) {
    uint64_t word;
    memcpy(&word, places + j, 8);
    ++tables[0][word & 0xff], ++tables[1][(word >> 8) & 0xff];
    ++tables[2][(word >> 16) & 0xff], ++tables[3][(word >> 24) & 0xff];
    ++tables[0][(word >> 32) & 0xff], ++tables[1][(word >> 40) & 0xff];
    ++tables[2][(word >> 48) & 0xff], ++tables[3][word >> 56];
  }
  for (int64_t p = 1; p < most; ++p)
    counts[p] += int64_t(tables[0][p]) + tables[1][p] + tables[2][p] + tables[3][p];
}

// places[j] = table[places[j]] for whole blocks of kBytes. Places are below `most`, table[0] is 0.
inline void replace_places(uint8_t* places, int64_t size, const uint8_t (&table)[kMostPlaces],
                           [[maybe_unused]] int64_t most) {
  int64_t j = 0;
#if RANKREG_ISA == RANKREG_AVX512
  const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
  for (; j < size; j += 64) {
    const __m512i p = _mm512_loadu_si512(places + j);
    _mm512_storeu_si512(places + j, _mm512_permutex2var_epi8(low, p, high));
  }
#elif RANKREG_ISA == RANKREG_AVX2
  if (most <= 32) {
    const auto half = [&](int i) {
      return _mm256_broadcastsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
    };
    const __m256i low = half(0), high = half(1);
    for (; j < size; j += 32) {
      __m256i* at = reinterpret_cast<__m256i*>(places + j);
      _mm256_storeu_si256(at, lookup_bytes(_mm256_loadu_si256(at), low, high));
    }
  }
#endif
  for (; j < size; ++j)
    places[j] = table[places[j]];
}

// out[j] = table[places[j]], or `nan` where x_j is NaN.
template <class T, class C>
void write_by_place(const uint8_t* places, const C* x, int64_t size, const T* table,
                    [[maybe_unused]] int64_t most, T nan, T* out) {
  int64_t j = 0;
#if RANKREG_ISA == RANKREG_AVX512
  if constexpr (std::is_same<C, float>::value) {
    alignas(64) uint32_t wide[kMostPlaces] = {};
    using Word = KeyOf<T>;
    for (int64_t p = 0; p < most; ++p)
      wide[p] = bit_cast<Word>(table[p]);
    __m512i t[8];
    for (int i = 0; i < 8; ++i)
      t[i] = _mm512_load_si512(wide + 16 * i);
    const __m512i absent = _mm512_set1_epi32(int(bit_cast<Word>(nan)));
    const auto run = [&](auto registers) {
      for (; j < size; j += 16) {
        const __mmask16 valid = lanes(size - j);
        const __m512 v = _mm512_maskz_loadu_ps(valid, x + j);
        const __m512i p =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(places + j)));
        __m512i value = registers == 1 ? _mm512_permutexvar_epi32(p, t[0])
                                       : _mm512_permutex2var_epi32(t[0], p, t[1]);
        if (registers > 2) {
          const __mmask16 odd = _mm512_test_epi32_mask(p, _mm512_set1_epi32(32));
          const auto pair = [&](int i) { return _mm512_permutex2var_epi32(t[i], p, t[i + 1]); };
          value = _mm512_mask_mov_epi32(value, odd, pair(2));
          if (registers > 4) {
            const __m512i upper = _mm512_mask_mov_epi32(pair(4), odd, pair(6));
            const __mmask16 top = _mm512_test_epi32_mask(p, _mm512_set1_epi32(64));
            value = _mm512_mask_mov_epi32(value, top, upper);
          }
        }
        value = _mm512_mask_mov_epi32(value, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), absent);
        if constexpr (sizeof(T) == 4) {
          _mm512_mask_storeu_epi32(out + j, valid, value);
        } else {
          const __m256i narrow = _mm512_cvtepi32_epi16(value);
          _mm256_mask_storeu_epi16(out + j, valid, narrow);
        }
      }
    };
    if (most <= 16) return run(std::integral_constant<int, 1>());
    if (most <= 32) return run(std::integral_constant<int, 2>());
    if (most <= 64) return run(std::integral_constant<int, 4>());
    return run(std::integral_constant<int, 8>());
  }
#elif RANKREG_ISA == RANKREG_AVX2
  if constexpr (std::is_same<T, float>::value) {
    alignas(32) float wide[32] = {};
    std::copy(table, table + most, wide);
    const __m256 t0 = _mm256_load_ps(wide), t1 = _mm256_load_ps(wide + 8);
    const __m256 t2 = _mm256_load_ps(wide + 16), t3 = _mm256_load_ps(wide + 24);
    const __m256 absent = _mm256_set1_ps(nan);
    const auto run = [&](auto registers) {
      for (; j + 8 <= size; j += 8) {
        const __m256 v = _mm256_loadu_ps(x + j);
        const __m256i p =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places + j)));
        __m256 value = _mm256_permutevar8x32_ps(t0, p);
        if (registers > 1) {
          const __m256 odd = _mm256_castsi256_ps(_mm256_slli_epi32(p, 28));
          value = _mm256_blendv_ps(value, _mm256_permutevar8x32_ps(t1, p), odd);
          if (registers > 2) {
            const __m256 upper = _mm256_blendv_ps(_mm256_permutevar8x32_ps(t2, p),
                                                  _mm256_permutevar8x32_ps(t3, p), odd);
            value = _mm256_blendv_ps(value, upper, _mm256_castsi256_ps(_mm256_slli_epi32(p, 27)));
          }
        }
        const __m256 unordered = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
        _mm256_storeu_ps(out + j, _mm256_blendv_ps(value, absent, unordered));
      }
    };
    if (most <= 8) {
      run(std::integral_constant<int, 1>());
    } else if (most <= 16) {
      run(std::integral_constant<int, 2>());
    } else {
      run(std::integral_constant<int, 4>());
    }
  }
#endif
  for (; j < size; ++j)
    out[j] = is_nan(x[j]) ? nan : table[places[j]];
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
