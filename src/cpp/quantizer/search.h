// Scales of groups of weights, by search against the weighted squared error.
//
// Everything here is plain float32 in an order that is written out, compiled once for any CPU: what
// is found is the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slmq {

// Codes of a group: w ~ scale * level + min, level = code - zero within low..high.
struct Grid {
  int low, high;  // levels
  int zero;       // code of level 0
  bool has_min;   // else min is 0
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

// The scale and min that are stored for these; false if float16 cannot hold them.
bool store_scale(const Scales& scales, float* scale, float* min);

inline constexpr int kMaxGroup = 128;

// A group to be rounded; columns from count on up to a multiple of 8 weigh nothing.
struct Group {
  alignas(64) float w[kMaxGroup];
  alignas(64) float weight[kMaxGroup];  // of the squared error of a column, >= 0
  int count;                            // a multiple of 8
};

// Scale and min are values that the format stores.
struct Fit {
  float scale, min;
  float error;  // weighted and squared; infinite if no scale will do
};

// The levels of a group under a scale and min.
void round_levels(const Grid& grid, const float* w, int count, float scale, float min,
                  float* levels);

// The best of a fixed list of scales (and mins), each refined by least squares.
Fit search_group(const Grid& grid, const Scales& scales, const Group& group);

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
  float *scales, *mins;  // [n][groups]

  int groups() const { return (k + columns - 1) / columns; }
  int units() const { return (groups() + groups_per_unit - 1) / groups_per_unit; }
  // What a group of a row may store.
  Scales scales_of(int row, int group) const {
    if (d == nullptr) return stored;
    const size_t at = static_cast<size_t>(row) * units() + group / groups_per_unit;
    return {stored.stored, stored.low, stored.high, d[at], dmin[at]};
  }
};

// Rows row_begin..row_end, each group by itself. False if some scale does not fit.
bool search_rows(const RoundArgs& args, int row_begin, int row_end);

}  // namespace slmq
