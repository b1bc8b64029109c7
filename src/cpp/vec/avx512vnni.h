// The vector layer on AVX-512 (F, BW, DQ, VL) with VNNI: sixteen lanes are one register.
//
//   fma            vfmadd231ps zmm      one rounding, as std::fma
//   load_f16       vcvtph2ps zmm        exact
//   store_f16      vcvtps2ph            round to nearest even
//   dot_*          vpdpbusd             u8 * s8, four products a lane, no saturation; the activation
//                                       is a broadcast memory operand
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "layout/formats.h"
#include "machine/inline.h"

namespace slmq::avx512vnni {

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};

static inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
static inline f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline f32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
static inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
static inline f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
static inline f32x16 keep_range(f32x16 a, int begin, int end, float x) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 from = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(begin));
  const __mmask16 keep = _mm512_mask_cmplt_epi32_mask(from, index, _mm512_set1_epi32(end));
  return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(x), a.v)};
}
static inline float reduce_add(f32x16 a) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
static inline float reduce_max(f32x16 a) {
  const __m256 by8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}
// The largest lane of each of sixteen vectors, as reduce_max() finds it.
static inline void store_maxima(float* p, const f32x16 (&of)[16]) {
  __m512 halves[8], quarters[4], pairs[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = of[i / 2 + i % 2 * 8].v, b = of[i / 2 + i % 2 * 8 + 4].v;
    halves[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = halves[2 * i], b = halves[2 * i + 1];
    quarters[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(quarters[2 * i]), b = _mm512_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  _mm512_storeu_ps(p, _mm512_max_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88),
                                    _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd)));
}

// to[c][i] = row i, column c: sixteen rows and columns.
static inline void transpose16(const float* rows, ptrdiff_t stride, float* to) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(rows + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // a[i + c]: column c of each quarter, of rows i to i + 3
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xdd);
    _mm512_storeu_ps(to + 16 * c, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
    _mm512_storeu_ps(to + 16 * (c + 4), _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_ps(to + 16 * (c + 8), _mm512_shuffle_f32x4(even_low, even_high, 0xdd));
    _mm512_storeu_ps(to + 16 * (c + 12), _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
  }
}

static inline i32x16 load_i32(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline i32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline i32x16 splat_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline i32x16 add(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline i32x16 sub(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline i32x16 halved(i32x16 a) { return {_mm512_srai_epi32(a.v, 1)}; }
static inline i32x16 odd(i32x16 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(1))}; }
static inline i32x16 times_256(i32x16 a) { return {_mm512_slli_epi32(a.v, 8)}; }
static inline f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline i32x16 round_to_i32(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline void store_i8(int8_t* p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
static inline int32_t reduce_add(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }
// Of quantize_rows.inl.h: what the four store_i8() and sums would be.
struct TwoGroups {
  __m512i sums = _mm512_setzero_si512();
  void put(int8_t* plane, const i32x16 (&q)[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_permutexvar_epi32(
        order,
        _mm512_packs_epi16(_mm512_packs_epi32(q[0].v, q[1].v), _mm512_packs_epi32(q[2].v, q[3].v)));
    _mm512_storeu_si512(plane, bytes);
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), bytes);
  }
  int32_t sum(int row) const {
    return _mm512_mask_reduce_add_epi32(static_cast<__mmask16>(row == 0 ? 0x00ff : 0xff00), sums);
  }
};
static inline f32x16 pow2(i32x16 n) {
  const __m512i biased = _mm512_add_epi32(n.v, _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

// The same address, but not to the compiler: it would keep all broadcasts of a token from one tile
// to the next, on the stack. Loading them again is free.
static inline const int8_t* reread(const int8_t* p) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(p));
#endif
  return p;
}
static inline __m512i broadcast_i8x4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kPackedTokens = 0;  // unpacked weights stay in registers

using DotStart = __m512i;
static inline DotStart start_zero() { return _mm512_setzero_si512(); }
static inline DotStart start_eights(const int16_t*, int32_t sum) {
  return _mm512_set1_epi32(-8 * sum);
}
static inline DotStart start_lookup(const int16_t*, int32_t sum) {
  return _mm512_set1_epi32(-128 * sum);
}

template <int M>
SLMQ_INLINE void dot_u4(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                        i32x16 (&sums)[M]) {
  a = reread(a);
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t].v = from[t];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i line = _mm512_load_si512(tile + 64 * j);
    const __m512i w_low = _mm512_and_si512(line, nibble);
    const __m512i w_high = _mm512_and_si512(_mm512_srli_epi16(line, 4), nibble);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      const int8_t* four = a + t * kGroup + 4 * j;
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w_low, broadcast_i8x4(four));
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w_high, broadcast_i8x4(four + 16));
    }
  }
}
template <int M>
SLMQ_INLINE void dot_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  a = reread(a);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t].v = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m512i w = _mm512_load_si512(tile + 64 * j);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w, broadcast_i8x4(a + t * kGroup + 4 * j));
    }
  }
}

