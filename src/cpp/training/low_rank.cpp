// Pairs of low rank: what they add to products with packed weights, and their gradients. What all pairs
// of an input share is read once, and all that belongs to a row is done at once by one thread.
#include <algorithm>

#include "training/operators.h"

namespace slmq {
namespace {

constexpr int kRows = 24;      // that a thread takes at once
constexpr int kColumns = 256;  // of a gradient, likewise: about so many
constexpr int kSummed = 32;    // rows that are added to them before others are read

int up16(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// y[m, n] (+)= x[m, k] @ w[k, n]
ProductArgs product_of(const float* x, ptrdiff_t x_row, const Rows& w, int k) {
  ProductArgs args{};
  args.x = x;
  args.x_row = x_row;
  args.x_step = 1;
  args.w = w.data;
  args.w_tile = kLanes;
  args.w_step = w.stride;
  args.k = k;
  return args;
}

// A gradient: slope[slope.m, n] += t.T @ rows.
struct Sum {
  const float* t;
  int t_stride;
  Rows rows;
  int n;                     // a multiple of 16
  std::vector<Rows> slopes;  // behind each other, as many rows each
};

// Of columns from first on: of all rows in order, a few at a time so that memory is read along rows.
void add_columns(const Kernels& kernels, const Sum& sum, int first, int columns, float* block) {
  const Rows& one = sum.slopes.front();
  const bool several = sum.slopes.size() > 1;
  const Rows to = several ? Rows{block, one.m * static_cast<int>(sum.slopes.size()), columns}
                          : Rows{one.data + first, one.m, one.stride};
  const auto row_of = [&](int i) { return sum.slopes[i / one.m].row(i % one.m) + first; };
  for (int i = 0; several && i < to.m; ++i) std::copy_n(row_of(i), columns, to.row(i));
  for (int row = 0; row < sum.rows.m; row += kSummed) {
    const Rows from{sum.rows.row(row) + first, 0, sum.rows.stride};
    ProductArgs args = product_of(sum.t + static_cast<ptrdiff_t>(row) * sum.t_stride, 1, from,
                                  std::min(kSummed, sum.rows.m - row));
    args.x_step = sum.t_stride;
    args.y = to.data;
    args.y_row = to.stride;
    args.m = to.m;
    args.n = columns;
    args.add = true;
    kernels.product(args);
  }
  for (int i = 0; several && i < to.m; ++i) std::copy_n(to.row(i), columns, row_of(i));
}

// Columns that a thread takes at once, of n.
int columns_at_once(int n) {
  const int parts = (n + kColumns - 1) / kColumns;
  return static_cast<int>(round_up((n + parts - 1) / parts, kGroup));
}

void add_sums(Workers& workers, const std::vector<Sum>& sums) {
  std::vector<int> first{0};
  size_t most = 0;
  for (const Sum& sum : sums) {
    const int columns = columns_at_once(sum.n);
    first.push_back(first.back() + (sum.n + columns - 1) / columns);
    most = std::max(most, sum.slopes.size() * sum.slopes.front().m * columns);
  }
  workers.reserve(most);
  workers.each(first.back(), [&](int item, int thread) {
    size_t i = 0;
    while (item >= first[i + 1]) ++i;
    const int columns = columns_at_once(sums[i].n), begin = (item - first[i]) * columns;
    add_columns(workers.kernels, sums[i], begin, std::min(columns, sums[i].n - begin),
                workers.own(thread));
  });
}

void scale_rows(float* rows, int m, int columns, int stride, float scale) {
  for (int row = 0; row < m; ++row, rows += stride)
    for (int c = 0; c < columns; ++c) rows[c] = rows[c] * scale;
}

}  // namespace

void low_rank_down(const Kernels& kernels, const LowRankPairs& pairs, const Rows& x, int begin,
                   int end) {
  const int ranks =
      pairs.rank * static_cast<int>(std::count_if(pairs.b.begin(), pairs.b.end(),
                                                  [](const Rows& b) { return b.data != nullptr; }));
  ProductArgs down = product_of(x.row(begin), x.stride, pairs.a, pairs.k);
  down.y = pairs.t.row(begin);
  down.y_row = pairs.t.stride;
  down.m = end - begin;
  down.n = up16(ranks);
  kernels.product(down);
  scale_rows(down.y, down.m, down.n, pairs.t.stride, pairs.scale);
}

void low_rank_up(const Kernels& kernels, const LowRankPairs& pairs, int place, const Rows& b,
                 int first, int columns, const Rows& y, int row) {
  ProductArgs up = product_of(pairs.t.row(row) + place, pairs.t.stride, b, pairs.rank);
  up.w += first;
  up.y = y.data + first;
  up.y_row = y.stride;
  up.m = y.m;
  up.n = columns;
  up.add = true;
  kernels.product(up);
}

void low_rank_back(Workers& workers, const TrainedInput& in, const std::vector<TrainedBack>& uses,
                   const Rows& dx) {
  const int count = static_cast<int>(uses.size()), rank = in.rank, ranks = rank * count;
  const int k = static_cast<int>(round_up(in.k, kGroup));
  // What flows back to t, of all pairs behind each other; a pair's product ends with zeros, on which
  // the next one is written.
  const int stride = up16(ranks - rank + up16(rank));
  const size_t slopes = static_cast<size_t>(in.x.m) * stride;
  float* memory = workers.shared(slopes + static_cast<size_t>(ranks) * k);
  const Rows dt{memory, in.x.m, stride}, a{memory + slopes, ranks, k};
  for (int i = 0; i < ranks; ++i) std::copy_n(uses[i / rank].a.row(i % rank), k, a.row(i));
  workers.each((in.x.m + kRows - 1) / kRows, [&](int item, int) {
    const int row = item * kRows, rows = std::min(kRows, in.x.m - row);
    for (int use = 0; use < count; ++use) {
      const TrainedBack& one = uses[use];
      ProductArgs down = product_of(one.dy.row(row), one.dy.stride, one.b, one.n);
      down.y = dt.row(row) + use * rank;
      down.y_row = stride;
      down.m = rows;
      down.n = up16(rank);
      workers.kernels.product(down);
    }
    scale_rows(dt.row(row), rows, ranks, stride, in.scale);
    ProductArgs up = product_of(dt.row(row), stride, a, ranks);
    up.y = dx.row(row);
    up.y_row = dx.stride;
    up.m = rows;
    up.n = k;
    up.add = true;
    workers.kernels.product(up);
  });
  std::vector<Sum> sums{{dt.data, stride, in.x, k, {}}};
  for (int use = 0; use < count; ++use) {
    const TrainedBack& one = uses[use];
    sums.front().slopes.push_back(one.a_slope);
    const int n = static_cast<int>(round_up(one.n, kGroup));
    sums.push_back({in.t.data + use * rank, in.t.stride, one.dy, n, {one.b_slope}});
  }
  add_sums(workers, sums);
}

}  // namespace slmq
