// Attention over a paged cache, in parts of 512 positions: all scores of a part, their softmax,
// then the values.
//
// Scores: lanes are positions, the sum over channels runs in order. Values: lanes are channels, the
// sum over positions runs in order. Only positions that a query sees take part in its sums. A
// query's result therefore depends on nothing but what it sees.

namespace slmq::SLMQ_ISA {

template <int N>
struct Count {
  static constexpr int value = N;
};
// f(Count<n>) for n = 1..8
template <class F>
static inline void with_count(int n, F f) {
  switch (n) {
    case 1: return f(Count<1>{});
    case 2: return f(Count<2>{});
    case 3: return f(Count<3>{});
    case 4: return f(Count<4>{});
    case 5: return f(Count<5>{});
    case 6: return f(Count<6>{});
    case 7: return f(Count<7>{});
    default: return f(Count<8>{});
  }
}
// Tiles of 16 lanes beside n queries, so that all sums stay in registers
static constexpr int tiles_beside(int n, int sums) {
  return 4 * n <= sums ? 4 : 2 * n <= sums ? 2 : 1;
}

// Positions of the part, counted from its start
struct Range {
  int begin = 0, end = 0;
};
static inline bool empty(Range r) { return r.begin >= r.end; }
static inline Range intersect(Range a, Range b) {
  return {larger(a.begin, b.begin), smaller(a.end, b.end)};
}
static inline Range unite(Range a, Range b) {
  if (empty(a)) return b;
  if (empty(b)) return a;
  return {smaller(a.begin, b.begin), larger(a.end, b.end)};
}
static inline Range within_page(Range r, int page) {
  return intersect(r, {page * kPagePositions, (page + 1) * kPagePositions});
}
static inline Range seen_range(const Sight& sight, int part) {
  const int start = part * kPartPositions;
  return {larger(0, sight.begin - start), smaller(kPartPositions, sight.end - start)};
}

// A state's values and scores in order of queries.
struct Rows {
  const Range* seen;
  int count;  // of queries
  float* scores;
  float* states;
  int state_stride;

  Range united() const { return united(0, count); }
  Range united(int first, int n) const {
    Range all = seen[first];
    for (int q = first + 1; q < first + n; ++q) all = unite(all, seen[q]);
    return all;
  }
  Range common(int first, int n) const {
    Range all = seen[first];
    for (int q = first + 1; q < first + n; ++q) all = intersect(all, seen[q]);
    return all;
  }
  float* scores_of(int query) const { return scores + query * kScoreStride; }
  float* state_of(int query) const { return states + query * state_stride; }
  float* values_of(int query) const { return state_of(query) + kStateHeader; }
};

// 2^x for x <= 0; 0 below -127. A minimax polynomial that is 1 at 0, 3 units of 2^-24. Of several vectors
// step by step: a step takes four cycles, and no CPU looks far enough ahead to find the next vector's.
template <int N>
SLMQ_INLINE void exp2_each(f32x16 (&x)[N]) {
  const f32x16 magic = splat(12582912.0f);  // adding it rounds to an integer, in the lowest bits
  f32x16 shifted[N], p[N];
  const auto each = [](auto step) SLMQ_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) step(i);
  };
  each([&](int i) SLMQ_INLINE_LAMBDA { x[i] = max(x[i], splat(-127.0f)); });
  each([&](int i) SLMQ_INLINE_LAMBDA { shifted[i] = add(x[i], magic); });
  each([&](int i) SLMQ_INLINE_LAMBDA { p[i] = sub(shifted[i], magic); });
  each([&](int i) SLMQ_INLINE_LAMBDA { x[i] = sub(x[i], p[i]); });
  each([&](int i) SLMQ_INLINE_LAMBDA { p[i] = splat(0x1.5bba14p-10f); });
  for (const float factor : {0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f})
    each([&](int i) SLMQ_INLINE_LAMBDA { p[i] = fma(p[i], x[i], splat(factor)); });
  each([&](int i) SLMQ_INLINE_LAMBDA { x[i] = times_pow2(p[i], shifted[i]); });
}
static inline f32x16 exp2(f32x16 x) {
  f32x16 one[1] = {x};
  exp2_each(one);
  return one[0];
}

static constexpr float kLog2E = 1.44269504088896341f;

// What queries are multiplied by: scores come in units of log 2, or in units of the soft cap.
static inline float score_factor(const AttentionShape& shape) {
  return shape.softcap > 0.0f ? shape.scale / shape.softcap : shape.scale * kLog2E;
}

// A query that sees nothing of the part.
static inline void see_nothing(float* state) {
  state[0] = -__builtin_inff();
  state[1] = 0.0f;
}

// What queries see of a part, and states of zeros.
static inline void start_states(const Sight* sights, int part, const Rows& rows, Range* seen) {
  for (int q = 0; q < rows.count; ++q) {
    seen[q] = seen_range(sights[q], part);
    float* state = rows.state_of(q);
    for (int i = 0; i < rows.state_stride; i += 16) store(state + i, splat(0.0f));
    if (empty(seen[q])) see_nothing(state);
  }
}

// Scores of one query in place from units of the soft cap to capped ones in units of log 2. One that
// is not finite becomes NaN: the cap must not hide it.
static inline void cap_scores(float cap, Range seen, float* scores) {
  const f32x16 top = splat(cap * kLog2E), nothing = splat(0.0f);
  for (int t = seen.begin / 16 * 16; t < seen.end; t += 16) {
    const f32x16 s = load(scores + t);
    store(scores + t, fma(s, nothing, mul(tanh(s), top)));
  }
}

