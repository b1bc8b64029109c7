// Attention of a text that is computed at once and fits into one part, without the cache: a KV head's
// keys and values are packed side by side, and some queries at a time meet all of them while their
// scores are in the first cache. The same sums in the same order as in attention_float.inl.h.

namespace slmq::SLMQ_ISA {

static inline const float* text_values(const AttentionShape& shape, int n, const float* text) {
  return text + static_cast<ptrdiff_t>((n + 15) / 16 * 16) * shape.head_dim;
}

#if !defined(SLMQ_WIDE_REGISTERS)
// to[c][i] = row i, column c: sixteen rows and columns.
static inline void transpose16(const float* rows, ptrdiff_t stride, float* to) {
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 16; ++i) to[16 * c + i] = rows[i * stride + c];
}
#endif

static void pack_text(const AttentionShape& shape, int n, const float* key, int key_stride,
                      const float* value, int value_stride, float* text) {
  const int head_dim = shape.head_dim, whole = head_dim / 16 * 16;
  for (int t = 0; t < n; t += 16) {
    float* tile = text + static_cast<ptrdiff_t>(t) * head_dim;
    const float* rows = key + static_cast<ptrdiff_t>(t) * key_stride;
    const int count = smaller(16, n - t);
    if (count == 16)
      for (int c = 0; c < whole; c += 16) transpose16(rows + c, key_stride, tile + 16 * c);
    for (int c = count == 16 ? whole : 0; c < head_dim; ++c)
      for (int i = 0; i < 16; ++i)
        tile[16 * c + i] = i < count ? rows[static_cast<ptrdiff_t>(i) * key_stride + c] : 0.0f;
  }
  float* values = const_cast<float*>(text_values(shape, n, text));
  for (int t = 0; t < n; ++t, value += value_stride, values += shape.value_stride)
    for (int c = 0; c < head_dim; c += 16)
      store(values + c,
            c + 16 <= head_dim ? load(value + c) : load_tail(value + c, head_dim - c, 0.0f));
}

// Queries that share a piece of keys or values: their scores stay in the first cache.
static inline int text_queries(int n) {
  constexpr int kScores = 6144, kFew = KvF32::kTileQueries;
  return larger(kFew, smaller(kMaxQueries, kScores / n) / kFew * kFew);
}

static void attend_text(const AttentionShape& shape, int n, const float* text, const float* queries,
                        const Sight* sights, int n_queries, float* states, float* scratch) {
  const int stride = shape.value_stride, state_stride = kStateHeader + stride;
  const int together = text_queries(n), pages = (n + kPagePositions - 1) / kPagePositions;
  const f32x16 scale = splat(score_factor(shape)), nothing = splat(0.0f);
  const PartView view{shape, nullptr, 0};
  float* scaled = scratch + kMaxQueries * kScoreStride;
  for (int first = 0; first < n_queries; first += together) {
    Range seen[kMaxQueries];
    const Rows rows{seen, smaller(together, n_queries - first), scratch,
                    states + static_cast<ptrdiff_t>(first) * state_stride, state_stride};
    for (int q = 0; q < rows.count; ++q) {
      seen[q] = seen_range(sights[first + q], 0);
      store(rows.state_of(q), nothing);
      for (int c = 0; c < stride; c += 16) {
        store(scaled + q * stride + c,
              mul(load(queries + static_cast<ptrdiff_t>(first + q) * stride + c), scale));
        store(rows.values_of(q) + c, nothing);
      }
      if (empty(seen[q])) see_nothing(rows.state_of(q));
    }
    if (empty(rows.united())) continue;
    for (int page = 0; page < pages; ++page) {
      const float* keys = text + static_cast<ptrdiff_t>(page) * kPagePositions * shape.head_dim;
      score_piece<KvF32>(view, {keys, page, 0, 4, nullptr}, scaled, rows);
    }
    for (int q = 0; q < rows.count; ++q)
      soften(shape.softcap, sights[first + q], 0, rows.scores_of(q), seen[q], rows.state_of(q),
             nullptr, Unweighed{});
    for (int page = 0; page < pages; ++page) {
      const float* values =
          text_values(shape, n, text) + static_cast<ptrdiff_t>(page) * kPagePositions * stride;
      add_piece<KvF32>({values, page, 0, stride / 16, nullptr}, stride, rows);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
