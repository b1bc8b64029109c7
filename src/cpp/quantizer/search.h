// Scales of groups of weights, by search against the weighted squared error.
//
// Everything here is plain float32 in an order that is written out, compiled once for any CPU: what
// is found is the same everywhere.
#pragma once

#include <cstdint>

namespace slmq {

// Codes of a group: w ~ scale * level + min, level = code - zero within low..high.
struct Grid {
  int low, high;  // levels
  int zero;       // code of level 0
  bool has_min;   // else min is 0
};

inline constexpr int kMaxGroup = 128;

// A group to be rounded; columns from count on up to a multiple of 8 weigh nothing.
struct Group {
  alignas(64) float w[kMaxGroup];
  alignas(64) float weight[kMaxGroup];  // of the squared error of a column, >= 0
  int count;                            // a multiple of 8
};

// Scale and min are values that float16 holds.
struct Fit {
  float scale, min;
  float error;  // weighted and squared; infinite if no float16 scale will do
};

// The levels of a group under a scale and min.
void round_levels(const Grid& grid, const float* w, int count, float scale, float min,
                  float* levels);

// The best of a fixed list of scales (and mins), each refined by least squares.
Fit search_group(const Grid& grid, const Group& group);

// Rows row_begin..row_end of a matrix of k columns, in groups of `columns`.
struct SearchArgs {
  Grid grid;
  const float* w;           // [n][k]
  const float* importance;  // [k], or null: all alike
  int k, columns;
  uint8_t* codes;           // [n][k]
  uint16_t *scales, *mins;  // float16 [n][groups]
};

// False if some scale does not fit float16.
bool search_rows(const SearchArgs& args, int row_begin, int row_end);

}  // namespace slmq
