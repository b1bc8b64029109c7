// The vector layer in plain C++: the definition of what every other ISA header computes.
//
// Sixteen lanes always. min/max return the second operand when either is NaN; reductions fold lane
// i with i + 8, then i + 4, i + 2, i + 1; float to int rounds to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout/formats.h"
#include "layout/half.h"
#include "machine/inline.h"

namespace slmq::scalar {

struct f32x16 {
  float lane[16];
};
struct i32x16 {
  int32_t lane[16];
};

#define SLMQ_EACH(expression)                              \
  do {                                                     \
    for (int i = 0; i < 16; ++i) r.lane[i] = (expression); \
  } while (0)

static inline f32x16 load(const float* p) {
  f32x16 r;
  std::memcpy(r.lane, p, 64);
  return r;
}
static inline void store(float* p, f32x16 v) { std::memcpy(p, v.lane, 64); }
static inline f32x16 load_f16(const uint16_t* p) {
  f32x16 r;
  SLMQ_EACH(half_to_float(p[i]));
  return r;
}
static inline void store_f16(uint16_t* p, f32x16 v) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(v.lane[i]);
}
static inline f32x16 splat(float x) {
  f32x16 r;
  SLMQ_EACH(x);
  return r;
}
static inline f32x16 add(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] + b.lane[i]);
  return r;
}
static inline f32x16 sub(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] - b.lane[i]);
  return r;
}
static inline f32x16 mul(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] * b.lane[i]);
  return r;
}
static inline f32x16 div(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] / b.lane[i]);
  return r;
}
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  f32x16 r;
  SLMQ_EACH(std::fma(a.lane[i], b.lane[i], c.lane[i]));
  return r;
}
static inline f32x16 max(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
  return r;
}
static inline f32x16 min(f32x16 a, f32x16 b) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
  return r;
}
static inline f32x16 abs(f32x16 a) {
  f32x16 r;
  SLMQ_EACH(std::fabs(a.lane[i]));
  return r;
}
// a < b ? x : y, lane by lane
static inline f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  f32x16 r;
  SLMQ_EACH(a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]);
  return r;
}
// lanes begin <= i < end keep v, the others become x
static inline f32x16 keep_range(f32x16 v, int begin, int end, float x) {
  f32x16 r;
  SLMQ_EACH(i >= begin && i < end ? v.lane[i] : x);
  return r;
}
static inline float reduce_add(f32x16 v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v.lane[i] = v.lane[i] + v.lane[i + width];
  return v.lane[0];
}
static inline float reduce_max(f32x16 v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      v.lane[i] = v.lane[i] > v.lane[i + width] ? v.lane[i] : v.lane[i + width];
  return v.lane[0];
}

static inline i32x16 load_i32(const void* p) {
  i32x16 r;
  std::memcpy(r.lane, p, 64);
  return r;
}
static inline i32x16 load_i8(const int8_t* p) {
  i32x16 r;
  SLMQ_EACH(p[i]);
  return r;
}
static inline i32x16 splat_i32(int32_t x) {
  i32x16 r;
  SLMQ_EACH(x);
  return r;
}
static inline i32x16 add(i32x16 a, i32x16 b) {
  i32x16 r;
  SLMQ_EACH(a.lane[i] + b.lane[i]);
  return r;
}
static inline i32x16 sub(i32x16 a, i32x16 b) {
  i32x16 r;
  SLMQ_EACH(a.lane[i] - b.lane[i]);
  return r;
}
// Half of it, rounded down; and what that leaves, 0 or 1.
static inline i32x16 halved(i32x16 a) {
  i32x16 r;
  SLMQ_EACH(a.lane[i] >> 1);
  return r;
}
static inline i32x16 odd(i32x16 a) {
  i32x16 r;
  SLMQ_EACH(a.lane[i] & 1);
  return r;
}
static inline i32x16 times_256(i32x16 a) {
  i32x16 r;
  SLMQ_EACH(a.lane[i] * 256);
  return r;
}
static inline f32x16 to_f32(i32x16 a) {
  f32x16 r;
  SLMQ_EACH(static_cast<float>(a.lane[i]));
  return r;
}
// |a| must be below 2^31
static inline i32x16 round_to_i32(f32x16 a) {
  i32x16 r;
  SLMQ_EACH(static_cast<int32_t>(std::nearbyint(a.lane[i])));
  return r;
}
static inline void store_i8(int8_t* p, i32x16 v) {  // values within int8
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v.lane[i]);
}
static inline int32_t reduce_add(i32x16 v) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v.lane[i];
  return sum;
}
// 2^n as float, -126 <= n <= 127
static inline f32x16 pow2(i32x16 n) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = static_cast<uint32_t>(n.lane[i] + 127) << 23;
    std::memcpy(&r.lane[i], &bits, 4);
  }
  return r;
}

// Tokens that share a read of the weights: there are no registers for more.
static constexpr int kTokens = 1, kBlockTokens = 1, kPackedTokens = 0;

