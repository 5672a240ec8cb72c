// device_sort.cuh without CUB: the same interface, a stable sort of the C++ library, and CUB's
// habits that a caller must bear with: the result may be in either buffer, nothing of the other
// one nor of the storage survives, and keys are compared by their low bits alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace rankreg {
namespace gpu {

struct DeviceSort {
  template <class Key>
  static int64_t storage(int64_t count, int bits) {
    return 1 + count / 8 + bits;
  }

  template <class Key>
  static void sort(void* storage, int64_t bytes, SortPairs<Key>& pairs, int64_t count, int bits,
                   void*) {
    if (bytes < DeviceSort::storage<Key>(count, bits))
      throw std::runtime_error("the storage of a sort is too small");
    if (bits < 1 || bits > int(8 * sizeof(Key)))
      throw std::runtime_error("a sort by bits that a key has not");
    const Key mask = Key(~Key{0}) >> (8 * int(sizeof(Key)) - bits);
    struct Pair {
      Key key;
      uint32_t value;
    };
    std::vector<Pair> sorted(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      sorted[size_t(i)] = {pairs.key[i], pairs.value[i]};
    std::stable_sort(sorted.begin(), sorted.end(),
                     [=](const Pair& a, const Pair& b) { return (a.key & mask) < (b.key & mask); });
    if ((bits + 7) / 8 % 2) {  // passes of 8 bits, from one buffer to the other
      std::swap(pairs.key, pairs.spare_key);
      std::swap(pairs.value, pairs.spare_value);
    }
    for (int64_t i = 0; i < count; ++i) {
      pairs.key[i] = sorted[size_t(i)].key;
      pairs.value[i] = sorted[size_t(i)].value;
    }
    memset(pairs.spare_key, 0xa5, size_t(count) * sizeof(Key));
    memset(pairs.spare_value, 0xa5, size_t(count) * sizeof(uint32_t));
    memset(storage, 0xa5, size_t(bytes));
  }
};

}  // namespace gpu
}  // namespace rankreg
