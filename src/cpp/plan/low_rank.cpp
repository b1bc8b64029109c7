#include "plan/low_rank.h"

#include <algorithm>
#include <utility>

#include "machine/prefetch.h"
#include "plan/adapter.h"

namespace slmq {
namespace {

// Rows of one adapter that follow each other, from `row` on: the row behind them.
int end_of_run(const Frame& frame, Domain domain, int row, int end) {
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
  for (const LowRankInput& input : inputs_) {
    const LowRankStack& stack = adapter.stack(input.first);
    if (stack.tiles == 0) continue;
    const Buffer& x = run.buffer(input.x);
    LowRankArgs args{};
    args.weight = stack.down.data();
    args.scale = stack.scales.data();
    args.m = end - begin;
    args.n = stack.tiles * kLanes;
    args.k = input.k;
    args.x = floats(run, x, thread, begin, end);
    args.x_stride = x.width;
    args.y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(begin) * out.width +
             input.column;
    args.y_stride = out.width;
    for (int row = 0; row < args.m; ++row)
      std::fill_n(args.y + static_cast<size_t>(row) * args.y_stride, args.n, 0.0f);
    run.kernels->low_rank[adapter.type()](args);
  }
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
  const size_t row_bytes = static_cast<size_t>(low->rank) * adapter->element_bytes();
  fetch_lines(low->up.data() + static_cast<size_t>(column) * row_bytes,
              static_cast<size_t>(count) * row_bytes);
}

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
      LowRankArgs args{};
      args.weight = low->up.data() + static_cast<size_t>(column) * static_cast<size_t>(low->rank) *
                                         adapter->element_bytes();
      args.scale = low->scales.empty() ? nullptr : low->scales.data() + column;
      args.m = next - at;
      args.n = count;
      args.k = low->rank;
      args.x = t + static_cast<size_t>(at) * products.width + low->column;
      args.x_stride = products.width;
      args.y = y + static_cast<size_t>(at - row) * y_stride;
      args.y_stride = y_stride;
      run.kernels->low_rank[adapter->type()](args);
    }
    at = next;
  }
}

}  // namespace slmq
