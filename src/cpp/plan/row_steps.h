// Steps over rows: embedding, norms, column orders, activation quantization, rope angles, selection.
#pragma once

#include "layout/matrix.h"
#include "plan/step.h"

namespace slmq {

// A token's row times scale, plus the row of its position if positions are learned.
class EmbedStep final : public RowStep {
 public:
  EmbedStep(std::shared_ptr<const Matrix> matrix, std::shared_ptr<const Matrix> positions,
            float scale, int out)
      : RowStep(Domain::tokens, false),
        matrix_(std::move(matrix)),
        positions_(std::move(positions)),
        scale_(scale),
        out_(out) {}
  size_t scratch_bytes() const override {
    return positions_ == nullptr ? 0 : static_cast<size_t>(positions_->k) * sizeof(float);
  }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  std::shared_ptr<const Matrix> matrix_, positions_;  // positions: may be null
  float scale_;
  int out_;
};

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

// The same norm over every head's channels by itself; one weight for all heads.
class HeadNormStep final : public RowStep {
 public:
  HeadNormStep(Slice x, std::vector<float> weight, int head_dim, float eps, int out)
      : RowStep(Domain::tokens, true),
        x_(x),
        weight_(std::move(weight)),
        head_dim_(head_dim),
        eps_(eps),
        out_(out) {}
  size_t scratch_bytes() const override { return 2 * weight_.size() * sizeof(float); }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  std::vector<float> weight_;  // padded with zeros to a multiple of 32
  int head_dim_;
  float eps_;
  int out_;
};

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

class QuantizeStep final : public RowStep {
 public:
  QuantizeStep(Domain domain, Slice x, Activations activations, int out)
      : RowStep(domain, true), x_(x), activations_(activations), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  Activations activations_;
  int out_;
};

// Columns in another order: y[c] = x[columns[c]]. For weights whose columns are stored in an order of
// their own; moving numbers rounds nothing.
class GatherStep final : public RowStep {
 public:
  GatherStep(Domain domain, Slice x, std::vector<int32_t> columns, int out)
      : RowStep(domain, true), x_(x), columns_(std::move(columns)), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  std::vector<int32_t> columns_;  // of x, each within its width
  int out_;
};

// Row r: cosines then sines of position[r] * frequency[i], times a factor, angles rounded to float32
// as transformers does.
class RopeStep final : public RowStep {
 public:
  RopeStep(std::vector<float> frequencies, float factor, int out)
      : RowStep(Domain::tokens, true),
        frequencies_(std::move(frequencies)),
        factor_(factor),
        out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  std::vector<float> frequencies_;
  float factor_;
  int out_;
};

// The rows whose logits are asked for.
class SelectStep final : public RowStep {
 public:
  SelectStep(Slice x, int out) : RowStep(Domain::outputs, true), x_(x), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  int out_;
};

}  // namespace slmq