// Where a dot's sums start: at nothing, or at -8 times the sum of the activations, which pays for the
// zero point of int4 (given in the two forms that ISAs may want, see ActivationInfo); or where
// dot_lookup() must start, which knows the table's values as unsigned bytes, plus 128, or as signed ones.
using DotStart = int32_t;
static inline DotStart start_zero() { return 0; }
static inline DotStart start_eights(const int16_t*, int32_t sum) { return -8 * sum; }
static inline DotStart start_lookup(const int16_t*, int32_t sum) { return -128 * sum; }

// sums[t] = from[t] + for each of 16 rows: the dot product of 32 columns with 32 int8 values of token
// t, which start 32 bytes after those of token t - 1. Exact.
template <int M>
static inline void dot_u4(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                          i32x16 (&sums)[M]) {
  for (int t = 0; t < M; ++t) {
    for (int r = 0; r < 16; ++r) {
      int32_t sum = from[t];
      for (int c = 0; c < 16; ++c) {
        const uint8_t byte = tile[(c / 4) * 64 + r * 4 + c % 4];
        sum += (byte & 15) * a[t * kGroup + c] + (byte >> 4) * a[t * kGroup + 16 + c];
      }
      sums[t].lane[r] = sum;
    }
  }
}

// An int4 tile as bytes, in the order of an int8 tile; and its dots.
static inline void unpack_u4(const uint8_t* tile, uint8_t* bytes) {
  for (int i = 0; i < 256; ++i) {
    bytes[i] = tile[i] & 15;
    bytes[256 + i] = tile[i] >> 4;
  }
}
template <int M>
static inline void dot_bytes_u4(const uint8_t* bytes, const int8_t* a, const DotStart (&from)[M],
                                i32x16 (&sums)[M]) {
  for (int t = 0; t < M; ++t) {
    for (int r = 0; r < 16; ++r) {
      int32_t sum = from[t];
      for (int c = 0; c < 32; ++c) sum += bytes[(c / 4) * 64 + r * 4 + c % 4] * a[t * kGroup + c];
      sums[t].lane[r] = sum;
    }
  }
}
template <int M>
static inline void dot_u8(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  DotStart zeros[M] = {};
  dot_bytes_u4<M>(tile, a, zeros, sums);
}

// An int4 tile whose codes are places in a table: what they find, in the order of an int8 tile.
static inline void unpack_lookup(const uint8_t* tile, const uint8_t (&values)[16], uint8_t* bytes) {
  for (int i = 0; i < 256; ++i) {
    bytes[i] = values[tile[i] & 15];
    bytes[256 + i] = values[tile[i] >> 4];
  }
}
// Dots of the table's values, with sums from start_lookup().
template <int M>
static inline void dot_lookup(const uint8_t* tile, const LookupTable& table, const int8_t* a,
                              const DotStart (&from)[M], i32x16 (&sums)[M]) {
  uint8_t bytes[512];
  unpack_lookup(tile, table.bytes, bytes);
  dot_bytes_u4<M>(bytes, a, from, sums);
}

// A code of 1, 2, 5 or 6 bits in its planes (see formats.h).
template <int Bits>
static inline int code_of(const uint8_t* tile, int row, int c) {
  const int half = c / 16, j = c % 16 / 4, b = 4 * row + c % 4;
  if (Bits == 1) return (tile[b] >> (c / 4)) & 1;
  const uint8_t* upper = tile + (Bits == 2 ? 0 : 256);
  const int field = upper[(Bits == 5 ? 0 : 64 * half) + b] >> (Bits == 5 ? c / 4 : 2 * j);
  if (Bits == 2) return field & 3;
  const int nibble = half == 0 ? tile[64 * j + b] & 15 : tile[64 * j + b] >> 4;
  return nibble | (field & (Bits == 5 ? 1 : 3)) << 4;
}
// The tile as bytes, in the order of an int8 tile; and its dots.
template <int Bits>
static inline void unpack_planes(const uint8_t* tile, uint8_t* bytes) {
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 32; ++c)
      bytes[c / 4 * 64 + 4 * r + c % 4] = static_cast<uint8_t>(code_of<Bits>(tile, r, c));
}
template <int Bits, int First, int Last, int M>
static inline void dot_bytes(const uint8_t* bytes, const int8_t* a, i32x16 (&sums)[M]) {
  for (int t = 0; t < M; ++t) {
    for (int r = 0; r < 16; ++r) {
      int32_t sum = 0;
      for (int c = 16 * First; c < 16 * Last; ++c)
        sum += bytes[c / 4 * 64 + 4 * r + c % 4] * a[t * kGroup + c];
      sums[t].lane[r] = sum;
    }
  }
}

