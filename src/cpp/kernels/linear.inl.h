// gemv and gemm for quantized weights. Up to kTokens tokens: one loop over groups that unpacks weights
// as it reads them and keeps all sums at hand. More: blocks of sixteen tokens, for which a pair-group is
// unpacked once (group_times_block, by the ISA's registers in linear_block.inl.h or linear_wide.inl.h),
// or, up to kPackedTokens, again for every few of them: so often it costs less than to store and load.

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
  // Codes that are places in a table: dots are of what it holds, plus 128. With a lift, rows differ in
  // what must be taken off: a vector of its own says so, where others have mins.
  static constexpr bool looks_up = layout.table, lifted = layout.lift != 0;
  static constexpr LookupTable table = lookup_table(layout.values);
  static constexpr bool has_second = has_min || lifted;
  // int4's zero point is paid where its sums start; others are subtracted from the dots.
  static constexpr bool starts_low = bits == 4 && layout.zero == 8 && !looks_up;
  static constexpr int zero = starts_low || lifted ? 0 : looks_up ? 128 : layout.zero;

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
    return starts_low ? start_eights(eights, sum) : start_zero();
  }
  template <int Part, int M>
  SLMQ_INLINE void dot(const uint8_t* tile, const int8_t* a, const DotStart (&from)[M],
                       i32x16 (&sums)[M]) {
    if constexpr (looks_up) {
      dot_lookup<M>(tile, table, a, sums);
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

// Exact dots of a part of a tile with a plane of M tokens, zero points paid.
template <class Weight, int Part, bool Low, int M>
SLMQ_INLINE void tile_dots(const uint8_t* tile, const int8_t* plane, const ActivationInfo* info,
                           i32x16 (&dots)[M]) {
  DotStart start[M];
  int32_t sum[M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    const ActivationInfo& a = info[t];
    sum[t] = Low ? part_low<Weight, Part>(a) : part_high<Weight, Part>(a);
    start[t] = Weight::start(Low ? a.eights_low : a.eights_high, sum[t]);
  }
  Weight::template dot<Part>(tile, plane, start, dots);
#pragma GCC unroll 6
  for (int t = 0; t < M && Weight::zero != 0; ++t)
    dots[t] = sub(dots[t], splat_i32(Weight::zero * sum[t]));
}

// The part's sum of activations, which a min multiplies.
template <class Weight, int Part>
SLMQ_INLINE float scaled_sum(const ActivationInfo& a) {
  if (Weight::parts == 1) return a.scaled_sum;
  const int32_t first = 256 * a.first_high + a.first_low;
  return a.scale * static_cast<float>(Part == 0 ? first : a.sum - first);
}

// sum += float(dot) * (scale_w * scale_a) (+ min_w * (scale_a * sum_a)): the one epilogue of a part, for
// the high plane and, where a token has one, again for the low plane; the min counts once. Of formats
// with a lift min_w is the lift less 128, and goes to the dot.
template <class Weight, int Part, bool Low>
SLMQ_INLINE f32x16 accumulate(f32x16 sum, i32x16 dot, f32x16 scale, f32x16 min_w,
                              const ActivationInfo& a) {
  f32x16 exact = to_f32(dot);
  if constexpr (Weight::lifted) {  // integers below 2^24 still
    const int32_t of = Low ? part_low<Weight, Part>(a) : part_high<Weight, Part>(a);
    exact = fma(min_w, splat(static_cast<float>(of)), exact);
  }
  sum = fma(exact, mul(scale, splat(Low ? a.scale : a.scale_high)), sum);
  if (Weight::has_min && !Low) sum = fma(min_w, splat(scaled_sum<Weight, Part>(a)), sum);
  return sum;
}

// Scales and mins of a part of a tile: exact products in the formats that multiply them. In place of
// mins: what accumulate() takes.
template <class Weight, int Part>
struct TileScales {
  f32x16 scale, min;
  // `shared`: what the run of this pair-group shares
  SLMQ_INLINE_MEMBER TileScales(const uint8_t* pair, const uint8_t* shared, int tile) {
    const uint8_t* own = Weight::own(pair);
    const auto* halves =
        reinterpret_cast<const uint16_t*>(Weight::shared_bytes == 0 ? own : shared) + 16 * tile;
    scale = load_f16(halves);
    min = Weight::has_min ? load_f16(halves + kPairRows) : scale;
    if constexpr (Weight::layout.two_level) {
      const auto* factors = reinterpret_cast<const int8_t*>(own) + kPairRows * Part + 16 * tile;
      i32x16 factor = load_i8(factors);
      if constexpr (Weight::lifted) {
        const i32x16 half = halved(factor);
        const f32x16 bit = to_f32(sub(factor, add(half, half)));
        min = fma(bit, splat(static_cast<float>(Weight::layout.lift)), splat(-128.0f));
        factor = half;
      }
      scale = mul(scale, to_f32(factor));
      if (Weight::has_min) min = mul(min, to_f32(load_i8(factors + kPairRows * Weight::parts)));
    } else if (Weight::layout.offset == Offset::zero) {
      min = mul(scale, min);
    }
  }
};

// sums[tile] += a pair-group times a plane of M tokens, exact dots first: memory is read in the order of
// its addresses, lines of tile A, lines of tile B, then scales. Hardware prefetchers follow addresses
// that rise; a compiler left to itself loads the scales first, ahead and back again in every group,
// which costs a quarter to a third of the memory's speed.
template <class Weight, int Part, bool Low, int M>
SLMQ_INLINE void scale_dots(const uint8_t* pair, const uint8_t* shared, const ActivationInfo* info,
                            const i32x16 (&dots)[2][M], f32x16 (&sums)[2][M]) {
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    const TileScales<Weight, Part> w(pair, shared, tile);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      f32x16& sum = sums[tile][t];
      sum = accumulate<Weight, Part, Low>(sum, dots[tile][t], w.scale, w.min, info[t]);
    }
  }
}
template <class Weight, bool Low, int M>
SLMQ_INLINE void group_times_tokens(const uint8_t* pair, const uint8_t* shared, const int8_t* plane,
                                    const ActivationInfo* info, f32x16 (&sums)[2][M]) {
  i32x16 dots[Weight::parts][2][M];
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    const uint8_t* lines = Weight::tiles(pair) + tile * Weight::tile_bytes;
    tile_dots<Weight, 0, Low, M>(lines, plane, info, dots[0][tile]);
    if constexpr (Weight::parts == 2)
      tile_dots<Weight, 1, Low, M>(lines, plane, info, dots[1][tile]);
    forget_loads();
  }
  scale_dots<Weight, 0, Low, M>(pair, shared, info, dots[0], sums);
  if constexpr (Weight::parts == 2)
    scale_dots<Weight, 1, Low, M>(pair, shared, info, dots[1], sums);
}

