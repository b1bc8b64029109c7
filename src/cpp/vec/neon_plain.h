// The dots of weights on ARMv8.0 (Cortex-A53 and A72: Raspberry Pi 3 and 4), after neon.h.
//
//   smlal          eight products, added up in 16 bits: eight of 5-bit codes stay below 2^15
//                  (8 * 31 * 128 = 31744), four of 6-bit codes (4 * 63 * 128 = 32256), two of a table's
//                  values (2 * 127 * 128 = 32512) and one of 8-bit codes, read as u - 128
//   sadalp, addp   to 32 bits, and the four columns of a row together
#pragma once

namespace slmq::SLMQ_ISA {

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kBlockTokens = 4;   // the same where they are unpacked already
static constexpr int kPackedTokens = 0;  // up to which that does not pay: not measured

namespace {  // members, too, stay in this object

// Eight rows (registers 2 * Rows and 2 * Rows + 1 of a line) of M tokens while their sums grow.
template <int Rows, int M>
struct Sums8 {
  int16x8_t words[M][4];  // two rows each, four columns a row
  int32x4_t sums[M][4];

  template <int Half, int J, class Tile>
  SLMQ_INLINE_MEMBER void add(const Tile& tile, const int8_t* a, bool first) {
    int8x16_t w[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint8x16_t codes = tile.template columns<Half, J>(2 * Rows + i);
      w[i] = Tile::bits == 8 ? less_128(codes) : vreinterpretq_s8_u8(codes);
    }
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      int32_t four;
      std::memcpy(&four, a + t * kGroup + 16 * Half + 4 * J, 4);
      const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        int16x8_t &low = words[t][2 * i], &high = words[t][2 * i + 1];
        low = first ? vmull_s8(vget_low_s8(w[i]), vget_low_s8(x))
                    : vmlal_s8(low, vget_low_s8(w[i]), vget_low_s8(x));
        high = first ? vmull_high_s8(w[i], x) : vmlal_high_s8(high, w[i], x);
      }
    }
  }
  SLMQ_INLINE_MEMBER void widen(bool first) {
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sums[t][i] = first ? vpaddlq_s16(words[t][i]) : vpadalq_s16(sums[t][i], words[t][i]);
  }
};

}  // namespace

template <int Rows, int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_rows8(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                           i32x16 (&sums)[M]) {
  // Before it must widen.
  constexpr int kSteps = Tile::bits == 8 ? 1 : Tile::bits == 7 ? 2 : Tile::bits == 6 ? 4 : 8;
  Sums8<Rows, M> growing;
  const auto step = [&]<int Half, int J>() SLMQ_INLINE_LAMBDA {
    constexpr int kDone = 4 * (Half - First) + J;
    growing.template add<Half, J>(tile, a, kDone % kSteps == 0);
    if ((kDone + 1) % kSteps == 0 || kDone + 1 == 4 * (Last - First)) growing.widen(kDone < kSteps);
  };
  const auto half = [&]<int Half>() SLMQ_INLINE_LAMBDA {
    step.template operator()<Half, 0>();
    step.template operator()<Half, 1>();
    step.template operator()<Half, 2>();
    step.template operator()<Half, 3>();
  };
  half.template operator()<First>();
  if constexpr (Last - First == 2) half.template operator()<First + 1>();
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t)
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      sums[t].v[2 * Rows + i] =
          vaddq_s32(from[t], vpaddq_s32(growing.sums[t][2 * i], growing.sums[t][2 * i + 1]));
}

template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]) {
  dot_rows8<0, First, Last>(tile, a, from, sums);
  dot_rows8<1, First, Last>(tile, a, from, sums);
}

// A table's values are signed bytes here, of 127 at most.
consteval bool none_is_128() {
  for (const FormatInfo& format : kFormatInfo)
    for (const int8_t value : format.values.at)
      if (value == -128) return false;
  return true;
}
static_assert(none_is_128());
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

// As many int4 dots as the ports take: 8 chains of smlal, 8 products each.
static inline int64_t peak_dots(int rounds, int32_t* sink) {
  int16x8_t sums[8];
  int8x8_t w = vdup_n_s8(1);
#pragma GCC unroll 8  // every loop over sums, or they live in memory
  for (int i = 0; i < 8; ++i) sums[i] = vdupq_n_s16(0);
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
#if defined(__GNUC__)
      asm("" : "+w"(w));  // the product must be computed each time
#endif
      sums[i] = vmlal_s8(sums[i], w, w);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sink[i] = vgetq_lane_s16(sums[i], 0);
  return int64_t{rounds} * 8 * 8;
}

}  // namespace slmq::SLMQ_ISA
