// What rounding a matrix takes and gives: `kernels/round_*.inl.h` do it.
//
// Everything is plain float32 in an order that is written out: the same on every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine/inline.h"

namespace slmq {

// Levels that are not all the integers of a range: values that ascend. A code is a place among them.
struct Table {
  static constexpr int kMost = 16;
  int count;                                          // 0: there is no table
  float values[kMost], steps[kMost], middles[kMost];  // to the next value
  float lift;  // of the second table: all its values are so much more; 0: there is one table
};

// Codes of a group: w ~ scale * level + min, level = code - zero within low..high, or of a table.
struct Grid {
  int low, high;  // levels
  int zero;       // code of level 0
  bool has_min;   // else min is 0
  Table table;
};

// Which scales and mins a format can store.
enum class Stored : int {
  halves,      // any float16
  multiples,   // scale = d * low..high, min = -dmin * 0..high: d, dmin float16
  zero_point,  // scale float16, min = -scale * 0..high
};
inline constexpr int kStoredKinds = 3;
inline constexpr const char* kStoredNames[kStoredKinds] = {"halves", "multiples", "zero_point"};

struct Scales {
  Stored stored;
  int low, high;
  float d, dmin;  // multiples: of the group at hand; 0: only mins not above 0 are asked for
};

inline constexpr int kMaxGroup = 128;

// A matrix to be rounded, in groups of `columns`.
struct RoundArgs {
  Grid grid;
  const float* w;           // [n][k]
  const float* importance;  // [k], or null: all alike
  int n, k, columns;
  Scales stored;
  const float *d, *dmin;  // [n][units] of `stored`, or null
  int groups_per_unit;
  uint8_t* codes;        // [n][k]
  float *scales, *mins;  // [n][groups]; with a table mins are what a group's levels are lifted by

  SLMQ_INLINE_MEMBER int groups() const { return (k + columns - 1) / columns; }
  SLMQ_INLINE_MEMBER int units() const {
    return (groups() + groups_per_unit - 1) / groups_per_unit;
  }
  // What a group of a row may store.
  SLMQ_INLINE_MEMBER Scales scales_of(int row, int group) const {
    if (d == nullptr) return stored;
    const size_t at = static_cast<size_t>(row) * units() + group / groups_per_unit;
    return {stored.stored, stored.low, stored.high, d[at], dmin[at]};
  }
};

struct FeedbackArgs {
  RoundArgs round;        // its importance is not used
  const float* feedback;  // U transposed: [k][k], row j holds U[i][j] for i < j
  const float* weight;    // D: [k]
};

inline constexpr int kRoundedRows = 16;  // that feedback rounds and refinement improves together

// Floats that either needs beside its arguments, for one block of rows.
inline size_t rounding_scratch(const RoundArgs& args) {
  return (3 * static_cast<size_t>(args.k) + 4 * static_cast<size_t>(args.columns)) * kRoundedRows;
}

}  // namespace slmq
