// A pair-group and a panel block, the shape for 32 wide registers with u8 x s8 dots: both tiles are
// unpacked once into sixteen registers and meet every token.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// One tile's 32 columns as eight u8 operands, in the panel's column order.
template <int Bits>
SLMQ_INLINE void unpack(const uint8_t* tile, __m512i (&columns)[8]) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if constexpr (Bits == 8) {
      columns[j] = _mm512_load_si512(tile + 64 * j);
    } else {
      columns[j] = plane_columns<Bits>(tile, j / 4, j % 4);
    }
  }
}

// A token's dots with two unpacked tiles, columns [4 * First, 4 * Last).
template <int First, int Last>
SLMQ_INLINE void dot_two_tiles(const __m512i (&w_a)[8], const __m512i (&w_b)[8], const int8_t* q,
                               DotStart start, i32x16& dot_a, i32x16& dot_b) {
  dot_a.v = dot_b.v = start;
#pragma GCC unroll 8
  for (int j = First; j < Last; ++j) {
    const __m512i activations = broadcast_i8x4(q + 4 * j);
    dot_a.v = _mm512_dpbusd_epi32(dot_a.v, w_a[j], activations);
    dot_b.v = _mm512_dpbusd_epi32(dot_b.v, w_b[j], activations);
  }
}

// Scales of both tiles.
template <class Weight, int Part>
struct PairScales {
  TileScales<Weight, Part> tile[2];
  PairScales(const uint8_t* pair, const uint8_t* shared)
      : tile{{pair, shared, 0}, {pair, shared, 1}} {}
};

// The high plane of one token of the block against a part of both tiles.
template <class Weight, int Part>
SLMQ_INLINE void token_times_part(const __m512i (&w_a)[8], const __m512i (&w_b)[8],
                                  const PairScales<Weight, Part>& w, const int8_t* high,
                                  const ActivationInfo& a, float* sums) {
  constexpr int first = 4 * Part, last = Weight::parts == 1 ? 8 : first + 4;
  const int32_t sum = part_high<Weight, Part>(a);
  i32x16 dot_a, dot_b;
  dot_two_tiles<first, last>(w_a, w_b, high, Weight::start(a.eights_high, sum), dot_a, dot_b);
  if (Weight::zero != 0) {
    const i32x16 zero = splat_i32(Weight::zero * sum);
    dot_a = sub(dot_a, zero);
    dot_b = sub(dot_b, zero);
  }
  const TileScales<Weight, Part>&a_scales = w.tile[0], &b_scales = w.tile[1];
  store(sums, accumulate<Weight, Part, false>(load(sums), dot_a, a_scales.scale, a_scales.min, a));
  store(sums + 16,
        accumulate<Weight, Part, false>(load(sums + 16), dot_b, b_scales.scale, b_scales.min, a));
}

template <class Weight, int Part>
static inline void part_times_block(const __m512i (&w_a)[8], const __m512i (&w_b)[8],
                                    const PairScales<Weight, Part>& w, const PanelTokens& a,
                                    int rows, float* sums) {
  for (int t = 0; t < rows; ++t)
    token_times_part<Weight, Part>(w_a, w_b, w, a.high + t * kGroup, a.info[t],
                                   sums + t * kPairRows);
}

template <class Weight, bool Packed>
SLMQ_INLINE void group_times_block(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                   int rows, float* sums) {
  __m512i w_a[8], w_b[8];
  unpack<Weight::bits>(pair, w_a);
  unpack<Weight::bits>(pair + Weight::tile_bytes, w_b);
  forget_loads();  // the scales come behind
  part_times_block<Weight, 0>(w_a, w_b, {pair, shared}, a, rows, sums);
  if constexpr (Weight::parts == 2)
    part_times_block<Weight, 1>(w_a, w_b, {pair, shared}, a, rows, sums);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
