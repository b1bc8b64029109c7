// The dots of weights with the dot product instructions of ARMv8.2 (FEAT_DotProd), after neon.h.
//
//   sdot           four products a lane, summed in 32 bits; the activations' four columns are a lane
//                  of a register that holds sixteen
//   dot_u8         codes are read as u - 128
#pragma once

namespace slmq::SLMQ_ISA {

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kBlockTokens = 4;   // the same where they are unpacked already
static constexpr int kPackedTokens = 0;  // up to which that does not pay: not measured

namespace {  // members, too, stay in this object

// Activations of M tokens: sixteen columns in a register.
template <int First, int Last, int M>
struct Columns {
  int8x16_t v[M][2];
  SLMQ_INLINE_MEMBER explicit Columns(const int8_t* a) {
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t)
#pragma GCC unroll 2
      for (int half = First; half < Last; ++half) v[t][half] = vld1q_s8(a + t * kGroup + 16 * half);
  }
};

}  // namespace

template <int Half, int J, class Tile, int M, class Activations>
SLMQ_INLINE void dot_line(const Tile& tile, const Activations& a, int i, i32x16 (&sums)[M]) {
  const uint8x16_t codes = tile.template columns<Half, J>(i);
  const int8x16_t w = Tile::bits == 8 ? less_128(codes) : vreinterpretq_s8_u8(codes);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t].v[i] = vdotq_laneq_s32(sums[t].v[i], w, a.v[t][Half], J);
}

template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]) {
  const Columns<First, Last, M> x(a);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t] = ints([&](int) { return from[t]; });
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

// A table's values are signed bytes here.
static inline DotStart start_lookup(const int16_t*, int32_t) { return start_zero(); }
template <int M>
SLMQ_INLINE void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                            const DotStart (&from)[M], i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Lookup<true>(tile, table.values), a, from, sums);
}

template <class Tile, int M>
SLMQ_INLINE void dot_bytes_u8(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) from[t] = vdupq_n_s32(128 * sum_32(a + t * kGroup));
  dot_tile<0, 2>(tile, a, from, sums);
}

static inline int64_t peak_dots(int rounds, int32_t* sink) {
  const int8x16_t w = vdupq_n_s8(1);
  return peak_of<16>(rounds, sink, [w](int32x4_t sum) { return vdotq_s32(sum, w, w); });
}

}  // namespace slmq::SLMQ_ISA
