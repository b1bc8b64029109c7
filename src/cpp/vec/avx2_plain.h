// The dots of weights with AVX2 alone, after avx2.h.
//
//   dot_u4         vpmaddubsw           u4 * s8 pairs: 8 sums of two stay below 2^15 (15*128*16 = 30720)
//                  vpmaddwd             pairs of 16-bit sums to 32 bits
//   dot_u8         the same twice, on the high and the low nibbles: 16 * high + low
//   dot_lookup     the same twice, on codes and on what vpshufb finds for them: 16 * (code - 8) + rest - 16.
//                  Zero points are paid where sums start; sums may pass 2^15 on their way, and are back
//                  within it at the end (15 * 128 * 16 = 30720)
//   dot_planes     codes of 5 and 6 bits, widened to 32 bits before the 16-bit sums are full
#pragma once

namespace slmq::SLMQ_ISA {

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kBlockTokens = 6;   // the same where they are unpacked already
static constexpr int kPackedTokens = 8;  // up to which that does not pay

// Where the accumulators of a dot start: two 16-bit sums a row.
using DotStart = __m256i;
static inline DotStart start_zero() { return _mm256_setzero_si256(); }
static inline DotStart start_eights(const int16_t* eights, int32_t) {
  int32_t both;
  __builtin_memcpy(&both, eights, 4);
  return _mm256_set1_epi32(both);
}
static inline DotStart start_lookup(const int16_t* eights, int32_t sum) {
  return start_eights(eights, sum);
}

namespace {  // members, too, stay in this object

// Sixteen rows' 16-bit sums of M tokens while they grow; eight steps of u4 * s8 stay below 2^15.
template <int M>
struct Sums16 {
  __m256i low[M], high[M];  // rows 0-7 and 8-15
  SLMQ_INLINE_MEMBER explicit Sums16(const DotStart (&from)[M]) {
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) low[t] = high[t] = from[t];
  }
  SLMQ_INLINE_MEMBER void add(__m256i w_low, __m256i w_high, const int8_t* four) {
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      const __m256i activations = broadcast_i8x4(four + t * kGroup);
      low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(w_low, activations));
      high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(w_high, activations));
      keep(low[t]);
      keep(high[t]);
    }
  }
  SLMQ_INLINE_MEMBER void finish(i32x16 (&sums)[M]) const {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t)
      sums[t] = {_mm256_madd_epi16(low[t], ones), _mm256_madd_epi16(high[t], ones)};
  }
};

}  // namespace

template <int M>
SLMQ_INLINE void dot_u4(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                        i32x16 (&sums)[M]) {
  a = reread(a);
  const __m256i nibble = _mm256_set1_epi8(15);
  Sums16<M> growing(from);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m256i low = load_i8x32(tile + 64 * j), high = load_i8x32(tile + 64 * j + 32);
    growing.add(_mm256_and_si256(low, nibble), _mm256_and_si256(high, nibble), a + 4 * j);
    growing.add(_mm256_and_si256(_mm256_srli_epi16(low, 4), nibble),
                _mm256_and_si256(_mm256_srli_epi16(high, 4), nibble), a + 16 + 4 * j);
  }
  growing.finish(sums);
}

template <int M>
SLMQ_INLINE void dot_bytes_u4(const uint8_t* bytes, const int8_t* a, const DotStart (&from)[M],
                              i32x16 (&sums)[M]) {
  a = reread(a);
  Sums16<M> growing(from);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j)
    growing.add(load_i8x32(bytes + 64 * j), load_i8x32(bytes + 64 * j + 32), a + 4 * j);
  growing.finish(sums);
}

namespace {  // members, too, stay in this object

// The nibbles of a byte, which is 16 * high + low: of four columns of eight rows, as they are stored.
struct ByteNibbles {
  const uint8_t* rows;
  SLMQ_INLINE_MEMBER static bool steps() { return true; }
  SLMQ_INLINE_MEMBER void get(int j, __m256i* low, __m256i* high) const {
    const __m256i nibble = _mm256_set1_epi8(15), w = load_i8x32(rows + 64 * j);
    *low = _mm256_and_si256(w, nibble);
    *high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
  }
};
// Codes of four bits, and beside each what a table has for it.
struct LookupSteps {
  const uint8_t* rows;
  const LookupTable& table;
  SLMQ_INLINE_MEMBER bool steps() const { return table.steps; }
  SLMQ_INLINE_MEMBER void get(int j, __m256i* low, __m256i* high) const {
    __m256i code = load_i8x32(rows + 64 * (j % 4));
    if (j >= 4) code = _mm256_srli_epi16(code, 4);
    *high = _mm256_and_si256(code, _mm256_set1_epi8(15));
    *low = _mm256_shuffle_epi8(load_table(table.rests), *high);
  }
};

}  // namespace

