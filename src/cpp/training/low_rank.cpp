// Pairs of low rank: what they add to products with packed weights, and their gradients. What all pairs
// of an input share is read once, and all that belongs to a row is done at once by one thread.
#include <algorithm>

#include "training/operators.h"

namespace slmq {
namespace {

constexpr int kRows = 24;      // that a thread takes at once
constexpr int kColumns = 128;  // of a gradient, likewise

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

// slope[rank, columns from first on] += t.T @ rows, of all rows in order
void add_slope(const Kernels& kernels, const float* t, int t_stride, const Rows& rows, int first,
               int columns, const Rows& slope) {
  ProductArgs args = product_of(t, 1, rows, rows.m);
  args.x_step = t_stride;
  args.w += first;
  args.y = slope.data + first;
  args.y_row = slope.stride;
  args.m = slope.m;
  args.n = columns;
  args.add = true;
  kernels.product(args);
}

void scale_rows(float* rows, int m, int columns, int stride, float scale) {
  for (int row = 0; row < m; ++row, rows += stride)
    for (int c = 0; c < columns; ++c) rows[c] = rows[c] * scale;
}

}  // namespace

void low_rank(Workers& workers, const TrainedInput& in, const Rows& a,
              const std::vector<TrainedUse>& uses) {
  const int ranks = up16(in.rank * static_cast<int>(uses.size()));
  workers.each((in.x.m + kRows - 1) / kRows, [&](int item, int) {
    const int row = item * kRows, rows = std::min(kRows, in.x.m - row);
    ProductArgs down = product_of(in.x.row(row), in.x.stride, a, in.k);
    down.y = in.t.row(row);
    down.y_row = in.t.stride;
    down.m = rows;
    down.n = ranks;
    workers.kernels.product(down);
    scale_rows(down.y, rows, ranks, in.t.stride, in.scale);
    int first = 0;
    for (const TrainedUse& use : uses) {
      ProductArgs up = product_of(in.t.row(row) + first, in.t.stride, use.b, in.rank);
      up.y = use.y.row(row);
      up.y_row = use.y.stride;
      up.m = rows;
      up.n = static_cast<int>(round_up(use.n, kGroup));
      up.add = true;
      workers.kernels.product(up);
      first += in.rank;
    }
  });
}

void low_rank_back(Workers& workers, const TrainedInput& in, const std::vector<TrainedBack>& uses,
                   const Rows& dx) {
  const int count = static_cast<int>(uses.size()), each = up16(in.rank), stride = count * each;
  const int k = static_cast<int>(round_up(in.k, kGroup));
  float* slopes = workers.shared(static_cast<size_t>(in.x.m) * stride);
  workers.each((in.x.m + kRows - 1) / kRows, [&](int item, int) {
    const int row = item * kRows, rows = std::min(kRows, in.x.m - row);
    float* dt = slopes + static_cast<ptrdiff_t>(row) * stride;
    for (const TrainedBack& use : uses) {
      ProductArgs down = product_of(use.dy.row(row), use.dy.stride, use.b, use.n);
      down.y = dt;
      down.y_row = stride;
      down.m = rows;
      down.n = each;
      workers.kernels.product(down);
      scale_rows(dt, rows, each, stride, in.scale);
      ProductArgs up = product_of(dt, stride, use.a, in.rank);
      up.y = dx.row(row);
      up.y_row = dx.stride;
      up.m = rows;
      up.n = k;
      up.add = true;
      workers.kernels.product(up);
      dt += each;
    }
  });
  // Blocks of columns: of every A, then of every B.
  const int blocks = (k + kColumns - 1) / kColumns;
  std::vector<int> ends;
  for (const TrainedBack& use : uses)
    ends.push_back((ends.empty() ? count * blocks : ends.back()) +
                   (use.n + kColumns - 1) / kColumns);
  workers.each(ends.back(), [&](int item, int) {
    if (item < count * blocks) {
      const int use = item / blocks, first = item % blocks * kColumns;
      add_slope(workers.kernels, slopes + use * each, stride, in.x, first,
                std::min(kColumns, k - first), uses[use].a_slope);
      return;
    }
    size_t use = 0;
    while (item >= ends[use]) ++use;
    const TrainedBack& one = uses[use];
    const int begin = use == 0 ? count * blocks : ends[use - 1];
    const int first = (item - begin) * kColumns, n = static_cast<int>(round_up(one.n, kGroup));
    add_slope(workers.kernels, in.t.data + static_cast<ptrdiff_t>(use) * in.rank, in.t.stride,
              one.dy, first, std::min(kColumns, n - first), one.b_slope);
  });
}

}  // namespace slmq