// Scores of one query in place plus what their distances add; bias[0] is for the part's first key.
static inline void add_bias(const float* bias, Range seen, float* scores) {
  for (int t = seen.begin / 16 * 16; t < seen.end; t += 16)
    store(scores + t, add(load(scores + t), load(bias + t)));
}

// What becomes of a probability: it stays one.
struct Unweighed {
  template <int N>
  SLMQ_INLINE_MEMBER void weigh(int /*position*/, f32x16 (&)[N]) const {}
  template <int N>
  SLMQ_INLINE_MEMBER void see(const f32x16 (&)[N]) const {}
};

// Vectors of probabilities that are computed side by side, where there are registers for them.
static constexpr int kPowers = kFactorsStay ? 4 : 1;

static constexpr float kLowest = -3.4e38f;

// The largest score of a query, and zero or, if one is not finite, NaN. Where the query does not see, kLowest.
static inline float look_at_scores(float* scores, Range seen, float* spoil) {
  constexpr int kTogether = 4;  // maxima that grow side by side: none waits for the one before
  const f32x16 nothing = splat(0.0f);
  const int whole = (seen.begin + 15) / 16 * 16;
  f32x16 largest[kTogether], spoiled[kTogether];
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) {
    largest[i] = splat(kLowest);
    spoiled[i] = nothing;
  }
  const auto look = [&](int i, f32x16 s) {
    spoiled[i] = fma(s, nothing, spoiled[i]);  // 0 * s is 0, but for an infinity or a NaN
    largest[i] = max(largest[i], s);
  };
  const auto look_at_edge = [&](int t) {
    const f32x16 s = keep_range(load(scores + t), seen.begin - t, seen.end - t, kLowest);
    store(scores + t, s);
    look(0, s);
  };
  int t = seen.begin / 16 * 16;
  if (t < whole) {
    look_at_edge(t);
    t += 16;
  }
  for (; t + 16 * kTogether <= seen.end; t += 16 * kTogether)
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) look(i, load(scores + t + 16 * i));
  for (; t + 16 <= seen.end; t += 16) look(0, load(scores + t));
  if (t < seen.end) look_at_edge(t);
#pragma GCC unroll 4
  for (int i = 1; i < kTogether; ++i) {
    largest[0] = max(largest[0], largest[i]);
    spoiled[0] = add(spoiled[0], spoiled[i]);
  }
  *spoil = reduce_add(spoiled[0]);
  return reduce_max(largest[0]);
}

// Scores of one query, from `top` on, to powers in place, of N vectors of one page.
template <int N, bool Edge, class Weigh>
SLMQ_INLINE void to_powers(float* scores, int t, Range seen, float top, Weigh& weigh,
                           f32x16* sums) {
  f32x16 p[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) p[i] = sub(load(scores + t + 16 * i), splat(top));
  exp2_each(p);
  if constexpr (Edge) p[0] = keep_range(p[0], seen.begin - t, seen.end - t, 0.0f);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) *sums = add(*sums, p[i]);
  weigh.weigh(t, p);
  if constexpr (Edge) p[0] = keep_range(p[0], seen.begin - t, seen.end - t, 0.0f);
  weigh.see(p);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) store(scores + t + 16 * i, p[i]);
}

// Scores of one query in place to powers 2^(score - max), weighed. Max and sum go into the state; a score
// that is not finite makes the sum NaN. Returns what `weigh` has become, which lives in registers.
template <class Weigh>
static inline Weigh soften(float softcap, const Sight& sight, int part, float* scores, Range seen,
                           float* state, FetchAhead* ahead, Weigh weigh) {
  if (empty(seen)) {
    see_nothing(state);
    return weigh;
  }
  if (softcap > 0.0f) cap_scores(softcap, seen, scores);
  if (sight.bias != nullptr) add_bias(sight.bias + part * kPartPositions, seen, scores);
  float spoiled;
  const float top = look_at_scores(scores, seen, &spoiled);
  f32x16 sums = splat(0.0f);
  Asking asking(ahead, larger(1, FetchAhead::kSoftening * kPowers / 4));
  int t = seen.begin / 16 * 16;
  if (t < seen.begin) {
    to_powers<1, true>(scores, t, seen, top, weigh, &sums);
    t += 16;
  }
  while (t + 16 <= seen.end) {
    if (t % (16 * kPowers) == 0 && t + 16 * kPowers <= seen.end) {
      asking.ask();
      to_powers<kPowers, false>(scores, t, seen, top, weigh, &sums);
      t += 16 * kPowers;
    } else {
      to_powers<1, false>(scores, t, seen, top, weigh, &sums);
      t += 16;
    }
  }
  if (t < seen.end) to_powers<1, true>(scores, t, seen, top, weigh, &sums);
  asking.finish();
  state[0] = top;
  state[1] = spoiled == 0.0f ? reduce_add(sums) : __builtin_nanf("");
  return weigh;
}

static void merge(const AttentionShape& shape, const float* part, float* total) {
  if (part[1] == 0.0f) return;  // the query sees nothing of this part
  const float top = larger(total[0], part[0]);
  float factors[16] = {total[0] - top, part[0] - top};
  store(factors, exp2(load(factors)));
  const f32x16 keep = splat(factors[0]), gain = splat(factors[1]);
  total[0] = top;
  total[1] = __builtin_fmaf(part[1], factors[1], total[1] * factors[0]);
  for (int c = kStateHeader; c < kStateHeader + shape.value_stride; c += 16)
    store(total + c, fma(load(part + c), gain, mul(load(total + c), keep)));
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
