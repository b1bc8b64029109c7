// A pair-group and a panel block, the shape for sixteen registers: the tiles are unpacked once into
// the first-level cache and meet a few tokens at a time.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Both tiles of a pair-group as bytes in the order of an int8 tile: unpacked, or as they are stored.
template <class Weight>
struct UnpackedPair {
  alignas(64) uint8_t bytes[2][512];
  explicit UnpackedPair(const uint8_t* pair) {
    unpack_u4(pair, bytes[0]);
    unpack_u4(pair + Weight::tile_bytes, bytes[1]);
  }
  const uint8_t* tile(int i) const { return bytes[i]; }
  template <int M>
  static inline void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                         i32x16 (&sums)[M]) {
    dot_bytes_u4<M>(tile, a, from, sums);
  }
};
template <>
struct UnpackedPair<WeightQ8S> {
  const uint8_t* bytes;
  explicit UnpackedPair(const uint8_t* pair) : bytes(pair) {}
  const uint8_t* tile(int i) const { return bytes + 512 * i; }
  template <int M>
  static inline void dot(const uint8_t* tile, const int8_t* a, const DotStart (&)[M],
                         i32x16 (&sums)[M]) {
    dot_u8<M>(tile, a, sums);
  }
};
template <class Weight>
struct Unpacked : Weight {
  template <int M>
  static inline void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                         i32x16 (&sums)[M]) {
    UnpackedPair<Weight>::template dot<M>(tile, a, from, sums);
  }
};

template <class Weight, bool Wide, int M>
static inline void tile_times_tokens(const uint8_t* tile, const TileScales<Weight>& w,
                                     const int8_t* high, const int8_t* low,
                                     const ActivationInfo* info, float* sums) {
  i32x16 dots[M];
  tile_dots<Unpacked<Weight>, Wide, M>(tile, high, low, info, dots);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    float* sum = sums + t * kPairRows;
    store(sum, accumulate<Weight, Wide>(load(sum), dots[t], w.scale, w.min, info[t]));
  }
}

// The same where few of the tokens have two planes: those take their second dot one by one.
// Apart, so that its registers stay out of the loops around it.
template <class Weight, int M>
[[gnu::noinline]] static void tile_times_mixed(const uint8_t* tile, const TileScales<Weight>& w,
                                               const int8_t* high, const int8_t* low,
                                               const ActivationInfo* info, float* sums) {
  i32x16 dots[M];
  tile_dots<Unpacked<Weight>, false, M>(tile, high, low, info, dots);
#pragma GCC unroll 1
  for (int t = 0; t < M; ++t, sums += kPairRows) {
    if (info[t].wide != 0) {
      i32x16 low_dots[1];
      low_tile_dots<Unpacked<Weight>, 1>(tile, low + t * kGroup, info + t, low_dots);
      const i32x16 dot = high_low(dots[t], low_dots[0]);
      store(sums, accumulate<Weight, true>(load(sums), dot, w.scale, w.min, info[t]));
    } else {
      store(sums, accumulate<Weight, false>(load(sums), dots[t], w.scale, w.min, info[t]));
    }
  }
}

// M tokens from `t` on meet both tiles.
template <class Weight, int M>
static inline void pair_times_few(const UnpackedPair<Weight>& pair,
                                  const TileScales<Weight> (&w)[2], const PanelTokens& a, int t,
                                  float* sums) {
  const int8_t *high = a.high + t * kGroup, *low = a.low + t * kGroup;
  const ActivationInfo* info = a.info + t;
  int32_t wide = 0;
  for (int i = 0; i < M; ++i) wide += info[i].wide;
  float* to = sums + t * kPairRows;
  for (int tile = 0; tile < 2; ++tile, to += kLanes) {
    if (wide == 0) {
      tile_times_tokens<Weight, false, M>(pair.tile(tile), w[tile], high, low, info, to);
    } else if (2 * wide > M) {
      tile_times_tokens<Weight, true, M>(pair.tile(tile), w[tile], high, low, info, to);
    } else {
      tile_times_mixed<Weight, M>(pair.tile(tile), w[tile], high, low, info, to);
    }
  }
}

// The next tokens of at most `left`: as many as M, but eight are four and four. Returns how many.
template <class Weight, int M>
static inline int pair_times_next(const UnpackedPair<Weight>& pair,
                                  const TileScales<Weight> (&w)[2], const PanelTokens& a, int t,
                                  int left, float* sums) {
  if constexpr (M > 1) {
    constexpr int kFewer = M > 4 ? 4 : M / 2;
    if (left < M || (M > 4 && left % M == 2))
      return pair_times_next<Weight, kFewer>(pair, w, a, t, left, sums);
  }
  pair_times_few<Weight, M>(pair, w, a, t, sums);
  return M;
}

template <class Weight>
static inline void group_times_block(const uint8_t* weight, const PanelTokens& a, int rows,
                                     float* sums) {
  const UnpackedPair<Weight> pair(weight);
  const TileScales<Weight> w[2] = {{weight, 0}, {weight, 1}};
  for (int t = 0; t < rows;)
    t += pair_times_next<Weight, kBlockTokens>(pair, w, a, t, rows - t, sums);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
