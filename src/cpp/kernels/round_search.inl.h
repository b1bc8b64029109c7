// Scales of groups of weights, by search against the weighted squared error.

#include "layout/half.h"

namespace slmq::SLMQ_ISA {

// A group to be rounded; columns from count on up to a multiple of 8 weigh nothing. What lies behind may be
// read, too, sixteen at a time.
struct Group {
  alignas(64) float w[kMaxGroup];
  alignas(64) float weight[kMaxGroup];  // of the squared error of a column, >= 0
  int count;                            // a multiple of 8
};

// Scale and min are values that the format stores.
struct Fit {
  float scale, min;
  float error;  // weighted and squared; infinite if no scale will do
  float lift;   // of the levels
};

static constexpr int kLanes8 = 8;  // partial sums of a group, added up as a tree

static float half_rounded(float x) { return half_to_float(float_to_half(x)); }

// The nearest whole number, of two the even one, for |x| < 2^22.
static float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

static float magnitude(float x) { return x < 0.0f ? -x : x; }

// Neither infinite nor no number.
static bool finite(float x) { return x - x == 0.0f; }

// The nearest values of a table, lifted; between two the lower one.
SLMQ_INLINE f32x16 table_levels(const Table& table, f32x16 x, f32x16 lift) {
  const f32x16 zero = splat(0.0f);
  f32x16 levels = splat(table.values[0]);
  x = sub(x, lift);
  for (int i = 0; i + 1 < table.count; ++i)
    levels = add(levels, select_lt(splat(table.middles[i]), x, splat(table.steps[i]), zero));
  return add(levels, lift);
}

// A level's code, and the other way round.
static int code_of(const Grid& grid, float level, float lift) {
  if (grid.table.count == 0) return static_cast<int>(level) + grid.zero;
  int code = 0;
  while (code + 1 < grid.table.count && level - lift > grid.table.middles[code]) ++code;
  return code;
}
static float level_of(const Grid& grid, int code, float lift) {
  if (grid.table.count == 0) return static_cast<float>(code - grid.zero);
  return grid.table.values[code] + lift;
}

// The levels of a group under a scale and min.
static void round_levels(const Grid& grid, const float* w, int count, float scale, float min,
                         float lift, float* levels) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  if (grid.table.count != 0) {
    for (int c = 0; c < count; c += kLanes)
      store(levels + c, table_levels(grid.table, mul(load(w + c), splat(inverse)), splat(lift)));
    return;
  }
  const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
  for (int c = 0; c < count; ++c) {
    float x = (w[c] - min) * inverse;
    x = x > low ? x : low;  // also what is not a number
    x = x < high ? x : high;
    levels[c] = nearest(x);
  }
}

// The scale and min that are stored for these; false if float16 cannot hold them.
static bool store_scale(const Scales& scales, float* scale, float* min) {
  if (scales.stored == Stored::multiples && scales.d != 0.0f) {
    // Products of float16 and seven bits are exact.
    const auto low = static_cast<float>(scales.low), high = static_cast<float>(scales.high);
    float times = *scale / scales.d;
    times = times > low ? times : low;
    times = times < high ? times : high;
    *scale = scales.d * nearest(times);
    times = scales.dmin != 0.0f ? -*min / scales.dmin : 0.0f;
    times = times > 0.0f ? times : 0.0f;
    times = times < high ? times : high;
    *min = 0.0f - scales.dmin * nearest(times);
    return true;
  }
  *scale = half_rounded(*scale);
  if (scales.stored == Stored::zero_point) {
    const auto high = static_cast<float>(scales.high);
    float zero = *scale != 0.0f ? -*min / *scale : 0.0f;
    zero = zero > 0.0f ? zero : 0.0f;
    zero = zero < high ? zero : high;
    *min = 0.0f - *scale * nearest(zero);
  } else {
    if (scales.stored == Stored::multiples && *min > 0.0f) *min = 0.0f;
    *min = half_rounded(*min);
  }
  return finite(*scale) && finite(*min);
}

struct Sums {  // over the columns of a group, weighted
  float level_level, level_w, level, w, one;
};

