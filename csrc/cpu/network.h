// A sorting network for 32-bit words: no branch depends on the data, so a list costs the same
// whatever it holds.
//
// A block is kRows vectors of kLanes words. Its elements are numbered down the columns: element
// lane * rows + row stands at word row * kLanes + lane. So comparing elements that are less than a
// column apart is one minimum and one maximum of two vectors; only longer strides, and there are
// few of them, shuffle lanes.
//
//   sort_block       columns by Batcher's odd-even merge sort, then columns are merged in pairs,
//                    fours ... (bitonic: the first step compares mirrored, the others straight)
//   sort_words       blocks, then merges of 1 + 1, 2 + 2, 4 + 4 ... blocks; a block that is missing
//                    at the end counts as one of largest words, which no comparison changes
//
// Work per vector of a block: 63 comparisons of 16 rows (8), lanes * rows merges (16), lane
// shuffles (30), about 54 instructions for 16 words; per merge of blocks about 17 more.
#pragma once

#include <cstdint>
#include <utility>

#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

#define RANKREG_ALWAYS __attribute__((always_inline))
#define RANKREG_INLINE inline RANKREG_ALWAYS

#if RANKREG_ISA == RANKREG_AVX512

struct Words {
  static constexpr int kLanes = 16, kRows = 16, kBits = 32;
  __m512i v;

  static RANKREG_INLINE Words load(const uint32_t* from) { return {_mm512_loadu_si512(from)}; }
  static RANKREG_INLINE Words all(uint32_t word) { return {_mm512_set1_epi32(int(word))}; }
  RANKREG_INLINE void store(uint32_t* to) const { _mm512_storeu_si512(to, v); }
};

RANKREG_INLINE Words min(Words a, Words b) { return {_mm512_min_epu32(a.v, b.v)}; }
RANKREG_INLINE Words max(Words a, Words b) { return {_mm512_max_epu32(a.v, b.v)}; }
RANKREG_INLINE void order_pair(Words& low, Words& high) {
  const Words smaller = min(low, high);
  high = max(low, high);
  low = smaller;
}

// Lane i of the result is lane i ^ mask of a.
template <int mask>
RANKREG_INLINE Words exchange(Words a) {
  if constexpr (mask == 1) return {_mm512_shuffle_epi32(a.v, _MM_PERM_CDAB)};
  if constexpr (mask == 2) return {_mm512_shuffle_epi32(a.v, _MM_PERM_BADC)};
  if constexpr (mask == 3) return {_mm512_shuffle_epi32(a.v, _MM_PERM_ABCD)};
  if constexpr (mask == 4) return {_mm512_shuffle_i64x2(a.v, a.v, 0xb1)};
  if constexpr (mask == 8) return {_mm512_shuffle_i64x2(a.v, a.v, 0x4e)};
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_permutexvar_epi32(_mm512_xor_si512(lanes, _mm512_set1_epi32(mask)), a.v)};
}

// Lanes without `bit` from the minima of a and b, the others from the maxima.
template <int bit>
RANKREG_INLINE Words split(Words a, Words b) {
  constexpr __mmask16 high = bit == 1 ? 0xaaaa : bit == 2 ? 0xcccc : bit == 4 ? 0xf0f0 : 0xff00;
  return {_mm512_mask_max_epu32(_mm512_min_epu32(a.v, b.v), high, a.v, b.v)};
}

// Adds 1 to the lanes of `count` where a < b.
RANKREG_INLINE Words add_if_less(Words count, Words a, Words b) {
  const __mmask16 less = _mm512_cmplt_epu32_mask(a.v, b.v);
  return {_mm512_mask_sub_epi32(count.v, less, count.v, _mm512_set1_epi32(-1))};
}

// Bit i is set where lane i of a and b agree but for their lowest `bits`.
RANKREG_INLINE uint32_t same_above(Words a, Words b, int bits) {
  return _mm512_cmpeq_epu32_mask(_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(bits)),
                                 _mm512_srl_epi32(b.v, _mm_cvtsi32_si128(bits)));
}

