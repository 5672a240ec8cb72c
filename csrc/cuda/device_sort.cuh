// One stable sort of the whole GPU, of unsigned keys with a 32-bit value each: CUB's radix sort, or
// the emulator's.
//
//   bytes = DeviceSort::storage<Key>(count, bits)     of device memory, for up to that many
//   DeviceSort::sort(storage, bytes, pairs, count, bits, stream)
//
// Sorts by the low `bits` of the keys. Everything is enqueued on the stream, what is launched
// depends on count and bits alone, and the host waits for nothing.
#pragma once

#include "device.cuh"

namespace rankreg {
namespace gpu {

// Two buffers of `count` pairs. Sorting reads `key` and `value`, overwrites all four, and leaves
// the result in what `key` and `value` then are.
template <class Key>
struct SortPairs {
  Key *key, *spare_key;
  uint32_t *value, *spare_value;
};

}  // namespace gpu
}  // namespace rankreg

#if defined(__CUDACC__)

#include <cub/device/device_radix_sort.cuh>

namespace rankreg {
namespace gpu {

struct DeviceSort {
  template <class Key>
  static int64_t storage(int64_t count, int bits) {
    size_t bytes = 0;
    cub::DoubleBuffer<Key> keys;
    cub::DoubleBuffer<uint32_t> values;
    check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, uint32_t(count), 0, bits),
          "cub::DeviceRadixSort");
    return int64_t(bytes);
  }

  template <class Key>
  static void sort(void* storage, int64_t bytes, SortPairs<Key>& pairs, int64_t count, int bits,
                   void* stream) {
    size_t size = size_t(bytes);
    cub::DoubleBuffer<Key> keys(pairs.key, pairs.spare_key);
    cub::DoubleBuffer<uint32_t> values(pairs.value, pairs.spare_value);
    check(cub::DeviceRadixSort::SortPairs(storage, size, keys, values, uint32_t(count), 0, bits,
                                          static_cast<cudaStream_t>(stream)),
          "cub::DeviceRadixSort");
    pairs = {keys.Current(), keys.Alternate(), values.Current(), values.Alternate()};
  }
};

}  // namespace gpu
}  // namespace rankreg

#else

#include "emulated_sort.h"

#endif
