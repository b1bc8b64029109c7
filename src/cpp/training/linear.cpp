// Products with packed weights, forward and back, and with the small matrices that are trained.
#include <algorithm>

#include "training/operators.h"

namespace slmq {
namespace {

// Of a weight, widened at once: 32 columns of them, 48 KB, stay near for all rows, and the product's sums,
// which go on from block to block, are read and written seldom enough.
constexpr int kBlockPairs = 12;

int whole_rows(const LinearUse& use) { return info(use.matrix->format).row_panels ? 1 : 0; }

}  // namespace

void linear(Workers& workers, const Rows& x, Activations activations,
            const std::vector<LinearUse>& uses, const LowRankPairs* pairs) {
  const Kernels& kernels = workers.kernels;
  const int groups = uses.front().matrix->groups();
  const LinearUse* panels[2] = {nullptr, nullptr};  // who needs one: by group; by row
  for (const LinearUse& use : uses)
    if (info(use.matrix->format).quantized) panels[whole_rows(use)] = &use;
  const size_t panel_bytes = static_cast<size_t>(x.m) * groups * kActivationBytes;
  uint8_t* panel = workers.panel(2 * panel_bytes);
  constexpr int kRows = 3 * kPanelRows;  // a thread takes at once
  const bool prepared = panels[0] != nullptr || panels[1] != nullptr || pairs != nullptr;
  workers.each(prepared ? (x.m + kRows - 1) / kRows : 0, [&](int item, int) {
    const int begin = item * kRows, end = std::min(x.m, begin + kRows);
    for (int kind = 0; kind < 2; ++kind)
      if (panels[kind] != nullptr)
        quantizer(kernels, panels[kind]->matrix->format, activations)(
            x.data, x.stride, groups, x.m, begin, end, panel + kind * panel_bytes);
    if (pairs != nullptr) low_rank_down(kernels, *pairs, x, begin, end);
  });
  // What a thread takes at once: rows whose panel stays in its second-level cache for all pairs, and pairs
  // for which what is known of these rows is gathered once.
  constexpr int kBlock = 4 * kPanelRows, kPairs = 16;
  std::vector<int> first{0}, places{0};
  for (size_t i = 0; i < uses.size(); ++i) {
    first.push_back(first.back() + (uses[i].matrix->pairs() + kPairs - 1) / kPairs);
    const bool beside = pairs != nullptr && pairs->b[i].data != nullptr;
    places.push_back(places.back() + (beside ? pairs->rank : 0));
  }
  const int blocks = (x.m + kBlock - 1) / kBlock;
  workers.each(blocks * first.back(), [&](int item, int) {
    const int begin = item / first.back() * kBlock, rows = std::min(kBlock, x.m - begin);
    item %= first.back();
    size_t i = 0;
    while (item >= first[i + 1]) ++i;
    const LinearUse& use = uses[i];
    LinearArgs args{};
    args.weight = use.matrix->data;
    args.groups = groups;
    args.m = rows;
    args.panel = panel + whole_rows(use) * panel_bytes +
                 static_cast<size_t>(begin) * groups * kActivationBytes;
    args.x = x.row(begin);
    args.x_stride = x.stride;
    args.y = use.y.row(begin);
    args.y_stride = use.y.stride;
    args.bias = use.bias;
    args.add = use.add == nullptr ? nullptr : use.add + static_cast<size_t>(begin) * use.y.stride;
    args.add_stride = use.y.stride;
    const int pair = (item - first[i]) * kPairs, end = std::min(pair + kPairs, use.matrix->pairs());
    kernels.linear[static_cast<int>(use.matrix->format)](args, pair, end);
    if (places[i + 1] > places[i])  // while these columns are in the cache
      low_rank_up(kernels, *pairs, places[i], pairs->b[i], pair * kPairRows,
                  (end - pair) * kPairRows, {use.y.row(begin), rows, use.y.stride}, begin);
  });
}

namespace {

// dx of columns [begin, end) of groups: blocks outside, groups inside, so that the rows of y that meet a
// block stay in the second-level cache for all of these groups.
void floats_back(const Kernels& kernels, const LinearUse& use, bool add, const Rows& dx, int begin,
                 int end, float* block) {
  ProductArgs args{};
  args.m = dx.m;
  args.n = kGroup;
  args.x_step = 1;
  args.w = block;
  args.w_tile = kLanes;
  args.w_step = kGroup;
  args.y_row = dx.stride;
  args.add = add;
  const Matrix& w = *use.matrix;
  const auto widen = kernels.widen[w.format == Format::f32 ? 1 : 0];
  args.x_row = use.y.stride;
  for (int pair = 0; pair < w.pairs(); pair += kBlockPairs) {
    const int pairs = std::min(kBlockPairs, w.pairs() - pair);
    args.x = use.y.data + static_cast<ptrdiff_t>(pair) * kPairRows;
    args.k = std::min(pairs * kPairRows, w.n - pair * kPairRows);
    for (int group = begin; group < end; ++group) {
      for (int p = 0; p < pairs; ++p)
        widen(w.data, w.groups(), pair + p, group, block + p * kPairRows * kGroup, kGroup);
      args.y = dx.data + static_cast<ptrdiff_t>(group) * kGroup;
      kernels.product(args);
    }
    args.add = true;
  }
}

// What a thread needs for so many groups of a slab of weights that turn: rows, and the groups behind them.
constexpr size_t turned_bytes(int groups) {
  return sizeof(LeveledRows) + sizeof(TurnedGroup) * static_cast<size_t>(groups);
}

// The same of such weights: of a slab, groups are turned once for all rows.
void turned_back(const Kernels& kernels, const LinearUse& use, const float* most, bool add,
                 const Rows& dx, int begin, int end, float* scratch) {
  const Matrix& w = *use.matrix;
  auto* rows = reinterpret_cast<LeveledRows*>(scratch);
  auto* turned = reinterpret_cast<TurnedGroup*>(rows + 1);
  TurnedArgs args{};
  args.x = rows;
  args.w = turned;
  args.count = end - begin;
  args.parts = info(w.format).parts;
  args.offsets = turned_offsets(w.format);
  args.y_row = dx.stride;
  args.add = add;
  for (int pair = 0; pair < w.pairs(); pair += kSlabPairs) {
    const int first = pair * kPairRows;
    args.rows = std::min(kSlabRows, w.n - first);
    for (int group = begin; group < end; ++group)
      kernels.turn(w.format, w.data, w.groups(), w.n, pair, group, most + first,
                   turned + (group - begin));
    for (int row = 0; row < dx.m; row += kPanelRows) {
      args.m = std::min(kPanelRows, dx.m - row);
      args.y = dx.row(row) + static_cast<ptrdiff_t>(begin) * kGroup;
      kernels.level_rows(use.y.row(row) + first, use.y.stride, args.rows, args.m, most + first,
                         rows);
      kernels.product_turned(args);
    }
    args.add = true;
  }
}

// By use, the largest scales of all rows of weights that turn.
std::vector<std::vector<float>> largest_scales(Workers& workers,
                                               const std::vector<LinearUse>& uses) {
  std::vector<std::vector<float>> most;
  std::vector<int> first{0};
  for (const LinearUse& use : uses) {
    const int pairs = info(use.matrix->format).quantized ? use.matrix->pairs() : 0;
    most.emplace_back(static_cast<size_t>(pairs) * kPairRows);
    first.push_back(first.back() + (pairs + kSlabPairs - 1) / kSlabPairs);
  }
  workers.each(first.back(), [&](int item, int) {
    size_t i = 0;
    while (item >= first[i + 1]) ++i;
    const Matrix& w = *uses[i].matrix;
    const int begin = (item - first[i]) * kSlabPairs;
    for (int pair = begin; pair < std::min(w.pairs(), begin + kSlabPairs); ++pair)
      workers.kernels.largest_scales(w.format, w.data, w.groups(), pair,
                                     most[i].data() + static_cast<ptrdiff_t>(pair) * kPairRows);
  });
  return most;
}

// Groups that a thread takes at once: about so many, and as many for all threads.
int groups_at_once(int groups, int threads) {
  constexpr int kMost = 12;
  const int turns = (groups + kMost * threads - 1) / (kMost * threads);
  return (groups + turns * threads - 1) / (turns * threads);
}

}  // namespace

void linear_back(Workers& workers, const std::vector<LinearUse>& uses, bool add, const Rows& dx) {
  const int groups = uses.front().matrix->groups(), k = uses.front().matrix->k;
  const int span = groups_at_once(groups, workers.threads());
  workers.reserve(
      std::max(size_t{kBlockPairs} * kPairRows * kGroup, turned_bytes(span) / sizeof(float)));
  const std::vector<std::vector<float>> most = largest_scales(workers, uses);
  workers.each((groups + span - 1) / span, [&](int item, int thread) {
    const int begin = item * span, end = std::min(groups, begin + span);
    bool adds = add;
    for (size_t i = 0; i < uses.size(); ++i) {
      const LinearUse& use = uses[i];
      if (info(use.matrix->format).quantized) {
        turned_back(workers.kernels, use, most[i].data(), adds, dx, begin, end,
                    workers.own(thread));
      } else {
        floats_back(workers.kernels, use, adds, dx, begin, end, workers.own(thread));
      }
      adds = true;
    }
    // What a format has behind its last column need not be zero.
    for (int c = std::max(begin * kGroup, k); c < end * kGroup; ++c)
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
