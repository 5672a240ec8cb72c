// Ranks by comparing every item with every other, for short lists, and for few lists of any
// middling length, where the latency of a sort is what would count.
//
// Items are compared as values of float or double, absent ones as NaN, which beats nothing and is
// beaten by nothing. Counts are float, exact far beyond the lengths at which they are used: a
// comparison that yields 1.0 or 0.0 and an addition are all there is to a pair.
#pragma once

#include "block.cuh"
#include "item_tile.cuh"

namespace rankreg {
namespace gpu {

// What is counted for an item: the others above it, those at least as high (with itself), both, or
// those that come before it where equal ones keep their order.
enum class Count : int { kAbove, kNotBelow, kBoth, kBefore };

__device__ __forceinline__ Count count_for(Ties ties) {
  switch (ties) {
    case Ties::kMax: return Count::kNotBelow;
    case Ties::kAverage: return Count::kBoth;
    case Ties::kOrdinal: return Count::kBefore;
    default: return Count::kAbove;
  }
}

__device__ __forceinline__ uint32_t twice_rank(Ties ties, float count) {
  const uint32_t whole = uint32_t(count);
  switch (ties) {
    case Ties::kMax: return 2u * whole;
    case Ties::kAverage: return whole + 1u;
    default: return 2u * whole + 2u;
  }
}

// Adds one other item's part in the counts of some items. Of kBefore, `earlier` says whether the
// other one has the lower index.
template <Count kind, class C, int kItems, class Earlier>
__device__ __forceinline__ void add_other(C other, const C (&value)[kItems], float (&count)[kItems],
                                          const Earlier& earlier) {
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if constexpr (kind == Count::kAbove || kind == Count::kBoth)
      count[j] += other > value[j] ? 1.0f : 0.0f;
    if constexpr (kind == Count::kNotBelow || kind == Count::kBoth)
      count[j] += other >= value[j] ? 1.0f : 0.0f;
    if constexpr (kind == Count::kBefore)
      count[j] += (earlier(j) ? other >= value[j] : other > value[j]) ? 1.0f : 0.0f;
  }
}

constexpr int kLaneItems = 4;

// The counts of the items of a list of n that `lanes` lanes hold, lane t items t + j * lanes, when
// all of them meet all of `other`, held alike.
template <Count kind, class C>
__device__ __forceinline__ void count_in_lanes(C (&other)[kLaneItems], const C (&value)[kLaneItems],
                                               int n, int lanes, float (&count)[kLaneItems]) {
  const int t = int(threadIdx.x) & (lanes - 1);
#pragma unroll(kind == Count::kBefore ? kLaneItems : 1)
  for (int k = 0; k < kLaneItems; ++k) {
    const int left = n - k * lanes, here = left < lanes ? left : lanes;
#pragma unroll 4
    for (int s = 0; s < here; ++s) {
      const C that = __shfl_sync(kAll, other[0], s, lanes);
      add_other<kind>(that, value, count, [&](int j) { return k < j || (k == j && s < t); });
    }
    const C done = other[0];  // the next row comes to the register that the loop reads
#pragma unroll
    for (int j = 1; j < kLaneItems; ++j)
      other[j - 1] = other[j];
    other[kLaneItems - 1] = done;
  }
}

// A list per `lanes` lanes of a warp, a power of two with 4 * lanes >= n. The first block's
// first list is `from`.
// items, sink: lists x n. Bytes moved: an element of x (and of what moves it, and of `ranks`) and
// of the output each.
template <class C>
__global__ void __launch_bounds__(256)
    rank_by_lanes(Items items, Sink sink, Ties ties, int64_t from, int64_t lists, int n,
                  int lanes) {
  const int t = int(threadIdx.x) & (lanes - 1), own = int(threadIdx.x) / lanes;
  const int together = int(blockDim.x) / lanes;
  const int64_t list = from + int64_t{blockIdx.x} * together + own;
  const int size = list < lists ? n : 0;
  C value[kLaneItems];
  const uint32_t taken = load_items(items, list, t, lanes, size, value);
  C other[kLaneItems];
  float count[kLaneItems], before[kLaneItems];
#pragma unroll
  for (int j = 0; j < kLaneItems; ++j) {
    if (!(taken >> j & 1u)) value[j] = nan_of<C>();
    other[j] = value[j];
  }
  // Of equal items, dense ranks count the first alone: once it is found, which is where the counts
  // of those before and those above agree, the others are left out.
  const int last = ties == Ties::kDense ? 2 : 0;
#pragma unroll 1
  for (int pass = 0; pass <= last; ++pass) {
    const Count kind = pass < last ? (pass == 0 ? Count::kBefore : Count::kAbove) : count_for(ties);
#pragma unroll
    for (int j = 0; j < kLaneItems; ++j) {
      if (pass == 2 && before[j] != count[j]) other[j] = nan_of<C>();
      before[j] = pass == 0 ? 0.0f : count[j];
      count[j] = 0.0f;
    }
    // n, not size: all lanes of the warp take part in its shuffles.
    switch (kind) {
      case Count::kNotBelow: count_in_lanes<Count::kNotBelow>(other, value, n, lanes, count); break;
      case Count::kBoth: count_in_lanes<Count::kBoth>(other, value, n, lanes, count); break;
      case Count::kBefore: count_in_lanes<Count::kBefore>(other, value, n, lanes, count); break;
      default: count_in_lanes<Count::kAbove>(other, value, n, lanes, count); break;
    }
  }
  uint32_t twice[kLaneItems];
#pragma unroll
  for (int j = 0; j < kLaneItems; ++j)
    twice[j] = twice_rank(ties, count[j]);
  store_items<C>(sink, list, size, t, lanes, taken, twice);
}

// Others that a warp has in shared memory at a time.
constexpr int kChunk = 4 * kWarp;

template <class C>
struct alignas(16) Quad {
  C value[16 / sizeof(C)];
};

template <Count kind, class C, int kItems>
__device__ __forceinline__ void count_chunk(const Quad<C>* others, int quads, int first_other,
                                            int first, const C (&value)[kItems],
                                            float (&count)[kItems]) {
  constexpr int kQuad = 16 / sizeof(C);
// At least 4 others a turn; more take registers that kItems needs.
#pragma unroll(kItems == 1 ? 4 : 4 / kQuad)
  for (int q = 0; q < quads; ++q) {
    const Quad<C> four = others[q];
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      const int i = first_other + q * kQuad + e;
      add_other<kind>(four.value[e], value, count, [&](int j) { return i < first + j * kWarp; });
    }
  }
}

