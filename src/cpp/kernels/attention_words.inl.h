// Factors of sixteen bits that meet an int8 cache as words, a row of them for each query: for tables without
// dots of u8 x s8, or whose dots fill sixteen bits.
//
// A block has the factors of 64 columns (channels of keys, positions of values) for some queries.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

struct Factors {
  static constexpr int kQueries = 4;  // that share a load of keys or values
  static constexpr int kRowBytes = 2 * kPagePositions;
  static constexpr int query_rows(int n) { return n; }
  static constexpr int value_rows(int n) { return n; }
  static constexpr int tiles_beside(int rows) { return SLMQ_ISA::tiles_beside(rows, kIntSums); }

  // Of query q of n: 64 columns of integers, of which so many count and the others are zeros.
  static inline void put_query(const int32_t* from, int /*columns*/, int q, int /*n*/,
                               int8_t* block) {
    auto* to = reinterpret_cast<int16_t*>(block + q * kRowBytes);
    for (int c = 0; c < kPagePositions; c += 16) store_fours(to + c, load_i32(from + c));
  }
  // The same of what is not negative.
  SLMQ_INLINE_MEMBER static void put_probabilities(const i32x16 (&from)[4], int q, int /*n*/,
                                                   int8_t* block) {
    auto* to = reinterpret_cast<int16_t*>(block + q * kRowBytes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_fours(to + 16 * i, from[i]);
  }

  // Where sums begin that end as dots with codes less 128, and what they are then.
  template <int N>
  SLMQ_INLINE_MEMBER static void start(const int32_t* starts, i32x16 (&sums)[N]) {
#pragma GCC unroll 4
    for (int q = 0; q < N; ++q) sums[q] = splat_i32(starts[q]);
  }
  template <int N>
  SLMQ_INLINE_MEMBER static i32x16 query_dot(const i32x16 (&sums)[N], int q, const int32_t*) {
    return sums[q];
  }
  template <int N>
  SLMQ_INLINE_MEMBER static i32x16 value_dot(const i32x16 (&sums)[N], int q, const int32_t*) {
    return sums[q];
  }
};

// sums[tile][row] += dots of rows of blocks with so many lines of each tile
template <int Rows, int Tiles>
SLMQ_INLINE void add_fours(const uint8_t* tiles, int tile_step, int lines, const int8_t* blocks,
                           Spread& ahead, i32x16 (&sums)[Tiles][Rows]) {
  for (; lines > 0; lines -= 16, blocks += Rows * Factors::kRowBytes) {
    const auto* four = reinterpret_cast<const int16_t*>(blocks);
    for (int i = 0; i < smaller(16, lines); ++i, tiles += 64, four += 4) {
      ahead.ask();
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) {
        const Fours line = load_fours(tiles + t * tile_step);
#pragma GCC unroll 4
        for (int q = 0; q < Rows; ++q)
          sums[t][q] = pinned(dot_fours(line, four + q * kPagePositions, sums[t][q]));
      }
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
