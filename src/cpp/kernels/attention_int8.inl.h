// Attention over an int8 cache, in integers: queries and probabilities are rounded to sixteen bits,
// so that their dots with keys and values are exact on every ISA, in any order.
//
// The scale of a key belongs to its score; the scale of a value goes into its probability, which is
// rounded after that. Codes are 128 more than what they mean, and lie as in tiles of int8 weights: four
// channels of a key, or four positions of a value, are a lane. Factors (attention_planes.inl.h or
// attention_words.inl.h) says how sixteen bits meet them.

namespace slmq::SLMQ_ISA {

static constexpr int kInt8Zero = 128;                   // the code of zero
static constexpr int kValueTile = kPagePositions * 16;  // bytes of sixteen channels of a page
static constexpr float kSmallestScaled = 1e-30f;        // steps / largest must not overflow

// Lines of sixteen positions' keys; blocks of factors of a query.
static inline int key_lines(const AttentionShape& shape) { return (shape.head_dim + 3) / 4; }
static inline int query_blocks(const AttentionShape& shape) {
  return (shape.value_stride + kPagePositions - 1) / kPagePositions;
}

// Where the scales of 64 keys lie.
static inline const float* key_scales(const PartView& view, int page) {
  return reinterpret_cast<const float*>(view.values(page)) - kPagePositions;
}

// n values at any address, zeros behind them
static inline f32x16 load_some(const float* p, int n) {
  return n >= 16 ? load(p) : load_tail(p, n, 0.0f);
}

// The largest magnitude of n values; NaN if one of them is not finite
static inline float largest_magnitude(const float* x, int n) {
  f32x16 largest = splat(0.0f), spoiled = largest;
  for (int i = 0; i < n; i += 16) {
    const f32x16 v = load_some(x + i, n - i);
    largest = max(largest, abs(v));
    spoiled = fma(v, splat(0.0f), spoiled);
  }
  return reduce_add(spoiled) == 0.0f ? reduce_max(largest) : __builtin_nanf("");
}

// What multiplies values of this largest magnitude to reach `steps`, and the scale that undoes it
struct Rounding {
  float inverse, scale;
};
static inline Rounding rounding_to(float steps, float largest) {
  if (largest < kSmallestScaled) return {0.0f, 0.0f};
  return {steps / largest, largest / steps};
}
static inline i32x16 round_steps(f32x16 x, float inverse, float steps) {
  return round_to_i32(clamp(mul(x, splat(inverse)), splat(-steps), splat(steps)));
}

// x, and zeros up to `padded`, as codes at to[i / 16 * tile_step + i % 16 / four * step + i % four]; returns
// the scale
static inline float put_int8(const float* x, int n, int padded, int tile_step, int four, int step,
                             uint8_t* to) {
  const Rounding rounding = rounding_to(127.0f, largest_magnitude(x, n));
  for (int i = 0; i < padded; i += 16) {
    int8_t rounded[16];
    store_i8(rounded, round_steps(load_some(x + i, n - i), rounding.inverse, 127.0f));
    for (int j = 0; j < smaller(padded - i, 16); ++j)
      to[i / 16 * tile_step + j / four * step + j % four] =
          static_cast<uint8_t>(rounded[j] + kInt8Zero);
  }
  return rounding.scale;
}

static void kv_append_int8(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                           int position, const float* key, const float* value) {
  uint8_t* head =
      pages[position / kPagePositions] + shape.layer_offset + kv_head * shape.head_bytes;
  const int slot = position % kPagePositions, n = shape.head_dim, lines = key_lines(shape);
  uint8_t* keys = head + slot / 16 * 64 * lines + slot % 16 * 4;
  uint8_t* values = head + shape.value_offset + slot / 4 * 64 + slot % 4;
  auto* scales = reinterpret_cast<float*>(head + shape.value_offset);
  scales[slot - kPagePositions] = put_int8(key, n, 4 * lines, 4 * 64, 4, 64, keys);
  scales[kPagePositions * shape.value_stride / 4 + slot] =
      put_int8(value, n, shape.value_stride, kValueTile, 1, 4, values);
}

// Rounded queries. Factors of as many as share a load are a chunk: blocks of 64 channels.
template <class Float, class Int, class Byte>
struct Int8QueriesOf {
  Float* scales;  // [kMaxQueries], with what scores are multiplied by
  Int* starts;    // the same, what pays for the codes' 128
  Byte* factors;

