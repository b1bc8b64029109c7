// What a format of quantized weights is to a kernel, and a pair-group times a few tokens: exact dots, scales,
// and the order in which they are loaded and added.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// A format: how a tile's dots are made and what the kernel must take off them. A group has one or two
// parts, each with a dot, a scale and a min of its own.
template <Format Name>
struct Weight {
  static constexpr Format name = Name;
  static constexpr FormatInfo layout = info(Name);
  static constexpr int bits = layout.bits, parts = layout.parts, run = layout.run;
  static constexpr int tile_bytes = layout.tile_bytes;
  static constexpr int pair_group_bytes = layout.pair_group_bytes;
  static constexpr int shared_bytes = layout.shared_bytes;
  static constexpr int run_bytes = layout.run_bytes;
  static constexpr bool has_min = layout.has_offset;
  // Codes that are places in a table: dots are of what it holds. With a lift, rows differ in what is
  // added to that: a vector of its own says so, where others have mins.
  static constexpr bool looks_up = layout.table, lifted = layout.lift != 0;
  static constexpr LookupTable table = lookup_table(layout.values);
  static constexpr bool has_second = has_min || lifted;
  // What factors multiply is turned into floats once a run: of whole rows, or where groups have so many
  // factors that this shows.
  static constexpr bool keeps_units =
      layout.two_level && (run == kWholeRow || (has_min && parts == 2));
  // int4's zero point is paid where its sums start, as what a table adds; others are subtracted from the
  // dots.
  static constexpr bool starts_low = bits == 4 && layout.zero == 8 && !looks_up;
  static constexpr int zero = starts_low || looks_up ? 0 : layout.zero;

  // Where the tiles of a pair-group begin, and what is its own. Of formats with half a line of factors
  // every second one, which begins within a line, has them in front.
  static constexpr bool halves_lines = pair_group_bytes % 64 != 0;
  SLMQ_INLINE_MEMBER static const uint8_t* tiles(const uint8_t* pair) {
    return halves_lines ? pair + reinterpret_cast<uintptr_t>(pair) % 64 : pair;
  }
  SLMQ_INLINE_MEMBER static const uint8_t* own(const uint8_t* pair) {
    const bool in_front = halves_lines && reinterpret_cast<uintptr_t>(pair) % 64 != 0;
    return in_front ? pair : pair + 2 * tile_bytes;
  }

  static inline DotStart start(const int16_t* eights, int32_t sum) {
    if (looks_up) return start_lookup(eights, sum);
    return starts_low ? start_eights(eights, sum) : start_zero();
  }
  template <int Part, int M>
  SLMQ_INLINE void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                       i32x16 (&sums)[M]) {
    if constexpr (looks_up) {
      dot_lookup<M>(tile, table, a, from, sums);
    } else if constexpr (bits == 4) {
      dot_u4<M>(tile, a, from, sums);
    } else if constexpr (bits == 8) {
      dot_u8<M>(tile, a, sums);
    } else {
      dot_planes<bits, parts == 1 ? 0 : Part, parts == 1 ? 2 : Part + 1, M>(tile, a, sums);
    }
  }
};

// A run of tokens in a panel: the entries of its first token in the current group.
struct PanelTokens {
  const int8_t *high, *low;
  const ActivationInfo* info;
  size_t group_bytes;  // to the next group

  PanelTokens(const LinearArgs& args, int row)
      : group_bytes(static_cast<size_t>(panel_rows(args.m, row)) * kActivationBytes) {
    const ActivationGroup a =
        activation_group(const_cast<void*>(args.panel), args.groups, args.m, row, 0);
    high = a.high;
    low = a.low;
    info = a.info;
  }
  inline void next_group() {
    high += group_bytes;
    low += group_bytes;
    info = reinterpret_cast<const ActivationInfo*>(reinterpret_cast<const int8_t*>(info) +
                                                   group_bytes);
  }
  // One of them in another group.
  inline PanelTokens token(int group, int t) const {
    PanelTokens a = *this;
    const size_t bytes = static_cast<size_t>(group) * group_bytes;
    a.high += bytes + t * kGroup;
    a.low += bytes + t * kGroup;
    a.info =
        reinterpret_cast<const ActivationInfo*>(reinterpret_cast<const int8_t*>(info) + bytes) + t;
    return a;
  }
};

// Sums of a part's activations: of the high plane, of the low one.
template <class Weight, int Part>
static inline int32_t part_high(const ActivationInfo& a) {
  if (Weight::parts == 1) return a.sum_high;
  return Part == 0 ? a.first_high : a.sum_high - a.first_high;
}
template <class Weight, int Part>
static inline int32_t part_low(const ActivationInfo& a) {
  const int32_t low = a.sum - 256 * a.sum_high;
  if (Weight::parts == 1) return low;
  return Part == 0 ? a.first_low : low - a.first_low;
}