// Eight rows of numbers 16 * high + low, which are all safe for maddubs; high ones may be absent. Sums of
// low ones start at twice `from`, sums of high ones at it.
template <class Nibbles, int M>
SLMQ_INLINE void dot_nibbles_rows8(const Nibbles& nibbles, const int8_t* a,
                                   const DotStart (&from)[M], __m256i (&sums)[M]) {
  a = reread(a);
  __m256i low_i16[M], high_i16[M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    low_i16[t] = _mm256_slli_epi16(from[t], 1);
    high_i16[t] = from[t];
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    __m256i w_low, w_high;
    nibbles.get(j, &w_low, &w_high);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      const __m256i activations = broadcast_i8x4(a + t * kGroup + 4 * j);
      low_i16[t] = _mm256_add_epi16(low_i16[t], _mm256_maddubs_epi16(w_low, activations));
      keep(low_i16[t]);
      if (!nibbles.steps()) continue;
      high_i16[t] = _mm256_add_epi16(high_i16[t], _mm256_maddubs_epi16(w_high, activations));
      keep(high_i16[t]);
    }
  }
  const __m256i ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    sums[t] = _mm256_madd_epi16(low_i16[t], ones);
    if (nibbles.steps())
      sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(high_i16[t], sixteens));
  }
}
template <int M>
SLMQ_INLINE void dot_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) from[t] = start_zero();
  __m256i low[M], high[M];
  dot_nibbles_rows8(ByteNibbles{tile}, a, from, low);
  dot_nibbles_rows8(ByteNibbles{tile + 32}, a, from, high);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) sums[t] = {low[t], high[t]};
}
template <int M>
SLMQ_INLINE void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                            const DotStart (&from)[M], i32x16 (&sums)[M]) {
  __m256i low[M], high[M];
  dot_nibbles_rows8(LookupSteps{tile, table}, a, from, low);
  dot_nibbles_rows8(LookupSteps{tile + 32, table}, a, from, high);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) sums[t] = {low[t], high[t]};
}

// Columns [16 * First, 16 * Last) of eight rows. 16-bit sums hold two products of six bits
// (4 * 63 * 127 = 32004), four of five bits (8 * 31 * 127 = 31496).
template <int Bits, int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_rows8(const Tile& tile, int rows, const int8_t* a, __m256i (&sums)[M]) {
  constexpr int kSteps = Bits == 6 ? 2 : 4;
  a = reread(a);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int step = 4 * First; step < 4 * Last; step += kSteps) {
    __m256i words[M];
#pragma GCC unroll 4
    for (int i = step; i < step + kSteps; ++i) {
      const __m256i w = tile.columns(rows, i / 4, i % 4);
#pragma GCC unroll 6
      for (int t = 0; t < M; ++t) {
        const __m256i product = _mm256_maddubs_epi16(w, broadcast_i8x4(a + t * kGroup + 4 * i));
        words[t] = i == step ? product : _mm256_add_epi16(words[t], product);
        keep(words[t]);
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      const __m256i wide = _mm256_madd_epi16(words[t], ones);
      sums[t] = step == 4 * First ? wide : _mm256_add_epi32(sums[t], wide);
      keep(sums[t]);
    }
  }
}
template <int Bits, int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_rows16(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]) {
  __m256i low[M], high[M];
  dot_rows8<Bits, First, Last>(tile, 0, a, low);
  dot_rows8<Bits, First, Last>(tile, 32, a, high);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) sums[t] = {low[t], high[t]};
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_planes(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  dot_rows16<Bits, First, Last>(Planes<Bits>{tile}, a, sums);
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_bytes(const uint8_t* bytes, const int8_t* a, i32x16 (&sums)[M]) {
  dot_rows16<Bits, First, Last>(Bytes{bytes}, a, sums);
}

// As many int4 dots as the ports take: 8 chains of vpmaddubsw + vpaddw, 32 products each.
static inline int64_t peak_dots(int rounds, int32_t* sink) {
  __m256i sums[8], w = _mm256_set1_epi8(1);
#pragma GCC unroll 8  // every loop over sums, or they live in memory
  for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_si256();
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
#if defined(__GNUC__)
      asm("" : "+x"(w));  // the product must be computed each time
#endif
      sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(w, w));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sink[i] = _mm256_extract_epi32(sums[i], 0);
  return int64_t{rounds} * 8 * 32;
}

}  // namespace slmq::SLMQ_ISA
