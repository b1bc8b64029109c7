// A pair-group and a panel block, the shape for 32 wide registers with u8 x s8 dots: both tiles are
// unpacked once into sixteen registers and meet every token.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// One tile's 32 columns as eight u8 operands, in the panel's column order.
template <class Weight>
SLMQ_INLINE void unpack(const uint8_t* tile, __m512i (&columns)[8]) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if constexpr (Weight::looks_up) {
      columns[j] = lookup_columns(tile, Weight::table.bytes, j / 4, j % 4);
    } else if constexpr (Weight::bits == 8) {
      columns[j] = _mm512_load_si512(tile + 64 * j);
    } else {
      columns[j] = plane_columns<Weight::bits>(tile, j / 4, j % 4);
    }
  }
}

// Dots of M tokens with two unpacked tiles, columns [4 * First, 4 * Last). A dot takes four or five cycles
// and two start in each: sums of several tokens must grow side by side.
template <int First, int Last, int M>
SLMQ_INLINE void dot_two_tiles(const __m512i (&w_a)[8], const __m512i (&w_b)[8], const int8_t* q,
                               i32x16 (&dots)[2][M]) {
  q = reread(q);
#pragma GCC unroll 8
  for (int j = First; j < Last; ++j) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const __m512i activations = broadcast_i8x4(q + t * kGroup + 4 * j);
      dots[0][t].v = _mm512_dpbusd_epi32(dots[0][t].v, w_a[j], activations);
      dots[1][t].v = _mm512_dpbusd_epi32(dots[1][t].v, w_b[j], activations);
    }
  }
}

// Scales of both tiles.
template <class Weight, int Part>
struct PairScales {
  TileScales<Weight, Part> tile[2];
  PairScales(const uint8_t* pair, const uint8_t* shared)
      : tile{{Weight::own(pair), shared, 0}, {Weight::own(pair), shared, 1}} {}
};

// A plane of M tokens of the block against a part of both tiles.
template <class Weight, int Part, bool Low, int M>
SLMQ_INLINE void tokens_times_part(const __m512i (&w_a)[8], const __m512i (&w_b)[8],
                                   const PairScales<Weight, Part>& w, const int8_t* plane,
                                   const ActivationInfo* info, float* sums) {
  constexpr int first = 4 * Part, last = Weight::parts == 1 ? 8 : first + 4;
  i32x16 dots[2][M];
  int32_t total[M];
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    total[t] = Low ? part_low<Weight, Part>(info[t]) : part_high<Weight, Part>(info[t]);
    dots[0][t].v = dots[1][t].v =
        Weight::start(Low ? info[t].eights_low : info[t].eights_high, total[t]);
  }
  dot_two_tiles<first, last>(w_a, w_b, plane, dots);
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      i32x16 dot = dots[tile][t];
      if (Weight::zero != 0) dot = sub(dot, splat_i32(Weight::zero * total[t]));
      float* to = sums + t * kPairRows + tile * kLanes;
      store(to, accumulate<Weight, Part, Low>(load(to), dot, w.tile[tile].scale, w.tile[tile].min,
                                              info[t]));
    }
  }
}

// The first tokens of the block M at a time; those that are left fewer at a time.
template <class Weight, int Part, bool Low, int M = 4>
SLMQ_INLINE void part_times_block(const __m512i (&w_a)[8], const __m512i (&w_b)[8],
                                  const PairScales<Weight, Part>& w, const PanelTokens& a, int rows,
                                  float* sums, int t = 0) {
  for (; t + M <= rows; t += M)
    tokens_times_part<Weight, Part, Low, M>(w_a, w_b, w, (Low ? a.low : a.high) + t * kGroup,
                                            a.info + t, sums + t * kPairRows);
  if constexpr (M > 1) part_times_block<Weight, Part, Low, M / 2>(w_a, w_b, w, a, rows, sums, t);
}

// Of linear_rows.inl.h: sixteen sums, two lines of codes and a broadcast are 19 registers; a step of four
// columns loads ten times for sixteen dots.
static constexpr int kRowTokens = 8, kRowTiles = 2;

