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

// The part of the cache that one call works on: a KV head's keys and values, page by page.
struct PartView {
  const AttentionShape& shape;
  uint8_t* const* pages;  // of the part
  size_t offset;          // of the head in a page

  const uint8_t* keys(int page) const { return pages[page] + offset; }
  const uint8_t* values(int page) const { return pages[page] + offset + shape.value_offset; }
};
static constexpr int kPartPages = kPartPositions / kPagePositions;
static inline PartView view_part(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                                 int part) {
  return {shape, pages + part * kPartPages,
          shape.layer_offset + static_cast<size_t>(kv_head) * shape.head_bytes};
}

// What is fetched into the second-level cache while something before it is computed: keys of the pages
// [first, last] of a part, then their values, then keys of what follows. A piece is one page's. Pages
// lie megabytes apart: no hardware looks so far.
struct PiecesAhead {
  const PartView& view;
  const int first, last;
  const Following& following;
  static constexpr int kPieces = 2;  // ahead of the one that is computed
  int at = kPieces;

  // The next piece, or null
  const uint8_t* next() {
    const int pages = last - first + 1, piece = at++;
    if (piece < pages) return view.keys(first + piece);
    if (piece < 2 * pages) return view.values(first + piece - pages);
    const int behind = piece - 2 * pages;
    return behind < smaller(kPieces, following.count) ? following.pages[behind] + following.offset
                                                      : nullptr;
  }
};

// The same, line by line, for parts whose arithmetic takes longer than their bytes: memory must not pause
// while scores are exponentiated and rounded, so these ask for lines, too. In the order of addresses
// come lines of what follows, or first the part's own if nobody has asked for them.
class FetchAhead {
 public:
  FetchAhead(const PartView& view, int first, int last, int n_queries, const Following& following)
      : bytes_(view.shape.head_bytes), pages_(following.pages), offset_(following.offset) {
    const int lines = static_cast<int>(bytes_ / 64), others = 8 * n_queries;
    piece_ = (larger(lines / 2, lines - others) + 1) / 2;
    left_ = following.count;
    if (!following.not_asked) return;
    piece_ = lines;
    then_pages_ = pages_, then_offset_ = offset_, then_left_ = left_;
    pages_ = view.pages + first, offset_ = view.offset, left_ = last - first + 1;
  }

  // Lines to ask for at each of the steps in which the keys or the values of a page are computed.
  int at_each(int steps) const { return (piece_ + steps - 1) / steps; }

  // No call: it would push the sums of a loop out of their registers.
  SLMQ_INLINE_MEMBER void lines(int n) {
    for (; n > 0; --n) {
      if (at_ == end_ && !next_page()) return;
      prefetch_second_level(at_);
      at_ += 64;
    }
  }

 private:
  SLMQ_INLINE_MEMBER bool next_page() {
    if (left_ == 0) {
      pages_ = then_pages_, offset_ = then_offset_, left_ = then_left_;
      then_left_ = 0;
      if (left_ == 0) return false;
    }
    at_ = *pages_ + offset_;
    end_ = at_ + bytes_ / 64 * 64;
    ++pages_, --left_;
    return true;
  }

  const size_t bytes_;  // of a head in a page
  uint8_t *const *pages_, *const *then_pages_ = nullptr;
  size_t offset_, then_offset_ = 0;
  int left_, then_left_ = 0, piece_;
  const uint8_t *at_ = nullptr, *end_ = nullptr;
};

// A fetch of some lines at every step of a loop; of none without a FetchAhead.
class Asking {
 public:
  // The loop computes the keys or the values of a page in so many steps.
  Asking(FetchAhead* ahead, int steps) : ahead_(ahead), lines_(ahead ? ahead->at_each(steps) : 0) {}
  SLMQ_INLINE_MEMBER void ask() const {
    if (lines_ > 0) ahead_->lines(lines_);
  }

 private:
  FetchAhead* ahead_;
  int lines_;
};

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

// 2^x for x <= 0; 0 below -127. A minimax polynomial that is 1 at 0, 3 units of 2^-24.
static inline f32x16 exp2(f32x16 x) {
  const f32x16 magic = splat(12582912.0f);  // adding it rounds to an integer, in the lowest bits
  const f32x16 clamped = max(x, splat(-127.0f));
  const f32x16 shifted = add(clamped, magic);
  const f32x16 f = sub(clamped, sub(shifted, magic));
  f32x16 p = splat(0x1.5bba14p-10f);
  p = fma(p, f, splat(0x1.3cea88p-7f));
  p = fma(p, f, splat(0x1.c6b752p-5f));
  p = fma(p, f, splat(0x1.ebf9bcp-3f));
  p = fma(p, f, splat(0x1.62e42ap-1f));
  p = fma(p, f, splat(1.0f));
  return times_pow2(p, shifted);
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
  SLMQ_INLINE_MEMBER f32x16 operator()(int /*position*/, f32x16 p) const { return p; }
  SLMQ_INLINE_MEMBER void see(f32x16 /*weighed*/) const {}
};

// Scores of one query in place to weigh(position, 2^(score - max)). Max and sum go into the state; a
// score that is not finite makes the sum NaN.
template <class Weigh>
static inline void soften(float softcap, const Sight& sight, int part, float* scores, Range seen,
                          float* state, FetchAhead* ahead, Weigh&& weigh) {
  if (empty(seen)) return see_nothing(state);
  if (softcap > 0.0f) cap_scores(softcap, seen, scores);
  if (sight.bias != nullptr) add_bias(sight.bias + part * kPartPositions, seen, scores);
  constexpr float kLowest = -3.4e38f;
  constexpr int kTogether = 4;  // maxima that grow side by side: none waits for the one before
  const f32x16 nothing = splat(0.0f);
  const int first = seen.begin / 16 * 16, whole = (seen.begin + 15) / 16 * 16;
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
  int t = first;
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
  const float top = reduce_max(largest[0]);
  f32x16 sums = nothing;
  for (t = first; t < seen.end; t += 16) {
    if (ahead != nullptr) ahead->lines(1);
    f32x16 p = exp2(sub(load(scores + t), splat(top)));
    const bool edge = t < whole || t + 16 > seen.end;
    if (edge) p = keep_range(p, seen.begin - t, seen.end - t, 0.0f);
    sums = add(sums, p);
    f32x16 weighed = weigh(t, p);
    if (edge) weighed = keep_range(weighed, seen.begin - t, seen.end - t, 0.0f);
    weigh.see(weighed);
    store(scores + t, weighed);
  }
  state[0] = top;
  state[1] = reduce_add(spoiled[0]) == 0.0f ? reduce_add(sums) : __builtin_nanf("");
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
