// Attention over an int4 cache. Keys and values are turned by a Hadamard matrix, which leaves their
// dots alone and spreads what stands out over all channels (Ashkboos et al., "QuaRot", 2024); then they
// are tiles of int4 weights, whose dots with planes of int8 are exact: rows of a tile of keys are
// positions, those of a tile of values channels. Queries have eight bits for each 32 channels, which
// is far finer than keys; probabilities, of which many are small, fifteen.

namespace slmq::SLMQ_ISA {

static constexpr int kInt4Tile = 256;                         // bytes of 16 rows of 32 columns
static constexpr int kPageGroups = kPagePositions / kGroup;   // of positions
static constexpr int kPartGroups = kPartPositions / kGroup;   // the same of a part
static constexpr int kMostGroups = kMaxInt8HeadDim / kGroup;  // of channels
static constexpr int kScoredQueries = kCacheRows < 4 ? kCacheRows : 4;  // that share a read of keys
static constexpr int kProbabilityQueries = kCacheRows / 2;  // of values: two planes each
static constexpr int kZero = 8;                             // the code of zero
static constexpr float kProbabilitySteps = 32512.0f;        // 127 * 256: two planes of int8

// Sylvester's matrix of 16, divided by 4: its own inverse.
struct Hadamard16 {
  alignas(64) float rows[16][16];
};
static consteval Hadamard16 hadamard16() {
  Hadamard16 matrix{};
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      int ones = 0;
      for (int bit = 1; bit < 16; bit *= 2) ones += (i & j & bit) != 0 ? 1 : 0;
      matrix.rows[i][j] = ones % 2 == 0 ? 0.25f : -0.25f;
    }
  return matrix;
}
static constexpr Hadamard16 kHadamard = hadamard16();

// 1 / sqrt(n) of a power of two.
static inline float root_of_inverse(int n) {
  float root = 1.0f;
  for (; n >= 4; n /= 4) root *= 0.5f;
  return n == 2 ? root * 0x1.6a09e6p-1f : root;
}

// Sixteen channels at a time, then as many neighbours of those as a power of two allows. Heads of
// channels that are no multiple of 16 stay as they are. Twice is once and back.
static inline void turn(float* x, int head_dim) {
  if (head_dim % 16 != 0) return;
  const int vectors = head_dim / 16;
  for (int v = 0; v < vectors; ++v) {
    f32x16 sum = mul(splat(x[16 * v]), load(kHadamard.rows[0]));
    for (int i = 1; i < 16; ++i) sum = fma(splat(x[16 * v + i]), load(kHadamard.rows[i]), sum);
    store(x + 16 * v, sum);
  }
  int together = 1;
  for (int step = 1; vectors % (2 * step) == 0; step *= 2) {
    together = 2 * step;
    for (int v = 0; v < vectors; ++v) {
      if (v / step % 2 != 0) continue;
      float *a = x + 16 * v, *b = a + 16 * step;
      const f32x16 left = load(a), right = load(b);
      store(a, add(left, right));
      store(b, sub(left, right));
    }
  }
  if (together == 1) return;
  const f32x16 norm = splat(root_of_inverse(together));
  for (int v = 0; v < vectors; ++v) store(x + 16 * v, mul(load(x + 16 * v), norm));
}

static inline int channel_groups(const AttentionShape& shape) {
  return (shape.head_dim + kGroup - 1) / kGroup;
}

// Where the tiles of a page's keys and values end, and their scales begin: of keys float16 [tile of
// positions][group of channels][16], of values float32 [position].
static inline int int4_key_bytes(const AttentionShape& shape) {
  return kPagePositions / 16 * channel_groups(shape) * kInt4Tile;
}
static inline int int4_value_bytes(const AttentionShape& shape) {
  return shape.value_stride / 16 * kPageGroups * kInt4Tile;
}

// The scale that gives what is farthest from zero, of n values (a multiple of 16), the code -8; NaN if
// one of them is not finite.
static inline float scale_to_eight(const float* x, int n) {
  f32x16 top = splat(0.0f), bottom = top, spoiled = top;
  for (int i = 0; i < n; i += 16) {
    const f32x16 v = load(x + i);
    top = max(top, v);
    bottom = max(bottom, sub(splat(0.0f), v));
    spoiled = fma(v, splat(0.0f), spoiled);
  }
  if (!(reduce_add(spoiled) == 0.0f)) return __builtin_nanf("");
  const float above = reduce_max(top), below = reduce_max(bottom);
  return (above > below ? -above : below) * 0.125f;
}

