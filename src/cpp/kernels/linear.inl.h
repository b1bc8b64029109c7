// gemv and gemm for quantized weights: one loop over groups, M tokens at a time.

namespace slmq::SLMQ_ISA {

struct WeightQ4S {  // w = scale * (q - 8)
  static constexpr int tile_bytes = 256, pair_group_bytes = 576, zero = 8;
  static constexpr bool has_min = false;
  template <int M, int Stride>
  static inline void dot(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
    dot_u4<M, Stride>(tile, a, sums);
  }
};
struct WeightQ4A {  // w = scale * q + min
  static constexpr int tile_bytes = 256, pair_group_bytes = 640, zero = 0;
  static constexpr bool has_min = true;
  template <int M, int Stride>
  static inline void dot(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
    dot_u4<M, Stride>(tile, a, sums);
  }
};
struct WeightQ8S {  // w = scale * (u - 128)
  static constexpr int tile_bytes = 512, pair_group_bytes = 1088, zero = 128;
  static constexpr bool has_min = false;
  template <int M, int Stride>
  static inline void dot(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
    dot_u8<M, Stride>(tile, a, sums);
  }
};

// A tile's dots with M tokens: a8g32 in one pass, a16g32 as 256 * high + low.
template <class Weight, int M>
static inline void dot_tokens(const uint8_t* tile, const A8Block* a, i32x16 (&sums)[M]) {
  Weight::template dot<M, sizeof(A8Block)>(tile, a->high, sums);
}
template <class Weight, int M>
static inline void dot_tokens(const uint8_t* tile, const A16Block* a, i32x16 (&sums)[M]) {
  i32x16 low[M];
  Weight::template dot<M, sizeof(A16Block)>(tile, a->high, sums);
  Weight::template dot<M, sizeof(A16Block)>(tile, a->low, low);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t] = high_low(sums[t], low[t]);
}

// sum += float(dot) * (scale_w * scale_a) (+ min_w * (scale_a * sum_a)): the one epilogue of a group
template <class Weight, class Block>
static inline f32x16 accumulate(f32x16 sum, i32x16 dot, f32x16 scale, f32x16 min_w,
                                const Block& a) {
  if (Weight::zero != 0) dot = sub(dot, splat_i32(Weight::zero * a.sum));
  sum = fma(to_f32(dot), mul(scale, splat(a.scale)), sum);
  if (Weight::has_min) sum = fma(min_w, splat(a.scaled_sum), sum);
  return sum;
}

template <class Weight, class Block, int M>
static inline void pair_times_tokens(const uint8_t* pair, int groups, const Block* a, int a_stride,
                                     int ahead_bytes, f32x16 (&sums)[2][M]) {
#pragma GCC unroll 4  // every loop over sums, or they live in memory
  for (int t = 0; t < M; ++t) sums[0][t] = sums[1][t] = splat(0.0f);
  for (int g = 0; g < groups; ++g) {
    if (ahead_bytes != 0) {
      for (int line = 0; line < Weight::pair_group_bytes; line += 64)
        prefetch(pair + ahead_bytes + line);
    }
    const uint8_t* scales = pair + 2 * Weight::tile_bytes;
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      i32x16 dots[M];
      dot_tokens<Weight, M>(pair + tile * Weight::tile_bytes, a, dots);
      const f32x16 scale = load_f16(reinterpret_cast<const uint16_t*>(scales + 32 * tile));
      f32x16 min_w = scale;
      if (Weight::has_min)
        min_w = load_f16(reinterpret_cast<const uint16_t*>(scales + 64 + 32 * tile));
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t)
        sums[tile][t] = accumulate<Weight>(sums[tile][t], dots[t], scale, min_w, a[t]);
    }
    pair += Weight::pair_group_bytes;
    a += a_stride;
  }
}

// y = sums (+ bias) (+ add), columns 16 * half_pair .. + 15
static inline void write_outputs(const LinearArgs& args, int row, int half_pair, f32x16 value) {
  const size_t column = static_cast<size_t>(half_pair) * 16;
  if (args.bias != nullptr) value = add(value, load(args.bias + column));
  if (args.add != nullptr) {
    value = add(value, load(args.add + static_cast<size_t>(row) * args.add_stride + column));
  }
  store(args.y + static_cast<size_t>(row) * args.y_stride + column, value);
}

template <class Weight, class Block, int M>
static void linear_tokens(const LinearArgs& args, const uint8_t* weight, int pair, int row,
                          int ahead_bytes) {
  f32x16 sums[2][M];
  const Block* a =
      static_cast<const Block*>(args.panel) + panel_offset(args.groups, args.m, row, 0);
  pair_times_tokens<Weight, Block, M>(weight, args.groups, a, panel_rows(args.m, row), ahead_bytes,
                                      sums);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) {
    write_outputs(args, row + t, 2 * pair, sums[0][t]);
    write_outputs(args, row + t, 2 * pair + 1, sums[1][t]);
  }
}

// The next rows of at most `left`: as many as M, the most that stay in registers. Returns how many.
template <class Weight, class Block, int M>
static inline int linear_next(const LinearArgs& args, const uint8_t* weight, int pair, int row,
                              int left, int ahead_bytes) {
  if constexpr (M > 1) {
    if (left < M)
      return linear_next<Weight, Block, M - 1>(args, weight, pair, row, left, ahead_bytes);
  }
  linear_tokens<Weight, Block, M>(args, weight, pair, row, ahead_bytes);
  return M;
}

template <class Weight, class Block>
static void linear_rows(const LinearArgs& args, const uint8_t* weight, int pair, int begin, int end,
                        int ahead_bytes) {
  // Two int8 dots a token keep twice the sums alive.
  constexpr int kMost = sizeof(Block) == sizeof(A8Block) ? kTokens : (kTokens + 1) / 2;
  for (int row = begin; row < end;) {
    row += linear_next<Weight, Block, kMost>(args, weight, pair, row, end - row, ahead_bytes);
    ahead_bytes = 0;  // the pair is in the cache now
  }
}

template <class Weight, class Block>
static void linear(const LinearArgs& args, int pair_begin, int pair_end) {
  const size_t pair_bytes = static_cast<size_t>(args.groups) * Weight::pair_group_bytes;
  const int ahead_bytes = args.m == 1 ? 8192 : 0;
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    const uint8_t* weight = args.weight + pair * pair_bytes;
    for (int row = 0; row < args.m; row += kPanelRows) {
      linear_rows<Weight, Block>(args, weight, pair, row, smaller(row + kPanelRows, args.m),
                                 ahead_bytes);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
