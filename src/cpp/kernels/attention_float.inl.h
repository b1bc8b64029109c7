// Attention over a float16 or float32 cache.
//
// Few queries (decode) multiply straight from the cache, page by page, with those that come
// next on their way. More of them (prefill) convert a piece of a page to float32 once and multiply that.

namespace slmq::SLMQ_ISA {

struct KvF16 {
  using Element = uint16_t;
  static inline f32x16 get(const Element* p) { return load_f16(p); }
  static inline void put(Element* p, f32x16 x) { store_f16(p, x); }
  static constexpr int kTileQueries = kFactorsStay ? 8 : 4;  // that share a load and its conversion
  static constexpr int kDirectQueries = 12;  // up to which converting first does not pay
};
struct KvF32 {
  using Element = float;
  static inline f32x16 get(const Element* p) { return load(p); }
  static inline void put(Element* p, f32x16 x) { store(p, x); }
  static constexpr int kTileQueries = kFactorsStay ? 8 : 6;
  static constexpr int kDirectQueries = kMaxQueries;
};

template <class Kv>
static void kv_append(const AttentionShape& shape, uint8_t* const* pages, int kv_head, int position,
                      const float* key, const float* value) {
  using Element = typename Kv::Element;
  uint8_t* head =
      pages[position / kPagePositions] + shape.layer_offset + kv_head * shape.head_bytes;
  const int slot = position % kPagePositions;
  auto* keys = reinterpret_cast<Element*>(head) + slot / 16 * 16 * shape.head_dim + slot % 16;
  auto* values = reinterpret_cast<Element*>(head + shape.value_offset) + slot * shape.value_stride;
  for (int d = 0; d < shape.head_dim; d += 16) {
    const int n = smaller(16, shape.head_dim - d);
    Element column[16];
    Kv::put(column, n == 16 ? load(key + d) : load_tail(key + d, n, 0.0f));
    for (int i = 0; i < n; ++i) keys[(d + i) * 16] = column[i];
    Kv::put(values + d, n == 16 ? load(value + d) : load_tail(value + d, n, 0.0f));
  }
}

// The same address, but not to the compiler: broadcasts kept from tile to tile would push a sum out
// of its register. Loading them again is free.
static inline const float* reload(const float* p) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(p));
#endif
  return p;
}

// sums[q][t] += a[q, i] * tile t of row i of b, for `count` rows in order
template <class Kv, int NQ, int NT>
SLMQ_INLINE void multiply(const float* a, int a_stride, const typename Kv::Element* b, int row_step,
                          int tile_step, int count, const uint8_t* ahead, f32x16 (&sums)[NQ][NT]) {
  constexpr int kAheadStep = NT * 16 * sizeof(typename Kv::Element);
  for (int i = 0; i < count; ++i, b += row_step) {
    if (ahead != nullptr)
      for (int line = 0; line < kAheadStep; line += 64)
        prefetch_second_level(ahead + i * kAheadStep + line);
    const float* factors = reload(a + i);
    if constexpr (kFactorsStay) {  // one load of a factor for all tiles
      f32x16 splats[NQ];
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) splats[q] = splat(factors[q * a_stride]);
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) {
        const f32x16 lanes = Kv::get(b + t * tile_step);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; ++q) sums[q][t] = fma(splats[q], lanes, sums[q][t]);
      }
    } else {
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) {
        const f32x16 lanes = Kv::get(b + t * tile_step);
        factors = reload(factors);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; ++q)
          sums[q][t] = fma(splat(factors[q * a_stride]), lanes, sums[q][t]);
      }
    }
  }
}

// scores = queries . keys of tiles [tile, tile_end) of a page
template <class Kv, int NQ, int NT>
static inline void score_tiles(const typename Kv::Element* keys, int head_dim, const float* queries,
                               int stride, int tile, int tile_end, const uint8_t* ahead,
                               float* scores) {
  for (; tile + NT <= tile_end; tile += NT) {
    f32x16 sums[NQ][NT];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) sums[q][t] = splat(0.0f);
    multiply<Kv, NQ, NT>(queries, stride, keys + tile * 16 * head_dim, 16, 16 * head_dim, head_dim,
                         ahead, sums);
    if (ahead != nullptr) ahead += NT * 16 * head_dim * sizeof(typename Kv::Element);
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) store(scores + q * kScoreStride + (tile + t) * 16, sums[q][t]);
  }
  if constexpr (NT > 1)
    score_tiles<Kv, NQ, 1>(keys, head_dim, queries, stride, tile, tile_end, nullptr, scores);
}

