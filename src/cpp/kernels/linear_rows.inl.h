// gemv and gemm where a row of weights and a row of activations have one scale each: integers are summed
// over all columns and become floats once. kRowTokens tokens meet kRowTiles tiles at a time, sums in
// registers (add_group, by the ISA's registers in linear_block.inl.h or linear_wide.inl.h).

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// The groups of a window of tokens that have a coarse plane. Where half of the tokens have one, all are
// multiplied together: the planes of the others are zero.
struct WideGroups {
  int first, together_count, alone_count;
  uint16_t together[kMaxGroups];
  uint16_t alone[kMaxGroups * (kRowTokens / 2) + kRowTokens];  // kPanelRows * group + token
  // Of the tiles that are multiplied: sums of the coarse planes, zero for tokens without one.
  alignas(64) int32_t dots[kRowTiles][kRowTokens][kLanes];

  SLMQ_INLINE_MEMBER void fill(const RowPanel& block, int groups, int window, int last) {
    static_assert(kPanelRows * kMaxGroups <= 65536 && kPanelWindow % kRowTokens == 0);
    first = window;
    together_count = alone_count = 0;
    int any = 0;
    for (int t = first; t < last; ++t) any |= block.info[t].wide;
    if (any == 0) return;
    __builtin_memset(dots, 0, sizeof dots);
    for (int g = 0; g < groups; ++g) {
      const uint8_t* wide = block.wide + g * block.rows;
      const int count = count_wide(wide + first, last - first);
      if (count == 0) continue;
      if (2 * count >= kRowTokens) {
        together[together_count++] = static_cast<uint16_t>(g);
        continue;
      }
      for (int t = first; t < last; ++t)
        if (wide[t] != 0) alone[alone_count++] = static_cast<uint16_t>(kPanelRows * g + t);
    }
  }
  bool any() const { return together_count + alone_count != 0; }

 private:
  static int count_wide(const uint8_t* wide, int n) {
    int count = 0;
    if (n == kRowTokens) {
      uint64_t flags = 0;
      __builtin_memcpy(&flags, wide, kRowTokens);
      if (flags == 0) return 0;
    }
    for (int t = 0; t < n; ++t) count += wide[t];
    return count;
  }
};

// Tiles [tile, tile + kRowTiles) of a pair, and M tokens of a block, from the `t`th on.
template <int M>
struct RowTiles {
  const uint8_t* weight;  // of the first tile
  const RowPanel& block;
  int groups, t;

  const uint8_t* codes(int g) const {
    return weight + static_cast<size_t>(g) * group_step(Format::q8rs);
  }
  size_t step() const { return tile_step(Format::q8rs, groups); }
  const int8_t* plane(const int8_t* begin, int g, int token) const {
    return begin + (static_cast<size_t>(g) * block.rows + token) * kGroup;
  }

  // sums[tile][token] of the fine planes
  SLMQ_INLINE_MEMBER void multiply_fine(Ahead ahead, f32x16 (&sums)[kRowTiles][M]) const {
    i32x16 dots[kRowTiles][M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        dots[tile][i] = splat_i32(-128 * block.info[t + i].sum_fine);
#pragma GCC unroll 1
    for (int g = 0; g < groups; ++g) {
      for (int tile = 0; tile < kRowTiles; ++tile)
        fetch_ahead(codes(g) + tile * step(), 512, ahead);
      add_group<M>(codes(g), step(), plane(block.fine, g, t), dots);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile) sums[tile][i] = to_f32(dots[tile][i]);
  }

  // Sums of the coarse planes, for add_coarse().
  SLMQ_INLINE_MEMBER void multiply_coarse(WideGroups& wide) const {
    const int at = t - wide.first;
    if (wide.together_count != 0) multiply_together(wide, at);
    for (int i = 0; i < M && wide.together_count == 0; ++i) {
      if (block.info[t + i].wide == 0) continue;
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        store_i32(wide.dots[tile][at + i], splat_i32(-128 * block.info[t + i].sum_coarse));
    }
    for (int n = 0; n < wide.alone_count; ++n) {
      const int g = wide.alone[n] / kPanelRows, token = wide.alone[n] % kPanelRows;
      if (token < t || token >= t + M) continue;
      i32x16 one[kRowTiles][1];
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        one[tile][0] = load_i32(wide.dots[tile][token - wide.first]);
      add_group<1>(codes(g), step(), plane(block.coarse, g, token), one);
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        store_i32(wide.dots[tile][token - wide.first], one[tile][0]);
    }
  }

  // sums += 256 times those of the coarse planes
  SLMQ_INLINE_MEMBER void add_coarse(const WideGroups& wide, f32x16 (&sums)[kRowTiles][M]) const {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        sums[tile][i] = fma(to_f32(load_i32(wide.dots[tile][t - wide.first + i])), splat(256.0f),
                            sums[tile][i]);
  }

 private:
  SLMQ_INLINE_MEMBER void multiply_together(WideGroups& wide, int at) const {
    i32x16 dots[kRowTiles][M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        dots[tile][i] = splat_i32(-128 * block.info[t + i].sum_coarse);
#pragma GCC unroll 1
    for (int n = 0; n < wide.together_count; ++n)
      add_group<M>(codes(wide.together[n]), step(), plane(block.coarse, wide.together[n], t), dots);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int tile = 0; tile < kRowTiles; ++tile)
        store_i32(wide.dots[tile][at + i], dots[tile][i]);
  }
};

// write_outputs for rows [row, row + M): few columns are summed, so that branches and addresses of every
// output would cost a tenth of the time.
template <int M>
SLMQ_INLINE void write_rows(const LinearArgs& args, int row, int half_pair, f32x16 (&values)[M]) {
  const size_t column = static_cast<size_t>(half_pair) * 16;
  if (args.bias != nullptr) {
    const f32x16 bias = load(args.bias + column);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) values[i] = add(values[i], bias);
  }
  if (args.add != nullptr) {
    const auto stride = static_cast<size_t>(args.add_stride);
    const float* from = args.add + static_cast<size_t>(row) * stride + column;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) values[i] = add(values[i], load(from + i * stride));
  }
  const auto stride = static_cast<size_t>(args.y_stride);  // a store could change args
  float* to = args.y + static_cast<size_t>(row) * stride + column;
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) store(to + i * stride, values[i]);
}

