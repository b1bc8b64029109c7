// Products with the thin matrices of adapters in eight bits, beside integer weights: exact dots.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

static constexpr int kThinGroupBytes = kGroup * kLanes;
static constexpr size_t kThinScaleBytes = kLanes * sizeof(float);

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
    i32x16 dots[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) dots[i] = splat_i32(-128 * info[i].sum_high);
    add_halves<M>(tile, a.high + t * kGroup, kGroup, 2, dots);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) sums[i] = fma(to_f32(dots[i]), splat(info[i].scale_high), sums[i]);
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
  i32x16 dot[1] = {splat_i32(-128 * part_low<Weight<Format::q8g32s>, 0>(*a.info))};
  add_halves<1>(codes, a.low, kGroup, 2, dot);
  store(y, fma(to_f32(dot[0]), splat(a.info->scale), load(y)));
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

template <int M>
[[gnu::noinline]] static void up_tokens(const LowRankUpArgs& args, int row) {
  const size_t tail = static_cast<size_t>(args.place) * sizeof(float) - kRoundedTail;
  const size_t codes = static_cast<size_t>(args.k) * kLanes;
  const ptrdiff_t x_stride = static_cast<ptrdiff_t>(args.x_stride) * sizeof(float);
  const auto* x = reinterpret_cast<const int8_t*>(args.x) + row * x_stride;
  float scales[M];
  int32_t starts[M];
  for (int t = 0; t < M; ++t) {
    __builtin_memcpy(&scales[t], x + t * x_stride + tail, sizeof(float));
    __builtin_memcpy(&starts[t], x + t * x_stride + tail + sizeof(float), sizeof(int32_t));
  }
  const uint8_t* tile = args.weight;
  float* y = args.y + static_cast<size_t>(row) * args.y_stride;
  for (int n = 0; n < args.n; n += kLanes, y += kLanes, tile += codes + kThinScaleBytes) {
    i32x16 sums[M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) sums[t] = splat_i32(starts[t]);
    if (args.k == 16) {  // the most usual rank
      add_halves<M>(tile, x, x_stride, 1, sums);
    } else {
      add_halves<M>(tile, x, x_stride, args.k / 16, sums);
    }
    const f32x16 scale = load(reinterpret_cast<const float*>(tile + codes));
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      float* to = y + static_cast<size_t>(t) * args.y_stride;
      store(to, fma(to_f32(sums[t]), mul(scale, splat(scales[t])), load(to)));
    }
  }
}

template <int M>
static void up_rows(const LowRankUpArgs& args, int row) {
  for (; row + M <= args.m; row += M) up_tokens<M>(args, row);
  if constexpr (M > 1)
    if (row < args.m) up_rows<M / 2>(args, row);
}

static void low_rank_up(const LowRankUpArgs& args) { up_rows<kThinTokens>(args, 0); }

}  // namespace
}  // namespace slmq::SLMQ_ISA
