// gemv and gemm for quantized weights. Up to kTokens tokens: one loop over groups that unpacks weights
// as it reads them and keeps all sums at hand. More: blocks of sixteen tokens, for which a pair-group is
// unpacked once (group_times_block, by the ISA's registers in linear_block.inl.h or linear_wide.inl.h),
// or, up to kPackedTokens, again for every few of them: so often it costs less than to store and load.

#include "kernels/linear_groups.inl.h"

#include "kernels/low_rank_up.inl.h"

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Where tokens of a panel block have a low plane, group by group: 16 * group + token.
struct LowPlanes {
  static_assert(kPanelRows == 16 && 16 * kMaxGroups <= 65536);
  int count = 0;
  uint16_t at[16 * kMaxGroups];
  SLMQ_INLINE_MEMBER LowPlanes(const LinearArgs& args, int row) {
    const int rows = panel_rows(args.m, row);
    PanelTokens a(args, row);
    for (int g = 0; g < args.groups; ++g) {
      uint32_t mask = a.info->wide;
      for (int t = 0; t < rows; ++t, mask >>= 1) {  // no branch: it could not be predicted
        at[count] = static_cast<uint16_t>(16 * g + t);
        count += static_cast<int>(mask & 1);
      }
      a.next_group();
    }
  }
};

// sums[token][32 rows] += a pair-group times the low planes of M neighbouring tokens
template <class Weight, int M>
SLMQ_INLINE void add_low_tokens(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                float* sums) {
  f32x16 sum[2][M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    sum[0][t] = load(sums + t * kPairRows);
    sum[1][t] = load(sums + t * kPairRows + 16);
  }
  const RunUnits<Weight> units(shared);
  const Place<Weight> at{Weight::tiles(pair), Weight::own(pair), shared, units.at};
  group_times_tokens<Weight, true, M>(at, a.low, a.info, sum);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    store(sums + t * kPairRows, sum[0][t]);
    store(sums + t * kPairRows + 16, sum[1][t]);
  }
}

// sums[token][32 rows] += a pair times the low planes, behind all the high ones. The weights that they
// meet are unpacked again, from a cache. A channel that stands out does so in most tokens: neighbours
// share that work.
template <class Weight>
[[gnu::noinline]] static void add_low_planes(const LinearArgs& args, const uint8_t* weight, int row,
                                             const LowPlanes& low, float* sums) {
  const PanelTokens first(args, row);
  for (int i = 0; i < low.count;) {
    const int group = low.at[i] / 16, t = low.at[i] % 16;
    const int in_run = Weight::run == kWholeRow ? args.groups : Weight::run;
    const uint8_t* run = weight + static_cast<size_t>(group / in_run) *
                                      (in_run * Weight::pair_group_bytes + Weight::shared_bytes);
    const uint8_t* pair = run + group % in_run * Weight::pair_group_bytes;
    const uint8_t* shared = run + in_run * Weight::pair_group_bytes;
    const PanelTokens a = first.token(group, t);
    float* to = sums + t * kPairRows;
    const int last = i + kTokens - 1;  // it is the last of as many neighbours if none is left out
    if (t + kTokens <= 16 && last < low.count && low.at[last] == low.at[i] + kTokens - 1) {
      add_low_tokens<Weight, kTokens>(pair, shared, a, to);
      i += kTokens;
    } else {
      add_low_tokens<Weight, 1>(pair, shared, a, to);
      ++i;
    }
  }
}

// Sixteen sums (+ bias) (+ add), from a column on.
SLMQ_INLINE f32x16 with_bias_and_add(const LinearArgs& args, int row, size_t column, f32x16 value) {
  if (args.bias != nullptr) value = add(value, load(args.bias + column));
  if (args.add != nullptr) {
    value = add(value, load(args.add + static_cast<size_t>(row) * args.add_stride + column));
  }
  return value;
}

// y = sums (+ bias) (+ add), columns 16 * half_pair .. + 15
static inline void write_outputs(const LinearArgs& args, int row, int half_pair, f32x16 value) {
  const size_t column = static_cast<size_t>(half_pair) * 16;
  store(args.y + static_cast<size_t>(row) * args.y_stride + column,
        with_bias_and_add(args, row, column, value));
}