// sums[tile][token] += dots of M tokens with int8 tiles of a pair-group, so far from each other
template <int M>
SLMQ_INLINE void add_group(const uint8_t* tiles, size_t tile_step, const int8_t* plane,
                           i32x16 (&sums)[kRowTiles][M]) {
  plane = reread(plane);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m512i w_a = _mm512_load_si512(tiles + 64 * j);
    const __m512i w_b = _mm512_load_si512(tiles + tile_step + 64 * j);
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const __m512i activations = broadcast_i8x4(plane + t * kGroup + 4 * j);
      sums[0][t] = pinned({_mm512_dpbusd_epi32(sums[0][t].v, w_a, activations)});
      sums[1][t] = pinned({_mm512_dpbusd_epi32(sums[1][t].v, w_b, activations)});
    }
  }
}

// Of low_rank_up.inl.h and low_rank_int8.inl.h.
static constexpr int kThinTokens = 8;
template <int N, int M>
SLMQ_INLINE void add_halves(const uint8_t* tiles, size_t tile_step, const int8_t* x,
                            ptrdiff_t x_stride, int halves, i32x16 (&sums)[N][M]) {
  for (int half = 0; half < halves; ++half, tiles += 256, x += 16) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512i w[N];
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) w[i] = _mm512_load_si512(tiles + i * tile_step + 64 * j);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        const __m512i four = broadcast_i8x4(x + t * x_stride + 4 * j);
#pragma GCC unroll 2
        for (int i = 0; i < N; ++i)
          sums[i][t] = pinned({_mm512_dpbusd_epi32(sums[i][t].v, w[i], four)});
      }
    }
  }
}

// Of attention_int4.inl.h: 24 sums, four tiles' codes, a factor and a mask are 30 registers.
static constexpr int kCacheRows = 8;
static constexpr int cache_tiles(int rows) { return rows <= 6 ? 4 : 2; }

// sums[tile][row] += dots of M rows of 32 with int4 tiles, whose zero points are not paid
template <int Tiles, int M, class Ahead>
SLMQ_INLINE void add_u4(const uint8_t* tiles, int tile_step, const int8_t* rows, Ahead& ahead,
                        i32x16 (&sums)[Tiles][M]) {
  rows = reread(rows);
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    ahead.ask();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i codes[Tiles];
#pragma GCC unroll 4
      for (int i = 0; i < Tiles; ++i) {
        const __m512i line = _mm512_load_si512(tiles + i * tile_step + 64 * j);
        codes[i] = _mm512_and_si512(half == 0 ? line : _mm512_srli_epi16(line, 4), nibble);
      }
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        const __m512i factor = broadcast_i8x4(rows + t * kGroup + 16 * half + 4 * j);
#pragma GCC unroll 4
        for (int i = 0; i < Tiles; ++i)
          sums[i][t] = pinned({_mm512_dpbusd_epi32(sums[i][t].v, codes[i], factor)});
      }
    }
  }
}

// Of attention_int4.inl.h: 32 values of sixteen bits as planes of 256 * high + low, [plane][32].
SLMQ_INLINE void split_planes(i32x16 a, i32x16 b, int8_t* planes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i both = _mm512_packs_epi32(a.v, b.v);
  // A low byte of 128 and more counts for the high one.
  const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(both, _mm512_set1_epi16(128)), 8);
  const __m512i low = _mm512_sub_epi16(both, _mm512_slli_epi16(high, 8));
  _mm512_storeu_si512(planes, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high, low)));
}

template <class Weight, bool Packed, bool Low>
SLMQ_INLINE void group_times_block(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                   int rows, float* sums) {
  __m512i w_a[8], w_b[8];
  unpack<Weight>(Weight::tiles(pair), w_a);
  unpack<Weight>(Weight::tiles(pair) + Weight::tile_bytes, w_b);
  forget_loads();  // the scales come behind
  part_times_block<Weight, 0, Low>(w_a, w_b, {pair, shared}, a, rows, sums);
  if constexpr (Weight::parts == 2)
    part_times_block<Weight, 1, Low>(w_a, w_b, {pair, shared}, a, rows, sums);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