// Where tokens of a panel block have a low plane, group by group: 16 * group + token.
struct LowPlanes {
  static_assert(kPanelRows == 16 && 16 * kMaxGroups <= 65536);
  int count = 0;
  uint16_t at[16 * kMaxGroups];
  SLMQ_INLINE_MEMBER LowPlanes(const LinearArgs& args, int row) {
    const int rows = panel_rows(args.m, row);
    PanelTokens a(args, row);
    for (int g = 0; g < args.groups; ++g) {
      uint32_t mask = a.info->wide;
      for (int t = 0; t < rows; ++t, mask >>= 1) {  // no branch: it could not be predicted
        at[count] = static_cast<uint16_t>(16 * g + t);
        count += static_cast<int>(mask & 1);
      }
      a.next_group();
    }
  }
};

// sums[token][32 rows] += a pair-group times the low planes of M neighbouring tokens
template <class Weight, int M>
SLMQ_INLINE void add_low_tokens(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                float* sums) {
  f32x16 sum[2][M];
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    sum[0][t] = load(sums + t * kPairRows);
    sum[1][t] = load(sums + t * kPairRows + 16);
  }
  group_times_tokens<Weight, true, M>(pair, shared, a.low, a.info, sum);
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    store(sums + t * kPairRows, sum[0][t]);
    store(sums + t * kPairRows + 16, sum[1][t]);
  }
}