#elif RANKREG_ISA == RANKREG_AVX2

struct Words {
  static constexpr int kLanes = 8, kRows = 16, kBits = 32;
  __m256i v;

  static RANKREG_INLINE Words load(const uint32_t* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
  }
  static RANKREG_INLINE Words all(uint32_t word) { return {_mm256_set1_epi32(int(word))}; }
  RANKREG_INLINE void store(uint32_t* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
  }
};

RANKREG_INLINE Words min(Words a, Words b) { return {_mm256_min_epu32(a.v, b.v)}; }
RANKREG_INLINE Words max(Words a, Words b) { return {_mm256_max_epu32(a.v, b.v)}; }
RANKREG_INLINE void order_pair(Words& low, Words& high) {
  const Words smaller = min(low, high);
  high = max(low, high);
  low = smaller;
}

template <int mask>
RANKREG_INLINE Words exchange(Words a) {
  if constexpr (mask == 1) return {_mm256_shuffle_epi32(a.v, 0xb1)};
  if constexpr (mask == 2) return {_mm256_shuffle_epi32(a.v, 0x4e)};
  if constexpr (mask == 3) return {_mm256_shuffle_epi32(a.v, 0x1b)};
  if constexpr (mask == 4) return {_mm256_permute4x64_epi64(a.v, 0x4e)};
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_permutevar8x32_epi32(a.v, _mm256_xor_si256(lanes, _mm256_set1_epi32(mask)))};
}

template <int bit>
RANKREG_INLINE Words split(Words a, Words b) {
  constexpr int high = bit == 1 ? 0xaa : bit == 2 ? 0xcc : 0xf0;
  return {_mm256_blend_epi32(_mm256_min_epu32(a.v, b.v), _mm256_max_epu32(a.v, b.v), high)};
}

RANKREG_INLINE Words add_if_less(Words count, Words a, Words b) {
  const __m256i top = _mm256_set1_epi32(int(0x80000000u));
  const __m256i less = _mm256_cmpgt_epi32(_mm256_xor_si256(b.v, top), _mm256_xor_si256(a.v, top));
  return {_mm256_sub_epi32(count.v, less)};
}

RANKREG_INLINE uint32_t same_above(Words a, Words b, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  const __m256i same =
      _mm256_cmpeq_epi32(_mm256_srl_epi32(a.v, count), _mm256_srl_epi32(b.v, count));
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(same)));
}

#else

// GCC's and Clang's portable vectors: SSE2, NEON, or whatever the architecture has. Signed, because
// SSE2 compares nothing else.
struct Words {
  static constexpr int kLanes = 4, kRows = 8, kBits = 31;
  typedef int32_t V __attribute__((vector_size(16)));
  V v;

  static RANKREG_INLINE Words load(const uint32_t* from) {
    Words out;
    __builtin_memcpy(&out.v, from, sizeof(out.v));
    return out;
  }
  static RANKREG_INLINE Words all(uint32_t word) {
    const int32_t w = int32_t(word);
    return {V{w, w, w, w}};
  }
  RANKREG_INLINE void store(uint32_t* to) const { __builtin_memcpy(to, &v, sizeof(v)); }
};

#if defined(__SSE2__)  // no minimum and maximum of its own: swap under a mask
RANKREG_INLINE Words swap_bits(Words a, Words b) { return {(a.v ^ b.v) & (a.v > b.v)}; }
RANKREG_INLINE void order_pair(Words& low, Words& high) {
  const Words swap = swap_bits(low, high);
  low.v ^= swap.v;
  high.v ^= swap.v;
}
#else
RANKREG_INLINE Words min(Words a, Words b) { return {a.v < b.v ? a.v : b.v}; }
RANKREG_INLINE Words max(Words a, Words b) { return {a.v < b.v ? b.v : a.v}; }
RANKREG_INLINE void order_pair(Words& low, Words& high) {
  const Words smaller = min(low, high);
  high = max(low, high);
  low = smaller;
}
#endif

