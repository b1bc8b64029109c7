// Causal attention over whole texts, forward and back. A head of a text is one item: scores exist for a
// few queries at a time, and every sum runs over queries or keys in their order.
#include <algorithm>

#include "training/operators.h"

namespace slmq {
namespace {

constexpr int kQueries = 24;  // of a block: the more, the more keys that only some of them see

int up16(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Where a head of a text is worked on: rows of `columns` = head_dim rounded up to 16, as many as the
// text's length rounded up to 16; and the same transposed, [tile of 16 rows][head_dim][16]. Rows of
// scores are sixteen longer than that: of 256 or 1024 they would meet in a few sets of a cache.
struct Bench {
  int columns, length;
  int scores_stride() const { return length + kLanes; }
  size_t rows_floats() const { return static_cast<size_t>(length) * columns; }
  size_t scores_floats() const { return static_cast<size_t>(kQueries) * scores_stride(); }
};

Bench bench_for(const Attention& attention, const Texts& texts) {
  return {up16(attention.head_dim), up16(texts.longest())};
}

class HeadOf {
 public:
  HeadOf(const Workers& workers, const Attention& attention, const Bench& bench, int first,
         int rows)
      : kernels_(workers.kernels),
        attention_(attention),
        bench_(bench),
        first_(first),
        rows_(rows) {}

  int rows() const { return rows_; }

  // Queries of the first part of the text, and of the second, which takes about as long: there are more
  // keys to see, and threads that share an odd number of heads end together.
  int begin_of(int part) const { return part == 0 ? 0 : end_of(0); }
  int end_of(int part) const {
    return part == 1 ? rows_ : std::min(rows_, rows_ * 7 / 10 / kQueries * kQueries + kQueries);
  }

  // The head's columns of the text's rows [begin, end), in their places; zeros behind them.
  void take(const Rows& from, int head, int begin, int end, float* to) const {
    const int columns = bench_.columns, wide = attention_.head_dim;
    to += static_cast<ptrdiff_t>(begin) * columns;
    for (int i = begin; i < up16(end); ++i, to += columns) {
      const int count = i < end ? wide : 0;
      if (count != 0)
        std::copy_n(from.row(first_ + i) + static_cast<ptrdiff_t>(head) * wide, count, to);
      std::fill(to + count, to + columns, 0.0f);
    }
  }
  void give(const float* from, int begin, int count, const Rows& to, int head) const {
    const int wide = attention_.head_dim;
    for (int i = begin; i < begin + count; ++i, from += bench_.columns)
      std::copy_n(from, wide, to.row(first_ + i) + static_cast<ptrdiff_t>(head) * wide);
  }
  // The columns of a head in the text's rows [0, end), transposed, and behind them those in other rows
  // as they are; returns those.
  const float* pack(const Rows& turned, const Rows& rows, int head, int end, float* to) const {
    AttentionShape shape{};
    shape.head_dim = attention_.head_dim;
    shape.value_stride = bench_.columns;
    const ptrdiff_t at = static_cast<ptrdiff_t>(head) * attention_.head_dim;
    kernels_.pack_text(shape, end, turned.row(first_) + at, turned.stride, rows.row(first_) + at,
                       rows.stride, to);
    float* packed = to + static_cast<ptrdiff_t>(up16(end)) * attention_.head_dim;
    std::fill(packed + static_cast<ptrdiff_t>(end) * bench_.columns,
              packed + static_cast<ptrdiff_t>(up16(end)) * bench_.columns, 0.0f);
    return packed;
  }

  // Keys that query i sees: [begin(i), i].
  int begin(int i) const {
    return attention_.window == 0 ? 0 : std::max(0, i + 1 - attention_.window);
  }

  // Scores of queries [from, to) with keys [low, high): products of rows with transposed rows.
  void scores(const float* rows, const float* transposed, int from, int to, int low, int high,
              float* out) const {
    const int columns = bench_.columns, wide = attention_.head_dim;
    ProductArgs args{};
    args.x = rows + static_cast<ptrdiff_t>(from) * columns;
    args.x_row = columns;
    args.x_step = 1;
    args.w = transposed + static_cast<ptrdiff_t>(low) * wide;
    args.w_tile = static_cast<ptrdiff_t>(wide) * kLanes;
    args.w_step = kLanes;
    args.y = out;
    args.y_row = bench_.scores_stride();
    args.m = to - from;
    args.n = high - low;
    args.k = wide;
    kernels_.product(args);
  }

  // Scores to shares of attention; keys that a query does not see get 0. `capped`: the scores that a
  // soft cap gave, or null.
  void shares(int from, int to, int low, int high, float* scores, float* capped) const {
    for (int i = from; i < to; ++i, scores += bench_.scores_stride()) {
      const int first = begin(i) - low, seen = i + 1 - low, all = high - low;
      float scale = attention_.scale;
      if (attention_.softcap != 0.0f) {
        for (int t = 0; t < all; ++t) scores[t] = scores[t] * scale;
        kernels_.softcap(scores, all, attention_.softcap, scores);
        scale = 1.0f;
      }
      if (capped != nullptr) {
        std::copy_n(scores, all, capped);
        capped += bench_.scores_stride();
      }
      kernels_.softmax(scores + first, seen - first, scale, scores + first);
      std::fill(scores, scores + first, 0.0f);
      std::fill(scores + seen, scores + all, 0.0f);
    }
  }

  // Gradients of shares to those of scores, in place.
  void shares_back(int from, int to, int low, int high, const float* shares, const float* capped,
                   float* slopes) const {
    const bool cap = attention_.softcap != 0.0f;
    for (int i = from; i < to;
         ++i, slopes += bench_.scores_stride(), shares += bench_.scores_stride()) {
      const int first = begin(i) - low, seen = i + 1 - low, all = high - low;
      const float scale = cap ? 1.0f : attention_.scale;
      kernels_.softmax_back(shares + first, slopes + first, seen - first, scale, slopes + first);
      std::fill(slopes, slopes + first, 0.0f);
      std::fill(slopes + seen, slopes + all, 0.0f);
      if (!cap) continue;
      kernels_.softcap_back(capped, slopes, all, attention_.softcap, slopes);
      for (int t = 0; t < all; ++t) slopes[t] = slopes[t] * attention_.scale;
      capped += bench_.scores_stride();
    }
  }

  // out[0, queries) = weights @ rows of keys [low, high)
  void sum_keys(const float* weights, const float* rows, int queries, int low, int high,
                float* out) const {
    const int columns = bench_.columns;
    ProductArgs args{};
    args.x = weights;
    args.x_row = bench_.scores_stride();
    args.x_step = 1;
    args.w = rows + static_cast<ptrdiff_t>(low) * columns;
    args.w_tile = kLanes;
    args.w_step = columns;
    args.y = out;
    args.y_row = columns;
    args.m = queries;
    args.n = columns;
    args.k = high - low;
    kernels_.product(args);
  }

  // out[keys low..high) += weights.T @ rows of queries [from, to)
  void add_queries(const float* weights, const float* rows, int from, int to, int low, int high,
                   float* out) const {
    const int columns = bench_.columns;
    ProductArgs args{};
    args.x = weights;
    args.x_row = 1;
    args.x_step = bench_.scores_stride();
    args.w = rows + static_cast<ptrdiff_t>(from) * columns;
    args.w_tile = kLanes;
    args.w_step = columns;
    args.y = out + static_cast<ptrdiff_t>(low) * columns;
    args.y_row = columns;
    args.m = high - low;
    args.n = columns;
    args.k = to - from;
    args.add = true;
    kernels_.product(args);
  }

 private:
  const Kernels& kernels_;
  const Attention& attention_;
  const Bench& bench_;
  const int first_, rows_;
};

// A thread's memory, cut up in order.
class Cut {
 public:
  explicit Cut(float* memory) : next_(memory) {}
  float* take(size_t floats) {
    float* taken = next_;
    next_ += round_up(static_cast<int64_t>(floats), kLanes);
    return taken;
  }

 private:
  float* next_;
};

// to = the sum of heads behind each other, in order
void add_heads(const float* from, int heads, int wide, float* to) {
  std::copy_n(from, wide, to);
  for (int head = 1; head < heads; ++head) {
    from += wide;
    for (int c = 0; c < wide; ++c) to[c] = to[c] + from[c];
  }
}

}  // namespace

void attend(Workers& workers, const Attention& attention, const Texts& texts, const Rows& q,
            const Rows& k, const Rows& v, const Rows& out) {
  const Bench bench = bench_for(attention, texts);
  const int heads = attention.heads, shared = heads / attention.kv_heads;
  workers.reserve(4 * bench.rows_floats() + bench.scores_floats() + 64 * kLanes);
  workers.each(2 * texts.count * heads, [&](int item, int thread) {
    const int text = item / 2 / heads, head = item / 2 % heads;
    const HeadOf one(workers, attention, bench, texts.starts[text], texts.length(text));
    const int begin = one.begin_of(item % 2), end = one.end_of(item % 2);
    if (begin == end) return;
    Cut cut(workers.own(thread));
    float *queries = cut.take(bench.rows_floats()), *keys = cut.take(2 * bench.rows_floats());
    float *results = cut.take(bench.rows_floats()), *scores = cut.take(bench.scores_floats());
    one.take(q, head, begin, end, queries);
    const float* values = one.pack(k, v, head / shared, end, keys);
    for (int from = begin; from < end; from += kQueries) {
      const int to = std::min(end, from + kQueries);
      const int low = one.begin(from) / kLanes * kLanes, high = up16(to);
      one.scores(queries, keys, from, to, low, high, scores);
      one.shares(from, to, low, high, scores, nullptr);
      one.sum_keys(scores, values, to - from, low, high, results);
      one.give(results, from, to - from, out, head);
    }
  });
}

void attend_back(Workers& workers, const Attention& attention, const Texts& texts, const Rows& q,
                 const Rows& k, const Rows& v, const Rows& d_out,
                 const AttentionGradients& gradients) {
  const Bench bench = bench_for(attention, texts);
  const int heads = attention.heads, wide = attention.head_dim, shared = heads / attention.kv_heads;
  workers.reserve(9 * bench.rows_floats() + 3 * bench.scores_floats() + 64 * kLanes);
  // Keys and values get gradients from several query heads: each by itself, then added in order.
  const size_t each = static_cast<size_t>(q.m) * heads * wide;
  float* parts = workers.shared(2 * each);
  const Rows key_parts{parts, q.m, heads * wide}, value_parts{parts + each, q.m, heads * wide};
  workers.each(texts.count * heads, [&](int item, int thread) {
    const int text = item / heads, head = item % heads;
    const HeadOf one(workers, attention, bench, texts.starts[text], texts.length(text));
    const int end = one.rows();
    Cut cut(workers.own(thread));
    const size_t rows = bench.rows_floats(), block = bench.scores_floats();
    float *queries = cut.take(rows), *slopes = cut.take(rows);
    float *turned_values = cut.take(2 * rows), *turned_keys = cut.take(2 * rows);
    float *d_queries = cut.take(rows), *d_keys = cut.take(rows), *d_values = cut.take(rows);
    float *shares = cut.take(block), *d_shares = cut.take(block), *capped = cut.take(block);
    one.take(q, head, 0, end, queries);
    one.take(d_out, head, 0, end, slopes);
    const float* keys = one.pack(v, k, head / shared, end, turned_values);
    one.pack(k, v, head / shared, end, turned_keys);
    std::fill_n(d_keys, rows, 0.0f);
    std::fill_n(d_values, rows, 0.0f);
    for (int from = 0; from < end; from += kQueries) {
      const int to = std::min(end, from + kQueries);
      const int low = one.begin(from) / kLanes * kLanes, high = up16(to);
      one.scores(queries, turned_keys, from, to, low, high, shares);
      one.shares(from, to, low, high, shares, attention.softcap == 0.0f ? nullptr : capped);
      one.add_queries(shares, slopes, from, to, low, high, d_values);
      one.scores(slopes, turned_values, from, to, low, high, d_shares);
      one.shares_back(from, to, low, high, shares, capped, d_shares);
      one.sum_keys(d_shares, keys, to - from, low, high, d_queries);
      one.give(d_queries, from, to - from, gradients.dq, head);
      one.add_queries(d_shares, queries, from, to, low, high, d_keys);
    }
    one.give(d_keys, 0, end, key_parts, head);
    one.give(d_values, 0, end, value_parts, head);
  });
  each_row(workers, q.m, [&](int row, int) {
    for (int head = 0; head < attention.kv_heads; ++head) {
      const ptrdiff_t from = static_cast<ptrdiff_t>(head) * shared * wide,
                      to = static_cast<ptrdiff_t>(head) * wide;
      add_heads(key_parts.row(row) + from, shared, wide, gradients.dk.row(row) + to);
      add_heads(value_parts.row(row) + from, shared, wide, gradients.dv.row(row) + to);
    }
  });
}

}  // namespace slmq