// Exact dots of a part of a tile with the high planes of some tokens, and behind them the low ones of
// others, zero points paid.
template <class Weight, int Part, int Highs, int Lows>
SLMQ_INLINE void plane_dots(const uint8_t* tile, const int8_t* planes, const ActivationInfo* info,
                            i32x16 (&dots)[Highs + Lows]) {
  constexpr int M = Highs + Lows;
  DotStart start[M];
  int32_t sum[M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    const bool low = t >= Highs;
    const ActivationInfo& a = info[low ? t - Highs : t];
    sum[t] = low ? part_low<Weight, Part>(a) : part_high<Weight, Part>(a);
    start[t] = Weight::start(low ? a.eights_low : a.eights_high, sum[t]);
  }
  Weight::template dot<Part>(tile, planes, start, dots);
#pragma GCC unroll 6
  for (int t = 0; t < M && Weight::zero != 0; ++t)
    dots[t] = sub(dots[t], splat_i32(Weight::zero * sum[t]));
}
// The same of one plane of M tokens.
template <class Weight, int Part, bool Low, int M>
SLMQ_INLINE void tile_dots(const uint8_t* tile, const int8_t* plane, const ActivationInfo* info,
                           i32x16 (&dots)[M]) {
  plane_dots<Weight, Part, Low ? 0 : M, Low ? M : 0>(tile, plane, info, dots);
}

// The part's sum of activations, which a min multiplies.
template <class Weight, int Part>
SLMQ_INLINE float scaled_sum(const ActivationInfo& a) {
  if (Weight::parts == 1) return a.scaled_sum;
  const int32_t first = 256 * a.first_high + a.first_low;
  return a.scale * static_cast<float>(Part == 0 ? first : a.sum - first);
}

// What a dot adds to a sum, as the factors of one fma. Of formats with a lift min_w says whether a row has
// it: it goes to the dot.
struct Term {
  f32x16 dot, scale;
};
template <class Weight, int Part, bool Low>
SLMQ_INLINE Term scaled_dot(i32x16 dot, f32x16 scale, f32x16 min_w, const ActivationInfo& a) {
  f32x16 exact = to_f32(dot);
  if constexpr (Weight::lifted) {  // integers below 2^24 still
    const int32_t of = Low ? part_low<Weight, Part>(a) : part_high<Weight, Part>(a);
    exact = fma(min_w, splat(static_cast<float>(Weight::layout.lift * of)), exact);
  }
  return {exact, mul(scale, splat(Low ? a.scale : a.scale_high))};
}

// sum += float(dot) * (scale_w * scale_a) (+ min_w * (scale_a * sum_a)): the one epilogue of a part, for
// the high plane and, where a token has one, again for the low plane; the min counts once.
template <class Weight, int Part, bool Low>
SLMQ_INLINE f32x16 accumulate(f32x16 sum, i32x16 dot, f32x16 scale, f32x16 min_w,
                              const ActivationInfo& a) {
  const Term term = scaled_dot<Weight, Part, Low>(dot, scale, min_w, a);
  sum = fma(term.dot, term.scale, sum);
  if (Weight::has_min && !Low) sum = fma(min_w, splat(scaled_sum<Weight, Part>(a)), sum);
  return sum;
}

// Scales and mins of a part of a tile: exact products in the formats that multiply them. In place of
// mins: what accumulate() takes.
template <class Weight, int Part>
struct TileScales {
  f32x16 scale, min;
  // `own` of a pair-group, `shared`: what its run shares
  SLMQ_INLINE_MEMBER TileScales(const uint8_t* own, const uint8_t* shared, int tile) {
    const auto* halves =
        reinterpret_cast<const uint16_t*>(Weight::shared_bytes == 0 ? own : shared) + 16 * tile;
    scale = load_f16(halves);
    min = Weight::has_min ? load_f16(halves + kPairRows) : scale;
    if constexpr (Weight::layout.two_level) {
      multiply(own, tile);
    } else if (Weight::layout.offset == Offset::zero) {
      min = mul(scale, min);
    }
  }
  // The same where floats of what the run shares are at hand.
  SLMQ_INLINE_MEMBER TileScales(const uint8_t* own, const float* units, int tile) {
    static_assert(Weight::layout.two_level);
    scale = load(units + 16 * tile);
    min = Weight::has_min ? load(units + kPairRows + 16 * tile) : scale;
    multiply(own, tile);
  }