template <int mask>
RANKREG_INLINE Words exchange(Words a) {
#if defined(__clang__)
  return {__builtin_shufflevector(a.v, a.v, 0 ^ mask, 1 ^ mask, 2 ^ mask, 3 ^ mask)};
#else
  return {__builtin_shuffle(a.v, Words::V{0 ^ mask, 1 ^ mask, 2 ^ mask, 3 ^ mask})};
#endif
}

template <int bit>
RANKREG_INLINE Words split(Words a, Words b) {
  const Words::V high = bit == 1 ? Words::V{0, -1, 0, -1} : Words::V{0, 0, -1, -1};
  order_pair(a, b);
  return {(a.v & ~high) | (b.v & high)};
}

RANKREG_INLINE Words add_if_less(Words count, Words a, Words b) {
  typedef uint32_t U __attribute__((vector_size(16)));
  return {count.v - (Words::V)((U)a.v < (U)b.v)};
}

RANKREG_INLINE uint32_t same_above(Words a, Words b, int bits) {
  const Words::V same = (a.v >> bits) == (b.v >> bits);
  return uint32_t((same[0] & 1) | (same[1] & 2) | (same[2] & 4) | (same[3] & 8));
}

#endif

constexpr int kLanes = Words::kLanes, kNetworkBlock = Words::kLanes * Words::kRows;

// Compile-time loops, so that a block's rows stay in registers.
template <int begin, int end, int step, class F>
RANKREG_INLINE void unrolled(const F& f) {
  if constexpr (begin < end) {
    f(std::integral_constant<int, begin>());
    unrolled<begin + step, end, step>(f);
  }
}

template <int first, int size, int stride>
RANKREG_INLINE void merge_odd_even(Words* row) {
  if constexpr (2 * stride < size) {
    merge_odd_even<first, size, 2 * stride>(row);
    merge_odd_even<first + stride, size, 2 * stride>(row);
    unrolled<first + stride, first + size - stride, 2 * stride>(
        [&](auto i) RANKREG_ALWAYS { order_pair(row[i], row[i + stride]); });
  } else {
    order_pair(row[first], row[first + stride]);
  }
}

template <int first, int size>
RANKREG_INLINE void sort_columns(Words* row) {
  if constexpr (size > 1) {
    sort_columns<first, size / 2>(row);
    sort_columns<first + size / 2, size / 2>(row);
    merge_odd_even<first, size, 1>(row);
  }
}

// Comparisons over `stride` rows and all shorter strides: the end of every bitonic merge.
template <int rows, int stride = rows / 2>
RANKREG_INLINE void merge_rows(Words* row) {
  if constexpr (stride > 0) {
    unrolled<0, rows, 1>([&](auto i) RANKREG_ALWAYS {
      if constexpr ((i & stride) == 0) order_pair(row[i], row[i + stride]);
    });
    merge_rows<rows, stride / 2>(row);
  }
}

template <int rows, int stride>
RANKREG_INLINE void merge_lanes(Words* row) {
  if constexpr (stride > 0) {
    unrolled<0, rows, 1>(
        [&](auto i) RANKREG_ALWAYS { row[i] = split<stride>(row[i], exchange<stride>(row[i])); });
    merge_lanes<rows, stride / 2>(row);
  }
}

// Sorted groups of `group` / 2 columns become sorted groups of `group`, and so on to all columns.
template <int rows, int group>
RANKREG_INLINE void merge_columns(Words* row) {
  if constexpr (group <= kLanes) {
    if constexpr (rows == 1) {
      row[0] = split<group / 2>(row[0], exchange<group - 1>(row[0]));
    } else {
      unrolled<0, rows / 2, 1>([&](auto i) RANKREG_ALWAYS {
        const Words low = exchange<group - 1>(row[i]);
        const Words high = exchange<group - 1>(row[rows - 1 - i]);
        row[i] = split<group / 2>(row[i], high);
        row[rows - 1 - i] = split<group / 2>(row[rows - 1 - i], low);
      });
    }
    merge_lanes<rows, group / 4>(row);
    merge_rows<rows>(row);
    merge_columns<rows, 2 * group>(row);
  }
}