static float tree(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static Sums sums_of(const Group& g, const float* levels) {
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

static float error_of(const Group& g, const float* levels, float scale, float min) {
  float sum[kLanes8] = {};
  for (int c = 0; c < g.count; c += kLanes8)
    for (int i = 0; i < kLanes8; ++i) {
      const float difference = g.w[c + i] - (scale * levels[c + i] + min);
      sum[i] += g.weight[c + i] * (difference * difference);
    }
  return tree(sum);
}

// What a search needs at every candidate.
struct Search {
  const Grid& grid;
  const Scales& scales;
  const Group& group;
  float lift = 0.0f;  // of the table that is tried
  Fit best = {0.0f, 0.0f, __builtin_inff(), 0.0f};
};

// Keeps the better of the best and this scale and min, as they are stored.
static void consider(Search* search, float scale, float min, float* levels) {
  const Grid& grid = search->grid;
  const Group& g = search->group;
  if (!store_scale(search->scales, &scale, &min)) return;
  round_levels(grid, g.w, g.count, scale, min, search->lift, levels);
  const float error = error_of(g, levels, scale, min);
  if (error < search->best.error) search->best = {scale, min, error, search->lift};
}

// The scale (and min) of least squared error for levels that stand.
static bool least_squares(const Grid& grid, const Group& g, const float* levels, float* scale,
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
static void try_from(Search* search, float scale, float min, int rounds) {
  alignas(64) float levels[kMaxGroup];
  const Group& g = search->group;
  consider(search, scale, min, levels);
  round_levels(search->grid, g.w, g.count, scale, min, search->lift, levels);
  for (int round = 0; round < rounds; ++round) {
    if (!least_squares(search->grid, g, levels, &scale, &min)) return;
    consider(search, scale, min, levels);
  }
}

static void search_symmetric(Search* search) {
  const Group& g = search->group;
  float extreme = 0.0f;
  for (int c = 0; c < g.count; ++c)
    if (magnitude(g.w[c]) > magnitude(extreme)) extreme = g.w[c];
  if (extreme == 0.0f) {
    search->best = {0.0f, 0.0f, 0.0f, 0.0f};
    return;
  }
  // The largest weight becomes the lowest level, or a little more: then it is cut. As the highest
  // level, which may be one less, it leaves the lowest to nobody.
  const float low = static_cast<float>(search->grid.low) + search->lift;
  const float high = static_cast<float>(search->grid.high) + search->lift;
  const float step = low / 32.0f;
  const int next = search->grid.table.count != 0 ? 2 : 1;  // a table costs more and minds less
  for (int i = -3; i <= 10; i += next)
    try_from(search, extreme / (low + static_cast<float>(i) * step), 0.0f, 1);
  for (int i = -1; i <= 6; i += next)
    try_from(search, extreme / (high - static_cast<float>(i) * step), 0.0f, 1);
  if (search->best.lift == search->lift) try_from(search, search->best.scale, 0.0f, 2);
}

static void search_with_min(Search* search, int columns) {
  const Group& g = search->group;
  float low = g.w[0], high = g.w[0];
  for (int c = 1; c < columns; ++c) {
    low = g.w[c] < low ? g.w[c] : low;
    high = g.w[c] > high ? g.w[c] : high;
  }
  low += 0.0f, high += 0.0f;  // a zero is +0, whichever of two zeros came first
  if (search->scales.stored != Stored::halves) {
    low = low < 0.0f ? low : 0.0f;  // these store no min above zero
    high = high > 0.0f ? high : 0.0f;
  }
  const float range = high - low;
  const auto levels = static_cast<float>(search->grid.high - search->grid.low);
  try_from(search, 0.0f, low, 0);
  if (range == 0.0f) return;
  // Either end may be cut by up to a fifth.
  constexpr float kCuts[] = {0.0f, 0.03f, 0.06f, 0.1f, 0.15f, 0.2f};
  for (const float below : kCuts)
    for (const float above : kCuts) {
      const float scale = (range - (below + above) * range) / levels;
      try_from(search, scale, low + below * range, 1);
    }
  try_from(search, search->best.scale, search->best.min, 3);
}

// The best of a fixed list of scales (and mins), each refined by least squares.
static Fit search_group(const Grid& grid, const Scales& scales, const Group& group) {
  Search search{grid, scales, group};
  if (!grid.has_min) {
    search_symmetric(&search);
    if (grid.table.lift != 0.0f) {
      search.lift = grid.table.lift;
      search_symmetric(&search);
    }
    return search.best;
  }
  int columns = group.count;
  while (columns > 1 && group.weight[columns - 1] == 0.0f && group.w[columns - 1] == 0.0f)
    --columns;
  search_with_min(&search, columns);
  return search.best;
}

// Rows [row_begin, row_end); false if some scale does not fit.
static bool search_rows(const RoundArgs& args, int row_begin, int row_end) {
  const int groups = args.groups();
  Group g{};
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
      const Fit fit = search_group(args.grid, args.scales_of(row, i), g);
      if (!finite(fit.error)) return false;
      const size_t at = static_cast<size_t>(row) * groups + i;
      args.scales[at] = fit.scale;
      args.mins[at] = args.grid.table.count != 0 ? fit.lift : fit.min;
      round_levels(args.grid, g.w, g.count, fit.scale, fit.min, fit.lift, levels);
      uint8_t* codes = args.codes + static_cast<size_t>(row) * args.k + first;
      for (int c = 0; c < columns; ++c)
        codes[c] = static_cast<uint8_t>(code_of(args.grid, levels[c], fit.lift));
    }
  }
  return true;
}

}  // namespace slmq::SLMQ_ISA
