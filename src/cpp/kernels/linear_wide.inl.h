// A pair-group and a panel block, the shape for 32 wide registers with u8 x s8 dots: both tiles are
// unpacked once into sixteen registers and meet every token.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

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
                                 DotStart start, i32x16& dot_a, i32x16& dot_b) {
  dot_a.v = dot_b.v = start;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m512i activations = broadcast_i8x4(q + 4 * j);
    dot_a.v = _mm512_dpbusd_epi32(dot_a.v, w_a[j], activations);
    dot_b.v = _mm512_dpbusd_epi32(dot_b.v, w_b[j], activations);
  }
}

// One token of the block against both tiles.
template <class Weight, bool Wide>
static inline void token_times_tiles(const __m512i (&w_a)[8], const __m512i (&w_b)[8],
                                     const TileScales<Weight> (&w)[2], const int8_t* high,
                                     const int8_t* low, const ActivationInfo& a, float* sums) {
  i32x16 dot_a, dot_b;
  dot_two_tiles(w_a, w_b, high, Weight::start(a.eights_high, a.sum_high), dot_a, dot_b);
  if (Wide) {
    i32x16 low_a, low_b;
    dot_two_tiles(w_a, w_b, low, Weight::start(a.eights_low, a.sum - 256 * a.sum_high), low_a,
                  low_b);
    dot_a = high_low(dot_a, low_a);
    dot_b = high_low(dot_b, low_b);
  }
  if (Weight::zero != 0) {
    const i32x16 zero = splat_i32(Weight::zero * (Wide ? a.sum : a.sum_high));
    dot_a = sub(dot_a, zero);
    dot_b = sub(dot_b, zero);
  }
  store(sums, accumulate<Weight, Wide>(load(sums), dot_a, w[0].scale, w[0].min, a));
  store(sums + 16, accumulate<Weight, Wide>(load(sums + 16), dot_b, w[1].scale, w[1].min, a));
}

template <class Weight>
static inline void group_times_block(const uint8_t* pair, const PanelTokens& a, int rows,
                                     float* sums) {
  __m512i w_a[8], w_b[8];
  if (Weight::tile_bytes == 256) {
    unpack_u4(pair, w_a);
    unpack_u4(pair + 256, w_b);
  } else {
    unpack_u8(pair, w_a);
    unpack_u8(pair + 512, w_b);
  }
  const TileScales<Weight> w[2] = {{pair, 0}, {pair, 1}};
  for (int t = 0; t < rows; ++t, sums += kPairRows) {
    const int8_t *high = a.high + t * kGroup, *low = a.low + t * kGroup;
    if (a.info[t].wide != 0) {
      token_times_tiles<Weight, true>(w_a, w_b, w, high, low, a.info[t], sums);
    } else {
      token_times_tiles<Weight, false>(w_a, w_b, w, high, low, a.info[t], sums);
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