// y = sums (+ bias) (+ add) + what an adapter adds, of M rows and a pair.
template <int M>
SLMQ_INLINE void write_adapted_rows(const LinearArgs& args, int row, int pair, const float* sums) {
  const auto stride = static_cast<size_t>(args.y_stride);
  const size_t column = static_cast<size_t>(pair) * kPairRows;
  f32x16 values[2][M];
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    const int at = tile * kLanes;
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t)
      values[tile][t] =
          with_bias_and_add(args, row + t, column + at, load(sums + t * kPairRows + at));
  }
  const uint8_t* tiles = args.up.weight + 2 * static_cast<size_t>(pair) * thin_tile_bytes(args.up);
  if (args.up.k == 16) {  // the most usual rank
    add_up<2, M>(args.up, tiles, 1, row, values);
  } else {
    add_up<2, M>(args.up, tiles, args.up.k / 16, row, values);
  }
  float* to = args.y + static_cast<size_t>(row) * stride + column;
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t, to += stride) {
    store(to, values[0][t]);
    store(to + kLanes, values[1][t]);
  }
}

// Apart, for the sake of those that need nothing of it.
[[gnu::noinline]] static void write_adapted(const LinearArgs& args, int row, int rows, int pair,
                                            const float* sums) {
  const int whole = rows / 4 * 4;
  for (int t = 0; t < whole; t += 4)
    write_adapted_rows<4>(args, row + t, pair, sums + t * kPairRows);
  for (int t = whole; t < rows; ++t)
    write_adapted_rows<1>(args, row + t, pair, sums + t * kPairRows);
}

// The same for a pair and some rows whose sums are in memory, [rows][32].
SLMQ_INLINE void write_sums(const LinearArgs& args, int row, int rows, int pair,
                            const float* sums) {
  if (args.up.weight != nullptr) return write_adapted(args, row, rows, pair, sums);
  for (int t = 0; t < rows; ++t, sums += kPairRows) {
    write_outputs(args, row + t, 2 * pair, load(sums));
    write_outputs(args, row + t, 2 * pair + 1, load(sums + kLanes));
  }
}

// Fetches what will be read so far behind p, of the next pairs too. These functions must melt into their
// callers: GCC drops calls of functions that do nothing but prefetch.
SLMQ_INLINE void fetch_ahead(const void* p, int bytes, Ahead ahead) {
  const auto* lines = static_cast<const uint8_t*>(p) + ahead.bytes;
  if (ahead.bytes == 0) return;
  if (ahead.second_level) {
    for (int line = 0; line < bytes; line += 64) prefetch_second_level(lines + line);
  } else {
    for (int line = 0; line < bytes; line += 64) prefetch(lines + line);
  }
}
// Scales that a run shares lie behind it and are needed with its first group: they must be fetched a
// run earlier, whatever else is.
template <class Weight>
SLMQ_INLINE void fetch_shared(const uint8_t* shared, int in_run, Ahead ahead) {
  const int run_bytes = in_run * Weight::pair_group_bytes + Weight::shared_bytes;
  if (ahead.bytes < run_bytes) ahead = {run_bytes, false};
  fetch_ahead(shared, Weight::shared_bytes, ahead);
}

SLMQ_INLINE void fetch_beside(const LinearArgs& args, int pair) {
  if (args.beside == nullptr) return;
  const uint8_t* lines = args.beside + static_cast<size_t>(pair) * args.beside_bytes;
  for (int line = 0; line < args.beside_bytes; line += 64) prefetch(lines + line);
}

// each(place) for the groups of a pair, in the order of their addresses.
template <class Weight, class Each>
SLMQ_INLINE void for_groups(const uint8_t* weight, int groups, Ahead ahead, const Each& each) {
  // Spelled out, not asked of a function: only a literal keeps a compiler for ARM from loading shared
  // scales before the lines.
  const int in_run = Weight::run == kWholeRow ? groups : Weight::run;
  constexpr int kBytes = Weight::pair_group_bytes;
  for (int g = 0; g < groups; g += in_run) {
    const uint8_t* shared = weight + in_run * kBytes;
    if constexpr (Weight::shared_bytes != 0) fetch_shared<Weight>(shared, in_run, ahead);
    const RunUnits<Weight> units(shared);
    if constexpr (Weight::halves_lines) {
      // Two groups share a line of factors, between their tiles.
      constexpr int kTiles = 2 * Weight::tile_bytes, kSecond = 2 * kBytes - kTiles;
#pragma GCC unroll 1
      for (int i = 0; i < in_run; i += 2, weight += 2 * kBytes) {
        fetch_ahead(weight, kSecond, ahead);
        each(Place<Weight>{weight, weight + kTiles, shared, units.at});
        fetch_ahead(weight + kSecond, kTiles, ahead);
        each(Place<Weight>{weight + kSecond, weight + kBytes, shared, units.at});
      }
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < in_run; ++i, weight += kBytes) {
        fetch_ahead(weight, kBytes, ahead);
        each(Place<Weight>{weight, weight + 2 * Weight::tile_bytes, shared, units.at});
      }
    }
    weight += Weight::shared_bytes;
  }
}

