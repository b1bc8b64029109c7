// Routes of a mixture: which experts a row goes to, and which rows go to an expert.
#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "plan/checks.h"
#include "plan/experts.h"
#include "plan/recording.h"

namespace slmq {
namespace {

// By its name: a gate's entry stands in the table of names alone.
constexpr int kSigmoid = [] {
  int place = 0;
  while (std::string_view(kGateNames[place]) != "sigmoid") ++place;
  return place;
}();

constexpr int kMostExperts = 4096;
constexpr float kLargest = 1e6f;  // of what a configuration may say

class RouteStep final : public RowStep {
 public:
  RouteStep(Slice logits, Routing routing, int out)
      : RowStep(Domain::tokens, true), logits_(logits), routing_(std::move(routing)), out_(out) {}
  // Scores, ranks, and ones.
  size_t scratch_bytes() const override {
    return 3 * static_cast<size_t>(padded(logits_.width)) * sizeof(float);
  }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  void score(const Run& run, const float* logits, float* scores, float* ones) const;
  void choose(float* ranks, float* numbers) const;
  void weigh(const Run& run, const float* scores, const float* numbers, float* weights) const;

  const Slice logits_;
  const Routing routing_;
  const int out_;
};

void RouteStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_), experts = logits_.width;
  const Buffer &logits = run.buffer(logits_.buffer), &out = run.buffer(out_);
  float* scores = reinterpret_cast<float*>(run.scratch_of(thread));
  float* ranks = scores + padded(experts);
  for (int row = begin; row < end; ++row) {
    const float* x =
        logits.floats(n, thread) + static_cast<size_t>(row) * logits.width + logits_.offset;
    float* y = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    score(run, x, scores, ranks + padded(experts));
    std::copy_n(scores, experts, ranks);
    for (size_t i = 0; i < routing_.bias.size(); ++i) ranks[i] = ranks[i] + routing_.bias[i];
    choose(ranks, y);
    weigh(run, scores, y, y + routing_.top_k);
  }
}

void RouteStep::score(const Run& run, const float* logits, float* scores, float* ones) const {
  const int experts = logits_.width, all = padded(experts);
  if (routing_.scores == Scores::softmax) {
    run.kernels->softmax(logits, experts, 1.0f, scores);
  } else if (routing_.scores == Scores::sigmoid) {
    std::fill_n(ones, all, 1.0f);
    std::copy_n(logits, experts, scores);
    std::fill(scores + experts, scores + all, 0.0f);
    run.kernels->gated[kSigmoid](scores, ones, all, scores);
  } else {
    std::copy_n(logits, experts, scores);
  }
}

// The numbers of the largest ranks, ascending; of equal ones the lower number. Whatever the ranks are,
// NaN too, so many different experts are found.
void RouteStep::choose(float* ranks, float* numbers) const {
  const int experts = logits_.width;
  int chosen[kMostExperts];
  uint8_t taken[kMostExperts] = {};
  for (int i = 0; i < routing_.top_k; ++i) {
    int best = -1;
    for (int e = 0; e < experts; ++e)
      if (taken[e] == 0 && (best < 0 || ranks[e] > ranks[best])) best = e;
    taken[best] = 1;
    chosen[i] = best;
  }
  std::sort(chosen, chosen + routing_.top_k);
  for (int i = 0; i < routing_.top_k; ++i) numbers[i] = static_cast<float>(chosen[i]);
}

void RouteStep::weigh(const Run& run, const float* scores, const float* numbers,
                      float* weights) const {
  const int count = routing_.top_k;
  for (int i = 0; i < count; ++i) weights[i] = scores[static_cast<int>(numbers[i])];
  if (routing_.scores == Scores::chosen) run.kernels->softmax(weights, count, 1.0f, weights);
  if (routing_.normalized) {
    float sum = weights[0];
    for (int i = 1; i < count; ++i) sum = sum + weights[i];
    sum = sum + routing_.eps;
    for (int i = 0; i < count; ++i) weights[i] = weights[i] / sum;
  }
  if (routing_.scale != 1.0f)
    for (int i = 0; i < count; ++i) weights[i] = weights[i] * routing_.scale;
}

