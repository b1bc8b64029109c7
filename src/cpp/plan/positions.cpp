// Steps over rows that depend on a token's position, where attention does not do it itself.
#include <algorithm>
#include <cmath>

#include "machine/math64.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

// Rope as a step of its own, for models that norm what was turned.
class RotateStep final : public RowStep {
 public:
  RotateStep(Slice x, int rope, int rotary, int head_dim, int out)
      : RowStep(Domain::tokens, true),
        x_(x),
        rope_(rope),
        rotary_(rotary),
        head_dim_(head_dim),
        out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  int rope_, rotary_, head_dim_, out_;
};

void RotateStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& rope = run.buffer(rope_);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    const float* angles = rope.floats(n, thread) + static_cast<size_t>(row) * rope.width;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    std::copy_n(from, x_.width, to);
    for (int c = 0; c < x_.width; c += head_dim_)
      run.kernels->rope(to + c, angles, angles + rotary_ / 2, rotary_);
  }
}

class PositionScaleStep final : public RowStep {
 public:
  PositionScaleStep(Slice x, float growth, int every, int out)
      : RowStep(Domain::tokens, true), x_(x), growth_(growth), every_(every), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  float growth_;
  int every_, out_;
};

void PositionScaleStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    const double multiples = run.frame->positions[row] / every_;
    const float factor = static_cast<float>(1.0 + growth_ * exact_log(1.0 + multiples));
    for (int c = 0; c < x_.width; ++c) to[c] = from[c] * factor;
  }
}

}  // namespace

int Recording::rotate(Slice x, int rope, int rotary, int head_dim) {
  checked(x, "rotate");
  if (buffer(x.buffer).domain != Domain::tokens) fail("rotate: record it before select()");
  if (head_dim < 1 || x.width % head_dim != 0) {
    fail("rotate: expected heads that divide " + std::to_string(x.width) + " channels, got " +
         std::to_string(head_dim));
  }
  check_angles(rope, rotary, head_dim, "rotate");
  const int out = new_buffer(BufferType::f32, Domain::tokens, x.width, true);
  return add_step(std::make_unique<RotateStep>(x, rope, rotary, head_dim, out), out,
                  {x.buffer, rope}, "rotate", "f32",
                  std::to_string(x.width / head_dim) + "x" + std::to_string(head_dim));
}

int Recording::scale_by_position(Slice x, float growth, int every) {
  checked(x, "scale_by_position");
  if (buffer(x.buffer).domain != Domain::tokens)
    fail("scale_by_position: record it before select()");
  if (!(std::fabs(growth) <= 1e6f))
    fail("scale_by_position: expected a growth of -1e6..1e6, got " + std::to_string(growth));
  if (every < 1) fail("scale_by_position: expected every >= 1, got " + std::to_string(every));
  const int out = new_buffer(BufferType::f32, Domain::tokens, x.width, true);
  return add_step(std::make_unique<PositionScaleStep>(x, growth, every, out), out, {x.buffer},
                  "scale_by_position", "f32", std::to_string(x.width));
}

}  // namespace slmq
