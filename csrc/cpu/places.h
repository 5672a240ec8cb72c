// Where scores stand among sorted breakpoints, however many those are.
//
// The place of a score x is #{i : b_i <= x}. With the next score above t among the breakpoints,
// #{x > t} is the number of scores at the places after that of t, so counts by place give ranks,
// and a step function whose steps are breakpoints is a table by place.
//
// - Few breakpoints: a search in registers (count.h).
// - Many: a lookup table over cells. The cell of a score is a monotone function of it, evaluated
//   alike for scores and breakpoints, so a cell without a breakpoint has one place. Scores in the
//   other cells are put on a list, and searched for among the breakpoints of the cell.
#pragma once

#include <array>
#include <stdexcept>
#include <utility>
#include <vector>

#include "count.h"
#include "parallel.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {

// The score of a key of ascending_key().
template <class C>
C score_of(KeyOf<C> key) {
  using Key = KeyOf<C>;
  constexpr Key top = Key(Key{1} << (8 * sizeof(Key) - 1));
  return bit_cast<C>(key & top ? Key(key ^ top) : Key(~key));
}

// The key of the next score above `score`, which is less than infinity.
template <class C>
KeyOf<C> next_key(C score) {
  const KeyOf<C> next = KeyOf<C>(ascending_key(score) + 1);
  // In a thread that flushes subnormals they compare equal to zero.
  return score_of<C>(next) > score ? next : ascending_key(std::numeric_limits<C>::min());
}

// One pass of a radix sort; false if all keys share the digit.
template <int bits, class Key>
bool sort_by_digit(const std::vector<Key>& keys, int shift, std::vector<Key>& out) {
  const auto digit = [shift](Key key) { return size_t(key >> shift) & ((1u << bits) - 1); };
  std::array<size_t, 1 << bits> starts{};
  for (const Key key : keys)
    ++starts[digit(key)];
  if (starts[digit(keys[0])] == keys.size()) return false;
  size_t start = 0;
  for (size_t& s : starts)
    start += std::exchange(s, start);
  for (const Key key : keys)
    out[starts[digit(key)]++] = key;
  return true;
}

// Ascending, each key once. `spare` is scratch.
template <class Key>
void sort_distinct(std::vector<Key>& keys, std::vector<Key>& spare) {
  constexpr size_t kCounted = 96, kShortDigits = 2000;
  constexpr Key kNone = std::numeric_limits<Key>::max();  // of a NaN, so no score's
  const size_t size = keys.size();
  if (size <= kCounted) {
    spare.assign(size, kNone);
    for (const Key key : keys) {
      Key below = 0;  // as wide as the keys, so that the vectors are full
      for (size_t i = 0; i < size; ++i)
        below += keys[i] < key;
      spare[size_t(below)] = key;
    }
    keys.swap(spare);
    keys.erase(std::remove(keys.begin(), keys.end(), kNone), keys.end());
    return;
  }
  spare.resize(size);
  const bool few = size < kShortDigits;
  for (int shift = 0; shift < int(8 * sizeof(Key)); shift += few ? 8 : 11) {
    if (few ? sort_by_digit<8>(keys, shift, spare) : sort_by_digit<11>(keys, shift, spare)) {
      keys.swap(spare);
    }
  }
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
}

// Counts by place, of one thread.
struct PlaceCounts {
  std::vector<int64_t> at;
  std::vector<uint32_t> slots;  // a Lut's, not yet added to `at`
  int64_t pending = 0;          // scores in them
};

// The lookup table. Its entries, and values written by place, have a slot for each place p, 2 p,
// and one for the open cells that begin at p, 2 p + 1.
template <class C>
class Lut {
 public:
  // b: ascending, distinct. A sample of the n scores to come tells how to lay out the cells.
  void build(std::vector<C>& b, const C* sample, int64_t sampled, int64_t n) {
    size_ = int64_t(b.size());
    b_ = b.data();
    const int64_t wanted = size_ * kCellsPerBreakpoint;
    cells_ = std::max<int64_t>(64, std::min({wanted, kMostCells, std::max(n / 4, 2 * size_)}));
    one_map();
    fill();
    if (open_steps(sample, sampled) > kMostSteps * sampled) {
      several_maps();
      fill();
    }
    // A search goes on past the last breakpoint: nothing reaches NaN.
    b.resize(size_t(size_ + 2 * half_), std::numeric_limits<C>::quiet_NaN());
    b_ = b.data();
  }