  Int8QueriesOf(Float* prepared)
      : scales(prepared),
        starts(reinterpret_cast<Int*>(prepared + kMaxQueries)),
        factors(reinterpret_cast<Byte*>(prepared + 2 * kMaxQueries)) {}
  // Where the factors of a chunk begin, whose first query is q.
  static int chunk_at(const AttentionShape& shape, int q) {
    constexpr int kRows = Factors::query_rows(Factors::kQueries);
    return q / Factors::kQueries * kRows * query_blocks(shape) * Factors::kRowBytes;
  }
};
using Int8Queries = Int8QueriesOf<const float, const int32_t, const int8_t>;

static void prepare_int8(const AttentionShape& shape, const float* queries, int n_queries,
                         float* prepared) {
  const Int8QueriesOf<float, int32_t, int8_t> to(prepared);
  const int stride = shape.value_stride;
  for (int q = 0; q < n_queries; ++q, queries += stride) {
    const Rounding rounding = rounding_to(32767.0f, largest_magnitude(queries, stride));
    to.scales[q] = rounding.scale * score_factor(shape);
    const int first = q / Factors::kQueries * Factors::kQueries;
    const int n = smaller(Factors::kQueries, n_queries - first);
    int8_t* block = to.factors + to.chunk_at(shape, first);
    i32x16 sum = splat_i32(0);
    for (int c = 0; c < stride; c += kPagePositions) {
      int32_t columns[kPagePositions] = {};
      for (int i = 0; i < smaller(kPagePositions, stride - c); i += 16) {
        const i32x16 steps = round_steps(load(queries + c + i), rounding.inverse, 32767.0f);
        sum = add(sum, steps);
        store_i32(columns + i, steps);
      }
      Factors::put_query(columns, shape.head_dim - c, q - first, n, block);
      block += Factors::query_rows(n) * Factors::kRowBytes;
    }
    to.starts[q] = -kInt8Zero * reduce_add(sum);
  }
}

// Scores of N queries, the first of which begins a chunk, with some tiles of a page.
template <int N, int Tiles>
static inline void score_int8(const AttentionShape& shape, const uint8_t* keys,
                              const float* key_scales, const Int8Queries& queries, int first,
                              int tile, int tile_end, FetchAhead::Lines fetched, float* scores) {
  constexpr int kRows = Factors::query_rows(N);
  const int lines = key_lines(shape);
  const int8_t* factors = queries.factors + queries.chunk_at(shape, first);
  Spread ahead(fetched, 4 / Tiles * lines);
  for (; tile + Tiles <= tile_end; tile += Tiles) {
    i32x16 sums[Tiles][kRows];
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) Factors::start(queries.starts + first, sums[t]);
    add_fours(keys + tile * 64 * lines, 64 * lines, lines, factors, ahead, sums);
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) {
      const f32x16 scale = load(key_scales + (tile + t) * 16);
#pragma GCC unroll 8
      for (int q = 0; q < N; ++q) {
        const i32x16 dot = Factors::query_dot(sums[t], q, queries.starts + first);
        store(scores + q * kScoreStride + (tile + t) * 16,
              mul(mul(to_f32(dot), scale), splat(queries.scales[first + q])));
      }
    }
  }
  if constexpr (Tiles > 1)
    score_int8<N, Tiles / 2>(shape, keys, key_scales, queries, first, tile, tile_end, {}, scores);
}

static void score_page_int8(const PartView& view, int page, const Int8Queries& queries,
                            FetchAhead* ahead, const Rows& rows) {
  const int start = page * kPagePositions;
  for (int q = 0; q < rows.count; q += Factors::kQueries) {
    const int n = smaller(Factors::kQueries, rows.count - q);
    const Range seen = within_page(rows.united(q, n), page);
    if (empty(seen)) continue;
    with_count(n, [&](auto count) {
      constexpr int given = decltype(count)::value;
      constexpr int N = given < Factors::kQueries ? given : Factors::kQueries;
      constexpr int kTiles = Factors::tiles_beside(Factors::query_rows(N));
      const FetchAhead::Lines fetched = q == 0 ? ahead->for_loop() : FetchAhead::Lines{};
      score_int8<N, kTiles>(view.shape, view.keys(page), key_scales(view, page), queries, q,
                            (seen.begin - start) / 16, (seen.end - start + 15) / 16, fetched,
                            rows.scores_of(q) + start);
    });
  }
}

// Probabilities times the scales of their values, and the largest magnitude of those.
struct WeighByScales {
  const PartView& view;
  const int scales_at;  // behind the values of a page
  f32x16 largest = splat(0.0f), spoiled = splat(0.0f);

  template <int N>
  SLMQ_INLINE_MEMBER void weigh(int position, f32x16 (&p)[N]) const {
    const auto at = static_cast<unsigned>(position);
    const float* scales =
        reinterpret_cast<const float*>(view.values(at / kPagePositions) + scales_at) +
        at % kPagePositions;
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) p[i] = mul(p[i], load(scales + 16 * i));
  }
  template <int N>
  SLMQ_INLINE_MEMBER void see(const f32x16 (&weighed)[N]) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      spoiled = fma(weighed[i], splat(0.0f), spoiled);
      largest = max(largest, abs(weighed[i]));
    }
  }
  // NaN if a scale or a probability is.
  float found() const {
    return reduce_add(spoiled) == 0.0f ? reduce_max(largest) : __builtin_nanf("");
  }
};

// Weighed probabilities of a few queries to integers, as factors of pages [first, last]: zero where a query
// sees nothing.
struct Int8Probabilities {
  int8_t* blocks;  // [page]
  float scales[Factors::kQueries];
  int32_t starts[Factors::kQueries];

