// The vector layer on AVX2 + FMA + F16C: sixteen lanes are two registers.
//
//   fma            vfmadd231ps          one rounding, as std::fma
//   load_f16       vcvtph2ps            exact
//   store_f16      vcvtps2ph            round to nearest even
//
// The dots of weights are in avx2_plain.h, with VNNI in avxvnni.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "layout/formats.h"
#include "machine/inline.h"

namespace slmq::SLMQ_ISA {

struct f32x16 {
  __m256 low, high;  // lanes 0-7, 8-15
};
struct i32x16 {
  __m256i low, high;
};

static inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, f32x16 v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
static inline f32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline void store_f16(uint16_t* p, f32x16 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline f32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 add(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
static inline f32x16 sub(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
static inline f32x16 mul(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
static inline f32x16 div(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
static inline f32x16 min(f32x16 a, f32x16 b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
static inline f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
static inline f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
static inline __m256 keep_range8(__m256 v, __m256i index, int begin, int end, __m256 x) {
  const __m256i from = _mm256_cmpgt_epi32(index, _mm256_set1_epi32(begin - 1));
  const __m256i to = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), index);
  return _mm256_blendv_ps(x, v, _mm256_castsi256_ps(_mm256_and_si256(from, to)));
}
static inline f32x16 keep_range(f32x16 v, int begin, int end, float x) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const __m256 other = _mm256_set1_ps(x);
  return {keep_range8(v.low, low, begin, end, other), keep_range8(v.high, high, begin, end, other)};
}
static inline float reduce_add(f32x16 v) {
  const __m256 by8 = _mm256_add_ps(v.low, v.high);
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
static inline float reduce_max(f32x16 v) {
  const __m256 by8 = _mm256_max_ps(v.low, v.high);
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

static inline i32x16 load_i32(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
static inline i32x16 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline i32x16 splat_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline i32x16 add(i32x16 a, i32x16 b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
static inline i32x16 sub(i32x16 a, i32x16 b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
static inline i32x16 halved(i32x16 v) {
  return {_mm256_srai_epi32(v.low, 1), _mm256_srai_epi32(v.high, 1)};
}
static inline i32x16 odd(i32x16 v) {
  const __m256i one = _mm256_set1_epi32(1);
  return {_mm256_and_si256(v.low, one), _mm256_and_si256(v.high, one)};
}
static inline i32x16 times_256(i32x16 v) {
  return {_mm256_slli_epi32(v.low, 8), _mm256_slli_epi32(v.high, 8)};
}
static inline f32x16 to_f32(i32x16 a) {
  return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}
static inline i32x16 round_to_i32(f32x16 a) {
  return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
}
static inline void store_i8(int8_t* p, i32x16 v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
static inline int32_t reduce_add(i32x16 v) {
  const __m256i by8 = _mm256_add_epi32(v.low, v.high);
  const __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xb1)));
}
static inline f32x16 pow2(i32x16 n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.low, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.high, bias), 23))};
}

static inline __m256i load_i8x32(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
// The same address, but not to the compiler: it would keep all broadcasts of a token from one tile
// to the next, on the stack. Loading them again is free.
static inline const int8_t* reread(const int8_t* p) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(p));
#endif
  return p;
}
static inline __m256i broadcast_i8x4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

// A sum stays in its register and grows there: the compiler would reorder integer sums into trees over
// products that it keeps on the stack.
static inline void keep(__m256i& sum) {
#if defined(__GNUC__)
  asm("" : "+x"(sum));
#else
  static_cast<void>(sum);
#endif
}

// An int4 tile as bytes, in the order of an int8 tile.
SLMQ_INLINE void unpack_u4(const uint8_t* tile, uint8_t* bytes) {
  const __m256i nibble = _mm256_set1_epi8(15);
  auto* to = reinterpret_cast<__m256i*>(bytes);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i line = load_i8x32(tile + 32 * i);
    _mm256_store_si256(to + i, _mm256_and_si256(line, nibble));
    _mm256_store_si256(to + 8 + i, _mm256_and_si256(_mm256_srli_epi16(line, 4), nibble));
  }
}

static inline __m256i load_table(const uint8_t (&values)[16]) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
}
// An int4 tile whose codes are places in a table: what they find, in the order of an int8 tile.
SLMQ_INLINE void unpack_lookup(const uint8_t* tile, const uint8_t (&values)[16], uint8_t* bytes) {
  const __m256i nibble = _mm256_set1_epi8(15), table = load_table(values);
  auto* to = reinterpret_cast<__m256i*>(bytes);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i line = load_i8x32(tile + 32 * i), high = _mm256_srli_epi16(line, 4);
    _mm256_store_si256(to + i, _mm256_shuffle_epi8(table, _mm256_and_si256(line, nibble)));
    _mm256_store_si256(to + 8 + i, _mm256_shuffle_epi8(table, _mm256_and_si256(high, nibble)));
  }
}

