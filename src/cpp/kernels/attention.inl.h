// Attention over a paged cache: online softmax in pages of 64 positions, split at multiples of 512.
//
// Scores: lanes are positions, the sum over channels runs in order. Values: lanes are channels, the
// sum over positions runs in order. A query's result therefore depends only on its own position.

namespace slmq::SLMQ_ISA {

struct KvF16 {
  using Element = uint16_t;
  static inline f32x16 get(const Element* p) { return load_f16(p); }
  static inline Element put(float x) { return float_to_half(x); }
};
struct KvF32 {
  using Element = float;
  static inline f32x16 get(const Element* p) { return load(p); }
  static inline Element put(float x) { return x; }
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
  for (int d = 0; d < shape.head_dim; ++d) {
    keys[d * 16] = Kv::put(key[d]);
    values[d] = Kv::put(value[d]);
  }
}

// scores[q, 64] = keys . queries, NQ queries and NT tiles of 16 positions at a time
template <class Kv, int NQ, int NT>
static inline void score_page(const typename Kv::Element* keys, int head_dim, const float* queries,
                              int query_stride, float* scores) {
  for (int tile = 0; tile < kPagePositions / 16; tile += NT) {
    f32x16 sums[NQ][NT];
    for (int q = 0; q < NQ; ++q)
      for (int t = 0; t < NT; ++t) sums[q][t] = splat(0.0f);
    const auto* column = keys + tile * 16 * head_dim;
    for (int d = 0; d < head_dim; ++d) {
      for (int t = 0; t < NT; ++t) {
        const f32x16 key = Kv::get(column + (t * head_dim + d) * 16);
        for (int q = 0; q < NQ; ++q)
          sums[q][t] = fma(splat(queries[q * query_stride + d]), key, sums[q][t]);
      }
    }
    for (int q = 0; q < NQ; ++q)
      for (int t = 0; t < NT; ++t) store(scores + q * kPagePositions + (tile + t) * 16, sums[q][t]);
  }
}

// Scores of one query in place to exp(score - max); returns the factor for what was summed before.
static inline float soften_page(float* scores, float scale, int begin, int end, float* state) {
  const f32x16 factor = splat(scale);
  const float lowest = -__builtin_inff();
  f32x16 s[4];
  for (int t = 0; t < 4; ++t)
    s[t] = keep_range(mul(load(scores + 16 * t), factor), begin - 16 * t, end - 16 * t, lowest);
  const float page_max = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
  const float old_max = state[0], new_max = larger(old_max, page_max);
  for (int t = 0; t < 4; ++t) {
    s[t] = exp(sub(s[t], splat(new_max)));
    store(scores + 16 * t, s[t]);
  }
  const float before = exp1(old_max - new_max);
  const float sum = reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
  state[0] = new_max;
  state[1] = __builtin_fmaf(state[1], before, sum);
  return before;
}

// values[q] = values[q] * before[q] + sum over positions of probability * value row
template <class Kv, int NQ, int NC>
static inline void add_values(const typename Kv::Element* rows, int value_stride, int begin,
                              int end, const float* probabilities, const float* before,
                              float* states, int state_stride, int channel) {
  f32x16 sums[NQ][NC];
  for (int q = 0; q < NQ; ++q)
    for (int c = 0; c < NC; ++c) {
      const float* old = states + q * state_stride + kStateHeader + channel + 16 * c;
      sums[q][c] = mul(load(old), splat(before[q]));
    }
  for (int t = begin; t < end; ++t) {
    for (int c = 0; c < NC; ++c) {
      const f32x16 value = Kv::get(rows + t * value_stride + channel + 16 * c);
      for (int q = 0; q < NQ; ++q)
        sums[q][c] = fma(splat(probabilities[q * kPagePositions + t]), value, sums[q][c]);
    }
  }
  for (int q = 0; q < NQ; ++q)
    for (int c = 0; c < NC; ++c)
      store(states + q * state_stride + kStateHeader + channel + 16 * c, sums[q][c]);
}

template <class Kv, int NQ, int NC>
static inline void add_value_page(const AttentionShape& shape, const typename Kv::Element* rows,
                                  int begin, int end, const float* probabilities,
                                  const float* before, float* states) {
  const int stride = kStateHeader + shape.value_stride;
  int channel = 0;
  for (; channel + 16 * NC <= shape.value_stride; channel += 16 * NC)
    add_values<Kv, NQ, NC>(rows, shape.value_stride, begin, end, probabilities, before, states,
                           stride, channel);
  for (; channel < shape.value_stride; channel += 16)
    add_values<Kv, NQ, 1>(rows, shape.value_stride, begin, end, probabilities, before, states,
                          stride, channel);
}

// The positions of one page that a query at `position` sees: [begin, end) within the page
static inline int first_seen(int position, int window, int page_start) {
  return window > 0 ? larger(0, position - window + 1 - page_start) : 0;
}
static inline int last_seen(int position, int page_start) {
  return smaller(kPagePositions, position + 1 - page_start);
}

template <class Kv, int NQ, int NT, int NC>
static void attend_page(const AttentionShape& shape, const uint8_t* head, int page_start,
                        const float* queries, const int32_t* positions, int window, float* states,
                        float* scratch) {
  using Element = typename Kv::Element;
  const int stride = kStateHeader + shape.value_stride;
  int begin = kPagePositions, end = 0;
  for (int q = 0; q < NQ; ++q) {
    begin = smaller(begin, first_seen(positions[q], window, page_start));
    end = larger(end, last_seen(positions[q], page_start));
  }
  if (begin >= end) return;
  score_page<Kv, NQ, NT>(reinterpret_cast<const Element*>(head), shape.head_dim, queries,
                         shape.value_stride, scratch);
  float before[NQ];
  for (int q = 0; q < NQ; ++q) {
    const int from = first_seen(positions[q], window, page_start);
    const int to = last_seen(positions[q], page_start);
    float* scores = scratch + q * kPagePositions;
    before[q] = 1.0f;
    if (from < to) {
      before[q] = soften_page(scores, shape.scale, from, to, states + q * stride);
    } else {
      for (int t = 0; t < kPagePositions; ++t) scores[t] = 0.0f;
    }
  }
  add_value_page<Kv, NQ, NC>(shape, reinterpret_cast<const Element*>(head + shape.value_offset),
                             begin, end, scratch, before, states);
}

template <class Kv, int NQ, int NT, int NC>
static void attend_queries(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                           const float* queries, const int32_t* positions, int part, int window,
                           float* states, float* scratch) {
  const int stride = kStateHeader + shape.value_stride;
  int last = 0;
  for (int q = 0; q < NQ; ++q) {
    float* state = states + q * stride;
    for (int i = 0; i < stride; ++i) state[i] = 0.0f;
    state[0] = -__builtin_inff();
    last = larger(last, positions[q]);
  }
  const int part_end = smaller((part + 1) * kPartPositions, last + 1);
  for (int start = part * kPartPositions; start < part_end; start += kPagePositions) {
    const uint8_t* page = pages[start / kPagePositions];
    attend_page<Kv, NQ, NT, NC>(shape, page + shape.layer_offset + kv_head * shape.head_bytes,
                                start, queries, positions, window, states, scratch);
  }
}

template <class Kv>
static void attend(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                   const float* queries, const int32_t* positions, int n_queries, int part,
                   int window, float* states, float* scratch) {
  const int stride = kStateHeader + shape.value_stride;
  for (int q = 0; q < n_queries;) {
    const float* query = queries + q * shape.value_stride;
    const int32_t* position = positions + q;
    float* state = states + q * stride;
#define SLMQ_ATTEND(NQ, NT, NC)                                                               \
  attend_queries<Kv, NQ, NT, NC>(shape, pages, kv_head, query, position, part, window, state, \
                                 scratch)
    switch (smaller(n_queries - q, 4)) {
      case 4:
        SLMQ_ATTEND(4, 1, 1);
        q += 4;
        break;
      case 3:
        SLMQ_ATTEND(3, 1, 1);
        q += 3;
        break;
      case 2:
        SLMQ_ATTEND(2, 2, 2);
        q += 2;
        break;
      default: SLMQ_ATTEND(1, 4, 4); q += 1;
    }
#undef SLMQ_ATTEND
  }
}

static void merge(const AttentionShape& shape, const float* part, float* total) {
  if (part[1] == 0.0f) return;  // the query sees nothing of this part
  const float new_max = larger(total[0], part[0]);
  const float keep = exp1(total[0] - new_max), gain = exp1(part[0] - new_max);
  total[0] = new_max;
  total[1] = __builtin_fmaf(part[1], gain, total[1] * keep);
  for (int c = kStateHeader; c < kStateHeader + shape.value_stride; c += 16) {
    const f32x16 kept = mul(load(total + c), splat(keep));
    store(total + c, fma(load(part + c), splat(gain), kept));
  }
}

static void attend_finish(const AttentionShape& shape, const float* state, float* out) {
  const f32x16 sum = splat(state[1]);
  for (int c = 0; c < shape.head_dim; c += 16) {
    const f32x16 value = div(load(state + kStateHeader + c), sum);
    if (c + 16 <= shape.head_dim) {
      store(out + c, value);
    } else {
      store_tail(out + c, shape.head_dim - c, value);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
