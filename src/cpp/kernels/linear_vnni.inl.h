// gemm shape for 32 wide registers with u8 x s8 dots: two tiles are unpacked once into 16 registers
// and meet every token of a panel block; sums live in the first-level cache.

namespace slmq::SLMQ_ISA {

// One tile's 32 columns as eight u8 operands, in the panel's column order.
static inline void unpack_u4(const uint8_t* tile, __m512i (&columns)[8]) {
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i line = _mm512_load_si512(tile + 64 * j);
    columns[j] = _mm512_and_si512(line, nibble);
    columns[4 + j] = _mm512_and_si512(_mm512_srli_epi16(line, 4), nibble);
  }
}
static inline void unpack_u8(const uint8_t* tile, __m512i (&columns)[8]) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) columns[j] = _mm512_load_si512(tile + 64 * j);
}

// A token's dots with two unpacked tiles.
static inline void dot_two_tiles(const __m512i (&w_a)[8], const __m512i (&w_b)[8], const int8_t* q,
                                 i32x16& dot_a, i32x16& dot_b) {
  dot_a = dot_b = splat_i32(0);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m512i activations = broadcast_i8x4(q + 4 * j);
    dot_a.v = _mm512_dpbusd_epi32(dot_a.v, w_a[j], activations);
    dot_b.v = _mm512_dpbusd_epi32(dot_b.v, w_b[j], activations);
  }
}
static inline void dot_block(const __m512i (&w_a)[8], const __m512i (&w_b)[8], const A8Block& a,
                             i32x16& dot_a, i32x16& dot_b) {
  dot_two_tiles(w_a, w_b, a.high, dot_a, dot_b);
}
static inline void dot_block(const __m512i (&w_a)[8], const __m512i (&w_b)[8], const A16Block& a,
                             i32x16& dot_a, i32x16& dot_b) {
  i32x16 low_a, low_b;
  dot_two_tiles(w_a, w_b, a.high, dot_a, dot_b);
  dot_two_tiles(w_a, w_b, a.low, low_a, low_b);
  dot_a = high_low(dot_a, low_a);
  dot_b = high_low(dot_b, low_b);
}

template <class Weight, class Block>
static void group_times_block(const uint8_t* pair, const Block* a, int rows, float* sums) {
  __m512i w_a[8], w_b[8];
  if (Weight::tile_bytes == 256) {
    unpack_u4(pair, w_a);
    unpack_u4(pair + 256, w_b);
  } else {
    unpack_u8(pair, w_a);
    unpack_u8(pair + 512, w_b);
  }
  const auto* scales = reinterpret_cast<const uint16_t*>(pair + 2 * Weight::tile_bytes);
  const f32x16 scale_a = load_f16(scales), scale_b = load_f16(scales + 16);
  f32x16 min_a = scale_a, min_b = scale_b;
  if (Weight::has_min) {
    min_a = load_f16(scales + 32);
    min_b = load_f16(scales + 48);
  }
  for (int t = 0; t < rows; ++t, ++a, sums += 32) {
    i32x16 dot_a, dot_b;
    dot_block(w_a, w_b, *a, dot_a, dot_b);
    store(sums, accumulate<Weight>(load(sums), dot_a, scale_a, min_a, *a));
    store(sums + 16, accumulate<Weight>(load(sums + 16), dot_b, scale_b, min_b, *a));
  }
}

template <class Weight, class Block>
static void pair_times_block(const LinearArgs& args, const uint8_t* weight, int pair, int row) {
  alignas(64) float sums[kPanelRows * 32];
  const int rows = panel_rows(args.m, row);
  const Block* a =
      static_cast<const Block*>(args.panel) + panel_offset(args.groups, args.m, row, 0);
  for (int i = 0; i < rows * 32; i += 16) store(sums + i, splat(0.0f));
  for (int g = 0; g < args.groups; ++g, a += rows, weight += Weight::pair_group_bytes)
    group_times_block<Weight, Block>(weight, a, rows, sums);
  for (int t = 0; t < rows; ++t) {
    write_outputs(args, row + t, 2 * pair, load(sums + 32 * t));
    write_outputs(args, row + t, 2 * pair + 1, load(sums + 32 * t + 16));
  }
}

template <class Weight, class Block>
static void linear_vnni(const LinearArgs& args, int pair_begin, int pair_end) {
  if (args.m <= 4) return linear<Weight, Block>(args, pair_begin, pair_end);
  const size_t pair_bytes = static_cast<size_t>(args.groups) * Weight::pair_group_bytes;
  for (int pair = pair_begin; pair < pair_end; ++pair)
    for (int row = 0; row < args.m; row += kPanelRows)
      pair_times_block<Weight, Block>(args, args.weight + pair * pair_bytes, pair, row);
}

static constexpr Kernels vnni_table(const char* name) {
  Kernels table = shared_table(name);
  table.linear[0] = linear_vnni<WeightQ4S, A8Block>;
  table.linear[1] = linear_vnni<WeightQ4A, A8Block>;
  table.linear[2] = linear_vnni<WeightQ8S, A8Block>;
  table.linear16[0] = linear_vnni<WeightQ4S, A16Block>;
  table.linear16[1] = linear_vnni<WeightQ4A, A16Block>;
  table.linear16[2] = linear_vnni<WeightQ8S, A16Block>;
  return table;
}

}  // namespace slmq::SLMQ_ISA