namespace {  // members, too, stay in this object

// Eight rows (the lower or the upper ones: rows = 0 or 32) of four columns of a tile: column
// 16 * half + 4 * j on, out of their planes (see formats.h).
template <int Bits>
struct Planes {
  const uint8_t* tile;
  SLMQ_INLINE_MEMBER __m256i columns(int rows, int half, int j) const {
    constexpr bool kOneBit = Bits == 5 || Bits == 1;  // in the plane; else two
    const __m256i upper_mask = _mm256_set1_epi8((kOneBit ? 1 : 3) << (Bits < 4 ? 0 : 4));
    const int line = kOneBit ? 0 : half;
    const int place = Bits < 4 ? 0 : 4, stored = kOneBit ? 4 * half + j : 2 * j;
    __m256i upper = load_i8x32(tile + (Bits < 4 ? 0 : 256) + 64 * line + rows);
    if (stored < place) upper = _mm256_slli_epi16(upper, place - stored);
    if (stored > place) upper = _mm256_srli_epi16(upper, stored - place);
    upper = _mm256_and_si256(upper, upper_mask);
    if (Bits < 4) return upper;
    __m256i lower = load_i8x32(tile + 64 * j + rows);
    if (half == 1) lower = _mm256_srli_epi16(lower, 4);
    return _mm256_or_si256(_mm256_and_si256(lower, _mm256_set1_epi8(15)), upper);
  }
};
struct Bytes {  // the same, unpacked
  const uint8_t* tile;
  SLMQ_INLINE_MEMBER __m256i columns(int rows, int half, int j) const {
    return load_i8x32(tile + 256 * half + 64 * j + rows);
  }
};

}  // namespace

// A tile as bytes, in the order of an int8 tile.
template <int Bits>
SLMQ_INLINE void unpack_planes(const uint8_t* tile, uint8_t* bytes) {
  auto* to = reinterpret_cast<__m256i*>(bytes);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm256_store_si256(to + 2 * i, Planes<Bits>{tile}.columns(0, i / 4, i % 4));
    _mm256_store_si256(to + 2 * i + 1, Planes<Bits>{tile}.columns(32, i / 4, i % 4));
  }
}

#include "vec/x86_sums.inl.h"

// --- attention ---------------------------------------------------------------------------------

static constexpr int kSums = 6;     // f32x16 sums of a multiplication that stay in registers
static constexpr int kIntSums = 4;  // i32x16 sums: their products need registers of their own
static constexpr bool kFactorsStay = false;  // in registers beside the sums

static inline __m256 times_pow2_8(__m256 v, __m256 shifted) {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), n));
}
static inline f32x16 times_pow2(f32x16 v, f32x16 shifted) {
  return {times_pow2_8(v.low, shifted.low), times_pow2_8(v.high, shifted.high)};
}
static inline void store_i32(void* p, i32x16 v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v.low);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, v.high);
}
static inline void store_i16(int16_t* p, i32x16 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8));
}
// Sixteen fours of bytes as sixteen bits, even members and odd ones apart, of lanes 0-7 and of lanes 8-15.
struct Fours {
  __m256i even[2], odd[2];
};
static inline Fours load_fours(const uint8_t* p) {
  const auto* v = reinterpret_cast<const __m256i*>(p);
  const __m256i byte = _mm256_set1_epi16(255), low = _mm256_loadu_si256(v),
                high = _mm256_loadu_si256(v + 1);
  return {{_mm256_and_si256(low, byte), _mm256_and_si256(high, byte)},
          {_mm256_srli_epi16(low, 8), _mm256_srli_epi16(high, 8)}};
}
struct i16x32 {
  __m256i low, high;
};
static inline i16x32 load_pairs(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_load_si256(v), _mm256_load_si256(v + 1)};
}
// The lower halves of floats' bits, those of both in turns.
static inline void store_pairs(int16_t* p, f32x16 first, f32x16 second) {
  const auto join = [](__m256 a, __m256 b) {
    return _mm256_blend_epi16(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(b), 16),
                              0xaa);
  };
  auto* to = reinterpret_cast<__m256i*>(p);
  _mm256_store_si256(to, join(first.low, second.low));
  _mm256_store_si256(to + 1, join(first.high, second.high));
}
static inline __m256i splat_two(const int16_t* p) {
  int32_t two;
  __builtin_memcpy(&two, p, 4);
  return _mm256_set1_epi32(two);
}
static inline i16x32 splat_pair(const int16_t* p) { return {splat_two(p), splat_two(p)}; }
// Sixteen factors, within int16, as dot_fours() takes them: members 0, 2, 1 and 3 of each four.
static inline void store_fours(int16_t* p, i32x16 v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8);
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(words, order));
}
// Keeps a sum of a loop in its registers: without it GCC copies sums around, and some to the stack.
static inline i32x16 pinned(i32x16 v) {
  __m256i low = v.low, high = v.high;
#if defined(__GNUC__)
  asm("" : "+x"(low));
  asm("" : "+x"(high));
#endif
  return {low, high};
}
static inline i32x16 dot_pairs(i16x32 a, i16x32 b, i32x16 sum) {
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
          _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}
static inline i32x16 dot_fours(const Fours& a, const int16_t* four, i32x16 sum) {
  const __m256i even = splat_two(four), odd = splat_two(four + 2);
  sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(a.even[0], even));
  sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.even[1], even));
  sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(a.odd[0], odd));
  sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.odd[1], odd));
  return sum;
}

SLMQ_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
SLMQ_INLINE void prefetch_second_level(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace slmq::SLMQ_ISA