// values of queries += probabilities * rows of positions [seen.begin, seen.end) of a page, channels
// [channel, channel_end) of the values
template <class Kv, int NQ, int NC>
static inline void add_channels(const typename Kv::Element* rows, int row_step, Range seen,
                                const float* probabilities, int channel, int channel_end,
                                const uint8_t* ahead, float* values, int state_stride) {
  for (; channel + 16 * NC <= channel_end; channel += 16 * NC) {
    f32x16 sums[NQ][NC];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c) sums[q][c] = load(values + q * state_stride + channel + 16 * c);
    multiply<Kv, NQ, NC>(probabilities + seen.begin, kScoreStride,
                         rows + seen.begin * row_step + channel, row_step, 16,
                         seen.end - seen.begin, ahead, sums);
    if (ahead != nullptr) ahead += kPagePositions * 16 * NC * sizeof(typename Kv::Element);
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q)
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c) store(values + q * state_stride + channel + 16 * c, sums[q][c]);
  }
  if constexpr (NC > 1) {
    add_channels<Kv, NQ, 1>(rows, row_step, seen, probabilities, channel, channel_end, nullptr,
                            values, state_stride);
  }
}

// A piece of a page: tiles [tile, tile_end) of its keys, or channels [tile * 16, tile_end * 16) of
// its values, and where the same piece of the next page lies.
template <class Kv>
struct Piece {
  const typename Kv::Element* data;
  int page, tile, tile_end;
  const uint8_t* ahead;
};

template <class Kv>
static void score_piece(const PartView& view, const Piece<Kv>& piece, const float* queries,
                        const Rows& rows) {
  const int head_dim = view.shape.head_dim, stride = view.shape.value_stride;
  for (int q = 0; q < rows.count; q += Kv::kTileQueries) {
    const int n = smaller(Kv::kTileQueries, rows.count - q);
    const Range seen = within_page(rows.united(q, n), piece.page);
    const int start = piece.page * kPagePositions;
    const int tile = larger(0, (seen.begin - start) / 16 - piece.tile);
    const int tile_end = smaller(piece.tile_end, (seen.end - start + 15) / 16) - piece.tile;
    if (empty(seen) || tile >= tile_end) continue;
    with_count(n, [&](auto count) {
      constexpr int NQ = decltype(count)::value;
      score_tiles<Kv, NQ, tiles_beside(NQ, kSums)>(
          piece.data, head_dim, queries + q * stride, stride, tile, tile_end,
          q == 0 ? piece.ahead : nullptr, rows.scores_of(q) + start + 16 * piece.tile);
    });
  }
}

// Positions that all queries of a tile see are taken together; those that only some see, by each.
template <class Kv>
static void add_piece(const Piece<Kv>& piece, int row_step, const Rows& rows) {
  const int start = piece.page * kPagePositions, channels = 16 * (piece.tile_end - piece.tile);
  const auto add = [&](auto count, int q, Range seen, const uint8_t* ahead) {
    constexpr int NQ = decltype(count)::value;
    add_channels<Kv, NQ, tiles_beside(NQ, kSums)>(
        piece.data, row_step, {seen.begin - start, seen.end - start}, rows.scores_of(q) + start, 0,
        channels, ahead, rows.values_of(q) + 16 * piece.tile, rows.state_stride);
  };
  for (int q = 0; q < rows.count; q += Kv::kTileQueries) {
    const int n = smaller(Kv::kTileQueries, rows.count - q);
    Range common = within_page(rows.common(q, n), piece.page);
    if (empty(common)) common = {start, start};
    for (int i = q; i < q + n && common.begin > start; ++i) {
      const Range before = intersect(within_page(rows.seen[i], piece.page), {start, common.begin});
      if (!empty(before)) add(Count<1>{}, i, before, nullptr);
    }
    if (!empty(common))
      with_count(n, [&](auto count) { add(count, q, common, q == 0 ? piece.ahead : nullptr); });
    for (int i = q; i < q + n && common.end < start + kPagePositions; ++i) {
      const Range behind =
          intersect(within_page(rows.seen[i], piece.page), {common.end, start + kPagePositions});
      if (!empty(behind)) add(Count<1>{}, i, behind, nullptr);
    }
  }
}

