// Products with packed weights, forward and back, and with the small matrices that are trained.
#include <algorithm>

#include "training/operators.h"

namespace slmq {
namespace {

constexpr int kBlockPairs =
    8;  // of a weight that are widened at once: 32 columns of them fit a first
        // cache, and the product's sums go on from block to block

}  // namespace

void linear(Workers& workers, const Rows& x, Activations activations,
            const std::vector<LinearUse>& uses) {
  const Kernels& kernels = workers.kernels;
  const int groups = uses.front().matrix->groups();
  uint8_t* panel = nullptr;
  for (const LinearUse& use : uses) {
    if (panel != nullptr || !info(use.matrix->format).quantized) continue;
    panel = workers.panel(static_cast<size_t>(x.m) * groups * kActivationBytes);
    const auto quantize = kernels.quantize[static_cast<int>(activations)];
    workers.each((x.m + kPanelRows - 1) / kPanelRows, [&](int item, int) {
      const int begin = item * kPanelRows;
      quantize(x.data, x.stride, groups, x.m, begin, std::min(x.m, begin + kPanelRows), panel);
    });
  }
  constexpr int kPairs = 2;  // a thread takes at once
  std::vector<int> first{0};
  for (const LinearUse& use : uses)
    first.push_back(first.back() + (use.matrix->pairs() + kPairs - 1) / kPairs);
  workers.each(first.back(), [&](int item, int) {
    size_t i = 0;
    while (item >= first[i + 1]) ++i;
    const LinearUse& use = uses[i];
    LinearArgs args{};
    args.weight = use.matrix->data;
    args.groups = groups;
    args.m = x.m;
    args.panel = panel;
    args.x = x.data;
    args.x_stride = x.stride;
    args.y = use.y.data;
    args.y_stride = use.y.stride;
    args.bias = use.bias;
    args.add = use.add;
    args.add_stride = use.y.stride;
    const int pair = (item - first[i]) * kPairs;
    kernels.linear[static_cast<int>(use.matrix->format)](
        args, pair, std::min(pair + kPairs, use.matrix->pairs()));
  });
}

void linear_back(Workers& workers, const std::vector<LinearUse>& uses, bool add, const Rows& dx) {
  const Kernels& kernels = workers.kernels;
  const int groups = uses.front().matrix->groups(), k = uses.front().matrix->k;
  constexpr int kBlockRows = kBlockPairs * kPairRows;
  workers.reserve(size_t{kBlockRows} * kGroup);
  workers.each(groups, [&](int group, int thread) {
    float* block = workers.own(thread);
    ProductArgs args{};
    args.m = dx.m;
    args.n = kGroup;
    args.x_step = 1;
    args.w = block;
    args.w_tile = kLanes;
    args.w_step = kGroup;
    args.y = dx.data + static_cast<ptrdiff_t>(group) * kGroup;
    args.y_row = dx.stride;
    args.add = add;
    for (const LinearUse& use : uses) {
      const Matrix& w = *use.matrix;
      const auto widen = kernels.widen[static_cast<int>(w.format)];
      args.x_row = use.y.stride;
      for (int pair = 0; pair < w.pairs(); pair += kBlockPairs) {
        const int pairs = std::min(kBlockPairs, w.pairs() - pair);
        for (int p = 0; p < pairs; ++p)
          widen(w.data, groups, pair + p, group, block + p * kPairRows * kGroup, kGroup);
        args.x = use.y.data + static_cast<ptrdiff_t>(pair) * kPairRows;
        args.k = std::min(pairs * kPairRows, w.n - pair * kPairRows);
        kernels.product(args);
        args.add = true;
      }
    }
    // What a format has behind its last column need not be zero.
    for (int c = std::max(group * kGroup, k); c < (group + 1) * kGroup; ++c)
      for (int row = 0; row < dx.m; ++row) dx.row(row)[c] = 0.0f;
  });
}

void multiply(Workers& workers, const Product& product, const Rows& y) {
  constexpr int kRows = 48, kColumns = 128;  // of the result, a thread takes at once
  const int down = (product.m + kRows - 1) / kRows, across = (product.n + kColumns - 1) / kColumns;
  workers.each(down * across, [&](int item, int) {
    const int row = item / across * kRows, column = item % across * kColumns;
    ProductArgs args{};
    args.x_row = product.transposed ? 1 : product.x.stride;
    args.x_step = product.transposed ? product.x.stride : 1;
    args.x = product.x.data + row * args.x_row;
    args.w = product.w.data + column;
    args.w_tile = kLanes;
    args.w_step = product.w.stride;
    args.y = y.row(row) + column;
    args.y_row = y.stride;
    args.m = std::min(kRows, product.m - row);
    args.n = std::min(kColumns, product.n - column);
    args.k = product.k;
    args.add = product.add;
    workers.kernels.product(args);
  });
}

double sum_of_squares(const float* values, size_t count) {
  double sum = 0.0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return sum;
}

}  // namespace slmq