// As many warps as registers allow.
RANKREG_HD constexpr int grid_counting_warps(int items) { return items == 1 ? 32 : 16; }

template <class C>
inline int64_t grid_counting_shared(int warps, int items) {
  return int64_t{warps} * (kChunk * int(sizeof(C)) + items * int(sizeof(float)));
}

// A list's tile of 32 * kItems items per block, every warp holding all of them; each warp counts
// those of its own range of the list's other items, `range` of them, a multiple of 4, and the
// warps' counts are added in shared memory. Not for dense ranks.
//
// items, sink: lists x n. Bytes moved: the list is read once a tile, from the L2 cache.
template <class C, int kItems>
__global__ void __launch_bounds__(kWarp* grid_counting_warps(kItems))
    rank_over_grid(Items items, Sink sink, Ties ties, int n, int range) {
  constexpr int kTile = kItems * kWarp, kQuad = 16 / sizeof(C);
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int warps = int(blockDim.x) / kWarp;
  auto* const others = dynamic_shared<Quad<C>>() + warp * (kChunk / kQuad);
  auto* const partial =
      reinterpret_cast<float*>(dynamic_shared<Quad<C>>() + warps * (kChunk / kQuad));
  const int tiles = (n + kTile - 1) / kTile;
  const Count kind = count_for(ties);

  const int64_t tile = blockIdx.x, list = tile / tiles;
  const int begin = int(tile - list * tiles) * kTile, first = begin + lane;
  C value[kItems];
  const uint32_t taken = load_items(items, list, first, kWarp, n, value);
  float count[kItems] = {};

  const int end = (warp + 1) * range < n ? (warp + 1) * range : n;
  for (int at = warp * range; at < end; at += kChunk) {
    const int until = at + kChunk < end ? at + kChunk : end;
    C other[4];
    const uint32_t there = load_items(items, list, at + lane, kWarp, until, other);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int slot = j * kWarp + lane;
      others[slot / kQuad].value[slot % kQuad] = there >> j & 1u ? other[j] : nan_of<C>();
    }
    __syncwarp();
    const int quads = (until - at + kQuad - 1) / kQuad;
    if (kind == Count::kBoth) {
      count_chunk<Count::kBoth>(others, quads, at, first, value, count);
    } else if (kind == Count::kNotBelow || (kind == Count::kBefore && until <= begin)) {
      count_chunk<Count::kNotBelow>(others, quads, at, first, value, count);
    } else if (kind == Count::kAbove || at >= begin + kTile) {
      count_chunk<Count::kAbove>(others, quads, at, first, value, count);
    } else {
      count_chunk<Count::kBefore>(others, quads, at, first, value, count);
    }
    __syncwarp();
  }
#pragma unroll
  for (int j = 0; j < kItems; ++j)
    partial[warp * kTile + j * kWarp + lane] = count[j];
  __syncthreads();
  for (int j = warp; j < kItems; j += warps) {
    float total = 0.0f;
#pragma unroll 4
    for (int w = 0; w < warps; ++w)
      total += partial[w * kTile + j * kWarp + lane];
    const uint32_t twice[1] = {twice_rank(ties, total)};
    store_items<C>(sink, list, n, first + j * kWarp, 1, taken >> j & 1u, twice);
  }
}

}  // namespace gpu
}  // namespace rankreg