// A pair times M tokens of a block. Apart: the loops have the registers for themselves.
template <int M>
[[gnu::noinline]] static void pair_times_rows(const LinearArgs& args, const uint8_t* weight,
                                              int pair, int row, const RowPanel& block, int t,
                                              WideGroups& wide) {
  const auto* scales =
      reinterpret_cast<const uint16_t*>(weight + 2 * tile_step(Format::q8rs, args.groups));
  for (int first = 0; first < 2; first += kRowTiles) {
    const RowTiles<M> tiles{weight + first * tile_step(Format::q8rs, args.groups), block,
                            args.groups, t};
    if (wide.any()) tiles.multiply_coarse(wide);
    f32x16 sums[kRowTiles][M];
    tiles.multiply_fine(args.ahead, sums);
    if (wide.any()) tiles.add_coarse(wide, sums);
#pragma GCC unroll 2
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const f32x16 scale = load_f16(scales + 16 * (first + tile));
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
        sums[tile][i] = mul(sums[tile][i], mul(scale, splat(block.info[t + i].scale)));
      write_rows<M>(args, row + t, 2 * pair + first + tile, sums[tile]);
    }
  }
  if (args.activate == nullptr) return;
  float* y = args.y + static_cast<size_t>(row + t) * args.y_stride + pair * kPairRows;
  for (int i = 0; i < M; ++i, y += args.y_stride) args.activate(y, kPairRows, y);
}

// Tokens [t, last) of a block, as many as kRowTokens of them at most.
template <int M>
static void pair_times_window(const LinearArgs& args, const uint8_t* weight, int pair, int row,
                              const RowPanel& block, int t, int last, WideGroups& wide) {
  for (; t + M <= last; t += M) pair_times_rows<M>(args, weight, pair, row, block, t, wide);
  if constexpr (M > 1)
    if (t < last) pair_times_window<M / 2>(args, weight, pair, row, block, t, last, wide);
}

static inline int window_end(const RowPanel& block, int t) {
  return t + kRowTokens < block.rows ? t + kRowTokens : block.rows;
}

template <Format Name>
static void linear_rows(const LinearArgs& args, int pair_begin, int pair_end) {
  static_assert(info(Name).bits == 8 && info(Name).zero == 128 && info(Name).run == kWholeRow);
  const size_t bytes = pair_bytes(Name, args.groups);
  for (int row = 0; row < args.m; row += kPanelRows) {
    const RowPanel block = row_panel(const_cast<void*>(args.panel), args.groups, args.m, row);
    WideGroups wide[kPanelRows / kRowTokens];
    for (int t = 0; t < block.rows; t += kRowTokens)
      wide[t / kRowTokens].fill(block, args.groups, t, window_end(block, t));
    for (int pair = pair_begin; pair < pair_end; ++pair) {
      fetch_beside(args, pair);
      for (int t = 0; t < block.rows; t += kRowTokens)
        pair_times_window<kRowTokens>(args, args.weight + pair * bytes, pair, row, block, t,
                                      window_end(block, t), wide[t / kRowTokens]);
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
