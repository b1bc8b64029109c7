// Norms over rows: what a step computes, and how it is recorded.
#include <algorithm>

#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

// y + a row of `add`, if there is one.
void add_row(const Run& run, Slice add, int n, int thread, int row, float* y) {
  if (add.buffer < 0) return;
  const Buffer& buffer = run.buffer(add.buffer);
  const float* from =
      buffer.floats(n, thread) + static_cast<size_t>(row) * buffer.width + add.offset;
  for (int c = 0; c < add.width; ++c) y[c] = y[c] + from[c];
}

// The norm (+ add). With add it is not computed by every thread for itself: a sum that goes on from
// layer to layer would have to be replayed from the first.
class RmsNormStep final : public RowStep {
 public:
  RmsNormStep(Domain domain, Slice x, std::vector<float> weight, float eps, Slice add, int out)
      : RowStep(domain, add.buffer < 0),
        x_(x),
        weight_(std::move(weight)),
        eps_(eps),
        add_(add),
        out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  std::vector<float> weight_;  // padded with zeros to a multiple of 32
  float eps_;
  Slice add_;
  int out_;
};

void RmsNormStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    run.kernels->rmsnorm(x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset,
                         weight_.data(), x_.width, eps_, y);
    add_row(run, add_, n, thread, row, y);
  }
}

// The same norm over every head's channels by itself; one weight for all heads.
class HeadNormStep final : public RowStep {
 public:
  HeadNormStep(Slice x, std::vector<float> weight, int head_dim, float eps, Slice add, int out)
      : RowStep(Domain::tokens, add.buffer < 0),
        x_(x),
        weight_(std::move(weight)),
        head_dim_(head_dim),
        eps_(eps),
        add_(add),
        out_(out) {}
  size_t scratch_bytes() const override { return 2 * weight_.size() * sizeof(float); }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  std::vector<float> weight_;  // padded with zeros to a multiple of 32
  int head_dim_;
  float eps_;
  Slice add_;
  int out_;
};

void HeadNormStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  // The kernel works in whole groups: a head of another size must not see its neighbour.
  float* head = reinterpret_cast<float*>(run.scratch_of(thread));
  float* normed = head + weight_.size();
  std::fill(head, normed, 0.0f);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    for (int c = 0; c < x_.width; c += head_dim_) {
      std::copy_n(from + c, head_dim_, head);
      run.kernels->rmsnorm(head, weight_.data(), head_dim_, eps_, normed);
      std::copy_n(normed, head_dim_, to + c);
    }
    add_row(run, add_, n, thread, row, to);
  }
}

// Heads of head_dim channels are normed by themselves; x is one head if that is its width.
class LayerNormStep final : public RowStep {
 public:
  LayerNormStep(Domain domain, Slice x, const std::vector<float>& weight,
                const std::vector<float>& bias, int head_dim, float eps, int out);
  size_t scratch_bytes() const override { return 2 * stride_ * sizeof(float); }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  int head_dim_;
  size_t stride_;                     // head_dim rounded up to 32
  std::vector<float> weight_, bias_;  // [heads][stride], padded with zeros; bias: may be empty
  float eps_;
  int out_;
};

LayerNormStep::LayerNormStep(Domain domain, Slice x, const std::vector<float>& weight,
                             const std::vector<float>& bias, int head_dim, float eps, int out)
    : RowStep(domain, true),
      x_(x),
      head_dim_(head_dim),
      stride_(static_cast<size_t>(round_up(head_dim, kGroup))),
      eps_(eps),
      out_(out) {
  const auto padded = [&](const std::vector<float>& values) {
    std::vector<float> all(values.size() / head_dim * stride_, 0.0f);
    for (size_t i = 0; i < values.size(); ++i)
      all[i / head_dim * stride_ + i % head_dim] = values[i];
    return all;
  };
  weight_ = padded(weight);
  bias_ = padded(bias);
}

void LayerNormStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  // The kernel works in whole groups: a head of another size must not see its neighbour.
  float* head = reinterpret_cast<float*>(run.scratch_of(thread));
  float* normed = head + stride_;
  std::fill(head, normed, 0.0f);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    if (head_dim_ == x_.width) {
      run.kernels->layernorm(from, weight_.data(), bias_.empty() ? nullptr : bias_.data(),
                             head_dim_, eps_, to);
      continue;
    }
    for (int c = 0, i = 0; c < x_.width; c += head_dim_, ++i) {
      std::copy_n(from + c, head_dim_, head);
      run.kernels->layernorm(head, weight_.data() + i * stride_,
                             bias_.empty() ? nullptr : bias_.data() + i * stride_, head_dim_, eps_,
                             normed);
      std::copy_n(normed, head_dim_, to + c);
    }
  }
}

}  // namespace

int Recording::rmsnorm(Slice x, std::vector<float> weight, float eps, Slice add) {
  checked_groups(x, "rmsnorm");
  if (static_cast<int>(weight.size()) != x.width) {
    fail("rmsnorm: expected a weight of " + std::to_string(x.width) + " values, got " +
         std::to_string(weight.size()));
  }
  if (!(eps >= 0.0f)) fail("rmsnorm: expected eps >= 0");
  weight.resize(padded(x.width), 0.0f);
  const Domain domain = buffer(x.buffer).domain;
  const bool adds = add.buffer >= 0;
  if (adds) check_add(add, x.width, domain, "rmsnorm");
  const int out = new_buffer(BufferType::f32, domain, x.width, !adds);
  std::vector<int> in = {x.buffer};
  if (adds) in.push_back(add.buffer);
  return add_step(std::make_unique<RmsNormStep>(domain, x, std::move(weight), eps, add, out), out,
                  std::move(in), adds ? "rmsnorm+add" : "rmsnorm", "f32", std::to_string(x.width));
}

int Recording::head_norm(Slice x, std::vector<float> weight, float eps, Slice add) {
  checked(x, "head_norm");
  const int head_dim = static_cast<int>(weight.size());
  if (head_dim < 1 || x.width % head_dim != 0) {
    fail("head_norm: expected a weight that divides " + std::to_string(x.width) +
         " channels, got " + std::to_string(head_dim) + " values");
  }
  if (!(eps >= 0.0f)) fail("head_norm: expected eps >= 0");
  if (buffer(x.buffer).domain != Domain::tokens) fail("head_norm: record it before select()");
  const bool adds = add.buffer >= 0;
  if (adds) check_add(add, x.width, Domain::tokens, "head_norm");
  weight.resize(padded(head_dim), 0.0f);
  const int out = new_buffer(BufferType::f32, Domain::tokens, x.width, !adds);
  std::vector<int> in = {x.buffer};
  if (adds) in.push_back(add.buffer);
  return add_step(std::make_unique<HeadNormStep>(x, std::move(weight), head_dim, eps, add, out),
                  out, std::move(in), adds ? "head_norm+add" : "head_norm", "f32",
                  std::to_string(x.width / head_dim) + "x" + std::to_string(head_dim));
}

int Recording::layernorm(Slice x, const std::vector<float>& weight, const std::vector<float>& bias,
                         int head_dim, float eps) {
  const bool whole = head_dim == x.width;
  if (whole) {
    checked_groups(x, "layernorm");
  } else {
    checked(x, "layernorm");
  }
  if (head_dim < 1 || x.width % head_dim != 0) {
    fail("layernorm: expected heads that divide " + std::to_string(x.width) + " channels, got " +
         std::to_string(head_dim));
  }
  const size_t width = static_cast<size_t>(x.width);
  if (weight.size() != width || (!bias.empty() && bias.size() != width)) {
    fail("layernorm: expected a weight of " + std::to_string(width) +
         " values and as many in a bias, got " + std::to_string(weight.size()) + " and " +
         std::to_string(bias.size()));
  }
  if (!(eps >= 0.0f)) fail("layernorm: expected eps >= 0");
  const Domain domain = buffer(x.buffer).domain;
  const int out = new_buffer(BufferType::f32, domain, x.width, true);
  return add_step(
      std::make_unique<LayerNormStep>(domain, x, weight, bias, head_dim, eps, out), out, {x.buffer},
      "layernorm", "f32",
      (whole ? "" : std::to_string(x.width / head_dim) + "x") + std::to_string(head_dim));
}

}  // namespace slmq
