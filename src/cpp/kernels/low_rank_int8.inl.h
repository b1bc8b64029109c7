// Products with the thin matrices of adapters in eight bits, beside integer weights: exact dots.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

static constexpr int kThinGroupBytes = kGroup * kLanes;

// y = the sum over groups of M tokens' high planes times a tile.
template <int M>
SLMQ_INLINE void down_tokens(const uint8_t* tile, PanelTokens a, int groups, Ahead ahead, int t,
                             float* y, int y_stride) {
  f32x16 sums[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) sums[i] = splat(0.0f);
#pragma GCC unroll 1
  for (int g = 0; g < groups; ++g) {
    fetch_ahead(tile, kThinGroupBytes, ahead);
    const ActivationInfo* info = a.info + t;
    i32x16 dots[1][M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) dots[0][i] = splat_i32(-128 * info[i].sum_high);
    add_halves<1, M>(tile, 0, a.high + t * kGroup, kGroup, 2, dots);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
      sums[i] = fma(to_f32(dots[0][i]), splat(info[i].scale_high), sums[i]);
    tile += kThinGroupBytes;
    a.next_group();
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) store(y + static_cast<size_t>(i) * y_stride, sums[i]);
}

template <int M>
static void down_block(const LowRankDownArgs& args, const uint8_t* tile, const PanelTokens& a,
                       int t, int last, float* y) {
  for (; t + M <= last; t += M, y += static_cast<size_t>(M) * args.y_stride)
    down_tokens<M>(tile, a, args.groups, args.ahead, t, y, args.y_stride);
  if constexpr (M > 1)
    if (t < last) down_block<M / 2>(args, tile, a, t, last, y);
}

// The low plane of one token: y += dot * scale.
static void add_low(const uint8_t* codes, const PanelTokens& a, float* y) {
  i32x16 dot[1][1] = {{splat_i32(-128 * part_low<Weight<Format::q8g32s>, 0>(*a.info))}};
  add_halves<1, 1>(codes, 0, a.low, kGroup, 2, dot);
  store(y, fma(to_f32(dot[0][0]), splat(a.info->scale), load(y)));
}

static void low_rank_down(const LowRankDownArgs& args) {
  LinearArgs panel{};
  panel.panel = args.panel;
  panel.groups = args.groups;
  panel.m = args.m;
  const size_t codes = static_cast<size_t>(args.groups) * kThinGroupBytes;
  for (int row = args.row_begin; row < args.row_end;) {
    const int block = row / kPanelRows * kPanelRows, t = row - block;
    const int left = args.row_end - block, last = left < kPanelRows ? left : kPanelRows;
    const PanelTokens first(panel, block);
    const LowPlanes low(panel, block);
    float* y = args.y + static_cast<size_t>(row - args.row_begin) * args.y_stride;
    const uint8_t* tile = args.weight;
    for (int i = 0; i < args.tiles; ++i, y += kLanes, tile += codes + kThinScaleBytes) {
      down_block<kThinTokens>(args, tile, first, t, last, y);
      for (int n = 0; n < low.count; ++n) {
        const int group = low.at[n] / kPanelRows, token = low.at[n] % kPanelRows;
        if (token >= t && token < last)
          add_low(tile + static_cast<size_t>(group) * kThinGroupBytes, first.token(group, token),
                  y + static_cast<size_t>(token - t) * args.y_stride);
      }
      const f32x16 scale = load(reinterpret_cast<const float*>(tile + codes));
      for (int r = 0; r < last - t; ++r) {
        float* sum = y + static_cast<size_t>(r) * args.y_stride;
        store(sum, mul(load(sum), scale));
      }
    }
    row = block + last;
  }
}

// N tiles from column `n` on, of M rows.
template <int N, int M>
SLMQ_INLINE void up_tiles(const LowRankUpArgs& args, int halves, int row, int n) {
  const auto stride = static_cast<size_t>(args.y_stride);
  float* y = args.y + static_cast<size_t>(row) * stride + n;
  f32x16 values[N][M];
#pragma GCC unroll 2
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) values[i][t] = load(y + t * stride + i * kLanes);
  }
  const uint8_t* tiles =
      args.up.weight + static_cast<size_t>(n / kLanes) * thin_tile_bytes(args.up);
  add_up<N, M>(args.up, tiles, halves, row, values);
#pragma GCC unroll 2
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) store(y + t * stride + i * kLanes, values[i][t]);
  }
}

template <int M>
[[gnu::noinline]] static void up_tokens(const LowRankUpArgs& args, int row) {
  int n = 0;
  if (args.up.k == 16)  // the most usual rank
    for (; n + 2 * kLanes <= args.n; n += 2 * kLanes) up_tiles<2, M>(args, 1, row, n);
  for (; n < args.n; n += kLanes) up_tiles<1, M>(args, args.up.k / 16, row, n);
}

template <int M>
static void up_rows(const LowRankUpArgs& args, int row) {
  for (; row + M <= args.m; row += M) up_tokens<M>(args, row);
  if constexpr (M > 1)
    if (row < args.m) up_rows<M / 2>(args, row);
}

static void low_rank_up(const LowRankUpArgs& args) { up_rows<kTokens>(args, 0); }

}  // namespace
}  // namespace slmq::SLMQ_ISA
