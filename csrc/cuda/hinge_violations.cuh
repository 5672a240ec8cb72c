// Hinge violations by pairs of a positive and the list's items, in double: a negative above the
// positive's threshold, t_j = a_j - delta, violates the margin by a_k - t_j.
//
//   collect   finds the positives (positives_stream.cuh), in index order
//   sums      forward: a unit of work is kGroup positives and a share of the items, whose sums a
//             block makes: each thread over its items, then a tree over the threads
//   q         adds the shares up
//
//   items     backward: every item meets all positives, in order, and adds up their u; on the way,
//             the pairs of each positive are counted
//   own       the gradient of the positives
//
// The host does not know the number P of positives, on which the number of shares depends: few
// positives are shared out over all blocks. Counters are integers, and the order of every sum
// depends on P, n and the size of the GPU alone.
//
// n P pairs of 3 instructions of double forward and 2 backward, of which an H100 issues 8448 a
// clock: 1e6 items and 64 positives take 15 us at best, while the bytes take 3. For many positives
// of a long list that is more than a sort of it would take: 13 ms for 62,500, an estimate.
#pragma once

#include "hinge_violations.h"
#include "positives_stream.cuh"

namespace rankreg {
namespace gpu {
namespace hinge {

using stream::Found;
using stream::kThreads;
using stream::Lists;
using stream::Positives;

constexpr int kGroup = HingeTuning::kGroup;
constexpr int kItems = HingeTuning::kItems;

struct Task {
  Lists in;
  Found found;
  Lam delta;
  int parts;  // blocks a list
};

// How the pairs of a list are shared out: unit u is share u % shares of group u / shares.
struct Units {
  uint32_t shares;
  int64_t count;

