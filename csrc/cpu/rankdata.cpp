// rankdata: the ascending ranks of rank.h, with a scan for NaN before and a conversion behind.
//
// Lists are taken in blocks that stay in a core's own cache: a block is scanned, ranked, and its
// ranks made integers, so that memory sees x once and ranks once. A list longer than a block passes
// through memory once more per step.
#include "rankdata.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "../common/keys.h"
#include "rank.h"

namespace rankreg {
namespace {

constexpr int64_t kBlock = 1 << 13;  // elements: 64 KiB of ranks

int64_t parts_of(int64_t n, const Parallel& parallel) {
  return std::max<int64_t>(1, std::min<int64_t>(parallel.threads(), n / kWorthAThread));
}

// Parallel mapping: none. Reads row[begin, end) once; contiguous rows are vectorised, in steps
// between which an early NaN ends the scan.
template <class T>
bool holds_nan(const Row<T>& row, int64_t begin, int64_t end) {
  constexpr int64_t step = 1024;
  for (int64_t i = begin; i < end; i += step) {
    const int64_t stop = std::min(end, i + step);
    unsigned found = 0;
    if (row.stride == 1) {
      for (int64_t k = i; k < stop; ++k)
        found |= unsigned(is_nan(row.data[k]));
    } else {
      for (int64_t k = i; k < stop; ++k)
        found |= unsigned(is_nan(row[k]));
    }
    if (found) return true;
  }
  return false;
}

template <class T>
bool list_holds_nan(const Row<T>& row, int64_t n, const Parallel& parallel) {
  const int64_t parts = parts_of(n, parallel);
  if (parts == 1) return holds_nan(row, 0, n);
  std::atomic<bool> found{false};
  parallel.each(parts, [&](int64_t p) {
    const Part part(n, p, parts);
    if (holds_nan(row, part.begin, part.end)) found.store(true, std::memory_order_relaxed);
  });
  return found;
}

// In place: doubles that are integers in [0, 2^52) become int64. Added to 2^52, such a number
// stands in the low bits; baseline x86 has no vector conversion.
void make_integers(char* ranks, int64_t count, const Parallel& parallel) {
  constexpr double shift = 4503599627370496.0;
  const int64_t parts = parts_of(count, parallel);
  parallel.each(parts, [&](int64_t p) {
    const Part part(count, p, parts);
    for (int64_t i = part.begin; i < part.end; ++i) {
      double rank;
      memcpy(&rank, ranks + 8 * i, 8);
      const int64_t integer = bit_cast<int64_t>(rank + shift) - bit_cast<int64_t>(shift);
      memcpy(ranks + 8 * i, &integer, 8);
    }
  });
}

View from_list(View x, int64_t list) {
  if (list == 0) return x;
  int64_t size = 0;
  dispatch_any(x.type, [&](auto tag) { size = sizeof(typename decltype(tag)::type); });
  x.data = static_cast<const char*>(x.data) + list * x.list_stride * size;
  return x;
}

bool is_float(Type type) {
  return type == Type::kHalf || type == Type::kBFloat16 || type == Type::kFloat ||
         type == Type::kDouble;
}

}  // namespace

bool any_nan(const View& x, int64_t lists, int64_t n, const Parallel& parallel) {
  if (!is_float(x.type)) return false;
  std::atomic<bool> found{false};
  dispatch_float(x.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
      for (int64_t list = begin; list < end && !found.load(std::memory_order_relaxed); ++list) {
        if (list_holds_nan(Row<T>(x, list), n, inner)) found.store(true, std::memory_order_relaxed);
      }
    });
  });
  return found;
}

void rankdata(const View& x, Ties ties, NanRule nan, int64_t lists, int64_t n, Type rank_type,
              void* ranks, const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  const bool scan = nan == NanRule::kSpread && is_float(x.type);
  const auto rank_run = [&](int64_t begin, int64_t end, const Parallel& inner) {
    if (begin == end) return;
    char* out = static_cast<char*>(ranks) + 8 * begin * n;
    rank(from_list(x, begin), View{}, false, ties, end - begin, n, Type::kDouble, out, inner);
    if (rank_type == Type::kI64) make_integers(out, (end - begin) * n, inner);
  };
  const int64_t step = std::max<int64_t>(1, kBlock / n);
  for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
    for (int64_t block = begin; block < end; block += step) {
      const int64_t stop = std::min(end, block + step);
      int64_t clean = block;  // where the present run of lists without a NaN began
      if (scan) {
        dispatch_float(x.type, [&](auto tag) {
          using T = typename decltype(tag)::type;
          for (int64_t list = block; list < stop; ++list) {
            if (!list_holds_nan(Row<T>(x, list), n, inner)) continue;
            rank_run(clean, list, inner);
            double* out = static_cast<double*>(ranks) + list * n;
            std::fill(out, out + n, std::numeric_limits<double>::quiet_NaN());
            clean = list + 1;
          }
        });
      }
      rank_run(clean, stop, inner);
    }
  });
}

}  // namespace rankreg
