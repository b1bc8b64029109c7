// The gated delta rule (Yang et al., "Gated Delta Networks", 2024): every head carries a matrix along
// that maps keys to values, lets it fade, and corrects what it says of the latest key.
#include <algorithm>
#include <cmath>

#include "machine/math64.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

constexpr int kColumns = 16;     // of a head's state that the kernel takes at once
constexpr int kBlocks = 2;       // times as many of an item
constexpr int kMaxKeyDim = 512;  // keeps an item's state within the second-level cache

// exp, of nothing that leaves what exact_exp is for; a NaN stays.
double limited_exp(double x) { return x != x ? x : exact_exp(std::clamp(x, -80.0, 80.0)); }

// log(1 + exp(x)), which is x to float32 from 30 on.
double softplus(double x) { return x > 30.0 ? x : exact_log(1.0 + limited_exp(x)); }

double sigmoid(double x) { return 1.0 / (1.0 + limited_exp(-x)); }

// Row r: exp(-rate * softplus(a + bias)) of every head, then sigmoid(b) of every head.
class DecayStep final : public RowStep {
 public:
  DecayStep(Slice a, Slice b, const std::vector<float>& rate, const std::vector<float>& bias,
            int out)
      : RowStep(Domain::tokens, true), a_(a), b_(b), rate_(rate), bias_(bias), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  const Slice a_, b_;
  const std::vector<float> rate_, bias_;
  const int out_;
};

void DecayStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer &a = run.buffer(a_.buffer), &b = run.buffer(b_.buffer), &out = run.buffer(out_);
  const size_t heads = rate_.size();
  for (int row = begin; row < end; ++row) {
    const float* step = a.floats(n, thread) + static_cast<size_t>(row) * a.width + a_.offset;
    const float* share = b.floats(n, thread) + static_cast<size_t>(row) * b.width + b_.offset;
    float* y = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    for (size_t h = 0; h < heads; ++h) {
      const double faded = -static_cast<double>(rate_[h]) *
                           softplus(static_cast<double>(step[h]) + static_cast<double>(bias_[h]));
      y[h] = static_cast<float>(limited_exp(faded));
      y[heads + h] = static_cast<float>(sigmoid(static_cast<double>(share[h])));
    }
  }
}

class DeltaStep final : public Step {
 public:
  DeltaStep(Slice q, Slice k, Slice v, Slice decays, DeltaShape shape, size_t state, int out)
      : q_(q), k_(k), v_(v), decays_(decays), shape_(shape), state_(state), out_(out) {}
  int items(const Frame& frame, int) const override {
    return static_cast<int>(frame.segments.size()) * shape_.heads * shares();
  }
  void item(const Run& run, int phase, int item, int thread) override;
  size_t scratch_bytes() const override { return kBlocks * block_floats() * sizeof(float); }

 private:
  // A head's columns [first, first + count), whose state lies in `held`.
  struct Share {
    int head, block, blocks;
    float* held;
  };

  int blocks() const { return (shape_.value_dim + kColumns - 1) / kColumns; }  // of a head
  int shares() const { return (blocks() + kBlocks - 1) / kBlocks; }
  size_t block_floats() const { return static_cast<size_t>(shape_.key_dim) * kColumns; }
  size_t place(const Share& share) const {
    return state_ + (static_cast<size_t>(share.head) * blocks() + share.block) * block_floats();
  }
  const float* row_of(const Run& run, int thread, Slice slice, int row) const;
  void advance(const Run& run, int thread, int row, const Share& share) const;

  const Slice q_, k_, v_, decays_;
  const DeltaShape shape_;
  const size_t state_;  // first float of [heads][blocks][key_dim][16]
  const int out_;
};

// Token by token, so that nothing depends on how a text is cut.
void DeltaStep::item(const Run& run, int, int item, int thread) {
  const Segment& segment = run.frame->segments[item / (shape_.heads * shares())];
  Share share;
  share.head = item / shares() % shape_.heads;
  share.block = item % shares() * kBlocks;
  share.blocks = std::min(kBlocks, blocks() - share.block);
  share.held = reinterpret_cast<float*>(run.scratch_of(thread));
  const size_t floats = share.blocks * block_floats();
  const float* before = segment.sequence->state_before();
  if (before == nullptr) {
    std::fill_n(share.held, floats, 0.0f);
  } else {
    std::copy_n(before + place(share), floats, share.held);
  }
  for (int i = 0; i < segment.count; ++i) {
    advance(run, thread, segment.row + i, share);
    float* behind = segment.sequence->state_behind(segment.position + i + 1);
    if (behind != nullptr) std::copy_n(share.held, floats, behind + place(share));
  }
}