// sums[token][32 rows] += a pair times the low planes, behind all the high ones. The weights that they
// meet are unpacked again, from a cache. A channel that stands out does so in most tokens: neighbours
// share that work.
template <class Weight>
[[gnu::noinline]] static void add_low_planes(const LinearArgs& args, const uint8_t* weight, int row,
                                             const LowPlanes& low, float* sums) {
  const PanelTokens first(args, row);
  for (int i = 0; i < low.count;) {
    const int group = low.at[i] / 16, t = low.at[i] % 16;
    const int in_run = Weight::run == kWholeRow ? args.groups : Weight::run;
    const uint8_t* run = weight + static_cast<size_t>(group / in_run) *
                                      (in_run * Weight::pair_group_bytes + Weight::shared_bytes);
    const uint8_t* pair = run + group % in_run * Weight::pair_group_bytes;
    const uint8_t* shared = run + in_run * Weight::pair_group_bytes;
    const PanelTokens a = first.token(group, t);
    float* to = sums + t * kPairRows;
    const int last = i + kTokens - 1;  // it is the last of as many neighbours if none is left out
    if (t + kTokens <= 16 && last < low.count && low.at[last] == low.at[i] + kTokens - 1) {
      add_low_tokens<Weight, kTokens>(pair, shared, a, to);
      i += kTokens;
    } else {
      add_low_tokens<Weight, 1>(pair, shared, a, to);
      ++i;
    }
  }
}

// y = sums (+ bias) (+ add), columns 16 * half_pair .. + 15
static inline void write_outputs(const LinearArgs& args, int row, int half_pair, f32x16 value) {
  const size_t column = static_cast<size_t>(half_pair) * 16;
  if (args.bias != nullptr) value = add(value, load(args.bias + column));
  if (args.add != nullptr) {
    value = add(value, load(args.add + static_cast<size_t>(row) * args.add_stride + column));
  }
  store(args.y + static_cast<size_t>(row) * args.y_stride + column, value);
}

// Fetches what will be read so far behind p, of the next pairs too. These functions must melt into their
// callers: GCC drops calls of functions that do nothing but prefetch.
SLMQ_INLINE void fetch_ahead(const void* p, int bytes, Ahead ahead) {
  const auto* lines = static_cast<const uint8_t*>(p) + ahead.bytes;
  if (ahead.bytes == 0) return;
  if (ahead.second_level) {
    for (int line = 0; line < bytes; line += 64) prefetch_second_level(lines + line);
  } else {
    for (int line = 0; line < bytes; line += 64) prefetch(lines + line);
  }
}
// Scales that a run shares lie behind it and are needed with its first group: they must be fetched a
// run earlier, whatever else is.
template <class Weight>
SLMQ_INLINE void fetch_shared(const uint8_t* shared, int in_run, Ahead ahead) {
  const int run_bytes = in_run * Weight::pair_group_bytes + Weight::shared_bytes;
  if (ahead.bytes < run_bytes) ahead = {run_bytes, false};
  fetch_ahead(shared, Weight::shared_bytes, ahead);
}

SLMQ_INLINE void fetch_beside(const LinearArgs& args, int pair) {
  if (args.beside == nullptr) return;
  const uint8_t* lines = args.beside + static_cast<size_t>(pair) * args.beside_bytes;
  for (int line = 0; line < args.beside_bytes; line += 64) prefetch(lines + line);
}

