// Gradients on their way back through weights of integers, a slab after the other.
#pragma once

#include <algorithm>
#include <vector>

#include "layout/memory.h"
#include "kernels/kernels.h"

namespace slmq::selftest {

// y += x @ w of n rows of a weight, for m rows of x that are `stride` apart; y without padding.
inline void add_turned(const Kernels& kernels, Format format, const uint8_t* weight, int groups,
                       int n, const std::vector<float>& x, int stride, int m,
                       std::vector<float>* y) {
  Memory rows(sizeof(LeveledRows)), turned(sizeof(TurnedGroup) * static_cast<size_t>(groups));
  TurnedArgs args{};
  auto* leveled = reinterpret_cast<LeveledRows*>(rows.data());
  auto* to = reinterpret_cast<TurnedGroup*>(turned.data());
  args.x = leveled;
  args.w = to;
  args.count = groups;
  args.parts = info(format).parts;
  args.offsets = turned_offsets(format);
  args.y_row = static_cast<ptrdiff_t>(groups) * kGroup;
  args.add = true;
  std::vector<float> most(static_cast<size_t>(round_up(n, kPairRows)));
  for (int pair = 0; pair * kPairRows < n; ++pair)
    kernels.largest_scales(format, weight, groups, pair, most.data() + ptrdiff_t{pair} * kPairRows);
  for (int first = 0; first < n; first += kSlabRows) {
    args.rows = std::min(kSlabRows, n - first);
    for (int group = 0; group < groups; ++group)
      kernels.turn(format, weight, groups, n, first / kPairRows, group, most.data() + first,
                   to + group);
    for (int row = 0; row < m; row += kPanelRows) {
      args.m = std::min(kPanelRows, m - row);
      args.y = y->data() + row * args.y_row;
      kernels.level_rows(x.data() + static_cast<ptrdiff_t>(row) * stride + first, stride, args.rows,
                         args.m, most.data() + first, leveled);
      kernels.product_turned(args);
    }
  }
}

}  // namespace slmq::selftest