  int64_t slots() const { return 2 * (size_ + 1); }

  // At most kTile scores.
  void places(const C* x, int64_t size, int64_t* out) const {
    uint32_t cell[kTile];
    cells_of(x, size, cell);
    entries([&](const auto& entry) {
      for (int64_t j = 0; j < size; ++j)
        out[j] = search(int64_t(entry[cell[j]] >> 1), x[j]);
    });
  }

  // counts.slots[] += 1 at the slot of every score. With `write`: out[j] = table[slot].
  template <bool write, class T>
  void pass(const C* x, int64_t size, PlaceCounts& counts, const T* table, T* out) const {
    entries([&](const auto& entry) {
      if (sizeof(entry[0]) == 2 && tables() == kTables) {
        pass_with<write, kTables>(x, size, entry.data(), counts.slots.data(), table, out);
      } else {
        pass_with<write, 1>(x, size, entry.data(), counts.slots.data(), table, out);
      }
    });
    counts.pending += size;
    if (counts.pending > int64_t{1} << 31) {
      collect(counts);
      start(counts);
    }
  }

  void start(PlaceCounts& counts) const {
    counts.slots.assign(size_t(slots() * tables()), 0);
    counts.pending = 0;
  }

  // Adds counts.slots to counts.at.
  void collect(PlaceCounts& counts) const {
    const int64_t tables = this->tables();
    for (int64_t p = 0; p <= size_; ++p) {
      for (int64_t i = 0; i < tables; ++i)
        counts.at[size_t(p)] += counts.slots[size_t(2 * p * tables + i)];
    }
  }

 private:
  static constexpr int64_t kCellsPerBreakpoint = 16;
  static constexpr int64_t kMostCells = int64_t{1} << 22;  // exact in float
  static constexpr int64_t kMostSteps = 1;                 // of searches in a cell, per score
  static constexpr int kTables = 4;

  int64_t tables() const { return size_ < kSeveralTablesMost ? kTables : 1; }

  template <bool write, int tables, class Entry, class T>
  void pass_with(const C* x, int64_t size, const Entry* entry, uint32_t* slots, const T* table,
                 T* out) const {
    uint32_t cell[kTile];
    uint16_t open[kTile];
    cells_of(x, size, cell);
    int64_t opened = 0;
    const auto visit = [&](int64_t j, int i) {
      const size_t slot = entry[cell[j]];
      ++slots[slot * tables + size_t(i)];
      if (write) out[j] = table[slot];
      open[opened] = uint16_t(j);
      opened += slot & 1;
    };
    int64_t j = 0;
    for (; j + tables <= size; j += tables) {
      for (int i = 0; i < tables; ++i)
        visit(j + i, i);
    }
    for (; j < size; ++j)
      visit(j, 0);
    for (int64_t i = 0; i < opened; ++i) {
      const int64_t at = open[i];
      const int64_t slot = 2 * search(int64_t(entry[cell[at]] >> 1), x[at]);
      ++slots[slot * tables + i % tables];
      if (write) out[at] = table[slot];
    }
  }

  // The place of x, at most 2 half_ - 1 after `place`. Breakpoints beyond its cell are above x.
  int64_t search(int64_t place, C x) const {
    for (int64_t step = half_; step > 0; step >>= 1)
      place += b_[place + step - 1] <= x ? step : 0;
    return place;
  }

  // Monotone for every x, though the scale be infinite: NaN, of x == low, becomes 0, the lowest.
  static C clamped(C cell, C last) {
    cell = cell > 0 ? cell : C(0);
    return cell < last ? cell : last;
  }