template <int M>
SLMQ_INLINE void write_pair(const LinearArgs& args, int pair, const f32x16 (&sums)[2][M]) {
  if (args.up.weight != nullptr) {
    alignas(64) float rows[M * kPairRows];
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      store(rows + t * kPairRows, sums[0][t]);
      store(rows + t * kPairRows + kLanes, sums[1][t]);
    }
    return write_adapted(args, 0, M, pair, rows);
  }
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    write_outputs(args, t, 2 * pair, sums[0][t]);
    write_outputs(args, t, 2 * pair + 1, sums[1][t]);
  }
}

// A pair times all of M tokens. Apart, as pair_times_block below: each loop has the registers for itself.
template <class Weight, int M>
[[gnu::noinline]] static void pair_times_tokens(const LinearArgs& args, const uint8_t* weight,
                                                int pair, const LowPlanes& low) {
  f32x16 sums[2][M];
  PanelTokens a(args, 0);
#pragma GCC unroll 6  // every loop over sums, or they live in memory
  for (int t = 0; t < M; ++t) sums[0][t] = sums[1][t] = splat(0.0f);
  for_groups<Weight>(weight, args.groups, args.ahead,
                     [&](const Place<Weight>& at) SLMQ_INLINE_LAMBDA {
                       group_times_tokens<Weight, false>(at, a.high, a.info, sums);
                       a.next_group();
                     });
  if (low.count != 0) {
    alignas(64) float rows[M * kPairRows];
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      store(rows + t * kPairRows, sums[0][t]);
      store(rows + t * kPairRows + 16, sums[1][t]);
    }
    add_low_planes<Weight>(args, weight, 0, low, rows);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      sums[0][t] = load(rows + t * kPairRows);
      sums[1][t] = load(rows + t * kPairRows + 16);
    }
  }
  write_pair(args, pair, sums);
}

// The same of one row, some or all of whose groups have low planes: their codes meet both planes while they
// are at hand, and what low planes add waits until all high ones are summed.
static constexpr int kMostKept = 256;  // parts of groups: 64 KiB of a stack
template <class Weight>
[[gnu::noinline]] static void pair_times_planes(const LinearArgs& args, const uint8_t* weight,
                                                int pair) {
  alignas(64) float kept[kMostKept * kTermFloats];
  float* end = kept;
  f32x16 sums[2][1] = {{splat(0.0f)}, {splat(0.0f)}};
  PanelTokens a(args, 0);
  for_groups<Weight>(weight, args.groups, args.ahead,
                     [&](const Place<Weight>& at) SLMQ_INLINE_LAMBDA {
                       if (has_low_plane(*a.info, 0)) {
                         end = group_times_planes<Weight>(at, a, sums, end);
                       } else {
                         group_times_tokens<Weight, false>(at, a.high, a.info, sums);
                       }
                       a.next_group();
                     });
  for (const float* term = kept; term != end; term += kTermFloats) {
    for (int tile = 0; tile < 2; ++tile) {
      const float* of = term + 2 * kLanes * tile;
      sums[tile][0] = fma(load(of), load(of + kLanes), sums[tile][0]);
    }
  }
  write_pair(args, pair, sums);
}

// Whether the only row has low planes, and no more than can wait.
template <class Weight>
static bool planes_wait(const LinearArgs& args) {
  PanelTokens a(args, 0);
  int count = 0;
  for (int g = 0; g < args.groups; ++g) {
    count += has_low_plane(*a.info, 0) ? 1 : 0;
    a.next_group();
  }
  return count != 0 && count * Weight::parts <= kMostKept;
}

