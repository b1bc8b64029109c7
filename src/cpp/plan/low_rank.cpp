#include "plan/low_rank.h"

#include <algorithm>
#include <utility>

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

// What a matrix of integers multiplies with: the rounded activations of a row, as numbers.
void widen(const Buffer& x, int rows, int thread, int row, int k, float* out) {
  for (int c = 0; c < k; c += kGroup) {
    const ActivationGroup group =
        activation_group(x.panel(rows, thread), x.width / kGroup, rows, row, c / kGroup);
    const float scale = group.info->scale;
    for (int i = 0; i < kGroup; ++i)
      out[c + i] = scale * static_cast<float>(256 * group.high[i] + group.low[i]);
  }
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

void LowRankStep::multiply(const Run& run, int thread, const Adapter& adapter, int begin,
                           int end) const {
  const int n = run.frame->rows(domain_);
  const Buffer& out = run.buffer(out_);
  int widened = -1;  // the buffer whose rows are in scratch
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const LowRankInput& input = inputs_[i];
    const LowRank* low = adapter.find(input.slot);
    if (low == nullptr) continue;
    const Buffer& x = run.buffer(input.x);
    LowRankArgs args{};
    if (x.type == BufferType::f32) {
      args.x = x.floats(n, thread) + static_cast<size_t>(begin) * x.width;
      args.x_stride = x.width;
    } else {
      auto* values = reinterpret_cast<float*>(run.scratch_of(thread));
      if (widened != input.x)
        for (int row = begin; row < end; ++row)
          widen(x, n, thread, row, input.k, values + static_cast<size_t>(row - begin) * x.width);
      widened = input.x;
      args.x = values;
      args.x_stride = x.width;
    }
    args.weight = low->down.data();
    args.m = end - begin;
    args.n = static_cast<int>(round_up(low->rank, kLanes));
    args.k = input.k;
    args.y = out.floats(n, thread) + static_cast<size_t>(begin) * out.width +
             static_cast<ptrdiff_t>(i) * kMaxRank;
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

void add_low_rank(const Run& run, const LowRankUse& use, int thread, int row, int rows, int column,
                  int count, float* y, int y_stride) {
  const Frame& frame = *run.frame;
  if (frame.adapters.empty()) return;
  const Buffer& products = run.buffer(use.products);
  const float* t =
      products.floats(frame.rows(use.domain), thread) + static_cast<ptrdiff_t>(use.part) * kMaxRank;
  for (int at = row; at < row + rows;) {
    const int next = end_of_run(frame, use.domain, at, row + rows);
    const Adapter* adapter = frame.adapter(use.domain, at);
    const LowRank* low = adapter == nullptr ? nullptr : adapter->find(use.slot);
    if (low != nullptr) {
      LowRankArgs args{};
      args.weight = low->up.data() + static_cast<size_t>(column) * static_cast<size_t>(low->rank) *
                                         adapter->element_bytes();
      args.m = next - at;
      args.n = count;
      args.k = low->rank;
      args.x = t + static_cast<size_t>(at) * products.width;
      args.x_stride = products.width;
      args.y = y + static_cast<size_t>(at - row) * y_stride;
      args.y_stride = y_stride;
      run.kernels->low_rank[adapter->type()](args);
    }
    at = next;
  }
}

}  // namespace slmq