  void cells_of(const C* x, int64_t size, uint32_t* cell) const {
    if (maps_ == 0) {
      const C low = low_[0], scale = scale_[0], last = last_;
      for (int64_t j = 0; j < size; ++j)
        cell[j] = uint32_t(int32_t(clamped((x[j] - low) * scale + 1, last)));
      return;
    }
    uint8_t map[kTile];
    search_.places(x, size, map);
    for (int64_t j = 0; j < size; ++j) {
      const C inner = clamped((x[j] - low_[map[j]]) * scale_[map[j]], last_);
      cell[j] = first_[map[j]] + uint32_t(int32_t(inner));
    }
  }

  // One linear map for all: cell 0 is below the breakpoints, the last one above.
  void one_map() {
    maps_ = 0;
    last_ = C(cells_ - 1);
    set_map(0, 0, size_, C(cells_ - 3));
  }

  // A linear map for each of many equal shares of the breakpoints, whichever way these cluster.
  // Map 0 is one cell, below the breakpoints.
  void several_maps() {
    maps_ = std::min<int64_t>(Search<C>::kMost, size_);
    C splitters[Search<C>::kMost];
    const int64_t cells = std::max<int64_t>(4, cells_ / maps_);
    last_ = C(cells - 1);
    low_[0] = scale_[0] = 0;
    first_[0] = 0;
    for (int64_t m = 0; m < maps_; ++m) {
      const Part part(size_, m, maps_);
      splitters[m] = b_[part.begin];
      set_map(m + 1, part.begin, part.end, C(cells - 2));
      first_[m + 1] = uint32_t(1 + m * cells);
    }
    cells_ = 1 + maps_ * cells;
    search_.build(splitters, maps_);
  }

  void set_map(int64_t map, int64_t begin, int64_t end, C cells) {
    constexpr C kInfinity = std::numeric_limits<C>::infinity();
    while (begin + 1 < end && b_[begin] == -kInfinity)
      ++begin;
    while (begin + 1 < end && b_[end - 1] == kInfinity)
      --end;
    low_[map] = b_[begin];
    scale_[map] = cells / (b_[end - 1] - b_[begin]);
    // Nothing finite, or too far apart to be told: any map will do in which infinity has a place.
    if (!(scale_[map] > 0)) low_[map] = 0, scale_[map] = 1;
  }

  void fill() {
    const int64_t most = 2 * (size_ + 1);
    entry16_.clear();
    if (most <= int64_t{1} << 16) {
      fill(entry16_);
    } else if (most <= int64_t{1} << 32) {
      fill(entry32_);
    } else {
      throw std::length_error("rankreg_ext: a list may have 2^31 different breakpoints at most");
    }
  }

  template <class Entry>
  void fill(std::vector<Entry>& entry) {
    // Breakpoints in each cell, then their number before it.
    entry.assign(size_t(cells_), 0);
    Entry most = 0;
    uint32_t cell[kTile];
    for (int64_t begin = 0; begin < size_; begin += kTile) {
      const int64_t tile = std::min(kTile, size_ - begin);
      cells_of(b_ + begin, tile, cell);
      for (int64_t i = 0; i < tile; ++i)
        most = std::max(most, ++entry[cell[i]]);
    }
    Entry before = 0;
    for (Entry& e : entry) {
      const Entry here = e;
      e = Entry(before << 1 | (here > 0));
      before = Entry(before + here);
    }
    half_ = 1;
    while (2 * half_ - 1 < int64_t(most))
      half_ *= 2;
  }

  // Steps of searches that the scores of a sample take.
  int64_t open_steps(const C* x, int64_t size) const {
    int64_t steps = 0;
    for (int64_t step = half_; step > 0; step >>= 1)
      ++steps;
    uint32_t cell[kTile];
    cells_of(x, size, cell);
    int64_t opened = 0;
    entries([&](const auto& entry) {
      for (int64_t j = 0; j < size; ++j)
        opened += entry[cell[j]] & 1;
    });
    return opened * steps;
  }

  template <class F>
  auto entries(const F& f) const {
    return entry16_.empty() ? f(entry32_) : f(entry16_);
  }