// A pair times all of M tokens. Apart, as pair_times_block below: each loop has the registers for itself.
template <class Weight, int M>
[[gnu::noinline]] static void pair_times_tokens(const LinearArgs& args, const uint8_t* weight,
                                                int pair, const LowPlanes& low) {
  f32x16 sums[2][M];
  PanelTokens a(args, 0);
  const uint8_t* begin = weight;
  const Ahead ahead = args.ahead;
  const int groups = args.groups;
  // Spelled out, not asked of a function: only a literal keeps a compiler for ARM from loading shared
  // scales before the lines.
  const int in_run = Weight::run == kWholeRow ? groups : Weight::run;
#pragma GCC unroll 6  // every loop over sums, or they live in memory
  for (int t = 0; t < M; ++t) sums[0][t] = sums[1][t] = splat(0.0f);
  for (int g = 0; g < groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
    if constexpr (Weight::shared_bytes != 0) fetch_shared<Weight>(shared, in_run, ahead);
#pragma GCC unroll 1
    for (int i = 0; i < in_run; ++i) {
      fetch_ahead(weight, Weight::pair_group_bytes, ahead);
      group_times_tokens<Weight, false, M>(weight, shared, a.high, a.info, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
  if (low.count != 0) {
    alignas(64) float rows[M * kPairRows];
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      store(rows + t * kPairRows, sums[0][t]);
      store(rows + t * kPairRows + 16, sums[1][t]);
    }
    add_low_planes<Weight>(args, begin, 0, low, rows);
#pragma GCC unroll 6
    for (int t = 0; t < M; ++t) {
      sums[0][t] = load(rows + t * kPairRows);
      sums[1][t] = load(rows + t * kPairRows + 16);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < M; ++t) {
    write_outputs(args, t, 2 * pair, sums[0][t]);
    write_outputs(args, t, 2 * pair + 1, sums[1][t]);
  }
}

// At most M tokens, the most that stay in registers.
template <class Weight, int M>
static void linear_few(const LinearArgs& args, int pair_begin, int pair_end) {
  if constexpr (M > 1) {
    if (args.m < M) return linear_few<Weight, M - 1>(args, pair_begin, pair_end);
  }
  const size_t bytes = pair_bytes(Weight::name, args.groups);
  const LowPlanes low(args, 0);
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    fetch_beside(args, pair);
    pair_times_tokens<Weight, M>(args, args.weight + pair * bytes, pair, low);
  }
}

// sums[token][32 rows] += a pair-group times the high, or low, planes of a panel block
template <class Weight, bool Packed, bool Low>
SLMQ_INLINE void group_times_block(const uint8_t* pair, const uint8_t* shared, const PanelTokens& a,
                                   int rows, float* sums);

// The same as add_low_planes() where all of them are there: an unpacked weight meets all tokens.
template <class Weight, bool Packed>
[[gnu::noinline]] static void add_all_low_planes(const LinearArgs& args, const uint8_t* weight,
                                                 int row, float* sums) {
  const int rows = panel_rows(args.m, row);
  const int in_run = Weight::run == kWholeRow ? args.groups : Weight::run;
  PanelTokens a(args, row);
  for (int g = 0; g < args.groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
    for (int i = 0; i < in_run; ++i) {
      group_times_block<Weight, Packed, true>(weight, shared, a, rows, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
}

template <class Weight, bool Packed>
[[gnu::noinline]] static void pair_times_block(const LinearArgs& args, const uint8_t* weight,
                                               int pair, int row, const LowPlanes& low) {
  alignas(64) float sums[kPanelRows * kPairRows];
  const int rows = panel_rows(args.m, row);
  const uint8_t* begin = weight;
  const Ahead ahead = args.ahead;
  const int groups = args.groups, in_run = Weight::run == kWholeRow ? groups : Weight::run;
  PanelTokens a(args, row);
  for (int i = 0; i < rows * kPairRows; i += 16) store(sums + i, splat(0.0f));
  for (int g = 0; g < groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
#pragma GCC unroll 1
    for (int i = 0; i < in_run; ++i) {
      fetch_ahead(weight, Weight::pair_group_bytes, ahead);
      group_times_block<Weight, Packed, false>(weight, shared, a, rows, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
  if (low.count == rows * groups) {
    add_all_low_planes<Weight, Packed>(args, begin, row, sums);
  } else {
    add_low_planes<Weight>(args, begin, row, low, sums);
  }
  for (int t = 0; t < rows; ++t) {
    write_outputs(args, row + t, 2 * pair, load(sums + kPairRows * t));
    write_outputs(args, row + t, 2 * pair + 1, load(sums + kPairRows * t + 16));
  }
}

// Rows outside, pairs inside: the weights of a chunk and a block of activations stay in the
// second-level cache, and the activations of a long prompt are read once a chunk.
template <class Weight, bool Packed>
static void linear_blocks(const LinearArgs& args, int pair_begin, int pair_end) {
  const size_t bytes = pair_bytes(Weight::name, args.groups);
  for (int row = 0; row < args.m; row += kPanelRows) {
    const LowPlanes low(args, row);
    for (int pair = pair_begin; pair < pair_end; ++pair)
      pair_times_block<Weight, Packed>(args, args.weight + pair * bytes, pair, row, low);
  }
}

template <class Weight>
static void linear(const LinearArgs& args, int pair_begin, int pair_end) {
  if (args.m <= kTokens) return linear_few<Weight, kTokens>(args, pair_begin, pair_end);
  if constexpr (kPackedTokens > 0 && Weight::bits == 4) {
    if (args.m <= kPackedTokens) return linear_blocks<Weight, true>(args, pair_begin, pair_end);
  }
  linear_blocks<Weight, false>(args, pair_begin, pair_end);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