// Codes of n values, a multiple of 16; all 8, which is zero, under a scale that is none.
static inline void int4_codes(const float* x, int n, float scale, uint8_t* codes) {
  const bool some = scale - scale == 0.0f && (scale > kSmallestScaled || scale < -kSmallestScaled);
  const f32x16 inverse = splat(some ? 1.0f / scale : 0.0f);
  for (int i = 0; i < n; i += 16) {
    const f32x16 steps = clamp(mul(load(x + i), inverse), splat(-8.0f), splat(7.0f));
    store_i8(reinterpret_cast<int8_t*>(codes) + i,
             add(some ? round_to_i32(steps) : splat_i32(0), splat_i32(8)));
  }
}

static inline void put_int4_key(const AttentionShape& shape, const float* x, int slot,
                                uint8_t* keys) {
  const int groups = channel_groups(shape), tile = slot / 16, row = slot % 16;
  auto* scales = reinterpret_cast<uint16_t*>(keys + int4_key_bytes(shape));
  for (int g = 0; g < groups; ++g, x += kGroup) {
    const uint16_t half = float_to_half(scale_to_eight(x, kGroup));
    uint8_t codes[kGroup], pairs[kGroup / 2];
    int4_codes(x, kGroup, half_to_float(half), codes);
    for (int c = 0; c < kGroup / 2; ++c)
      pairs[c] = static_cast<uint8_t>(codes[c] | codes[c + kGroup / 2] << 4);
    uint8_t* to = keys + (tile * groups + g) * kInt4Tile + 4 * row;
    for (int line = 0; line < 4; ++line) __builtin_memcpy(to + 64 * line, pairs + 4 * line, 4);
    scales[(tile * groups + g) * 16 + row] = half;
  }
}

// Positions that lie sixteen apart share bytes: those of a head are written by one thread at a time.
static inline void put_int4_value(const AttentionShape& shape, const float* x, int slot,
                                  uint8_t* values) {
  const float scale = scale_to_eight(x, shape.value_stride);
  uint8_t codes[kMaxInt8HeadDim];
  int4_codes(x, shape.value_stride, scale, codes);
  const int column = slot % kGroup, shift = column / 16 * 4;
  uint8_t* to =
      values + slot / kGroup * kInt4Tile + 64 * (column % 16 / 4) + column % 4;  // of channel 0
  for (int c = 0; c < shape.value_stride; ++c) {
    uint8_t& pair = to[c / 16 * kPageGroups * kInt4Tile + c % 16 * 4];
    pair = static_cast<uint8_t>((pair & ~(15 << shift)) | codes[c] << shift);
  }
  reinterpret_cast<float*>(values + int4_value_bytes(shape))[slot] = scale;
}

// A head's channels, turned, with zeros behind them.
struct Turned {
  alignas(64) float x[kMaxInt8HeadDim];
  SLMQ_INLINE_MEMBER Turned(const AttentionShape& shape, const float* from) {
    for (int c = 0; c < channel_groups(shape) * kGroup; c += 16)
      store(x + c, c < shape.head_dim ? load_some(from + c, shape.head_dim - c) : splat(0.0f));
    turn(x, shape.head_dim);
  }
};

static void kv_append_int4(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                           int position, const float* key, const float* value) {
  uint8_t* head =
      pages[position / kPagePositions] + shape.layer_offset + kv_head * shape.head_bytes;
  const int slot = position % kPagePositions;
  put_int4_key(shape, Turned(shape, key).x, slot, head);
  put_int4_value(shape, Turned(shape, value).x, slot, head + shape.value_offset);
}

// The queries of a block in eight bits: planes [chunk][group][query of the chunk][32], so many in a
// chunk as share a read of keys.
template <class Float, class Int, class Plane>
struct Int4QueriesOf {
  Plane* planes;
  Float* scales;  // [query][kMostGroups], with what scores are multiplied by
  Int* zeros;     // in order of planes: where dots start, to pay for zero points

  Int4QueriesOf(const AttentionShape& shape, Float* prepared)
      : planes(reinterpret_cast<Plane*>(prepared)),
        scales(prepared + kMaxQueries * shape.value_stride),
        zeros(reinterpret_cast<Int*>(scales + kMaxQueries * kMostGroups)) {}
};
using Int4Queries = Int4QueriesOf<const float, const int32_t, const int8_t>;

static void prepare_int4(const AttentionShape& shape, const float* queries, int n_queries,
                         float* prepared) {
  const Int4QueriesOf<float, int32_t, int8_t> to(shape, prepared);
  const int groups = channel_groups(shape);
  for (int q = 0; q < n_queries; ++q) {
    const Turned turned(shape, queries + q * shape.value_stride);
    const int chunk = q / kScoredQueries * kScoredQueries;
    const int together = smaller(kScoredQueries, n_queries - chunk);
    for (int g = 0; g < groups; ++g) {
      const float* x = turned.x + g * kGroup;
      const Rounding rounding = rounding_to(127.0f, largest_magnitude(x, kGroup));
      const int at = chunk * groups + g * together + q - chunk;
      int8_t* plane = to.planes + at * kGroup;
      for (int c = 0; c < kGroup; c += 16)
        store_i8(plane + c, round_steps(load(x + c), rounding.inverse, 127.0f));
      to.scales[q * kMostGroups + g] = rounding.scale * score_factor(shape);
      to.zeros[at] = -kZero * PlaneSums(plane).all;
    }
  }
}

