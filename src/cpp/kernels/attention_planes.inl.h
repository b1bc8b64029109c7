// Factors of sixteen bits that meet an int8 cache as planes of bytes, 256 * high + low: four products a lane,
// and nothing of the cache is widened. What is done with sums of planes comes behind them: integers are
// exact.
//
// A block has the planes of 64 columns (channels of keys, positions of values) for some queries, [row][64].
// Two balanced planes hold -32896 to 32639. Factors of keys may be 32767: they are stored less 128, and a row of
// -128, one for all queries, makes up for it. Those of values, 0 to 32767, are stored less than zero.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

struct Factors {
  static constexpr int kQueries = 6;  // that share a load of keys or values
  static constexpr int kRowBytes = kPagePositions;
  static constexpr int query_rows(int n) { return 2 * n + 1; }
  static constexpr int value_rows(int n) { return 2 * n; }
  // Sums, a line of each tile and a factor are registers.
  static constexpr int tiles_beside(int rows) { return SLMQ_ISA::tiles_beside(rows, 26); }

  // Of query q of n: 64 columns of integers, of which so many count and the others are zeros.
  static inline void put_query(const int32_t* from, int columns, int q, int n, int8_t* block) {
    int8_t *high = block + 2 * q * kRowBytes, *low = high + kRowBytes;
    int8_t* missing = block + 2 * n * kRowBytes;
    for (int c = 0; c < kPagePositions; ++c) {
      const bool counts = c < columns;
      high[c] = static_cast<int8_t>(from[c] >> 8);
      low[c] = static_cast<int8_t>(counts ? (from[c] & 255) - 128 : 0);
      missing[c] = static_cast<int8_t>(counts ? -128 : 0);
    }
  }
  // The same of what is not negative.
  SLMQ_INLINE_MEMBER static void put_probabilities(const i32x16 (&from)[4], int q, int /*n*/,
                                                   int8_t* block) {
    split_negative(from, block + 2 * q * kRowBytes);
  }

  template <int Rows>
  SLMQ_INLINE_MEMBER static void start(const int32_t*, i32x16 (&sums)[Rows]) {
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) sums[row] = splat_i32(0);
  }
  // Dots with codes less 128, of sums; starts: what the codes' 128 would add.
  template <int Rows>
  SLMQ_INLINE_MEMBER static i32x16 query_dot(const i32x16 (&sums)[Rows], int q,
                                             const int32_t* starts) {
    const i32x16 dot = add(times_256(sums[2 * q]), sums[2 * q + 1]);
    return add(sub(dot, sums[Rows - 1]), splat_i32(starts[q]));
  }
  template <int Rows>
  SLMQ_INLINE_MEMBER static i32x16 value_dot(const i32x16 (&sums)[Rows], int q,
                                             const int32_t* starts) {
    return sub(splat_i32(starts[q]), add(times_256(sums[2 * q]), sums[2 * q + 1]));
  }
};

// sums[tile][row] += dots of rows of blocks with so many lines of each tile
template <int Rows, int Tiles>
SLMQ_INLINE void add_fours(const uint8_t* tiles, int tile_step, int lines, const int8_t* blocks,
                           Spread& ahead, i32x16 (&sums)[Tiles][Rows]) {
  for (; lines > 0; lines -= 16, blocks += Rows * Factors::kRowBytes) {
    const int8_t* four = blocks;
    for (int i = 0; i < smaller(16, lines); ++i, tiles += 64, four += 4) {
      ahead.ask();
      u8x64 line[Tiles];
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) line[t] = load_u8(tiles + t * tile_step);
#pragma GCC unroll 16
      for (int row = 0; row < Rows; ++row) {
        const s8x64 factor = splat_four(four + row * Factors::kRowBytes);
#pragma GCC unroll 4
        for (int t = 0; t < Tiles; ++t)
          sums[t][row] = pinned(dot_fours(line[t], factor, sums[t][row]));
      }
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
