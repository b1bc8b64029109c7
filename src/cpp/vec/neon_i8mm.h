// The dots of weights with the matrix instructions of ARMv8.6 (FEAT_I8MM), after neon.h.
//
//   usmmla         two rows and two tokens: eight products for each of the four sums
//   usdot          four products a lane, for an odd token; u8 * s8 without a detour
#pragma once

namespace slmq::SLMQ_ISA {

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kBlockTokens = 6;   // the same where they are unpacked already
static constexpr int kPackedTokens = 0;  // up to which that does not pay: not measured

namespace {  // members, too, stay in this object

// Eight rows (registers 2 * Rows and 2 * Rows + 1 of a line) times P pairs of tokens: rows two by two.
template <int Rows, int P>
struct Products {
  int32x4_t sums[4][P];  // row 2i with both tokens, row 2i + 1 with both

  // Eight columns: 16 * Half + 8 * Part on.
  template <int Half, int Part, class Tile>
  SLMQ_INLINE_MEMBER void add(const Tile& tile, const int8x16_t (&x)[P]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t left =
          vreinterpretq_u32_u8(tile.template columns<Half, 2 * Part>(2 * Rows + i));
      const uint32x4_t right =
          vreinterpretq_u32_u8(tile.template columns<Half, 2 * Part + 1>(2 * Rows + i));
      const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(left, right));
      const uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(left, right));
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) {
        sums[2 * i][p] = vusmmlaq_s32(sums[2 * i][p], low, x[p]);
        sums[2 * i + 1][p] = vusmmlaq_s32(sums[2 * i + 1][p], high, x[p]);
      }
    }
  }
  template <int Half, class Tile>
  SLMQ_INLINE_MEMBER void add_half(const Tile& tile, const int8_t* a) {
    int8x16_t first[P], second[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const int8_t* at = a + 2 * p * kGroup + 16 * Half;
      const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(at));
      const int64x2_t y = vreinterpretq_s64_s8(vld1q_s8(at + kGroup));
      first[p] = vreinterpretq_s8_s64(vzip1q_s64(x, y));
      second[p] = vreinterpretq_s8_s64(vzip2q_s64(x, y));
    }
    add<Half, 0>(tile, first);
    add<Half, 1>(tile, second);
  }
};

}  // namespace

template <int Rows, int First, int Last, class Tile, int M>
SLMQ_INLINE void multiply_rows8(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                                i32x16 (&sums)[M]) {
  Products<Rows, M / 2> growing;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 3
    for (int p = 0; p < M / 2; ++p) growing.sums[i][p] = vdupq_n_s32(0);
  growing.template add_half<First>(tile, a);
  if constexpr (Last - First == 2) growing.template add_half<First + 1>(tile, a);
#pragma GCC unroll 3
  for (int p = 0; p < M / 2; ++p) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int32x4_t low = growing.sums[2 * i][p], high = growing.sums[2 * i + 1][p];
      sums[2 * p].v[2 * Rows + i] = vaddq_s32(from[2 * p], vuzp1q_s32(low, high));
      sums[2 * p + 1].v[2 * Rows + i] = vaddq_s32(from[2 * p + 1], vuzp2q_s32(low, high));
    }
  }
}

// One line of four columns and an odd number of tokens.
template <int Half, int J, class Tile, int M>
SLMQ_INLINE void dot_line(const Tile& tile, const int8x16_t (&x)[M][2], int i, i32x16 (&sums)[M]) {
  const uint8x16_t w = tile.template columns<Half, J>(i);
#pragma GCC unroll 3
  for (int t = 0; t < M; ++t) sums[t].v[i] = vusdotq_laneq_s32(sums[t].v[i], w, x[t][Half], J);
}
template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_lines(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                           i32x16 (&sums)[M]) {
  int8x16_t x[M][2];
#pragma GCC unroll 3
  for (int t = 0; t < M; ++t) {
    sums[t] = ints([&](int) { return from[t]; });
    for (int half = First; half < Last; ++half) x[t][half] = vld1q_s8(a + t * kGroup + 16 * half);
  }
  const auto lines = [&]<int J>() {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      dot_line<First, J>(tile, x, i, sums);
      if constexpr (Last - First == 2) dot_line<First + 1, J>(tile, x, i, sums);
    }
  };
  lines.template operator()<0>();
  lines.template operator()<1>();
  lines.template operator()<2>();
  lines.template operator()<3>();
}

template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]) {
  if constexpr (M % 2 == 0) {
    multiply_rows8<0, First, Last>(tile, a, from, sums);
    multiply_rows8<1, First, Last>(tile, a, from, sums);
  } else {
    dot_lines<First, Last>(tile, a, from, sums);
  }
}

static inline DotStart start_lookup(const int16_t*, int32_t sum) { return vdupq_n_s32(-128 * sum); }
template <int M>
SLMQ_INLINE void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                            const DotStart (&from)[M], i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Lookup<false>(tile, table.bytes), a, from, sums);
}

template <class Tile, int M>
SLMQ_INLINE void dot_bytes_u8(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
  start_at_zero(from);
  dot_tile<0, 2>(tile, a, from, sums);
}

static inline int64_t peak_dots(int rounds, int32_t* sink) {
  const uint8x16_t w = vdupq_n_u8(1);
  const int8x16_t x = vdupq_n_s8(1);
  return peak_of<32>(rounds, sink, [w, x](int32x4_t sum) { return vusmmlaq_s32(sum, w, x); });
}

}  // namespace slmq::SLMQ_ISA