  // largest: of the queries of the call.
  SLMQ_INLINE_MEMBER Int8Probabilities(const Rows& rows, const float* largest, int at, int n,
                                       int first, int last, FetchAhead* ahead, int8_t* to)
      : blocks(to) {
    for (int i = 0; i < n; ++i) {
      const Rounding rounding = rounding_to(32767.0f, largest[at + i]);
      Asking asking(ahead, FetchAhead::kRounding);
      i32x16 sum = splat_i32(0);
      for (int page = first; page <= last; ++page) {
        asking.ask();
        put_page(rows.scores_of(at + i), rows.seen[at + i], page, rounding.inverse, i, n,
                 blocks + (page - first) * Factors::value_rows(n) * Factors::kRowBytes, &sum);
      }
      asking.finish();
      scales[i] = rounding.scale;
      starts[i] = -kInt8Zero * reduce_add(sum);
    }
  }

 private:
  SLMQ_INLINE_MEMBER static void put_page(const float* scores, Range seen, int page, float inverse,
                                          int q, int n, int8_t* block, i32x16* sum) {
    f32x16 w[4];
    i32x16 steps[4];
    const int t = page * kPagePositions;
    const bool whole = seen.begin <= t && seen.end >= t + kPagePositions;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const bool sees = whole || (16 * i + t + 16 > seen.begin && 16 * i + t < seen.end);
      w[i] = sees ? load(scores + t + 16 * i) : splat(0.0f);
    }
    // At most 32767 and a rounding error; in this order a NaN becomes 0.
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) w[i] = max(mul(w[i], splat(inverse)), splat(0.0f));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) steps[i] = round_to_i32(w[i]);
    *sum = add(*sum, add(add(steps[0], steps[1]), add(steps[2], steps[3])));
    Factors::put_probabilities(steps, q, n, block);
  }
};

// Values of N queries from pages [first, last], from a tile of channels on.
template <int N, int Tiles>
static inline void add_int8(const PartView& view, const Int8Probabilities& p, int first, int last,
                            int tile, FetchAhead* ahead, float* values, int state_stride) {
  constexpr int kRows = Factors::value_rows(N);
  for (; tile + Tiles <= view.shape.value_stride / 16; tile += Tiles) {
    i32x16 sums[Tiles][kRows];
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) Factors::start(p.starts, sums[t]);
    for (int page = first; page <= last; ++page) {
      const int parts = larger(1, view.shape.value_stride / (16 * Tiles));
      Spread spread(ahead == nullptr ? FetchAhead::Lines{} : ahead->for_loop(parts),
                    kPagePositions / 4);
      add_fours(view.values(page) + tile * kValueTile, kValueTile, kPagePositions / 4,
                p.blocks + (page - first) * kRows * Factors::kRowBytes, spread, sums);
    }
#pragma GCC unroll 8
    for (int q = 0; q < N; ++q)
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) {
        const f32x16 dot = to_f32(Factors::value_dot(sums[t], q, p.starts));
        store(values + q * state_stride + 16 * (tile + t), mul(dot, splat(p.scales[q])));
      }
  }
  if constexpr (Tiles > 1)
    add_int8<N, Tiles / 2>(view, p, first, last, tile, ahead, values, state_stride);
}

template <int N>
static void values_int8(const PartView& view, const Rows& rows, const float* largest, int at,
                        int8_t* blocks, FetchAhead* ahead) {
  const Range all = rows.united(at, N);
  if (empty(all)) return;
  const int first = all.begin / kPagePositions, last = (all.end - 1) / kPagePositions;
  const Int8Probabilities p(rows, largest, at, N, first, last, ahead, blocks);
  constexpr int kTiles = Factors::tiles_beside(Factors::value_rows(N));
  add_int8<N, kTiles>(view, p, first, last, 0, ahead, rows.values_of(at), rows.state_stride);
}

static void attend_int8(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
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
  const Int8Queries of(prepared);
  for (int page = first; page <= last; ++page) score_page_int8(view, page, of, &ahead, rows);
  for (int q = 0; q < n_queries; ++q) {
    const WeighByScales weighed =
        soften(shape.softcap, sights[q], part, rows.scores_of(q), seen[q], rows.state_of(q), &ahead,
               WeighByScales{view, kPagePositions * shape.value_stride});
    largest[q] = weighed.found();
  }
  auto* blocks = reinterpret_cast<int8_t*>(scratch + kMaxQueries * kScoreStride);
  for (int q = 0; q < n_queries; q += Factors::kQueries)
    with_count(smaller(Factors::kQueries, n_queries - q), [&](auto count) {
      constexpr int given = decltype(count)::value;
      constexpr int N = given < Factors::kQueries ? given : Factors::kQueries;
      values_int8<N>(view, rows, largest, q, blocks, q == 0 ? &ahead : nullptr);
    });
  ahead.finish();
}

}  // namespace slmq::SLMQ_ISA
