#include "quantizer/search.h"

#include <cmath>
#include <limits>

#include "core/half.h"

namespace slmq {
namespace {

constexpr int kLanes8 = 8;  // partial sums of a group, added up as a tree

struct Sums {  // over the columns of a group, weighted
  float level_level, level_w, level, w, one;
};

float half_rounded(float x) { return half_to_float(float_to_half(x)); }

// The nearest whole number, of two the even one, for |x| < 2^22.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

float tree(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

Sums sums_of(const Group& g, const float* levels) {
  float ll[kLanes8] = {}, lw[kLanes8] = {}, l[kLanes8] = {}, w[kLanes8] = {}, one[kLanes8] = {};
  for (int c = 0; c < g.count; c += kLanes8)
    for (int i = 0; i < kLanes8; ++i) {
      const float weighted = g.weight[c + i] * levels[c + i];
      ll[i] += weighted * levels[c + i];
      lw[i] += weighted * g.w[c + i];
      l[i] += weighted;
      w[i] += g.weight[c + i] * g.w[c + i];
      one[i] += g.weight[c + i];
    }
  return {tree(ll), tree(lw), tree(l), tree(w), tree(one)};
}

float error_of(const Group& g, const float* levels, float scale, float min) {
  float sum[kLanes8] = {};
  for (int c = 0; c < g.count; c += kLanes8)
    for (int i = 0; i < kLanes8; ++i) {
      const float difference = g.w[c + i] - (scale * levels[c + i] + min);
      sum[i] += g.weight[c + i] * (difference * difference);
    }
  return tree(sum);
}

// Keeps the better of `best` and this scale and min, as float16.
void consider(const Grid& grid, const Group& g, float scale, float min, Fit* best, float* levels) {
  scale = half_rounded(scale), min = half_rounded(min);
  if (!std::isfinite(scale) || !std::isfinite(min)) return;
  round_levels(grid, g.w, g.count, scale, min, levels);
  const float error = error_of(g, levels, scale, min);
  if (error < best->error) *best = {scale, min, error};
}

// The scale (and min) of least squared error for levels that stand.
bool least_squares(const Grid& grid, const Group& g, const float* levels, float* scale,
                   float* min) {
  const Sums s = sums_of(g, levels);
  if (!grid.has_min) {
    *min = 0.0f;
    *scale = s.level_w / s.level_level;
    return s.level_level > 0.0f;
  }
  const float determinant = s.one * s.level_level - s.level * s.level;
  *scale = (s.one * s.level_w - s.level * s.w) / determinant;
  *min = (s.level_level * s.w - s.level * s.level_w) / determinant;
  return determinant > 0.0f;
}

// A first guess, as it is and refined.
void try_from(const Grid& grid, const Group& g, float scale, float min, int rounds, Fit* best) {
  alignas(64) float levels[kMaxGroup];
  consider(grid, g, scale, min, best, levels);
  round_levels(grid, g.w, g.count, scale, min, levels);
  for (int round = 0; round < rounds; ++round) {
    if (!least_squares(grid, g, levels, &scale, &min)) return;
    consider(grid, g, scale, min, best, levels);
  }
}

Fit search_symmetric(const Grid& grid, const Group& g) {
  float extreme = 0.0f;
  for (int c = 0; c < g.count; ++c)
    if (std::fabs(g.w[c]) > std::fabs(extreme)) extreme = g.w[c];
  Fit best = {0.0f, 0.0f, std::numeric_limits<float>::infinity()};
  if (extreme == 0.0f) return {0.0f, 0.0f, 0.0f};
  // The largest weight becomes the lowest level, or a little more: then it is cut. As the highest
  // level, which may be one less, it leaves the lowest to nobody.
  const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
  const float step = low / 32.0f;
  for (int i = -3; i <= 10; ++i)
    try_from(grid, g, extreme / (low + static_cast<float>(i) * step), 0.0f, 1, &best);
  for (int i = -1; i <= 6; ++i)
    try_from(grid, g, extreme / (high - static_cast<float>(i) * step), 0.0f, 1, &best);
  try_from(grid, g, best.scale, 0.0f, 2, &best);
  return best;
}

Fit search_with_min(const Grid& grid, const Group& g, int columns) {
  float low = g.w[0] + 0.0f, high = g.w[0] + 0.0f;
  for (int c = 1; c < columns; ++c) {
    low = g.w[c] < low ? g.w[c] : low;
    high = g.w[c] > high ? g.w[c] : high;
  }
  low += 0.0f, high += 0.0f;  // a zero is +0, whichever of two zeros came first
  Fit best = {0.0f, 0.0f, std::numeric_limits<float>::infinity()};
  const float range = high - low, levels = static_cast<float>(grid.high - grid.low);
  try_from(grid, g, 0.0f, low, 0, &best);
  if (range == 0.0f) return best;
  // Either end may be cut by up to a fifth.
  constexpr float kCuts[] = {0.0f, 0.03f, 0.06f, 0.1f, 0.15f, 0.2f};
  for (const float below : kCuts)
    for (const float above : kCuts) {
      const float scale = (range - (below + above) * range) / levels;
      try_from(grid, g, scale, low + below * range, 1, &best);
    }
  try_from(grid, g, best.scale, best.min, 3, &best);
  return best;
}

}  // namespace

void round_levels(const Grid& grid, const float* w, int count, float scale, float min,
                  float* levels) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
  for (int c = 0; c < count; ++c) {
    float x = (w[c] - min) * inverse;
    x = x > low ? x : low;  // also what is not a number
    x = x < high ? x : high;
    levels[c] = nearest(x);
  }
}

Fit search_group(const Grid& grid, const Group& group) {
  if (!grid.has_min) return search_symmetric(grid, group);
  int columns = group.count;
  while (columns > 1 && group.weight[columns - 1] == 0.0f && group.w[columns - 1] == 0.0f)
    --columns;
  return search_with_min(grid, group, columns);
}

bool search_rows(const SearchArgs& args, int row_begin, int row_end) {
  const int groups = (args.k + args.columns - 1) / args.columns;
  Group g;
  alignas(64) float levels[kMaxGroup];
  for (int row = row_begin; row < row_end; ++row) {
    const float* w = args.w + static_cast<size_t>(row) * args.k;
    for (int i = 0; i < groups; ++i) {
      const int first = i * args.columns;
      const int columns = args.k - first < args.columns ? args.k - first : args.columns;
      g.count = (columns + 7) / 8 * 8;
      for (int c = 0; c < g.count; ++c) {
        g.w[c] = c < columns ? w[first + c] : 0.0f;
        const float weight =
            args.importance != nullptr && c < columns ? args.importance[first + c] : 1.0f;
        g.weight[c] = c < columns ? weight : 0.0f;
      }
      const Fit fit = search_group(args.grid, g);
      if (!std::isfinite(fit.error)) return false;
      const size_t at = static_cast<size_t>(row) * groups + i;
      args.scales[at] = float_to_half(fit.scale);
      args.mins[at] = float_to_half(fit.min);
      round_levels(args.grid, g.w, g.count, fit.scale, fit.min, levels);
      uint8_t* codes = args.codes + static_cast<size_t>(row) * args.k + first;
      for (int c = 0; c < columns; ++c)
        codes[c] = static_cast<uint8_t>(static_cast<int>(levels[c]) + args.grid.zero);
    }
  }
  return true;
}

}  // namespace slmq
