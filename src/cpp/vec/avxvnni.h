// The dots of weights with VNNI in its VEX encoding (Alder Lake and later), after avx2.h.
//
//   vpdpbusd       four products u8 * s8 a lane, added to 32-bit sums: no step in 16 bits, so codes of
//                  all widths take the same way
#pragma once

namespace slmq::SLMQ_ISA {

static constexpr int kTokens = 4;        // that share a read of the weights
static constexpr int kBlockTokens = 6;   // the same where they are unpacked already
static constexpr int kPackedTokens = 8;  // up to which that does not pay: as avx2; not measured

// Where the accumulators of a dot start.
using DotStart = __m256i;
static inline DotStart start_zero() { return _mm256_setzero_si256(); }
static inline DotStart start_eights(const int16_t*, int32_t sum) {
  return _mm256_set1_epi32(-8 * sum);
}
static inline DotStart start_lookup(const int16_t*, int32_t sum) {
  return _mm256_set1_epi32(-128 * sum);
}

namespace {  // members, too, stay in this object

template <>
struct Planes<4> {
  const uint8_t* tile;
  SLMQ_INLINE_MEMBER __m256i columns(int rows, int half, int j) const {
    const __m256i line = load_i8x32(tile + 64 * j + rows);
    return _mm256_and_si256(half == 0 ? line : _mm256_srli_epi16(line, 4), _mm256_set1_epi8(15));
  }
};

// The same four columns of eight rows, of bytes that codes of four bits find in a table.
struct Lookup {
  const uint8_t* tile;
  const LookupTable& table;
  SLMQ_INLINE_MEMBER __m256i columns(int rows, int half, int j) const {
    return _mm256_shuffle_epi8(load_table(table.bytes), Planes<4>{tile}.columns(rows, half, j));
  }
};

}  // namespace

// sums += columns [16 * First, 16 * Last) of sixteen rows.
template <int First, int Last, class Tile, int M>
SLMQ_INLINE void add_tile(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]) {
  a = reread(a);
#pragma GCC unroll 8
  for (int i = 4 * First; i < 4 * Last; ++i) {
    const __m256i w_low = tile.columns(0, i / 4, i % 4), w_high = tile.columns(32, i / 4, i % 4);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      const __m256i activations = broadcast_i8x4(a + t * kGroup + 4 * i);
      sums[t].low = _mm256_dpbusd_avx_epi32(sums[t].low, w_low, activations);
      sums[t].high = _mm256_dpbusd_avx_epi32(sums[t].high, w_high, activations);
      keep(sums[t].low);
      keep(sums[t].high);
    }
  }
}
template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]) {
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) sums[t] = {from[t], from[t]};
  add_tile<First, Last>(tile, a, sums);
}
template <int First, int Last, class Tile, int M>
SLMQ_INLINE void dot_tile(const Tile& tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart from[M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) from[t] = start_zero();
  dot_tile<First, Last>(tile, a, from, sums);
}

template <int M>
SLMQ_INLINE void dot_u4(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                        i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Planes<4>{tile}, a, from, sums);
}
template <int M>
SLMQ_INLINE void dot_bytes_u4(const uint8_t* bytes, const int8_t* a, const DotStart (&from)[M],
                              i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Bytes{bytes}, a, from, sums);
}
template <int M>
SLMQ_INLINE void dot_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Bytes{tile}, a, sums);
}
template <int M>
SLMQ_INLINE void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                            const DotStart (&from)[M], i32x16 (&sums)[M]) {
  dot_tile<0, 2>(Lookup{tile, table}, a, from, sums);
}
template <int M>
SLMQ_INLINE void add_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  add_tile<0, 2>(Bytes{tile}, a, sums);
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_planes(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  dot_tile<First, Last>(Planes<Bits>{tile}, a, sums);
}
template <int Bits, int First, int Last, int M>
SLMQ_INLINE void dot_bytes(const uint8_t* bytes, const int8_t* a, i32x16 (&sums)[M]) {
  dot_tile<First, Last>(Bytes{bytes}, a, sums);
}

// As many dots as the ports take: 12 chains of vpdpbusd, 32 products each. Two a cycle that take five
// cycles each need ten.
static inline int64_t peak_dots(int rounds, int32_t* sink) {
  __m256i sums[12], w = _mm256_set1_epi8(1);
#pragma GCC unroll 12  // every loop over sums, or they live in memory
  for (int i = 0; i < 12; ++i) sums[i] = _mm256_setzero_si256();
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      sums[i] = _mm256_dpbusd_avx_epi32(sums[i], w, w);
      keep(sums[i]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sink[i] = _mm256_extract_epi32(sums[i], 0);
  return int64_t{rounds} * 12 * 32;
}

}  // namespace slmq::SLMQ_ISA
