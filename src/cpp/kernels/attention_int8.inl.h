// Attention over an int8 cache, in integers: queries and probabilities are rounded to sixteen bits,
// so that their dots with keys and values are exact on every ISA, in any order.
//
// The scale of a key belongs to its score; the scale of a value goes into its probability, which is
// rounded after that. Lanes hold pairs: of channels of a key, of positions of a value.

namespace slmq::SLMQ_ISA {

static constexpr int kInt8TileQueries =
    kFactorsStay ? 8 : 4;                               // that share a load of keys or values
static constexpr int kValueTile = kPagePositions * 16;  // bytes of sixteen channels of a page
static constexpr float kSmallestScaled = 1e-30f;        // steps / largest must not overflow

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

// x as int8 at q[i / 16 * tile_step + i % 16 / pair * step + i % pair]; returns the scale
static inline float put_int8(const float* x, int n, int tile_step, int pair, int step, int8_t* q) {
  const Rounding rounding = rounding_to(127.0f, largest_magnitude(x, n));
  for (int i = 0; i < n; i += 16) {
    int8_t rounded[16];
    store_i8(rounded, round_steps(load_some(x + i, n - i), rounding.inverse, 127.0f));
    for (int j = 0; j < smaller(n - i, 16); ++j)
      q[i / 16 * tile_step + j / pair * step + j % pair] = rounded[j];
  }
  return rounding.scale;
}

static void kv_append_int8(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                           int position, const float* key, const float* value) {
  uint8_t* head =
      pages[position / kPagePositions] + shape.layer_offset + kv_head * shape.head_bytes;
  const int slot = position % kPagePositions, head_dim = shape.head_dim;
  auto* keys =
      reinterpret_cast<int8_t*>(head) + slot / 16 * 16 * ((head_dim + 1) / 2 * 2) + slot % 16 * 2;
  auto* values = reinterpret_cast<int8_t*>(head + shape.value_offset) + slot / 2 * 32 + slot % 2;
  auto* scales = reinterpret_cast<float*>(head + shape.value_offset);
  scales[slot - kPagePositions] = put_int8(key, head_dim, 8 * 32, 2, 32, keys);
  if (head_dim % 2 != 0) keys[head_dim / 2 * 32 + 1] = 0;
  scales[kPagePositions * shape.value_stride / 4 + slot] =
      put_int8(value, head_dim, kValueTile, 1, 2, values);
}

// sums[q][t] += a[q, 2i], a[q, 2i + 1] . pairs of tile t of row i of b, for `count` rows
template <int NQ, int NT>
SLMQ_INLINE void multiply_pairs(const int16_t* a, int a_stride, const int8_t* b, int row_step,
                                int tile_step, int count, Asking ahead, i32x16 (&sums)[NQ][NT]) {
  for (int i = 0; i < count; ++i, b += row_step) {
    ahead.ask();
    if constexpr (kFactorsStay) {
      i16x32 factors[NQ];
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) factors[q] = splat_pair(a + q * a_stride + 2 * i);
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) {
        const i16x32 lanes = widen_i8(b + t * tile_step);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; ++q) sums[q][t] = pinned(dot_pairs(lanes, factors[q], sums[q][t]));
      }
    } else {
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) {
        const i16x32 lanes = widen_i8(b + t * tile_step);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; ++q)
          sums[q][t] = pinned(dot_pairs(lanes, splat_pair(a + q * a_stride + 2 * i), sums[q][t]));
      }
    }
  }
}

struct Int8Queries {
  const int16_t* rounded;  // [query][value_stride]
  const float* scales;
};