 private:
  SLMQ_INLINE_MEMBER void multiply(const uint8_t* own, int tile) {
    const auto* factors = reinterpret_cast<const int8_t*>(own) + kPairRows * Part + 16 * tile;
    i32x16 factor = load_i8(factors);
    if constexpr (Weight::lifted) {
      min = to_f32(odd(factor));
      factor = halved(factor);
    }
    scale = mul(scale, to_f32(factor));
    if (Weight::has_min) min = mul(min, to_f32(load_i8(factors + kPairRows * Weight::parts)));
  }
};

// Where a pair-group's bytes are, and what its run shares in float32, of the formats that keep it so.
template <class Weight>
struct Place {
  const uint8_t *tiles, *own, *shared;
  const float* units;

  template <int Part>
  SLMQ_INLINE_MEMBER TileScales<Weight, Part> scales(int tile) const {
    if constexpr (Weight::keeps_units) return {own, units, tile};
    return {own, shared, tile};
  }
};
template <class Weight>
struct RunUnits {
  static constexpr int kCount = !Weight::keeps_units ? 0
                                : Weight::has_min    ? 2 * kPairRows
                                                     : kPairRows;
  alignas(64) float at[kCount + 1];
  SLMQ_INLINE_MEMBER explicit RunUnits(const uint8_t* shared) {
    for (int i = 0; i < kCount; i += 16)
      store(at + i, load_f16(reinterpret_cast<const uint16_t*>(shared) + i));
  }
};

// sums[tile] += a pair-group times a plane of M tokens, exact dots first: memory is read in the order of
// its addresses, lines of tile A, lines of tile B, then scales. Hardware prefetchers follow addresses
// that rise; a compiler left to itself loads the scales first, ahead and back again in every group,
// which costs a quarter to a third of the memory's speed.
template <class Weight, int Highs, int Lows, int M>
SLMQ_INLINE void group_dots(const Place<Weight>& at, const int8_t* planes,
                            const ActivationInfo* info, i32x16 (&dots)[Weight::parts][2][M]) {
  static_assert(Highs + Lows == M);
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    const uint8_t* lines = at.tiles + tile * Weight::tile_bytes;
    plane_dots<Weight, 0, Highs, Lows>(lines, planes, info, dots[0][tile]);
    if constexpr (Weight::parts == 2)
      plane_dots<Weight, 1, Highs, Lows>(lines, planes, info, dots[1][tile]);
    forget_loads();
  }
}
template <class Weight, int Part, bool Low, int M>
SLMQ_INLINE void scale_dots(const Place<Weight>& at, const ActivationInfo* info,
                            const i32x16 (&dots)[2][M], f32x16 (&sums)[2][M]) {
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    const TileScales<Weight, Part> w = at.template scales<Part>(tile);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      f32x16& sum = sums[tile][t];
      sum = accumulate<Weight, Part, Low>(sum, dots[tile][t], w.scale, w.min, info[t]);
    }
  }
}
template <class Weight, bool Low, int M>
SLMQ_INLINE void group_times_tokens(const Place<Weight>& at, const int8_t* plane,
                                    const ActivationInfo* info, f32x16 (&sums)[2][M]) {
  i32x16 dots[Weight::parts][2][M];
  group_dots<Weight, Low ? 0 : M, Low ? M : 0>(at, plane, info, dots);
  scale_dots<Weight, 0, Low>(at, info, dots[0], sums);
  if constexpr (Weight::parts == 2) scale_dots<Weight, 1, Low>(at, info, dots[1], sums);
}

// The same with both planes of the only row, which lie behind each other. What the low one adds, terms of
// tile A and of tile B, goes to `kept`; returns its end.
static constexpr int kTermFloats = 4 * kLanes;
template <class Weight, int Part>
SLMQ_INLINE float* scale_planes(const Place<Weight>& at, const ActivationInfo& a,
                                const i32x16 (&dots)[2][2], f32x16 (&sums)[2][1], float* kept) {
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile, kept += 2 * kLanes) {
    const TileScales<Weight, Part> w = at.template scales<Part>(tile);
    f32x16& sum = sums[tile][0];
    sum = accumulate<Weight, Part, false>(sum, dots[tile][0], w.scale, w.min, a);
    const Term low = scaled_dot<Weight, Part, true>(dots[tile][1], w.scale, w.min, a);
    store(kept, low.dot);
    store(kept + kLanes, low.scale);
  }
  return kept;
}
template <class Weight>
SLMQ_INLINE float* group_times_planes(const Place<Weight>& at, const PanelTokens& a,
                                      f32x16 (&sums)[2][1], float* kept) {
  i32x16 dots[Weight::parts][2][2];
  group_dots<Weight, 1, 1>(at, a.high, a.info, dots);
  kept = scale_planes<Weight, 0>(at, *a.info, dots[0], sums, kept);
  if constexpr (Weight::parts == 2)
    kept = scale_planes<Weight, 1>(at, *a.info, dots[1], sums, kept);
  return kept;
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
