// A pair-group and a panel block, the shape for sixteen registers: the tiles are unpacked once into
// the first-level cache and meet a few tokens at a time.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Both tiles of a pair-group as bytes in the order of an int8 tile: unpacked, or as they are stored.
template <class Weight, bool Stored = Weight::bits == 8>
struct UnpackedPair {
  alignas(64) uint8_t bytes[2][512];
  SLMQ_INLINE_MEMBER explicit UnpackedPair(const uint8_t* pair) {
    for (int i = 0; i < 2; ++i, pair += Weight::tile_bytes) {
      if constexpr (Weight::bits == 4) {
        unpack_u4(pair, bytes[i]);
      } else {
        unpack_planes<Weight::bits>(pair, bytes[i]);
      }
    }
  }
  const uint8_t* tile(int i) const { return bytes[i]; }
};
template <class Weight>
struct UnpackedPair<Weight, true> {
  const uint8_t* bytes;
  explicit UnpackedPair(const uint8_t* pair) : bytes(pair) {}
  const uint8_t* tile(int i) const { return bytes + 512 * i; }
};
template <class Weight>
struct Unpacked : Weight {
  template <int Part, int M>
  SLMQ_INLINE void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                       i32x16 (&sums)[M]) {
    if constexpr (Weight::bits == 4) {
      dot_bytes_u4<M>(tile, a, from, sums);
    } else if constexpr (Weight::bits == 8) {
      dot_u8<M>(tile, a, sums);
    } else {
      constexpr bool whole = Weight::parts == 1;
      dot_bytes<Weight::bits, whole ? 0 : Part, whole ? 2 : Part + 1, M>(tile, a, sums);
    }
  }
};

// Scales and mins of both tiles in float32, for a part. In memory: the registers are for sums.
template <class Weight, int Part>
struct PairScales {
  alignas(64) float scale[2][kLanes], min[2][kLanes];
  SLMQ_INLINE_MEMBER PairScales(const uint8_t* pair, const uint8_t* shared) {
    for (int tile = 0; tile < 2; ++tile) {
      const TileScales<Weight, Part> w(pair, shared, tile);
      store(scale[tile], w.scale);
      if (Weight::has_min) store(min[tile], w.min);
    }
  }
};

// sums (of one token and tile) += dot
template <class Weight, int Part, bool Wide>
SLMQ_INLINE void add_dot(const PairScales<Weight, Part>& w, int tile, i32x16 dot,
                         const ActivationInfo& info, float* sums) {
  const f32x16 scale = load(w.scale[tile]), min = Weight::has_min ? load(w.min[tile]) : scale;
  store(sums, accumulate<Weight, Part, Wide>(load(sums), dot, scale, min, info));
}

template <class Weight, int Part, bool Wide, int M>
SLMQ_INLINE void tile_times_tokens(const UnpackedPair<Weight>& pair,
                                   const PairScales<Weight, Part>& w, int tile, const int8_t* high,
                                   const int8_t* low, const ActivationInfo* info, float* sums) {
  i32x16 dots[M];
  tile_dots<Unpacked<Weight>, Part, Wide, M>(pair.tile(tile), high, low, info, dots);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t)
    add_dot<Weight, Part, Wide>(w, tile, dots[t], info[t], sums + t * kPairRows);
}

// The same where few of the tokens have two planes: those take their second dot one by one.
// Apart, so that its registers stay out of the loops around it.
template <class Weight, int Part, int M>
[[gnu::noinline]] static void tile_times_mixed(const UnpackedPair<Weight>& pair,
                                               const PairScales<Weight, Part>& w, int tile,
                                               const int8_t* high, const int8_t* low,
                                               const ActivationInfo* info, float* sums) {
  i32x16 dots[M];
  tile_dots<Unpacked<Weight>, Part, false, M>(pair.tile(tile), high, low, info, dots);
#pragma GCC unroll 1
  for (int t = 0; t < M; ++t, sums += kPairRows) {
    if (info[t].wide != 0) {
      i32x16 low_dots[1];
      low_tile_dots<Unpacked<Weight>, Part, 1>(pair.tile(tile), low + t * kGroup, info + t,
                                               low_dots);
      add_dot<Weight, Part, true>(w, tile, high_low(dots[t], low_dots[0]), info[t], sums);
    } else {
      add_dot<Weight, Part, false>(w, tile, dots[t], info[t], sums);
    }
  }
}

// M tokens from `t` on meet both tiles.
template <class Weight, int Part, int M>
SLMQ_INLINE void pair_times_few(const UnpackedPair<Weight>& pair, const PairScales<Weight, Part>& w,
                                const PanelTokens& a, int t, float* sums) {
  const int8_t *high = a.high + t * kGroup, *low = a.low + t * kGroup;
  const ActivationInfo* info = a.info + t;
  int wide = 0;
  for (int i = 0; i < M; ++i) wide += info[i].wide;
  float* to = sums + t * kPairRows;
  for (int tile = 0; tile < 2; ++tile, to += kLanes) {
    if (wide == 0) {
      tile_times_tokens<Weight, Part, false, M>(pair, w, tile, high, low, info, to);
    } else if (2 * wide > M) {
      tile_times_tokens<Weight, Part, true, M>(pair, w, tile, high, low, info, to);
    } else {
      tile_times_mixed<Weight, Part, M>(pair, w, tile, high, low, info, to);
    }
  }
}

// The next tokens of at most `left`: as many as M, but eight are four and four. Returns how many.
template <class Weight, int Part, int M>
SLMQ_INLINE int pair_times_next(const UnpackedPair<Weight>& pair, const PairScales<Weight, Part>& w,
                                const PanelTokens& a, int t, int left, float* sums) {
  if constexpr (M > 1) {
    constexpr int kFewer = M > 4 ? 4 : M / 2;
    if (left < M || (M > 4 && left % M == 2))
      return pair_times_next<Weight, Part, kFewer>(pair, w, a, t, left, sums);
  }
  pair_times_few<Weight, Part, M>(pair, w, a, t, sums);
  return M;
}

template <class Weight>
static inline void group_times_block(const uint8_t* weight, const uint8_t* shared,
                                     const PanelTokens& a, int rows, float* sums) {
  const UnpackedPair<Weight> pair(weight);
  const PairScales<Weight, 0> first(weight, shared);
  for (int t = 0; t < rows;)
    t += pair_times_next<Weight, 0, kBlockTokens>(pair, first, a, t, rows - t, sums);
  if constexpr (Weight::parts == 2) {
    const PairScales<Weight, 1> second(weight, shared);
    for (int t = 0; t < rows;)
      t += pair_times_next<Weight, 1, kBlockTokens>(pair, second, a, t, rows - t, sums);
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