template <int M, int Tiles>
static inline void score_int4(const AttentionShape& shape, const uint8_t* keys,
                              const Int4Queries& queries, int first, int tile, int tile_end,
                              FetchAhead::Lines fetched, float* scores) {
  const int groups = channel_groups(shape), scales_at = int4_key_bytes(shape);
  const auto* key_scales = reinterpret_cast<const uint16_t*>(keys + scales_at);
  Spread ahead(fetched, 16 / Tiles * groups);
  for (; tile + Tiles <= tile_end; tile += Tiles) {
    f32x16 sums[Tiles][M];
#pragma GCC unroll 4
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 4
      for (int q = 0; q < M; ++q) sums[i][q] = splat(0.0f);
    for (int g = 0; g < groups; ++g) {
      const int place = tile * groups + g, at = first * groups + g * M;
      i32x16 dots[Tiles][M];
#pragma GCC unroll 4
      for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 4
        for (int q = 0; q < M; ++q) dots[i][q] = splat_i32(queries.zeros[at + q]);
      add_u4<Tiles, M>(keys + place * kInt4Tile, groups * kInt4Tile, queries.planes + at * kGroup,
                       ahead, dots);
#pragma GCC unroll 4
      for (int i = 0; i < Tiles; ++i) {
        const f32x16 scale = load_f16(key_scales + 16 * (place + i * groups));
        const float* of_query = queries.scales + first * kMostGroups + g;
#pragma GCC unroll 4
        for (int q = 0; q < M; ++q)
          sums[i][q] =
              fma(to_f32(dots[i][q]), mul(scale, splat(of_query[q * kMostGroups])), sums[i][q]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 4
      for (int q = 0; q < M; ++q) store(scores + q * kScoreStride + 16 * (tile + i), sums[i][q]);
  }
  if constexpr (Tiles > 1)
    score_int4<M, Tiles / 2>(shape, keys, queries, first, tile, tile_end, {}, scores);
}

static void score_page_int4(const PartView& view, int page, const Int4Queries& queries,
                            FetchAhead* ahead, const Rows& rows) {
  const int start = page * kPagePositions;
  for (int q = 0; q < rows.count; q += kScoredQueries) {
    const int n = smaller(kScoredQueries, rows.count - q);
    const Range seen = within_page(rows.united(q, n), page);
    if (empty(seen)) continue;
    with_count(n, [&](auto count) {
      constexpr int given = decltype(count)::value;
      constexpr int M = given < kScoredQueries ? given : kScoredQueries, kTiles = cache_tiles(M);
      const FetchAhead::Lines fetched = q == 0 ? ahead->for_loop() : FetchAhead::Lines{};
      score_int4<M, kTiles>(view.shape, view.keys(page), queries, q, (seen.begin - start) / 16,
                            (seen.end - start + 15) / 16, fetched, rows.scores_of(q) + start);
    });
  }
}

// Weighed probabilities of a few queries as two planes each, [group of positions][query][plane][32], zero
// where a query sees nothing.
struct Int4Probabilities {
  int8_t* planes;
  float scales[kProbabilityQueries];
  int32_t zeros[kProbabilityQueries];  // where sums start, to pay for zero points

  // largest: of the queries of the call.
  SLMQ_INLINE_MEMBER Int4Probabilities(const Rows& rows, const float* largest, int first, int n,
                                       Range all, int8_t* to, FetchAhead* ahead)
      : planes(to) {
    Asking asking(ahead, FetchAhead::kRounding / 2);
    for (int i = 0; i < n; ++i) {
      const Range seen = rows.seen[first + i];
      const float* scores = rows.scores_of(first + i);
      const Rounding rounding = rounding_to(kProbabilitySteps, largest[first + i]);
      scales[i] = rounding.scale;
      i32x16 sums = splat_i32(0);
      for (int g = all.begin / kGroup; g * kGroup < all.end; ++g) {
        asking.ask();
        split_group(scores + g * kGroup, {seen.begin - g * kGroup, seen.end - g * kGroup},
                    rounding.inverse, planes + (g * n + i) * 2 * kGroup, &sums);
      }
      int32_t lanes[16];
      store_i32(lanes, sums);
      zeros[i] = 0;
      for (const int32_t lane : lanes) zeros[i] -= kZero * lane;
    }
    asking.finish();
  }

 private:
  // 32 values as planes of 256 * high + low; what they round to is added to lanes of the sums.
  SLMQ_INLINE_MEMBER static void split_group(const float* from, Range seen, float inverse,
                                             int8_t* planes, i32x16* sums) {
    i32x16 rounded[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const bool sees = 16 * i + 16 > seen.begin && 16 * i < seen.end;
      const f32x16 w = sees ? load(from + 16 * i) : splat(0.0f);
      // At most the steps and a rounding error; in this order a NaN becomes least.
      rounded[i] = round_to_i32(max(mul(w, splat(inverse)), splat(-kProbabilitySteps)));
      *sums = add(*sums, rounded[i]);
    }
    split_planes(rounded[0], rounded[1], planes);
  }
};

// Values of N queries, from a tile of channels on.
template <int N, int Tiles>
static inline void add_int4(const PartView& view, const Rows& rows, const Int4Probabilities& p,
                            int first, int tile, FetchAhead* ahead) {
  constexpr int kRows = 2 * N, kStep = kPageGroups * kInt4Tile;
  const Range all = rows.united(first, N);
  const int tiles = view.shape.value_stride / 16, parts = larger(1, tiles / Tiles);
  for (; tile + Tiles <= tiles; tile += Tiles) {
    i32x16 sums[Tiles][kRows];
#pragma GCC unroll 4
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row)
        sums[i][row] = splat_i32(row % 2 == 0 ? 0 : p.zeros[row / 2]);
    for (int page = all.begin / kPagePositions; page * kPagePositions < all.end; ++page) {
      const Range seen = within_page(all, page);
      const uint8_t* values = view.values(page) + tile * kStep;
      Spread spread(ahead == nullptr ? FetchAhead::Lines{} : ahead->for_loop(parts),
                    4 * kPageGroups);
      for (int g = seen.begin / kGroup; g * kGroup < seen.end; ++g)
        add_u4(values + g % kPageGroups * kInt4Tile, kStep, p.planes + g * kRows * kGroup, spread,
               sums);
    }
#pragma GCC unroll 4
    for (int q = 0; q < N; ++q)
#pragma GCC unroll 4
      for (int i = 0; i < Tiles; ++i) {
        const i32x16 sum = add(times_256(sums[i][2 * q]), sums[i][2 * q + 1]);
        store(rows.values_of(first + q) + 16 * (tile + i), mul(to_f32(sum), splat(p.scales[q])));
      }
  }
  if constexpr (Tiles > 1) add_int4<N, Tiles / 2>(view, rows, p, first, tile, ahead);
}

template <int N>
static void values_int4(const PartView& view, const Rows& rows, const float* largest, int first,
                        int8_t* planes, FetchAhead* ahead) {
  const Range all = rows.united(first, N);
  if (empty(all)) return;
  const Int4Probabilities p(rows, largest, first, N, all, planes, ahead);
  add_int4<N, cache_tiles(2 * N)>(view, rows, p, first, 0, ahead);
  for (int q = first; q < first + N; ++q)
    if (!empty(rows.seen[q])) turn(rows.values_of(q), view.shape.head_dim);
}

static void attend_int4(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                        const float* prepared, const Sight* sights, int n_queries, int part,
                        const Following& following, float* states, float* scratch) {
  Range seen[kMaxQueries];
  float largest[kMaxQueries];
  const Rows rows{seen, n_queries, scratch, states, kStateHeader + shape.value_stride};
  start_states(sights, part, rows, seen);
  const Range all = rows.united();
  if (empty(all)) return;
  const PartView view = view_part(shape, pages, kv_head, part);
  const int first = all.begin / kPagePositions, last = (all.end - 1) / kPagePositions;
  FetchAhead ahead(view, first, last, n_queries, following);
  const Int4Queries of(shape, prepared);
  for (int page = first; page <= last; ++page) score_page_int4(view, page, of, &ahead, rows);
  for (int q = 0; q < n_queries; ++q) {
    const WeighByScales weighed =
        soften(shape.softcap, sights[q], part, rows.scores_of(q), seen[q], rows.state_of(q), &ahead,
               WeighByScales{view, int4_value_bytes(shape)});
    largest[q] = weighed.found();
  }
  auto* planes = reinterpret_cast<int8_t*>(scratch + kMaxQueries * kScoreStride);
  for (int q = 0; q < n_queries; q += kProbabilityQueries)
    with_count(smaller(kProbabilityQueries, n_queries - q), [&](auto count) {
      constexpr int given = decltype(count)::value;
      constexpr int N = given < kProbabilityQueries ? given : kProbabilityQueries;
      values_int4<N>(view, rows, largest, q, planes, q == 0 ? &ahead : nullptr);
    });
  ahead.finish();
}

}  // namespace slmq::SLMQ_ISA
