// The keys of lists (order.h) from where they come: scores, and scores about to be moved.
#pragma once

#include "../common/formulas.h"
#include "../common/view.h"
#include "order.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

// Elements [begin, end) of a row, copied unless they lie side by side.
template <class T>
const T* side_by_side(const Row<T>& row, int64_t begin, int64_t end, T* buffer) {
  if (row.stride == 1) return row.data + begin;
  for (int64_t i = begin; i < end; ++i)
    buffer[i - begin] = row[i];
  return buffer;
}

// The items of [begin, end) that take part, one by one.
template <class List>
int64_t tile_with_gaps(const List& list, int64_t begin, int64_t end, typename List::Key* keys,
                       uint32_t* index) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    index[count] = uint32_t(i);
    count += list.one(i, &keys[count]);
  }
  return count;
}

template <class T>
struct Scores final : Source<KeyOf<T>> {
  using Key = KeyOf<T>;
  // Whose values the keys are linear in; 16-bit keys are sorted as they are.
  using Value = typename std::conditional<std::is_floating_point<T>::value, T, void>::type;
  Row<T> x;
  Mask where;
  bool descending;

  Scores(Row<T> x, Mask where, bool descending) : x(x), where(where), descending(descending) {}

  bool one(int64_t i, Key* key) const override {
    const T value = x[i];
    *key = best_first_key(value, descending);
    return !(where && !where[i]) && !is_nan(value);
  }

  int64_t tile(int64_t begin, int64_t end, Key* keys, uint32_t* index) const override {
    if (where) return tile_with_gaps(*this, begin, end, keys, index);
    T buffer[kKeyTile];
    const T* const value = side_by_side(x, begin, end, buffer);
    const int64_t size = end - begin;
    const Key flip = descending ? Key(~Key{0}) : Key{0};
    Key nan = 0;
    for (int64_t i = 0; i < size; ++i) {
      keys[i] = Key(ascending_key(value[i]) ^ flip);
      nan = Key(nan | Key(is_nan(value[i])));
    }
    if (nan) return tile_with_gaps(*this, begin, end, keys, index);
    for (int64_t i = 0; i < size; ++i)
      index[i] = uint32_t(begin + i);
    return size;
  }
};

// The perturbed scores x + lam grad, formed as they are loaded.
template <class T, class R>
struct MovedScores final : Source<KeyOf<Compute<T>>> {
  using Value = Compute<T>;
  using Key = KeyOf<Value>;
  Row<T> x;
  Row<R> grad;
  Mask where;
  Value lam;
  bool descending;

  MovedScores(Row<T> x, Row<R> grad, Mask where, Value lam, bool descending)
      : x(x), grad(grad), where(where), lam(lam), descending(descending) {}

  bool one(int64_t i, Key* key) const override {
    const Value value = perturb(widen(x[i]), lam, Value(grad[i]), descending);
    *key = best_first_key(value, descending);
    return !(where && !where[i]) && !is_nan(value);
  }

  int64_t tile(int64_t begin, int64_t end, Key* keys, uint32_t* index) const override {
    if (where) return tile_with_gaps(*this, begin, end, keys, index);
    T buffer[kKeyTile];
    R grad_buffer[kKeyTile];
    const T* const score = side_by_side(x, begin, end, buffer);
    const R* const g = side_by_side(grad, begin, end, grad_buffer);
    const int64_t size = end - begin;
    const Key flip = descending ? Key(~Key{0}) : Key{0};
    const Value step = descending ? lam : -lam;  // a - lam g and a + (-lam) g round alike
    Key nan = 0;
    for (int64_t i = 0; i < size; ++i) {
      const Value value = perturb(widen(score[i]), step, Value(g[i]));
      keys[i] = Key(ascending_key(value) ^ flip);
      nan = Key(nan | Key(is_nan(value)));
    }
    if (nan) return tile_with_gaps(*this, begin, end, keys, index);
    for (int64_t i = 0; i < size; ++i)
      index[i] = uint32_t(begin + i);
    return size;
  }
};

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