// Columns [16 * First, 16 * Last) of sixteen rows in planes, times int8 values as above. By way of bytes:
// with code_of inside this sum, clang's code for ARM (of zig 0.17) gives other sums under QEMU 7.2.
template <int Bits, int First, int Last, int M>
static inline void dot_planes(const uint8_t* tile, const int8_t* a, i32x16 (&sums)[M]) {
  uint8_t bytes[512];
  unpack_planes<Bits>(tile, bytes);
  dot_bytes<Bits, First, Last>(bytes, a, sums);
}

// Sums of 32 int8 values, each half apart: of those at 4j and 4j + 1, and of those at 4j + 2 and 4j + 3.
static inline void sum_pairs(const int8_t* p, int32_t (&sums)[2][2]) {
  for (int half = 0; half < 2; ++half) sums[half][0] = sums[half][1] = 0;
  for (int c = 0; c < kGroup; ++c) sums[c / 16][c / 2 % 2] += p[c];
}

// The machine's integer peak as plain C++ reaches it.
static inline int64_t peak_dots(int rounds, int32_t* sink) {
  uint32_t sums[16] = {};
  for (int round = 0; round < rounds; ++round)
    for (uint32_t i = 0; i < 16; ++i) sums[i] = sums[i] * 3u + i;
  for (int i = 0; i < 16; ++i) sink[i] = static_cast<int32_t>(sums[i]);
  return int64_t{rounds} * 16;
}

// --- what attention needs ----------------------------------------------------------------------

static constexpr int kSums = 4;  // f32x16 sums of a multiplication that stay in registers
static constexpr int kIntSums = 4;
static constexpr bool kFactorsStay = false;  // in registers beside the sums

// v * 2^n where `shifted` is n + 1.5 * 2^23; v * 2^n must be normal (else some value below 2^-126).
static inline f32x16 times_pow2(f32x16 v, f32x16 shifted) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) {
    uint32_t bits, n;
    std::memcpy(&bits, &v.lane[i], 4);
    std::memcpy(&n, &shifted.lane[i], 4);
    bits += n << 23;
    std::memcpy(&r.lane[i], &bits, 4);
  }
  return r;
}
static inline void store_i32(void* p, i32x16 v) { std::memcpy(p, v.lane, 64); }
static inline void store_i16(int16_t* p, i32x16 v) {  // values within int16
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(v.lane[i]);
}
// sixteen lanes of four bytes
struct Fours {
  uint8_t lane[16][4];
};
// sixteen lanes of two 16-bit integers
struct i16x32 {
  int16_t pair[16][2];
};
static inline i16x32 load_pairs(const void* p) {
  i16x32 r;
  std::memcpy(r.pair, p, sizeof(r.pair));
  return r;
}
// The lower halves of floats' bits, those of both in turns.
static inline void store_pairs(int16_t* p, f32x16 first, f32x16 second) {
  for (int i = 0; i < 32; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &(i % 2 == 0 ? first : second).lane[i / 2], 4);
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(p + i, &half, 2);
  }
}
static inline i16x32 splat_pair(const int16_t* p) {
  i16x32 r;
  for (int i = 0; i < 32; ++i) r.pair[i / 2][i % 2] = p[i % 2];
  return r;
}
static inline Fours load_fours(const uint8_t* p) {
  Fours r;
  std::memcpy(r.lane, p, 64);
  return r;
}
// Sixteen factors, within int16, as dot_fours() takes them: in an order of the ISA's own.
static inline void store_fours(int16_t* p, i32x16 v) { store_i16(p, v); }
static inline i32x16 pinned(i32x16 v) { return v; }
// sum + the dot product of the pairs in each lane
static inline i32x16 dot_pairs(i16x32 a, i16x32 b, i32x16 sum) {
  i32x16 r;
  SLMQ_EACH(sum.lane[i] + a.pair[i][0] * b.pair[i][0] + a.pair[i][1] * b.pair[i][1]);
  return r;
}
// sum + the dot product of the bytes in each lane with four factors
static inline i32x16 dot_fours(const Fours& a, const int16_t* four, i32x16 sum) {
  i32x16 r;
  SLMQ_EACH(sum.lane[i] + a.lane[i][0] * four[0] + a.lane[i][1] * four[1] + a.lane[i][2] * four[2] +
            a.lane[i][3] * four[3]);
  return r;
}

// The two lower bytes of each value, less 128: [plane][4 lanes][vector][the four values of these lanes].
static inline void store_digits(int8_t* to, int plane, const f32x16 (&values)[4]) {
  for (int row = 0; row < 64; ++row) {
    uint32_t bits;
    std::memcpy(&bits, &values[row / 16].lane[row % 16], 4);
    int8_t* at = to + row % 16 / 4 * 16 + row / 16 * 4 + row % 4;
    at[0] = static_cast<int8_t>(static_cast<int>(bits & 255) - 128);
    at[plane] = static_cast<int8_t>(static_cast<int>(bits >> 8 & 255) - 128);
  }
}

SLMQ_INLINE void prefetch(const void*) {}
SLMQ_INLINE void prefetch_second_level(const void*) {}

#undef SLMQ_EACH

}  // namespace slmq::scalar
