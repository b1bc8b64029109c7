// A causal convolution of every channel by itself, which carries its latest inputs along as a state.
#include <algorithm>
#include <cstring>

#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

constexpr int kMaxTaps = 8;
constexpr int kBlockChannels = 256;  // of an item: whole cache lines of many rows in a row

struct Convolution {
  Slice x, before, behind;    // the last two may be missing
  int taps;                   // inputs that an output sees, its own among them
  int width;                  // channels, padded to 32
  std::vector<float> weight;  // [taps][width], the oldest input's first
  std::vector<float> bias;    // [width], or empty
  std::optional<Unary> activation;
  size_t state;  // first float of [taps - 1][width] inputs, oldest first
};

class ConvolutionStep final : public Step {
 public:
  ConvolutionStep(Convolution made, int out) : made_(std::move(made)), out_(out) {}
  int items(const Frame& frame, int) const override {
    return static_cast<int>(frame.segments.size()) * blocks();
  }
  void item(const Run& run, int phase, int item, int thread) override;

 private:
  // Some channels of a position and those before it.
  struct Channels {
    int first, count;
    int oldest = 0;  // of the taps - 1 inputs before the position, in a ring of taps rows
    float inputs[kMaxTaps][kBlockChannels];
  };

  int blocks() const { return (made_.width + kBlockChannels - 1) / kBlockChannels; }
  const float* row_of(const Run& run, int thread, Slice slice, int row, int first) const;
  float* input(Channels* c, int tap) const { return c->inputs[(c->oldest + tap) % made_.taps]; }
  void begin(const float* state, Channels* c) const;
  void advance(const Run& run, int thread, int row, Channels* c) const;
  void keep(Channels* c, float* state) const;

  const Convolution made_;
  const int out_;
};

void ConvolutionStep::item(const Run& run, int, int item, int thread) {
  const Segment& segment = run.frame->segments[item / blocks()];
  Channels c;
  c.first = item % blocks() * kBlockChannels;
  c.count = std::min(kBlockChannels, made_.width - c.first);
  begin(segment.sequence->state_before(), &c);
  for (int i = 0; i < segment.count; ++i) {
    advance(run, thread, segment.row + i, &c);
    float* state = segment.sequence->state_behind(segment.position + i + 1);
    if (state != nullptr) keep(&c, state);
  }
}

const float* ConvolutionStep::row_of(const Run& run, int thread, Slice slice, int row,
                                     int first) const {
  const Buffer& b = run.buffer(slice.buffer);
  return b.floats(run.frame->rows(Domain::tokens), thread) + static_cast<size_t>(row) * b.width +
         slice.offset + first;
}

void ConvolutionStep::begin(const float* state, Channels* c) const {
  for (int tap = 0; tap < made_.taps - 1; ++tap) {
    if (state == nullptr) {
      std::fill_n(input(c, tap), c->count, 0.0f);
    } else {
      std::copy_n(state + made_.state + static_cast<size_t>(tap) * made_.width + c->first, c->count,
                  input(c, tap));
    }
  }
}

void ConvolutionStep::advance(const Run& run, int thread, int row, Channels* c) const {
  const Buffer& out = run.buffer(out_);
  const auto factor = [&](Slice slice) {
    return slice.buffer < 0 ? nullptr : row_of(run, thread, slice, row, c->first);
  };
  const float *before = factor(made_.before), *behind = factor(made_.behind);
  const float* past[kMaxTaps];
  for (int tap = 0; tap < made_.taps - 1; ++tap) past[tap] = input(c, tap);
  float* y = out.floats(run.frame->rows(Domain::tokens), thread) +
             static_cast<size_t>(row) * out.width + c->first;
  const bool activates = made_.activation.has_value();
  run.kernels->convolution(
      {row_of(run, thread, made_.x, row, c->first), before, activates ? nullptr : behind,
       made_.bias.empty() ? nullptr : made_.bias.data() + c->first, made_.weight.data() + c->first,
       past, made_.width, made_.taps, c->count, input(c, made_.taps - 1), y});
  c->oldest = (c->oldest + 1) % made_.taps;
  if (!activates) return;
  run.kernels->unary[static_cast<int>(*made_.activation)](y, c->count, y);
  if (behind == nullptr) return;
  for (int i = 0; i < c->count; ++i) y[i] = behind[i] * y[i];
}

void ConvolutionStep::keep(Channels* c, float* state) const {
  for (int tap = 0; tap < made_.taps - 1; ++tap)
    std::copy_n(input(c, tap), c->count,
                state + made_.state + static_cast<size_t>(tap) * made_.width + c->first);
}

}  // namespace

size_t Recording::new_state(size_t floats) {
  if (made_.select_step >= 0) fail("a state: record its step before select()");
  const size_t first = made_.state_bytes / sizeof(float);
  made_.state_bytes +=
      static_cast<size_t>(round_up(static_cast<int64_t>(floats), kLanes)) * sizeof(float);
  return first;
}

int Recording::convolution(Slice x, const std::vector<float>& weight,
                           const std::vector<float>& bias, Slice before, Slice behind,
                           std::optional<Unary> activation) {
  checked_groups(x, "convolution");
  const auto channels = static_cast<size_t>(x.width);
  const size_t taps = weight.size() / channels;
  if (weight.size() % channels != 0 || taps < 2 || taps > kMaxTaps) {
    fail("convolution: expected 2.." + std::to_string(kMaxTaps) + " taps for each of " +
         std::to_string(x.width) + " channels, got " + std::to_string(weight.size()) + " values");
  }
  if (!bias.empty() && bias.size() != channels) {
    fail("convolution: expected a bias of " + std::to_string(x.width) + " values, got " +
         std::to_string(bias.size()));
  }
  if (buffer(x.buffer).domain != Domain::tokens) fail("convolution: record it before select()");
  std::vector<int> in = {x.buffer};
  for (const Slice& factor : {before, behind}) {
    if (factor.buffer < 0) continue;
    if (checked_groups(factor, "convolution factor").width != x.width ||
        buffer(factor.buffer).domain != Domain::tokens)
      fail("convolution: expected factors of width " + std::to_string(x.width) + ", got " +
           std::to_string(factor.width));
    if (std::find(in.begin(), in.end(), factor.buffer) == in.end()) in.push_back(factor.buffer);
  }
  Convolution made{x,    before,     behind, static_cast<int>(taps), padded(x.width), {},
                   bias, activation, 0};
  const auto width = static_cast<size_t>(made.width);
  made.weight.assign(taps * width, 0.0f);
  for (size_t i = 0; i < weight.size(); ++i) made.weight[i % taps * width + i / taps] = weight[i];
  if (!bias.empty()) made.bias.resize(width, 0.0f);
  made.state = new_state((taps - 1) * width);
  const int out = new_buffer(BufferType::f32, Domain::tokens, x.width, false);
  std::string op = "convolution";
  if (activation) op += std::string("+") + kUnaryNames[static_cast<int>(*activation)];
  return add_step(std::make_unique<ConvolutionStep>(std::move(made), out), out, std::move(in),
                  std::move(op), "f32", std::to_string(x.width) + "x" + std::to_string(taps));
}

}  // namespace slmq