  __device__ Units(uint32_t positives, int64_t n, int parts) {
    const int64_t groups = (int64_t(positives) + kGroup - 1) / kGroup;
    const int64_t most = (n + HingeTuning::kShareLeast - 1) / HingeTuning::kShareLeast;
    const int64_t wanted = groups == 0 ? 1 : parts / groups;
    shares = uint32_t(wanted < 1 ? 1 : wanted < most ? wanted : most);
    count = groups * shares;
  }
};

struct Storage {
  stream::BlockStorage block;
  double threshold[kGroup];
  double sum[kThreads / kWarp][kGroup];
};

__device__ inline double score_at(const Task& task, int64_t list, int64_t i) {
  return number_at<double>(task.in.scores.data, task.in.scores.type,
                           offset(task.in.scores, list, i));
}

// The score of a negative, NaN for whatever else.
__device__ inline double negative_at(const Task& task, int64_t list, int64_t i) {
  const bool negative =
      !present_at(task.in.positives, list, i) && present_at(task.in.where, list, i);
  return negative ? score_at(task, list, i) : nan_of<double>();
}

__device__ inline void store(void* out, Type type, int64_t at, double value) {
  switch (type) {
    case Type::kHalf: static_cast<Half*>(out)[at] = Half::from(float(value)); break;
    case Type::kBFloat16: static_cast<BFloat16*>(out)[at] = BFloat16::from(float(value)); break;
    case Type::kFloat: static_cast<float*>(out)[at] = float(value); break;
    default: static_cast<double*>(out)[at] = value; break;
  }
}

// Blocks: lists x parts, which take units in turn.
//   partial   lists x room, double: kGroup sums of each unit
// Bytes moved, an item and unit: the score, 1 or 2 of the masks; units of a list run side by side.
template <int kBlock>
__global__ void __launch_bounds__(kBlock, 2) sums(Task task, double* partial, int64_t room) {
  RANKREG_SHARED(Storage, storage);
  uint32_t* const first = dynamic_shared<uint32_t>();
  const int t = int(threadIdx.x);
  const int64_t list = blockIdx.x / unsigned(task.parts);
  const int part = int(blockIdx.x % unsigned(task.parts));
  const Positives positives(task.in, task.found, list, first, storage.block);
  const Units units(positives.size, task.in.n, task.parts);
  const double delta = lam_of<double>(task.delta);
#pragma unroll 1
  for (int64_t unit = part; unit < units.count; unit += task.parts) {
    const int64_t share = unit % units.shares, o = unit / units.shares * kGroup + t;
    __syncthreads();
    if (t < kGroup) {
      storage.threshold[t] =
          o < positives.size
              ? score_at(task, list, task.found.index[positives.entry(uint32_t(o))]) - delta
              : nan_of<double>();
    }
    __syncthreads();
    double threshold[kGroup], sum[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      threshold[i] = storage.threshold[i];
      sum[i] = 0;
    }
    const int64_t each = (task.in.n + units.shares - 1) / units.shares;
    const int64_t end = each * (share + 1) < task.in.n ? each * (share + 1) : task.in.n;
#pragma unroll 1
    for (int64_t k = each * share + t; k < end; k += kBlock) {
      const double x = negative_at(task, list, k);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const double hinge = x - threshold[i];
        if (hinge > 0) sum[i] += hinge;  // not for a NaN, of equal infinities too
      }
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        sum[i] += __shfl_down_sync(kAll, sum[i], unsigned(lanes));
      if (t % kWarp == 0) storage.sum[t / kWarp][i] = sum[i];
    }
    __syncthreads();
    if (t < kGroup) {
      double total = 0;
      for (int w = 0; w < kBlock / kWarp; ++w)
        total += storage.sum[w][t];
      partial[list * room + unit * kGroup + t] = total;
    }
  }
}

// Blocks: lists x parts, a thread a positive. out: lists x n, of C; 0 elsewhere already.
template <int kBlock>
__global__ void __launch_bounds__(kBlock, 2)
    q(Task task, const double* partial, int64_t room, void* out, Type type) {
  RANKREG_SHARED(stream::BlockStorage, storage);
  const int64_t list = blockIdx.x / unsigned(task.parts);
  const int part = int(blockIdx.x % unsigned(task.parts));
  const Positives positives(task.in, task.found, list, dynamic_shared<uint32_t>(), storage);
  const Units units(positives.size, task.in.n, task.parts);
#pragma unroll 1
  for (int64_t o = int64_t(part) * kBlock + threadIdx.x; o < positives.size;
       o += int64_t(task.parts) * kBlock) {
    const int64_t item = task.found.index[positives.entry(uint32_t(o))];
    const double* at = partial + list * room + o / kGroup * units.shares * kGroup + o % kGroup;
    double sum = 0;
    for (uint32_t share = 0; share < units.shares; ++share, at += kGroup)
      sum += *at;
    const double a = score_at(task, list, item);
    store(out, type, list * task.in.n + item, is_nan(a) ? a : sum);
  }
}

struct ItemStorage {
  stream::BlockStorage block;
  double threshold[kThreads], u[kThreads];
  uint32_t count[kThreads];
};
static_assert(int64_t(sizeof(ItemStorage)) <= kMostStatic, "of positives that items meet");

// Blocks: lists x parts, of threads with kItems items each.
//   grad   lists x n, of C; read at positives
//   out    lists x n, of the type of the scores; positives, which are own's, are not written
// Bytes moved, an item: the score, 1 or 2 of the masks, and the gradient written. found.above
// becomes the number of pairs of each positive.
template <int kBlock>
__global__ void __launch_bounds__(kBlock, 2) items(Task task, View grad, void* out) {
  RANKREG_SHARED(ItemStorage, storage);
  uint32_t* const first = dynamic_shared<uint32_t>();
  const int t = int(threadIdx.x);
  const int64_t list = blockIdx.x / unsigned(task.parts), n = task.in.n;
  const int part = int(blockIdx.x % unsigned(task.parts));
  const Positives positives(task.in, task.found, list, first, storage.block);
  const double delta = lam_of<double>(task.delta);
#pragma unroll 1
  for (int64_t tile = int64_t(part) * kBlock * kItems; tile < n;
       tile += int64_t(task.parts) * kBlock * kItems) {
    double x[kItems], sum[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int64_t k = tile + j * kBlock + t;
      x[j] = k < n ? negative_at(task, list, k) : nan_of<double>();
      sum[j] = 0;
    }
#pragma unroll 1
    for (int64_t from = 0; from < positives.size; from += kBlock) {
      const int64_t o = from + t;
      __syncthreads();
      storage.count[t] = 0;
      int64_t entry = 0;
      if (o < positives.size) {
        entry = positives.entry(uint32_t(o));
        const int64_t item = task.found.index[entry];
        storage.threshold[t] = score_at(task, list, item) - delta;
        storage.u[t] = number_at<double>(grad.data, grad.type, offset(grad, list, item));
      }
      __syncthreads();
      const int size = int(positives.size - from < kBlock ? positives.size - from : kBlock);
#pragma unroll 1
      for (int i = 0; i < size; ++i) {
        const double threshold = storage.threshold[i], u = storage.u[i];
        unsigned pairs = 0;
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          const bool violates = x[j] > threshold;
          if (violates) sum[j] += u;
          pairs += unsigned(__popc(__ballot_sync(kAll, violates)));
        }
        if (pairs != 0 && t % kWarp == 0) atomicAdd(&storage.count[i], pairs);
      }
      __syncthreads();
      if (o < positives.size && storage.count[t] != 0)
        atomicAdd(&task.found.above[entry], storage.count[t]);
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int64_t k = tile + j * kBlock + t;
      if (k >= n) continue;
      const bool present = present_at(task.in.where, list, k);
      if (present && present_at(task.in.positives, list, k)) continue;
      // A NaN negative has met nobody.
      const double value = present && is_nan(x[j]) ? x[j] : sum[j];
      store(out, task.in.scores.type, list * n + k, value);
    }
  }
}

// Blocks: lists x parts, a thread a positive.
template <int kBlock>
__global__ void __launch_bounds__(kBlock, 2) own(Task task, View grad, void* out) {
  RANKREG_SHARED(stream::BlockStorage, storage);
  const int64_t list = blockIdx.x / unsigned(task.parts);
  const int part = int(blockIdx.x % unsigned(task.parts));
  const Positives positives(task.in, task.found, list, dynamic_shared<uint32_t>(), storage);
#pragma unroll 1
  for (int64_t o = int64_t(part) * kBlock + threadIdx.x; o < positives.size;
       o += int64_t(task.parts) * kBlock) {
    const int64_t entry = positives.entry(uint32_t(o)), item = task.found.index[entry];
    const double a = score_at(task, list, item);
    const double u = number_at<double>(grad.data, grad.type, offset(grad, list, item));
    const double value = is_nan(a) ? a : -u * double(task.found.above[entry]);
    store(out, task.in.scores.type, list * task.in.n + item, value);
  }
}

// ------------------------------------------------------------------------------------------ host

inline int parts_of(const Context& context, int64_t lists, int64_t n) {
  const int64_t wanted =
      (int64_t(context.multiprocessors) * HingeTuning::kBlocks + lists - 1) / lists;
  const int64_t most = (n + HingeTuning::kItemsLeast - 1) / HingeTuning::kItemsLeast;
  return int(std::min(wanted, most));
}

}  // namespace hinge
}  // namespace gpu
}  // namespace rankreg