const float* DeltaStep::row_of(const Run& run, int thread, Slice slice, int row) const {
  const Buffer& b = run.buffer(slice.buffer);
  return b.floats(run.frame->rows(Domain::tokens), thread) + static_cast<size_t>(row) * b.width +
         slice.offset;
}

void DeltaStep::advance(const Run& run, int thread, int row, const Share& share) const {
  const int key_head =
      shape_.tiled ? share.head % shape_.key_heads : share.head / (shape_.heads / shape_.key_heads);
  const float* q = row_of(run, thread, q_, row) + key_head * shape_.key_dim;
  const float* k = row_of(run, thread, k_, row) + key_head * shape_.key_dim;
  const float* v = row_of(run, thread, v_, row) + share.head * shape_.value_dim;
  const float* decays = row_of(run, thread, decays_, row);
  const Buffer& out = run.buffer(out_);
  float* y = out.floats(run.frame->rows(Domain::tokens), thread) +
             static_cast<size_t>(row) * out.width + share.head * shape_.value_dim;
  for (int block = 0; block < share.blocks; ++block) {
    const int first = (share.block + block) * kColumns;
    const int count = std::min(kColumns, shape_.value_dim - first);
    float value[kColumns] = {}, result[kColumns];
    std::copy_n(v + first, count, value);
    run.kernels->delta_rule(q, k, value, decays[share.head], decays[shape_.heads + share.head],
                            shape_.key_dim, share.held + block * block_floats(), result);
    std::copy_n(result, count, y + first);
  }
}

}  // namespace

int Recording::decays(Slice a, Slice b, const std::vector<float>& rate,
                      const std::vector<float>& bias) {
  const auto heads = static_cast<size_t>(checked(a, "decays a").width);
  if (static_cast<size_t>(checked(b, "decays b").width) != heads || rate.size() != heads ||
      bias.size() != heads) {
    fail("decays: expected b, rates and biases of " + std::to_string(heads) + " heads, got " +
         std::to_string(b.width) + ", " + std::to_string(rate.size()) + " and " +
         std::to_string(bias.size()));
  }
  if (buffer(a.buffer).domain != Domain::tokens || buffer(b.buffer).domain != Domain::tokens)
    fail("decays: record them before select()");
  std::vector<int> in = {a.buffer};
  if (b.buffer != a.buffer) in.push_back(b.buffer);
  const int out = new_buffer(BufferType::f32, Domain::tokens, 2 * a.width, true);
  return add_step(std::make_unique<DecayStep>(a, b, rate, bias, out), out, std::move(in), "decays",
                  "f32", std::to_string(heads));
}

int Recording::delta_rule(Slice q, Slice k, Slice v, Slice decays, DeltaShape shape) {
  std::vector<int> in;
  for (const Slice& slice : {q, k, v, decays}) {
    checked(slice, "delta_rule");
    if (buffer(slice.buffer).domain != Domain::tokens)
      fail("delta_rule: record it before select()");
    if (std::find(in.begin(), in.end(), slice.buffer) == in.end()) in.push_back(slice.buffer);
  }
  if (shape.key_dim < 4 || shape.key_dim > kMaxKeyDim || shape.key_dim % 4 != 0 ||
      shape.value_dim < 1)
    fail("delta_rule: expected heads of 4, 8, .. " + std::to_string(kMaxKeyDim) +
         " channels of keys and some of values, got " + std::to_string(shape.key_dim) + " and " +
         std::to_string(shape.value_dim));
  if (shape.key_heads < 1 || shape.heads < 1 || shape.heads % shape.key_heads != 0)
    fail("delta_rule: expected key heads that divide " + std::to_string(shape.heads) +
         " heads, got " + std::to_string(shape.key_heads));
  const int keys = shape.key_heads * shape.key_dim, values = shape.heads * shape.value_dim;
  if (q.width != keys || k.width != keys || v.width != values || decays.width != 2 * shape.heads)
    fail("delta_rule: expected queries, keys, values and decays of width " + std::to_string(keys) +
         ", " + std::to_string(keys) + ", " + std::to_string(values) + ", " +
         std::to_string(2 * shape.heads) + ", got " + std::to_string(q.width) + ", " +
         std::to_string(k.width) + ", " + std::to_string(v.width) + ", " +
         std::to_string(decays.width));
  const int blocks = (shape.value_dim + kColumns - 1) / kColumns;
  const size_t state =
      new_state(static_cast<size_t>(shape.heads) * blocks * kColumns * shape.key_dim);
  const int out = new_buffer(BufferType::f32, Domain::tokens, values, false);
  return add_step(std::make_unique<DeltaStep>(q, k, v, decays, shape, state, out), out,
                  std::move(in), "delta_rule", "f32",
                  std::to_string(shape.heads) + "x" + dims(shape.key_dim, shape.value_dim));
}

}  // namespace slmq