// What the nibbles of a line find in a table of bytes: its low ones (half 0), or its high ones. A line
// may begin where half of one ends.
SLMQ_INLINE __m512i lookup_columns(const uint8_t* tile, const uint8_t (&values)[16], int half,
                                   int j) {
  const __m512i line = _mm512_loadu_si512(tile + 64 * j);
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
  const __m512i code = half == 0 ? line : _mm512_srli_epi16(line, 4);
  return _mm512_shuffle_epi8(table, _mm512_and_si512(code, _mm512_set1_epi8(15)));
}
// A tile of such codes as bytes, in the order of an int8 tile.
SLMQ_INLINE void unpack_lookup(const uint8_t* tile, const uint8_t (&values)[16], uint8_t* bytes) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    _mm512_storeu_si512(bytes + 64 * i, lookup_columns(tile, values, i / 4, i % 4));
}
template <int M>
SLMQ_INLINE void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                            const DotStart (&from)[M], i32x16 (&sums)[M]) {
  a = reread(a);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t].v = from[t];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i w_low = lookup_columns(tile, table.bytes, 0, j);
    const __m512i w_high = lookup_columns(tile, table.bytes, 1, j);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      const int8_t* four = a + t * kGroup + 4 * j;
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w_low, broadcast_i8x4(four));
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w_high, broadcast_i8x4(four + 16));
    }
  }
}

// Sixteen rows of four columns of a tile, column 16 * half + 4 * j on, out of their planes
// (see formats.h).
template <int Bits>
SLMQ_INLINE __m512i plane_columns(const uint8_t* tile, int half, int j) {
  __m512i code = _mm512_setzero_si512();
  if (Bits >= 4) {
    const __m512i line = _mm512_load_si512(tile + 64 * j);
    code = _mm512_and_si512(half == 0 ? line : _mm512_srli_epi16(line, 4), _mm512_set1_epi8(15));
  }
  if (Bits == 4) return code;
  constexpr bool kOneBit = Bits == 5 || Bits == 1;  // in the plane; else two
  const __m512i mask = _mm512_set1_epi8((kOneBit ? 1 : 3) << (Bits < 4 ? 0 : 4));
  const int line = kOneBit ? 0 : half;
  const int place = Bits < 4 ? 0 : 4, stored = kOneBit ? 4 * half + j : 2 * j;
  __m512i upper = _mm512_load_si512(tile + (Bits < 4 ? 0 : 256) + 64 * line);
  if (stored < place) upper = _mm512_slli_epi16(upper, static_cast<unsigned>(place - stored));
  if (stored > place) upper = _mm512_srli_epi16(upper, static_cast<unsigned>(stored - place));
  return _mm512_or_si512(code, _mm512_and_si512(upper, mask));
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_planes(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  a = reread(a);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[t].v = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 4 * First; i < 4 * Last; ++i) {
    const __m512i w = plane_columns<Bits>(tile, i / 4, i % 4);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t)
      sums[t].v = _mm512_dpbusd_epi32(sums[t].v, w, broadcast_i8x4(a + t * kGroup + 4 * i));
  }
}

#include "vec/x86_sums.inl.h"