// Keys and then values straight from the cache; while a page is read, the next one is fetched.
template <class Kv>
static void attend_direct(const PartView& view, const float* queries, const Sight* sights, int part,
                          const Following& following, const Rows& rows) {
  using Element = typename Kv::Element;
  const Range all = rows.united();
  const int first = all.begin / kPagePositions, last = (all.end - 1) / kPagePositions;
  PiecesAhead ahead{view, first, last, following};
  for (int page = first; page <= last; ++page) {
    const auto* keys = reinterpret_cast<const Element*>(view.keys(page));
    score_piece<Kv>(view, {keys, page, 0, 4, ahead.next()}, queries, rows);
  }
  for (int q = 0; q < rows.count; ++q)
    soften(view.shape.softcap, sights[q], part, rows.scores_of(q), rows.seen[q], rows.state_of(q),
           nullptr, Unweighed{});
  const int stride = view.shape.value_stride;
  for (int page = first; page <= last; ++page) {
    const auto* values = reinterpret_cast<const Element*>(view.values(page));
    add_piece<Kv>({values, page, 0, stride / 16, ahead.next()}, stride, rows);
  }
}

// Keys and then values in pieces converted to float32, each for all queries.
template <class Kv>
static void attend_converted(const PartView& view, const float* queries, const Sight* sights,
                             int part, const Rows& rows, float* buffer) {
  using Element = typename Kv::Element;
  const Range all = rows.united();
  const int first = all.begin / kPagePositions, last = (all.end - 1) / kPagePositions;
  const int head_dim = view.shape.head_dim, stride = view.shape.value_stride;
  const int step = larger(1, smaller(4, kConvertedFloats / (16 * head_dim)));
  for (int page = first; page <= last; ++page) {
    const auto* keys = reinterpret_cast<const Element*>(view.keys(page));
    for (int tile = 0; tile < 4; tile += step) {
      const int tile_end = smaller(4, tile + step);
      for (int i = tile * head_dim; i < tile_end * head_dim; ++i)
        store(buffer + 16 * (i - tile * head_dim), Kv::get(keys + 16 * i));
      score_piece<KvF32>(view, {buffer, page, tile, tile_end, nullptr}, queries, rows);
    }
  }
  for (int q = 0; q < rows.count; ++q)
    soften(view.shape.softcap, sights[q], part, rows.scores_of(q), rows.seen[q], rows.state_of(q),
           nullptr, Unweighed{});
  for (int page = first; page <= last; ++page) {
    const auto* values = reinterpret_cast<const Element*>(view.values(page));
    for (int tile = 0; tile < stride / 16; tile += 4) {
      const int tile_end = smaller(stride / 16, tile + 4), width = 16 * (tile_end - tile);
      for (int t = 0; t < kPagePositions; ++t)
        for (int c = 0; c < width; c += 16)
          store(buffer + t * width + c, Kv::get(values + t * stride + tile * 16 + c));
      add_piece<KvF32>({buffer, page, tile, tile_end, nullptr}, width, rows);
    }
  }
}

template <class Kv>
static void prepare_queries(const AttentionShape& shape, const float* queries, int n_queries,
                            float* prepared) {
  const f32x16 scale = splat(score_factor(shape));
  for (int c = 0; c < n_queries * shape.value_stride; c += 16)
    store(prepared + c, mul(load(queries + c), scale));
}

template <class Kv>
static void attend(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                   const float* prepared, const Sight* sights, int n_queries, int part,
                   const Following& following, float* states, float* scratch) {
  const int stride = shape.value_stride;
  Range seen[kMaxQueries];
  const Rows rows{seen, n_queries, scratch, states, kStateHeader + stride};
  start_states(sights, part, rows, seen);
  const PartView view = view_part(shape, pages, kv_head, part);
  if (empty(rows.united())) return;
  if (n_queries <= Kv::kDirectQueries) {
    attend_direct<Kv>(view, prepared, sights, part, following, rows);
  } else {
    attend_converted<Kv>(view, prepared, sights, part, rows, scratch + kMaxQueries * kScoreStride);
  }
}

}  // namespace slmq::SLMQ_ISA