template <int NQ, int NT>
static inline void score_pairs(const AttentionShape& shape, const int8_t* keys,
                               const float* key_scale, const Int8Queries& queries, int tile,
                               int tile_end, Asking ahead, float* scores) {
  const int pairs = (shape.head_dim + 1) / 2;
  for (; tile + NT <= tile_end; tile += NT) {
    i32x16 sums[NQ][NT];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) sums[q][t] = splat_i32(0);
    multiply_pairs<NQ, NT>(queries.rounded, shape.value_stride, keys + tile * 32 * pairs, 32,
                           32 * pairs, pairs, ahead, sums);
#pragma GCC unroll 4
    for (int t = 0; t < NT; ++t) {
      const f32x16 scale = load(key_scale + (tile + t) * 16);
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q)
        store(scores + q * kScoreStride + (tile + t) * 16,
              mul(mul(to_f32(sums[q][t]), scale), splat(queries.scales[q])));
    }
  }
  if constexpr (NT > 1)
    score_pairs<NQ, 1>(shape, keys, key_scale, queries, tile, tile_end, ahead, scores);
}

// Probabilities times the scales of their values, and the largest magnitude of those.
struct WeighByScales {
  const PartView& view;
  const int scales_at;  // behind the values of a page
  f32x16 largest = splat(0.0f), spoiled = splat(0.0f);

  SLMQ_INLINE_MEMBER f32x16 operator()(int position, f32x16 p) {
    const auto* scales =
        reinterpret_cast<const float*>(view.values(position / kPagePositions) + scales_at);
    return mul(p, load(scales + position % kPagePositions));
  }
  SLMQ_INLINE_MEMBER void see(f32x16 weighed) {
    spoiled = fma(weighed, splat(0.0f), spoiled);
    largest = max(largest, abs(weighed));
  }
  // NaN if a scale or a probability is.
  float found() const {
    return reduce_add(spoiled) == 0.0f ? reduce_max(largest) : __builtin_nanf("");
  }
};

// Weighed probabilities of pages [first, last] to int16 in place, zero where the query sees nothing.
static inline void round_probabilities(float* scores, Range seen, float inverse, int first,
                                       int last, FetchAhead* ahead) {
  const int from = first * kPagePositions, to = (last + 1) * kPagePositions;
  const int begin = empty(seen) ? to : seen.begin / 16 * 16, end = empty(seen) ? to : seen.end;
  auto* rounded = reinterpret_cast<int16_t*>(scores);  // never ahead of what is read
  for (int t = from; t < to; t += 16) {
    ahead->lines(1);
    const bool zero = t < begin || t >= end;
    const f32x16 w = zero ? splat(0.0f) : load(scores + t);
    // At most 32767 and a rounding error; in this order a NaN becomes 0.
    const f32x16 steps = max(mul(w, splat(inverse)), splat(0.0f));
    store_i16(rounded + t, round_to_i32(steps));
  }
}

template <int NQ, int NC>
static inline void add_pairs(const int8_t* tiles, int value_stride, const int16_t* probabilities,
                             int channel, Asking ahead, float* values, int state_stride) {
  for (; channel + 16 * NC <= value_stride; channel += 16 * NC) {
    i32x16 sums[NQ][NC];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c)
        sums[q][c] = load_i32(values + q * state_stride + channel + 16 * c);
    multiply_pairs<NQ, NC>(probabilities, 2 * kScoreStride, tiles + channel / 16 * kValueTile, 32,
                           kValueTile, kPagePositions / 2, ahead, sums);
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c)
        store_i32(values + q * state_stride + channel + 16 * c, sums[q][c]);
  }
  if constexpr (NC > 1)
    add_pairs<NQ, 1>(tiles, value_stride, probabilities, channel, ahead, values, state_stride);
}

static void score_page_int8(const PartView& view, int page, const Int8Queries& queries,
                            FetchAhead* ahead, const Rows& rows) {
  const auto* keys = reinterpret_cast<const int8_t*>(view.keys(page));
  const int start = page * kPagePositions;
  for (int q = 0; q < rows.count; q += kInt8TileQueries) {
    const int n = smaller(kInt8TileQueries, rows.count - q);
    const Range seen = within_page(rows.united(q, n), page);
    if (empty(seen)) continue;
    with_count(n, [&](auto count) {
      constexpr int NQ = decltype(count)::value, NT = tiles_beside(NQ, kIntSums);
      const int steps = 4 / NT * ((view.shape.head_dim + 1) / 2);
      score_pairs<NQ, NT>(view.shape, keys, key_scales(view, page),
                          {queries.rounded + q * view.shape.value_stride, queries.scales + q},
                          (seen.begin - start) / 16, (seen.end - start + 15) / 16,
                          Asking(q == 0 ? ahead : nullptr, steps), rows.scores_of(q) + start);
    });
  }
}

