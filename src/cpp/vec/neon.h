// The vector layer on NEON as every 64-bit ARM has it (ARMv8.0): sixteen lanes are four registers.
//
//   fma            fmla                 one rounding, as std::fma
//   load_f16       fcvtl                exact
//   store_f16      fcvtn                round to nearest even (the mode that kernels run in)
//   round_to_i32   fcvtns               round to nearest even
//   max, min       fcmgt, bsl           fmax and fmin treat NaN and -0 in another way than we do
//   dot_pairs      smlal                even and odd members of the pairs apart
//   dot_fours      smlal                each member of the fours apart
//
// The dots of weights are in neon_plain.h, neon_dotprod.h and neon_i8mm.h: one of them comes after this,
// with SLMQ_ISA naming the table.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "layout/formats.h"
#include "machine/inline.h"

namespace slmq::SLMQ_ISA {

struct f32x16 {
  float32x4_t v[4];  // lanes 0-3, 4-7, 8-11, 12-15
};
struct i32x16 {
  int32x4_t v[4];
};

// What `of` makes of each of the four registers.
template <class Of>
static inline f32x16 floats(Of of) {
  return {{of(0), of(1), of(2), of(3)}};
}
template <class Of>
static inline i32x16 ints(Of of) {
  return {{of(0), of(1), of(2), of(3)}};
}

static inline f32x16 load(const float* p) {
  return floats([&](int i) { return vld1q_f32(p + 4 * i); });
}
static inline void store(float* p, f32x16 v) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v.v[i]);
}
static inline f32x16 load_f16(const uint16_t* p) {
  return floats([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
static inline void store_f16(uint16_t* p, f32x16 v) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.v[i])));
}
static inline f32x16 splat(float x) {
  return floats([&](int) { return vdupq_n_f32(x); });
}
static inline f32x16 add(f32x16 a, f32x16 b) {
  return floats([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
static inline f32x16 sub(f32x16 a, f32x16 b) {
  return floats([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
static inline f32x16 mul(f32x16 a, f32x16 b) {
  return floats([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
static inline f32x16 div(f32x16 a, f32x16 b) {
  return floats([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return floats([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
static inline float32x4_t larger4(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline f32x16 max(f32x16 a, f32x16 b) {
  return floats([&](int i) { return larger4(a.v[i], b.v[i]); });
}
static inline f32x16 min(f32x16 a, f32x16 b) {
  return floats([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
static inline f32x16 abs(f32x16 a) {
  return floats([&](int i) { return vabsq_f32(a.v[i]); });
}
static inline f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return floats([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); });
}
static inline f32x16 keep_range(f32x16 v, int begin, int end, float x) {
  static constexpr int32_t kFirst[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(kFirst);
  return floats([&](int i) {
    const uint32x4_t from = vcgeq_s32(lane, vdupq_n_s32(begin - 4 * i));
    const uint32x4_t to = vcltq_s32(lane, vdupq_n_s32(end - 4 * i));
    return vbslq_f32(vandq_u32(from, to), v.v[i], vdupq_n_f32(x));
  });
}
static inline float reduce_add(f32x16 v) {
  const float32x4_t by4 = vaddq_f32(vaddq_f32(v.v[0], v.v[2]), vaddq_f32(v.v[1], v.v[3]));
  const float32x2_t by2 = vadd_f32(vget_low_f32(by4), vget_high_f32(by4));
  return vget_lane_f32(vpadd_f32(by2, by2), 0);
}
static inline float reduce_max(f32x16 v) {
  const float32x4_t by4 = larger4(larger4(v.v[0], v.v[2]), larger4(v.v[1], v.v[3]));
  const float32x4_t by2 = larger4(by4, vextq_f32(by4, by4, 2));
  return vgetq_lane_f32(larger4(by2, vextq_f32(by2, by2, 1)), 0);
}

static inline i32x16 load_i32(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return ints([&](int i) { return vreinterpretq_s32_u8(vld1q_u8(bytes + 16 * i)); });
}
static inline i32x16 load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
           vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
}
static inline void store_i32(void* p, i32x16 v) {
  auto* bytes = static_cast<uint8_t*>(p);
  for (int i = 0; i < 4; ++i) vst1q_u8(bytes + 16 * i, vreinterpretq_u8_s32(v.v[i]));
}
static inline i32x16 splat_i32(int32_t x) {
  return ints([&](int) { return vdupq_n_s32(x); });
}
static inline i32x16 add(i32x16 a, i32x16 b) {
  return ints([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
static inline i32x16 sub(i32x16 a, i32x16 b) {
  return ints([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
static inline i32x16 halved(i32x16 a) {
  return ints([&](int i) { return vshrq_n_s32(a.v[i], 1); });
}
static inline i32x16 odd(i32x16 a) {
  return ints([&](int i) { return vandq_s32(a.v[i], vdupq_n_s32(1)); });
}
static inline i32x16 times_256(i32x16 a) {
  return ints([&](int i) { return vshlq_n_s32(a.v[i], 8); });
}
static inline f32x16 to_f32(i32x16 a) {
  return floats([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
static inline i32x16 round_to_i32(f32x16 a) {
  return ints([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}
static inline int16x8_t narrow(int32x4_t low, int32x4_t high) {
  return vcombine_s16(vmovn_s32(low), vmovn_s32(high));
}
static inline void store_i8(int8_t* p, i32x16 v) {
  const int8x8_t low = vmovn_s16(narrow(v.v[0], v.v[1])), high = vmovn_s16(narrow(v.v[2], v.v[3]));
  vst1q_s8(p, vcombine_s8(low, high));
}
static inline void store_i16(int16_t* p, i32x16 v) {
  vst1q_s16(p, narrow(v.v[0], v.v[1]));
  vst1q_s16(p + 8, narrow(v.v[2], v.v[3]));
}
static inline int32_t reduce_add(i32x16 v) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(v.v[0], v.v[1]), vaddq_s32(v.v[2], v.v[3])));
}
static inline f32x16 pow2(i32x16 n) {
  return floats([&](int i) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23));
  });
}

// Sums of 32 int8 values, each half apart: of those at 4j and 4j + 1, and of those at 4j + 2 and 4j + 3.
static inline void sum_pairs(const int8_t* p, int32_t (&sums)[2][2]) {
  for (int half = 0; half < 2; ++half) {
    const int16x8_t by8 = vpaddlq_s8(vld1q_s8(p + 16 * half));
    const int16x4_t by4 = vadd_s16(vget_low_s16(by8), vget_high_s16(by8));
    sums[half][0] = vget_lane_s16(by4, 0) + vget_lane_s16(by4, 2);
    sums[half][1] = vget_lane_s16(by4, 1) + vget_lane_s16(by4, 3);
  }
}

// --- attention ---------------------------------------------------------------------------------

static constexpr int kSums = 6;     // f32x16 sums of a multiplication that stay in registers
static constexpr int kIntSums = 4;  // i32x16 sums: their products need registers of their own
static constexpr bool kFactorsStay = false;  // in registers beside the sums

static inline f32x16 times_pow2(f32x16 v, f32x16 shifted) {
  return floats([&](int i) {
    const int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(shifted.v[i]), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v.v[i]), n));
  });
}
// Members 0 to 3 of sixteen fours of bytes as sixteen bits, of lanes 0-7 and of lanes 8-15.
struct Fours {
  int16x8_t low[4], high[4];
};
// The first and the second members of sixteen pairs, eight in a register.
struct i16x32 {
  int16x8_t even[2], odd[2];
};
static inline i16x32 load_pairs(const void* p) {
  const auto* words = static_cast<const int16_t*>(p);
  const int16x8x2_t low = vld2q_s16(words), high = vld2q_s16(words + 16);
  return {{low.val[0], high.val[0]}, {low.val[1], high.val[1]}};
}
// The lower halves of floats' bits, those of both in turns.
static inline void store_pairs(int16_t* p, f32x16 first, f32x16 second) {
  for (int i = 0; i < 4; ++i) {
    const int32x4_t a = vreinterpretq_s32_f32(first.v[i]), b = vreinterpretq_s32_f32(second.v[i]);
    vst1q_s16(p + 8 * i, vreinterpretq_s16_s32(vsliq_n_s32(a, b, 16)));
  }
}
static inline i16x32 splat_pair(const int16_t* p) {
  const int16x8_t even = vdupq_n_s16(p[0]), odd = vdupq_n_s16(p[1]);
  return {{even, even}, {odd, odd}};
}
static inline Fours load_fours(const uint8_t* p) {
  const uint8x16x4_t bytes = vld4q_u8(p);
  Fours r;
  for (int i = 0; i < 4; ++i) {
    r.low[i] = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes.val[i])));
    r.high[i] = vreinterpretq_s16_u16(vmovl_high_u8(bytes.val[i]));
  }
  return r;
}
static inline void store_fours(int16_t* p, i32x16 v) { store_i16(p, v); }
static inline i32x16 pinned(i32x16 v) { return v; }
static inline i32x16 dot_pairs(i16x32 a, i16x32 b, i32x16 sum) {
  for (int i = 0; i < 2; ++i) {
    int32x4_t& low = sum.v[2 * i];
    int32x4_t& high = sum.v[2 * i + 1];
    low = vmlal_s16(low, vget_low_s16(a.even[i]), vget_low_s16(b.even[i]));
    low = vmlal_s16(low, vget_low_s16(a.odd[i]), vget_low_s16(b.odd[i]));
    high = vmlal_high_s16(high, a.even[i], b.even[i]);
    high = vmlal_high_s16(high, a.odd[i], b.odd[i]);
  }
  return sum;
}
static inline i32x16 dot_fours(const Fours& a, const int16_t* four, i32x16 sum) {
  for (int i = 0; i < 4; ++i) {
    sum.v[0] = vmlal_n_s16(sum.v[0], vget_low_s16(a.low[i]), four[i]);
    sum.v[1] = vmlal_high_n_s16(sum.v[1], a.low[i], four[i]);
    sum.v[2] = vmlal_n_s16(sum.v[2], vget_low_s16(a.high[i]), four[i]);
    sum.v[3] = vmlal_high_n_s16(sum.v[3], a.high[i], four[i]);
  }
  return sum;
}

SLMQ_INLINE void prefetch(const void* p) {
#if defined(_MSC_VER) && !defined(__clang__)
  __prefetch(p);
#else
  __builtin_prefetch(p);
#endif
}
SLMQ_INLINE void prefetch_second_level(const void* p) {
#if defined(_MSC_VER) && !defined(__clang__)
  __prefetch2(p, 2);  // pldl2keep
#else
  __builtin_prefetch(p, 0, 2);
#endif
}

// --- what the dots of weights share --------------------------------------------------------------

// Where the sums of a dot start, in each of its lanes.
using DotStart = int32x4_t;
static inline DotStart start_zero() { return vdupq_n_s32(0); }
static inline DotStart start_eights(const int16_t*, int32_t sum) { return vdupq_n_s32(-8 * sum); }

namespace {  // members, too, stay in this object

// Rows 4i to 4i + 3 of four columns of a tile, column 16 * Half + 4 * J on: of codes in their planes
// (see formats.h), or of bytes in the order of an int8 tile.
template <int Bits>
struct Planes {
  static constexpr int bits = Bits;
  const uint8_t* tile;
  template <int Half, int J>
  SLMQ_INLINE_MEMBER uint8x16_t columns(int i) const {
    uint8x16_t code = vdupq_n_u8(0);
    if constexpr (Bits >= 4) {
      const uint8x16_t line = vld1q_u8(tile + 64 * J + 16 * i);
      code = Half == 0 ? vandq_u8(line, vdupq_n_u8(15)) : vshrq_n_u8(line, 4);
    }
    if constexpr (Bits == 4) return code;
    constexpr bool kOneBit = Bits == 5 || Bits == 1;  // in the plane; else two
    constexpr int kLine = kOneBit ? 0 : Half, kPlace = Bits < 4 ? 0 : 4;
    constexpr int kStored = kOneBit ? 4 * Half + J : 2 * J;
    uint8x16_t upper = vld1q_u8(tile + (Bits < 4 ? 0 : 256) + 64 * kLine + 16 * i);
    if constexpr (kStored < kPlace) upper = vshlq_n_u8(upper, kPlace - kStored);
    if constexpr (kStored > kPlace) upper = vshrq_n_u8(upper, kStored - kPlace);
    const uint8x16_t mask = vdupq_n_u8((kOneBit ? 1 : 3) << kPlace);
    return vorrq_u8(code, vandq_u8(upper, mask));
  }
};
template <int Bits>
struct Bytes {
  static constexpr int bits = Bits;
  const uint8_t* tile;
  template <int Half, int J>
  SLMQ_INLINE_MEMBER uint8x16_t columns(int i) const {
    return vld1q_u8(tile + 256 * Half + 64 * J + 16 * i);
  }
};

// Bytes that codes of four bits find in a table: plus 128, or as they are, seven bits and a sign.
template <bool Signed>
struct Lookup {
  static constexpr int bits = Signed ? 7 : 8;
  const uint8_t* tile;
  uint8x16_t table;
  SLMQ_INLINE_MEMBER Lookup(const uint8_t* of, const uint8_t (&values)[16])
      : tile(of), table(vld1q_u8(values)) {}
  template <int Half, int J>
  SLMQ_INLINE_MEMBER uint8x16_t columns(int i) const {
    return vqtbl1q_u8(table, Planes<4>{tile}.columns<Half, J>(i));
  }
};

}  // namespace

// A tile as bytes, in the order of an int8 tile.
template <class Tile>
SLMQ_INLINE void store_bytes(const Tile& planes, uint8_t* bytes) {
  for (int i = 0; i < 4; ++i, bytes += 16) {
    vst1q_u8(bytes, (planes.template columns<0, 0>(i)));
    vst1q_u8(bytes + 64, (planes.template columns<0, 1>(i)));
    vst1q_u8(bytes + 128, (planes.template columns<0, 2>(i)));
    vst1q_u8(bytes + 192, (planes.template columns<0, 3>(i)));
    vst1q_u8(bytes + 256, (planes.template columns<1, 0>(i)));
    vst1q_u8(bytes + 320, (planes.template columns<1, 1>(i)));
    vst1q_u8(bytes + 384, (planes.template columns<1, 2>(i)));
    vst1q_u8(bytes + 448, (planes.template columns<1, 3>(i)));
  }
}
template <int Bits>
SLMQ_INLINE void unpack_planes(const uint8_t* tile, uint8_t* bytes) {
  store_bytes(Planes<Bits>{tile}, bytes);
}
SLMQ_INLINE void unpack_u4(const uint8_t* tile, uint8_t* bytes) { unpack_planes<4>(tile, bytes); }
// The same of what its codes find in a table.
SLMQ_INLINE void unpack_lookup(const uint8_t* tile, const uint8_t (&values)[16], uint8_t* bytes) {
  store_bytes(Lookup<false>(tile, values), bytes);
}

// sums[t] = from[t] + the dots of columns [16 * First, 16 * Last) with token t: the table's own
template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]);

template <int M>
SLMQ_INLINE void dot_u4(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                        i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Planes<4>{tile}, a, from, sums);
}
template <int M>
SLMQ_INLINE void dot_bytes_u4(const uint8_t* bytes, const int8_t* a, const DotStart (&from)[M],
                              i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Bytes<4>{bytes}, a, from, sums);
}

// What the bytes of signed instructions lack: they read u - 128.
static inline int32_t sum_32(const int8_t* p) {
  return vaddlvq_s8(vld1q_s8(p)) + vaddlvq_s8(vld1q_s8(p + 16));
}
static inline int8x16_t less_128(uint8x16_t u) {
  return vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(128)));
}

// Dots of bytes, each table's own way.
template <class Tile, int M>
SLMQ_INLINE void dot_bytes_u8(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]);
template <int M>
SLMQ_INLINE void dot_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  dot_bytes_u8(Bytes<8>{tile}, a, sums);
}

template <int M>
static inline void start_at_zero(DotStart (&from)[M]) {
  for (int t = 0; t < M; ++t) from[t] = start_zero();
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_planes(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
  start_at_zero(from);
  dot_tile<First, Last>(Planes<Bits>{tile}, a, from, sums);
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_bytes(const uint8_t* bytes, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
  start_at_zero(from);
  dot_tile<First, Last>(Bytes<Bits>{bytes}, a, from, sums);
}

// As many dots as the ports take: 16 chains of `step`, each of so many products.
template <int Products, class Step>
static inline int64_t peak_of(int rounds, int32_t* sink, const Step& step) {
  int32x4_t sums[16];
#pragma GCC unroll 16  // every loop over sums, or they live in memory
  for (int i = 0; i < 16; ++i) sums[i] = vdupq_n_s32(0);
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
#if defined(__GNUC__)
      asm("" : "+w"(sums[i]));  // keeps every sum in its own register
#endif
      sums[i] = step(sums[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sink[i] = vaddvq_s32(sums[i]);
  return int64_t{rounds} * 16 * Products;
}

}  // namespace slmq::SLMQ_ISA
