#include "plan/low_rank.h"

#include <algorithm>
#include <utility>

#include "machine/prefetch.h"
#include "plan/adapter.h"

namespace slmq {
namespace {

// Rows of one adapter that follow each other, from `row` on: the row behind them.
int end_of_run(const Frame& frame, Domain domain, int row, int end) {
  if (frame.one_adapter) return end;
  const Adapter* adapter = frame.adapter(domain, row);
  int next = row + 1;
  while (next < end && frame.adapter(domain, next) == adapter) ++next;
  return next;
}

class LowRankStep final : public RowStep {
 public:
  LowRankStep(Domain domain, std::vector<LowRankInput> inputs, int out)
      : RowStep(domain, true), inputs_(std::move(inputs)), out_(out) {
    for (const LowRankInput& input : inputs_) widest_ = std::max(widest_, input.k);
  }
  size_t scratch_bytes() const override {
    return static_cast<size_t>(round_up(widest_, kGroup)) * kPanelRows * sizeof(float);
  }

 private:
  bool idle(const Frame& frame) const override { return frame.adapters.empty(); }
  void rows(const Run& run, int thread, int begin, int end) override;
  void multiply(const Run& run, int thread, const Adapter& adapter, int begin, int end) const;
  void multiply_rounded(const Run& run, int thread, const LowRankStack& stack,
                        const LowRankInput& input, int begin, int end, float* y) const;
  const float* floats(const Run& run, const Buffer& x, int thread, int begin, int end) const;

  const std::vector<LowRankInput> inputs_;
  const int out_;
  int widest_ = 0;
};

void LowRankStep::rows(const Run& run, int thread, int begin, int end) {
  const Frame& frame = *run.frame;
  for (int row = begin; row < end;) {
    const int next = end_of_run(frame, domain_, row, end);
    const Adapter* adapter = frame.adapter(domain_, row);
    if (adapter != nullptr) multiply(run, thread, *adapter, row, next);
    row = next;
  }
}

// Integer matrices multiply rounded activations: so does A.
const float* LowRankStep::floats(const Run& run, const Buffer& x, int thread, int begin,
                                 int end) const {
  const int n = run.frame->rows(domain_);
  if (x.type == BufferType::f32) return x.floats(n, thread) + static_cast<size_t>(begin) * x.width;
  auto* values = reinterpret_cast<float*>(run.scratch_of(thread));
  const auto widen = x.type == BufferType::panel ? run.kernels->widen_activations
                                                 : run.kernels->widen_row_activations;
  widen(x.panel(n, thread), x.width / kGroup, n, begin, end, values, x.width);
  return values;
}

void LowRankStep::multiply(const Run& run, int thread, const Adapter& adapter, int begin,
                           int end) const {
  const Buffer& out = run.buffer(out_);
  const int n = run.frame->rows(domain_);
  for (const LowRankInput& input : inputs_) {
    const LowRankStack& stack = adapter.stack(input.first);
    if (stack.tiles == 0) continue;
    float* y = out.floats(n, thread) + static_cast<size_t>(begin) * out.width + input.column;
    if (stack.type == LowRankType::i8) {
      multiply_rounded(run, thread, stack, input, begin, end, y);
      continue;
    }
    const Buffer& x = run.buffer(input.x);
    LowRankArgs args{};
    args.weight = stack.down;
    args.m = end - begin;
    args.n = stack.tiles * kLanes;
    args.k = input.k;
    args.x = floats(run, x, thread, begin, end);
    args.x_stride = x.width;
    args.y = y;
    args.y_stride = out.width;
    for (int row = 0; row < args.m; ++row)
      std::fill_n(args.y + static_cast<size_t>(row) * args.y_stride, args.n, 0.0f);
    run.kernels->low_rank[static_cast<int>(stack.type)](args);
  }
}

void LowRankStep::multiply_rounded(const Run& run, int thread, const LowRankStack& stack,
                                   const LowRankInput& input, int begin, int end, float* y) const {
  const Buffer &x = run.buffer(input.x), &out = run.buffer(out_);
  LowRankDownArgs args{};
  args.weight = stack.down;
  args.tiles = stack.tiles;
  args.groups = x.width / kGroup;
  args.m = run.frame->rows(domain_);
  args.panel = x.panel(args.m, thread);
  args.row_begin = begin;
  args.row_end = end;
  args.ahead = run.tuning->ahead(Format::q8g32s, args.m);
  args.y = y;
  args.y_stride = out.width;
  run.kernels->low_rank_down(args);
  for (int row = begin; row < end; ++row, y += out.width)
    for (const LowRank* part : stack.parts)
      run.kernels->low_rank_round(y + part->column, part->place());
}

}  // namespace

std::unique_ptr<Step> low_rank_step(Domain domain, std::vector<LowRankInput> inputs, int out) {
  return std::make_unique<LowRankStep>(domain, std::move(inputs), out);
}

void fetch_low_rank(const Run& run, const LowRankUse& use, int row, int column, int count) {
  const Frame& frame = *run.frame;
  if (frame.adapters.empty() || frame.rows(use.domain) > kReplicaRows) return;
  const Adapter* adapter = frame.adapter(use.domain, row);
  const LowRank* low = adapter == nullptr ? nullptr : adapter->find(use.slot);
  if (low == nullptr) return;
  const size_t bytes = low->tile_bytes();
  fetch_lines(low->up + static_cast<size_t>(column / kLanes) * bytes,
              static_cast<size_t>(count / kLanes) * bytes);
}

namespace {

// y += B t for `rows` rows of products t, and columns from `column` on.
void multiply_up(const Kernels& kernels, const LowRank& low, const float* t, int t_stride, int rows,
                 int column, int count, float* y, int y_stride) {
  const uint8_t* weight = low.up + static_cast<size_t>(column / kLanes) * low.tile_bytes();
  if (low.type == LowRankType::i8) {
    kernels.low_rank_up({weight, rows, count, low.rank, t, low.place(), t_stride, y, y_stride});
  } else {
    kernels.low_rank[static_cast<int>(low.type)](
        {weight, rows, count, low.rank, t, t_stride, y, y_stride});
  }
}

}  // namespace

void add_low_rank(const Run& run, const LowRankUse& use, int thread, int row, int rows, int column,
                  int count, float* y, int y_stride) {
  const Frame& frame = *run.frame;
  if (frame.adapters.empty()) return;
  const Buffer& products = run.buffer(use.products);
  const float* t = products.floats(frame.rows(use.domain), thread) + use.products_at;
  for (int at = row; at < row + rows;) {
    const int next = end_of_run(frame, use.domain, at, row + rows);
    const Adapter* adapter = frame.adapter(use.domain, at);
    const LowRank* low = adapter == nullptr ? nullptr : adapter->find(use.slot);
    if (low != nullptr) {
      multiply_up(*run.kernels, *low, t + static_cast<size_t>(at) * products.width + low->column,
                  products.width, next - at, column, count,
                  y + static_cast<size_t>(at - row) * y_stride, y_stride);
    }
    at = next;
  }
}

}  // namespace slmq
