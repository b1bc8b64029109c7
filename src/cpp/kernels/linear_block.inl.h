// A pair-group and a panel block, the shape for sixteen registers: the tiles meet a few tokens at a
// time, unpacked into the first-level cache or, by each few anew, into registers.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// The dots of tiles whose codes are bytes; what a table gave are codes plus 128.
template <class Weight>
struct Unpacked : Weight {
  static constexpr int zero = Weight::looks_up ? 128 : Weight::zero;
  static inline DotStart start(const int16_t* eights, int32_t sum) {
    return Weight::looks_up ? start_zero() : Weight::start(eights, sum);
  }
  template <int Part, int M>
  SLMQ_INLINE void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                       i32x16 (&sums)[M]) {
    if constexpr (Weight::looks_up) {
      dot_u8<M>(tile, a, sums);
    } else if constexpr (Weight::bits == 4) {
      dot_bytes_u4<M>(tile, a, from, sums);
    } else if constexpr (Weight::bits == 8) {
      dot_u8<M>(tile, a, sums);
    } else {
      constexpr bool whole = Weight::parts == 1;
      dot_bytes<Weight::bits, whole ? 0 : Part, whole ? 2 : Part + 1, M>(tile, a, sums);
    }
  }
};

// Both tiles of a pair-group as bytes in the order of an int8 tile: unpacked, or as they are stored.
template <class Weight, bool Stored = Weight::bits == 8>
struct UnpackedPair {
  alignas(64) uint8_t bytes[2][512];
  SLMQ_INLINE_MEMBER explicit UnpackedPair(const uint8_t* pair) {
    pair = Weight::tiles(pair);
    for (int i = 0; i < 2; ++i, pair += Weight::tile_bytes) {
      if constexpr (Weight::looks_up) {
        unpack_lookup(pair, Weight::table.bytes, bytes[i]);
      } else if constexpr (Weight::bits == 4) {
        unpack_u4(pair, bytes[i]);
      } else {
        unpack_planes<Weight::bits>(pair, bytes[i]);
      }
    }
  }
  using Dots = Unpacked<Weight>;
  const uint8_t* tile(int i) const { return bytes[i]; }
};
template <class Weight>
struct UnpackedPair<Weight, true> {
  const uint8_t* bytes;
  explicit UnpackedPair(const uint8_t* pair) : bytes(pair) {}
  using Dots = Unpacked<Weight>;
  const uint8_t* tile(int i) const { return bytes + 512 * i; }
};

// Both tiles as they are stored: their dots unpack them.
template <class Weight>
struct PackedPair {
  const uint8_t* bytes;
  using Dots = Weight;
  const uint8_t* tile(int i) const { return bytes + Weight::tile_bytes * i; }
};

// Scales and mins of both tiles in float32, for a part. In memory: the registers are for sums.
template <class Weight, int Part>
struct PairScales {
  alignas(64) float scale[2][kLanes], min[2][kLanes];
  SLMQ_INLINE_MEMBER PairScales(const uint8_t* pair, const uint8_t* shared) {
    for (int tile = 0; tile < 2; ++tile) {
      const TileScales<Weight, Part> w(Weight::own(pair), shared, tile);
      store(scale[tile], w.scale);
      if (Weight::has_second) store(min[tile], w.min);
    }
  }
};

// A plane of M tokens, the `t`th and those behind it, meets both tiles.
template <class Weight, int Part, bool Low, int M, class Pair>
SLMQ_INLINE void pair_times_few(const Pair& pair, const PairScales<Weight, Part>& w,
                                const PanelTokens& a, int t, float* sums) {
  const int8_t* plane = (Low ? a.low : a.high) + t * kGroup;
  const ActivationInfo* info = a.info + t;
  sums += t * kPairRows;
  for (int tile = 0; tile < 2; ++tile, sums += kLanes) {
    forget_loads();
    i32x16 dots[M];
    tile_dots<typename Pair::Dots, Part, Low, M>(pair.tile(tile), plane, info, dots);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
      const f32x16 scale = load(w.scale[tile]),
                   min = Weight::has_second ? load(w.min[tile]) : scale;
      float* sum = sums + i * kPairRows;
      store(sum, accumulate<Weight, Part, Low>(load(sum), dots[i], scale, min, info[i]));
    }
  }
}

// The next tokens of at most `left`: as many as M, but eight are four and four. Returns how many.
template <class Weight, int Part, bool Low, int M, class Pair>
SLMQ_INLINE int pair_times_next(const Pair& pair, const PairScales<Weight, Part>& w,
                                const PanelTokens& a, int t, int left, float* sums) {
  if constexpr (M > 1) {
    constexpr int kFewer = M > 4 ? 4 : M / 2;
    if (left < M || (M > 4 && left % M == 2))
      return pair_times_next<Weight, Part, Low, kFewer>(pair, w, a, t, left, sums);
  }
  pair_times_few<Weight, Part, Low, M>(pair, w, a, t, sums);
  return M;
}