static void add_page_int8(const PartView& view, int page, FetchAhead* ahead, const Rows& rows) {
  const auto* values = reinterpret_cast<const int8_t*>(view.values(page));
  for (int q = 0; q < rows.count; q += kInt8TileQueries) {
    const int n = smaller(kInt8TileQueries, rows.count - q);
    if (empty(within_page(rows.united(q, n), page))) continue;
    const auto* probabilities = reinterpret_cast<const int16_t*>(rows.scores_of(q));
    with_count(n, [&](auto count) {
      constexpr int NQ = decltype(count)::value, NC = tiles_beside(NQ, kIntSums);
      const int stride = view.shape.value_stride;
      const int steps = larger(1, stride / (16 * NC)) * (kPagePositions / 2);
      add_pairs<NQ, NC>(values, stride, probabilities + page * kPagePositions, 0,
                        Asking(q == 0 ? ahead : nullptr, steps), rows.values_of(q),
                        rows.state_stride);
    });
  }
}

// Rounded queries, and behind those of kMaxQueries their scales.
static void prepare_int8(const AttentionShape& shape, const float* queries, int n_queries,
                         float* prepared) {
  const int stride = shape.value_stride;
  auto* rounded = reinterpret_cast<int16_t*>(prepared);
  float* scales = prepared + kMaxQueries * stride;
  for (int q = 0; q < n_queries; ++q) {
    const float* query = queries + q * stride;
    const Rounding rounding = rounding_to(32767.0f, largest_magnitude(query, stride));
    scales[q] = rounding.scale * score_factor(shape);
    for (int c = 0; c < stride; c += 16)
      store_i16(rounded + q * stride + c, round_steps(load(query + c), rounding.inverse, 32767.0f));
  }
}

static void attend_int8(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                        const float* prepared, const Sight* sights, int n_queries, int part,
                        const Following& following, float* states, float* scratch) {
  const int stride = shape.value_stride;
  Range seen[kMaxQueries];
  float scales[kMaxQueries];
  const Rows rows{seen, n_queries, scratch, states, kStateHeader + stride};
  start_states(sights, part, rows, seen);
  const Range all = rows.united();
  if (empty(all)) return;
  const PartView view = view_part(shape, pages, kv_head, part);
  const int first = all.begin / kPagePositions, last = (all.end - 1) / kPagePositions;
  FetchAhead ahead(view, first, last, 2 * n_queries, following);
  const Int8Queries of{reinterpret_cast<const int16_t*>(prepared), prepared + kMaxQueries * stride};
  for (int page = first; page <= last; ++page) score_page_int8(view, page, of, &ahead, rows);
  for (int q = 0; q < n_queries; ++q) {
    WeighByScales weigh{view, kPagePositions * stride};
    soften(shape.softcap, sights[q], part, rows.scores_of(q), seen[q], rows.state_of(q), &ahead,
           weigh);
    const Rounding rounding = rounding_to(32767.0f, weigh.found());
    round_probabilities(rows.scores_of(q), seen[q], rounding.inverse, first, last, &ahead);
    scales[q] = rounding.scale;
  }
  for (int page = first; page <= last; ++page) add_page_int8(view, page, &ahead, rows);
  for (int q = 0; q < n_queries; ++q)
    for (int c = 0; c < stride; c += 16)
      store(rows.values_of(q) + c, mul(to_f32(load_i32(rows.values_of(q) + c)), splat(scales[q])));
}

}  // namespace slmq::SLMQ_ISA