// As many dots as the ports take: 16 chains of vpdpbusd, 64 products each.
static inline int64_t peak_dots(int rounds, int32_t* sink) {
  __m512i sums[16], w = _mm512_set1_epi8(1);
#pragma GCC unroll 16  // every loop over sums, or they live in memory
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_si512();
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
#if defined(__GNUC__)
      asm("" : "+v"(sums[i]));  // keeps every sum in its own register
#endif
      sums[i] = _mm512_dpbusd_epi32(sums[i], w, w);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sink[i] = _mm512_reduce_add_epi32(sums[i]);
  return int64_t{rounds} * 16 * 64;
}

// --- attention ---------------------------------------------------------------------------------

static constexpr int kSums = 16;  // f32x16 sums of a multiplication that stay in registers
static constexpr int kIntSums = 16;
static constexpr bool kFactorsStay = true;  // in registers beside the sums

static inline f32x16 times_pow2(f32x16 v, f32x16 shifted) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v.v), n))};
}
static inline void store_i32(void* p, i32x16 v) { _mm512_storeu_si512(p, v.v); }
// Sixteen fours of bytes.
struct u8x64 {
  __m512i v;
};
struct s8x64 {
  __m512i v;
};
static inline u8x64 load_u8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline s8x64 splat_four(const int8_t* p) { return {broadcast_i8x4(p)}; }
static inline i32x16 dot_fours(u8x64 a, s8x64 b, i32x16 sum) {
  return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)};
}
struct i16x32 {
  __m512i v;
};
static inline i16x32 load_pairs(const void* p) { return {_mm512_load_si512(p)}; }
// The lower halves of floats' bits, those of both in turns.
static inline void store_pairs(int16_t* p, f32x16 first, f32x16 second) {
  const __m512i upper = _mm512_slli_epi32(_mm512_castps_si512(second.v), 16);
  _mm512_store_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_castps_si512(first.v), upper));
}
static inline i16x32 splat_pair(const int16_t* p) {
  int32_t two;
  __builtin_memcpy(&two, p, 4);
  return {_mm512_set1_epi32(two)};
}
// 64 integers from 0 to 32767, less than zero, as planes of 256 * high + low, [plane][64].
SLMQ_INLINE void split_negative(const i32x16 (&from)[4], int8_t* planes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i zero = _mm512_setzero_si512(), carry = _mm512_set1_epi16(128);
  __m512i high[2], low[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512i of = _mm512_sub_epi16(zero, _mm512_packs_epi32(from[2 * i].v, from[2 * i + 1].v));
    high[i] = _mm512_srai_epi16(_mm512_add_epi16(of, carry), 8);
    low[i] = _mm512_sub_epi16(of, _mm512_slli_epi16(high[i], 8));
  }
  _mm512_storeu_si512(planes,
                      _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high[0], high[1])));
  _mm512_storeu_si512(planes + 64,
                      _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low[0], low[1])));
}
// Keeps a sum of a loop in its register.
static inline i32x16 pinned(i32x16 v) {
  __m512i sum = v.v;
#if defined(__GNUC__)
  asm("" : "+v"(sum));
#endif
  return {sum};
}
static inline i32x16 dot_pairs(i16x32 a, i16x32 b, i32x16 sum) {
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
}

// The two lower bytes of each value, less 128: [plane][4 lanes][vector][the four values of these lanes].
static inline void store_digits(int8_t* to, int plane, const f32x16 (&values)[4]) {
  const __m512i by_byte = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1));
  const auto bytes = [by_byte](f32x16 v) {
    return _mm512_shuffle_epi8(_mm512_castps_si512(v.v), by_byte);
  };
  const __m512i a = bytes(values[0]), b = bytes(values[1]);
  const __m512i c = bytes(values[2]), d = bytes(values[3]);
  const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  const __m512i sign = _mm512_set1_epi8(-128);
  _mm512_storeu_si512(to, _mm512_xor_si512(_mm512_unpacklo_epi64(ab, cd), sign));
  _mm512_storeu_si512(to + plane, _mm512_xor_si512(_mm512_unpackhi_epi64(ab, cd), sign));
}

SLMQ_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
SLMQ_INLINE void prefetch_second_level(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace slmq::avx512vnni
