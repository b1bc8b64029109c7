#include "plan/row_steps.h"

#include <algorithm>
#include <cstring>

#include "machine/math64.h"

namespace slmq {

// Whole panel blocks, so that no two threads write one cache line of a panel.
int RowStep::items(const Frame& frame, int) const {
  return (frame.rows(domain_) + kPanelRows - 1) / kPanelRows;
}

void RowStep::item(const Run& run, int, int item, int thread) {
  const int begin = item * kPanelRows;
  rows(run, thread, begin, std::min(begin + kPanelRows, run.frame->rows(domain_)));
}

void EmbedStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& out = run.buffer(out_);
  const Matrix& m = *matrix_;
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(row) * out.width;
    const int token = run.frame->tokens[row];
    run.kernels->dequantize[static_cast<int>(m.format)](m.data, m.groups(), m.k, token, token + 1,
                                                        y, out.width);
    if (scale_ != 1.0f)
      for (int c = 0; c < m.k; ++c) y[c] = y[c] * scale_;
    if (positions_ == nullptr) continue;
    const Matrix& learned = *positions_;
    auto* offset = reinterpret_cast<float*>(run.scratch_of(thread));
    const int position = run.frame->positions[row];
    run.kernels->dequantize[static_cast<int>(learned.format)](
        learned.data, learned.groups(), learned.k, position, position + 1, offset, learned.k);
    for (int c = 0; c < m.k; ++c) y[c] = y[c] + offset[c];
  }
}

void RmsNormStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    run.kernels->rmsnorm(x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset,
                         weight_.data(), x_.width, eps_, y);
    if (add_.buffer < 0) continue;
    const Buffer& add = run.buffer(add_.buffer);
    const float* from = add.floats(n, thread) + static_cast<size_t>(row) * add.width + add_.offset;
    for (int c = 0; c < add_.width; ++c) y[c] = y[c] + from[c];
  }
}

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
  }
}

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

void QuantizeStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  run.kernels->quantize[static_cast<int>(activations_)](x.floats(n, thread) + x_.offset, x.width,
                                                        out.width / kGroup, n, begin, end,
                                                        out.panel(n, thread));
}

void GatherStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    for (size_t c = 0; c < columns_.size(); ++c) to[c] = from[columns_[c]];
  }
}

void RopeStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& out = run.buffer(out_);
  const size_t half = frequencies_.size();
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(row) * out.width;
    const float position = static_cast<float>(run.frame->positions[row]);
    for (size_t i = 0; i < half; ++i) {
      double sine, cosine;
      exact_sincos(static_cast<double>(position * frequencies_[i]), &sine, &cosine);
      y[i] = static_cast<float>(cosine) * factor_;
      y[half + i] = static_cast<float>(sine) * factor_;
    }
  }
}

void SelectStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  const float* from = x.floats(run.frame->rows(Domain::tokens), thread);
  float* to = out.floats(run.frame->rows(domain_), thread);
  for (int row = begin; row < end; ++row) {
    std::memcpy(to + static_cast<size_t>(row) * out.width,
                from + static_cast<size_t>(run.frame->outputs[row]) * x.width + x_.offset,
                static_cast<size_t>(out.width) * sizeof(float));
  }
}

}  // namespace slmq