template <int rows>
RANKREG_INLINE void load_rows(const uint32_t* words, Words* row) {
  unrolled<0, rows, 1>([&](auto i) RANKREG_ALWAYS { row[i] = Words::load(words + i * kLanes); });
}

template <int rows>
RANKREG_INLINE void store_rows(const Words* row, uint32_t* words) {
  unrolled<0, rows, 1>([&](auto i) RANKREG_ALWAYS { row[i].store(words + i * kLanes); });
}

// Sorts rows * kLanes words.
template <int rows>
void sort_block(uint32_t* words) {
  Words row[rows];
  load_rows<rows>(words, row);
  sort_columns<0, rows>(row);
  merge_columns<rows, 2>(row);
  store_rows<rows>(row, words);
}

// Sorts a block that is bitonic.
inline void merge_block(uint32_t* words) {
  Words row[Words::kRows];
  load_rows<Words::kRows>(words, row);
  merge_lanes<Words::kRows, kLanes / 2>(row);
  merge_rows<Words::kRows>(row);
  store_rows<Words::kRows>(row, words);
}

// The mirrored first step of a merge: element e of block `low` meets element -1 - e of `high`.
inline void order_mirrored(uint32_t* low, uint32_t* high) {
  for (int i = 0; i < Words::kRows; ++i) {
    uint32_t* const other = high + (Words::kRows - 1 - i) * kLanes;
    Words a = Words::load(low + i * kLanes), b = exchange<kLanes - 1>(Words::load(other));
    order_pair(a, b);
    a.store(low + i * kLanes);
    exchange<kLanes - 1>(b).store(other);
  }
}

inline void order_blocks(uint32_t* low, uint32_t* high) {
  for (int i = 0; i < kNetworkBlock; i += kLanes) {
    Words a = Words::load(low + i), b = Words::load(high + i);
    order_pair(a, b);
    a.store(low + i);
    b.store(high + i);
  }
}

// Two strides in one pass over four blocks.
inline void order_four_blocks(uint32_t* words, int64_t stride) {
  for (int i = 0; i < kNetworkBlock; i += kLanes) {
    Words a = Words::load(words + i), b = Words::load(words + stride + i);
    Words c = Words::load(words + 2 * stride + i), d = Words::load(words + 3 * stride + i);
    order_pair(a, c);
    order_pair(b, d);
    order_pair(a, b);
    order_pair(c, d);
    a.store(words + i);
    b.store(words + stride + i);
    c.store(words + 2 * stride + i);
    d.store(words + 3 * stride + i);
  }
}

// Sorts `blocks` blocks of words into one list, numbered block by block.
inline void sort_blocks(uint32_t* words, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b)
    sort_block<Words::kRows>(words + b * kNetworkBlock);
  const auto at = [&](int64_t block) { return words + block * kNetworkBlock; };
  for (int64_t run = 1; run < blocks; run *= 2) {
    for (int64_t begin = 0; begin + run < blocks; begin += 2 * run) {
      for (int64_t i = 0; i < run; ++i) {
        const int64_t mirror = begin + 2 * run - 1 - i;
        if (mirror < blocks) order_mirrored(at(begin + i), at(mirror));
      }
      int64_t stride = run / 2;
      for (; stride >= 2; stride /= 4) {  // strides `stride` and `stride` / 2
        const int64_t half = stride / 2;
        for (int64_t first = begin; first < begin + 2 * run; first += 2 * stride) {
          for (int64_t i = first; i < first + half; ++i) {
            if (i + 3 * half < blocks) {
              order_four_blocks(at(i), half * kNetworkBlock);
            } else {
              if (i + 2 * half < blocks) order_blocks(at(i), at(i + 2 * half));
              if (i + half < blocks) order_blocks(at(i), at(i + half));
            }
          }
        }
      }
      if (stride == 1) {
        for (int64_t i = begin; i + 1 < blocks && i < begin + 2 * run; i += 2)
          order_blocks(at(i), at(i + 1));
      }
      for (int64_t i = begin; i < blocks && i < begin + 2 * run; ++i)
        merge_block(at(i));
    }
  }
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