template <class Weight>
static void linear_planes(const LinearArgs& args, int pair_begin, int pair_end) {
  const size_t bytes = pair_bytes(Weight::name, args.groups);
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    fetch_beside(args, pair);
    pair_times_planes<Weight>(args, args.weight + pair * bytes, pair);
  }
}

// At most M tokens, the most that stay in registers. Apart: its list and the planes that wait, above, would
// fill a small stack together.
template <class Weight, int M>
[[gnu::noinline]] static void linear_few(const LinearArgs& args, int pair_begin, int pair_end) {
  if constexpr (M > 1) {
    if (args.m < M) return linear_few<Weight, M - 1>(args, pair_begin, pair_end);
  }
  const size_t bytes = pair_bytes(Weight::name, args.groups);
  const LowPlanes low(args, 0);
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    fetch_beside(args, pair);
    pair_times_tokens<Weight, M>(args, args.weight + pair * bytes, pair, low);
  }
}

// sums[token][32 rows] += a pair-group times the high, or low, planes of a panel block
template <class Weight, bool Packed, bool Low>
SLMQ_INLINE void group_times_block(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                   int rows, float* sums);

// The same as add_low_planes() where all of them are there: an unpacked weight meets all tokens.
template <class Weight, bool Packed>
[[gnu::noinline]] static void add_all_low_planes(const LinearArgs& args, const uint8_t* weight,
                                                 int row, float* sums) {
  const int rows = panel_rows(args.m, row);
  const int in_run = Weight::run == kWholeRow ? args.groups : Weight::run;
  PanelTokens a(args, row);
  for (int g = 0; g < args.groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
    for (int i = 0; i < in_run; ++i) {
      group_times_block<Weight, Packed, true>(weight, shared, a, rows, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
}

template <class Weight, bool Packed>
[[gnu::noinline]] static void pair_times_block(const LinearArgs& args, const uint8_t* weight,
                                               int pair, int row, const LowPlanes& low) {
  alignas(64) float sums[kPanelRows * kPairRows];
  const int rows = panel_rows(args.m, row);
  const uint8_t* begin = weight;
  const Ahead ahead = args.ahead;
  const int groups = args.groups, in_run = Weight::run == kWholeRow ? groups : Weight::run;
  PanelTokens a(args, row);
  for (int i = 0; i < rows * kPairRows; i += 16) store(sums + i, splat(0.0f));
  for (int g = 0; g < groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
#pragma GCC unroll 1
    for (int i = 0; i < in_run; ++i) {
      fetch_ahead(weight, Weight::pair_group_bytes, ahead);
      group_times_block<Weight, Packed, false>(weight, shared, a, rows, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
  if (low.count == rows * groups) {
    add_all_low_planes<Weight, Packed>(args, begin, row, sums);
  } else {
    add_low_planes<Weight>(args, begin, row, low, sums);
  }
  write_sums(args, row, rows, pair, sums);
}

// Rows outside, pairs inside: the weights of a chunk and a block of activations stay in the
// second-level cache, and the activations of a long prompt are read once a chunk.
template <class Weight, bool Packed>
static void linear_blocks(const LinearArgs& args, int pair_begin, int pair_end) {
  const size_t bytes = pair_bytes(Weight::name, args.groups);
  for (int row = 0; row < args.m; row += kPanelRows) {
    const LowPlanes low(args, row);
    for (int pair = pair_begin; pair < pair_end; ++pair)
      pair_times_block<Weight, Packed>(args, args.weight + pair * bytes, pair, row, low);
  }
}

template <class Weight>
static void linear(const LinearArgs& args, int pair_begin, int pair_end) {
  if constexpr (kTokens > 1) {
    if (args.m == 1 && planes_wait<Weight>(args))
      return linear_planes<Weight>(args, pair_begin, pair_end);
  }
  if (args.m <= kTokens) return linear_few<Weight, kTokens>(args, pair_begin, pair_end);
  if constexpr (kPackedTokens > 0 && Weight::bits == 4) {
    if (args.m <= kPackedTokens) return linear_blocks<Weight, true>(args, pair_begin, pair_end);
  }
  linear_blocks<Weight, false>(args, pair_begin, pair_end);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