void reserve(ExpertSlots* slots, int experts, int count) {
  slots->expert.resize(experts);
  slots->begin.resize(static_cast<size_t>(experts) + 1);
  slots->row.resize(count);
  slots->weight.resize(count);
  slots->counts.resize(experts);
}

}  // namespace

ExpertTable::ExpertTable(int experts, int top_k, int max_rows, int threads)
    : experts_(experts), top_k_(top_k) {
  reserve(&shared_, experts, max_rows * top_k);
  for (int i = 0; i < threads; ++i) {
    own_.push_back(std::make_unique<ExpertSlots>());
    reserve(own_.back().get(), experts, kReplicaRows * top_k);
  }
}

int ExpertTable::most(int rows) const {
  return static_cast<int>(std::min<int64_t>(experts_, static_cast<int64_t>(rows) * top_k_));
}

const ExpertSlots& ExpertTable::slots(int rows, int thread) const {
  return rows <= kReplicaRows ? *own_[thread] : shared_;
}

const ExpertSlots& ExpertTable::filled() const {
  for (const auto& own : own_)
    if (own->touched > 0) return *own;
  return shared_;
}

void ExpertTable::clear() {
  shared_.touched = 0;
  for (const auto& own : own_) own->touched = 0;
}

void ExpertTable::fill(const Buffer& routes, int rows, int thread) {
  ExpertSlots& s = rows <= kReplicaRows ? *own_[thread] : shared_;
  const float* from = routes.floats(rows, thread);
  const auto expert = [&](int row, int i) {
    return static_cast<int>(from[static_cast<size_t>(row) * routes.width + i]);
  };
  std::fill(s.counts.begin(), s.counts.end(), 0);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < top_k_; ++i) ++s.counts[expert(row, i)];
  s.touched = 0;
  int next = 0;
  for (int e = 0; e < experts_; ++e) {
    const int count = std::exchange(s.counts[e], next);  // from here on: its next slot
    if (count == 0) continue;
    s.expert[s.touched] = e;
    s.begin[s.touched++] = next;
    next += count;
  }
  s.begin[s.touched] = next;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < top_k_; ++i) {
      const int slot = s.counts[expert(row, i)]++;
      s.row[slot] = row;
      s.weight[slot] = from[static_cast<size_t>(row) * routes.width + top_k_ + i];
    }
  }
}

int Recording::route(Slice logits, Routing routing) {
  checked_groups(logits, "route");
  const int experts = logits.width, top_k = routing.top_k;
  if (buffer(logits.buffer).domain != Domain::tokens) fail("route: record it before select()");
  if (experts > kMostExperts)
    fail("route: expected at most " + std::to_string(kMostExperts) + " experts, got " +
         std::to_string(experts));
  if (top_k < 1 || top_k > experts)
    fail("route: expected 1.." + std::to_string(experts) + " experts for a row, got " +
         std::to_string(top_k));
  if (!routing.bias.empty() && static_cast<int>(routing.bias.size()) != experts)
    fail("route: expected a bias of " + std::to_string(experts) + " values, got " +
         std::to_string(routing.bias.size()));
  for (const float value : routing.bias)
    if (!(std::fabs(value) <= kLargest)) fail("route: expected biases of -1e6..1e6");
  if (!(routing.eps >= 0.0f && routing.eps <= 1.0f)) fail("route: expected eps of 0..1");
  if (!(std::fabs(routing.scale) <= kLargest)) fail("route: expected a scale of -1e6..1e6");
  const std::string op = std::string("route.") + kScoresNames[static_cast<int>(routing.scores)];
  const int out = new_buffer(BufferType::f32, Domain::tokens, 2 * top_k, true);
  tables_[out] =
      std::make_shared<ExpertTable>(experts, top_k, made_.sizes.max_rows, made_.sizes.threads);
  return add_step(std::make_unique<RouteStep>(logits, std::move(routing), out), out,
                  {logits.buffer}, op, "f32",
                  std::to_string(top_k) + "/" + std::to_string(experts));
}

}  // namespace slmq