  int64_t size_ = 0, cells_ = 0, half_ = 0;
  const C* b_ = nullptr;
  int64_t maps_ = 0;  // 0: one for all
  C last_ = 0, low_[kMostPlaces], scale_[kMostPlaces];
  uint32_t first_[kMostPlaces];
  Search<C> search_;               // for a score's map
  std::vector<uint16_t> entry16_;  // of two bytes where that suffices, otherwise empty
  std::vector<uint32_t> entry32_;
};

template <class C>
class Places {
 public:
  using Key = KeyOf<C>;

  // Takes the keys of the breakpoints in any order; `spare` is scratch.
  void build(std::vector<Key>& keys, std::vector<Key>& spare, const C* sample, int64_t sampled,
             int64_t n) {
    sort_distinct(keys, spare);
    b_.resize(keys.size());
    for (size_t i = 0; i < keys.size(); ++i)
      b_[i] = score_of<C>(keys[i]);
    size_ = int64_t(b_.size()) + 1;
    few_ = size_ - 1 <= Search<C>::kMost;
    if (few_) {
      search_.build(b_.data(), size_ - 1);
      groups_ = size_;
      for (int64_t p = 0; p < size_; ++p)
        group_[p] = uint8_t(p);
    } else {
      lut_.build(b_, sample, sampled, n);
    }
  }

  int64_t size() const { return size_; }
  // The place of each score, 0 for NaN.
  void places(const std::vector<C>& x, std::vector<int64_t>& out) const {
    out.resize(x.size());
    for (size_t begin = 0; begin < x.size(); begin += size_t(kTile)) {
      const int64_t size = std::min(kTile, int64_t(x.size() - begin));
      if (few_) {
        uint8_t place[kTile];
        search_.places(&x[begin], size, place);
        std::copy(place, place + size, &out[begin]);
      } else {
        lut_.places(&x[begin], size, &out[begin]);
      }
    }
  }

  // Only how many scores are at later places than these will be asked for: few breakpoints are then
  // counted by groups of places that end at them.
  void count_after_these(const std::vector<int64_t>& places) {
    if (!few_) return;
    uint8_t starts[kMostPlaces + 1] = {};
    for (const int64_t p : places)
      starts[p + 1] = 1;
    groups_ = 1;
    for (int64_t p = 0; p < size_; ++p) {
      groups_ += starts[p];
      group_[p] = uint8_t(groups_ - 1);
    }
  }

  // Where the scores of a place are counted.
  int64_t counter(int64_t place) const { return few_ ? group_[place] : place; }

  // Where a value to be written for a place is looked up, and how many there are.
  int64_t slot(int64_t place) const { return few_ ? place : 2 * place; }
  int64_t slots() const { return few_ ? size_ : lut_.slots(); }

  // One thread: start, pass over each tile, finish.
  void start(PlaceCounts& counts) const {
    counts.at.assign(size_t(few_ ? groups_ : size_), 0);
    if (!few_) lut_.start(counts);
  }

  // Counts the scores of a tile. With `write`: out[j] = values[slot of its place], or `nan`.
  template <bool write, class T>
  void pass(const C* x, int64_t size, PlaceCounts& counts, const T* values, T nan, T* out) const {
    if (!few_) {
      lut_.template pass<write>(x, size, counts, values, out);
      for (int64_t j = 0; write && j < size; ++j)
        out[j] = is_nan(x[j]) ? nan : out[j];
      return;
    }
    uint8_t place[kTile];
    search_.places(x, size, place);
    if (write) write_by_place(place, x, size, values, size_, nan, out);
    if (groups_ != size_) replace_places(place, size, group_, size_);
    count_places(place, size, groups_, counts.at.data());
  }

  void finish(PlaceCounts& counts) const {
    if (!few_) lut_.collect(counts);
  }

 private:
  int64_t size_ = 0;  // places: breakpoints and one
  bool few_ = true;
  std::vector<C> b_;
  Search<C> search_;
  int64_t groups_ = 0;
  uint8_t group_[kMostPlaces];
  Lut<C> lut_;
};

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