template <class Weight, int Part, bool Low, int M, class Pair>
SLMQ_INLINE void part_times_block(const Pair& pair, const PairScales<Weight, Part>& w,
                                  const PanelTokens& a, int rows, float* sums) {
  for (int t = 0; t < rows;)
    t += pair_times_next<Weight, Part, Low, M>(pair, w, a, t, rows - t, sums);
}

template <class Weight, bool Low, int M, class Pair>
SLMQ_INLINE void group_times_rows(const Pair& pair, const uint8_t* weight, const uint8_t* shared,
                                  const PanelTokens& a, int rows, float* sums) {
  forget_loads();  // the scales come behind the lines
  const PairScales<Weight, 0> first(weight, shared);
  part_times_block<Weight, 0, Low, M>(pair, first, a, rows, sums);
  if constexpr (Weight::parts == 2) {
    const PairScales<Weight, 1> second(weight, shared);
    part_times_block<Weight, 1, Low, M>(pair, second, a, rows, sums);
  }
}

template <class Weight, bool Packed, bool Low>
SLMQ_INLINE void group_times_block(const uint8_t* weight, const uint8_t* shared,
                                   const PanelTokens& a, int rows, float* sums) {
  if constexpr (Packed) {
    const PackedPair<Weight> pair{Weight::tiles(weight)};
    group_times_rows<Weight, Low, kTokens>(pair, weight, shared, a, rows, sums);
  } else {
    const UnpackedPair<Weight> pair(weight);
    group_times_rows<Weight, Low, kBlockTokens>(pair, weight, shared, a, rows, sums);
  }
}

// Of linear_rows.inl.h.
static constexpr int kRowTokens = 4, kRowTiles = 1;

// sums[tile][token] += dots of M tokens with an int8 tile, by add_u8 of the vector layer if it has one
template <int M>
SLMQ_INLINE void add_group(const uint8_t* tile, size_t, const int8_t* plane,
                           i32x16 (&sums)[kRowTiles][M]) {
  if constexpr (requires { add_u8<M>(tile, plane, sums[0]); }) {
    add_u8<M>(tile, plane, sums[0]);
  } else {
    i32x16 dots[M];
    dot_u8<M>(tile, plane, dots);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) sums[0][t] = add(sums[0][t], dots[t]);
  }
}

// Of low_rank_up.inl.h and low_rank_int8.inl.h. Of a last half, dots take zeros for the columns behind it.
static constexpr int kThinTokens = kTokens;
template <int N, int M>
SLMQ_INLINE void add_halves(const uint8_t* tiles, size_t tile_step, const int8_t* x,
                            ptrdiff_t x_stride, int halves, i32x16 (&sums)[N][M]) {
  for (int half = 0; half < halves; half += 2, tiles += 512, x += kGroup) {
    alignas(64) int8_t columns[M][kGroup] = {};
    for (int t = 0; t < M; ++t)
      __builtin_memcpy(columns[t], x + t * x_stride, half + 1 < halves ? 32 : 16);
    for (int i = 0; i < N; ++i) {
      i32x16 dots[M];
      dot_u8<M>(tiles + i * tile_step, columns[0], dots);
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) sums[i][t] = add(sums[i][t], dots[t]);
    }
  }
}

// Of attention_int4.inl.h: 32 values of sixteen bits as planes of 256 * high + low, [plane][32].
SLMQ_INLINE void split_planes(i32x16 a, i32x16 b, int8_t* planes) {
  alignas(64)
      int16_t carried[kGroup];  // so that a low byte of 128 and more counts for the high one
  store_i16(carried, add(a, splat_i32(128)));
  store_i16(carried + 16, add(b, splat_i32(128)));
  for (int c = 0; c < kGroup; ++c) {
    planes[c] = static_cast<int8_t>(carried[c] >> 8);
    planes[kGroup + c] = static_cast<int8_t>((carried[c] & 255) - 128);
  }
}

// Of attention_int4.inl.h.
static constexpr int kCacheRows = kTokens > 1 ? kTokens : 2;
static constexpr int cache_tiles(int /*rows*/) { return 1; }

// sums[0][row] += dots of M rows of 32 with an int4 tile, whose zero points are not paid
template <int Tiles, int M, class Ahead>
SLMQ_INLINE void add_u4(const uint8_t* tile, int, const int8_t* rows, Ahead& ahead,
                        i32x16 (&sums)[Tiles][M]) {
  static_assert(Tiles == 1);
  DotStart from[M];
  i32x16 dots[M];
  for (int line = 0; line < 4; ++line) ahead.ask();
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) from[t] = start_zero();
  dot_u4<M>(tile, rows, from, dots);
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[0][t] = add(sums[0][t], dots[t]);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
