// Gradients of weights, and the step that they are for. Threads share what is summed for, never a sum.
#include <algorithm>
#include <cmath>
#include <vector>

#include "training/operators.h"

namespace slmq {
namespace {

constexpr int kTile = kLanes * kGroup;  // floats of 32 columns of 16 rows

// 32 columns of some rows behind each other: as they are, rows that are a multiple of 4 KB apart
// would meet in a few sets of a cache.
void copy_columns(const Rows& from, int begin, int rows, int group, float* to) {
  for (int i = 0; i < rows; ++i)
    std::copy_n(from.row(begin + i) + static_cast<ptrdiff_t>(group) * kGroup, kGroup,
                to + static_cast<ptrdiff_t>(i) * kGroup);
}

// Where a weight has its row, in the first of a number of groups of columns.
float* row_of(const WeightSlope& slope, int row) {
  const ptrdiff_t pair = row / kPairRows, groups = matrix_groups(slope.k);
  return slope.data + pair * groups * 2 * kTile + row % kPairRows / kLanes * kTile + row % kLanes;
}

// Calls sum(first column, columns) for all columns, on all threads.
template <class Sum>
void each_columns(Workers& workers, int columns, const Sum& sum) {
  workers.each((columns + kGroup - 1) / kGroup, [&](int item, int) {
    sum(item * kGroup, std::min(kGroup, columns - item * kGroup));
  });
}

}  // namespace

void weight_back(Workers& workers, const Rows& x, const Rows& dy, const WeightSlope& slope) {
  constexpr int kRows = 256, kSpan = 16;  // rows of a block; groups that a thread takes at once
  const int groups = matrix_groups(slope.k), pairs = matrix_pairs(slope.n);
  const int spans = (groups + kSpan - 1) / kSpan;
  const size_t block = static_cast<size_t>(std::min(kRows, x.m)) * kGroup;
  workers.reserve(block);
  auto* inputs = reinterpret_cast<float*>(workers.panel(groups * block * sizeof(float)));
  for (int begin = 0; begin < x.m; begin += kRows) {
    const int rows = std::min(kRows, x.m - begin);
    workers.each(groups, [&](int group, int) {
      copy_columns(x, begin, rows, group, inputs + group * block);
    });
    workers.each(pairs * spans, [&](int item, int thread) {
      const int pair = item / spans, first = item % spans * kSpan;
      float* slopes = workers.own(thread);
      copy_columns(dy, begin, rows, pair, slopes);
      ProductArgs args{};
      args.x_row = 1;
      args.x_step = kGroup;
      args.w_tile = kLanes;
      args.w_step = kGroup;
      args.y_row = kLanes;
      args.m = kGroup;
      args.n = kLanes;
      args.k = rows;
      args.add = true;
      for (int group = first; group < std::min(groups, first + kSpan); ++group) {
        args.x = inputs + group * block;
        for (int tile = 0; tile < 2; ++tile) {
          args.w = slopes + tile * kLanes;
          args.y = slope.data + ((static_cast<size_t>(pair) * groups + group) * 2 + tile) * kTile;
          workers.kernels.product(args);
        }
      }
    });
  }
}

void bias_back(Workers& workers, const Rows& dy, int n, float* slope) {
  each_columns(workers, n, [&](int first, int columns) {
    for (int row = 0; row < dy.m; ++row) {
      const float* from = dy.row(row) + first;
      for (int c = 0; c < columns; ++c) slope[first + c] = slope[first + c] + from[c];
    }
  });
}

void embed_back(Workers& workers, const int32_t* ids, float scale, const Rows& dy,
                const WeightSlope& slope) {
  each_columns(workers, slope.k, [&](int first, int columns) {
    for (int row = 0; row < dy.m; ++row) {
      const float* from = dy.row(row) + first;
      float* to = row_of(slope, ids[row]) + static_cast<ptrdiff_t>(first / kGroup) * 2 * kTile;
      for (int c = 0; c < columns; ++c) to[c * kLanes] = to[c * kLanes] + scale * from[c];
    }
  });
}

void norm_weight_back(Workers& workers, const Norm& norm, const Rows& x, const Rows& dy,
                      const NormSlope& slope) {
  const std::vector<float> ones(static_cast<size_t>(round_up(norm.width, kGroup)), 1.0f);
  Norm plain = norm;
  plain.weight = ones.data();
  plain.bias = nullptr;
  const Rows normed{workers.shared(static_cast<size_t>(x.m) * x.stride), x.m, x.stride};
  slmq::norm(workers, plain, x, normed);
  each_columns(workers, norm.width, [&](int first, int columns) {
    for (int row = 0; row < x.m; ++row) {
      for (int head = 0; head < norm.heads; ++head) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(head) * norm.width + first;
        const float *values = normed.row(row) + at, *slopes = dy.row(row) + at;
        float* weight = slope.weight + first;
        for (int c = 0; c < columns; ++c)
          weight[c] = weight[c] + slopes[c] * values[c] * slope.scale;
        if (slope.bias == nullptr) continue;
        for (int c = 0; c < columns; ++c) slope.bias[first + c] = slope.bias[first + c] + slopes[c];
      }
    }
  });
}

void adam(Workers& workers, const AdamStep& step, float* values, const float* slopes,
          const Moments& moments, size_t count) {
  constexpr size_t kValues = 1 << 14;
  const auto one = [&](size_t i) {
    const float slope = slopes[i], mean = moments.mean[i] + (slope - moments.mean[i]) * step.first;
    const float square = moments.square[i] * step.second_kept + slope * slope * step.second;
    moments.mean[i] = mean;
    moments.square[i] = square;
    const float spread = std::sqrt(square) / step.root + step.eps;
    values[i] = values[i] * step.kept - mean / spread * step.step;
  };
  workers.each(static_cast<int>((count + kValues - 1) / kValues), [&](int item, int) {
    const size_t begin = item * kValues, end = std::min(count, begin + kValues);
    for (size_t i = begin; i < end; ++i) one(i);
  });
}

}  // namespace slmq
