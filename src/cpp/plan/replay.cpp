#include "plan/replay.h"

#include <algorithm>

namespace slmq {
namespace {

constexpr size_t kStampsPerLinePair = kLineBytes / sizeof(uint64_t);

double microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

}  // namespace

Replay::Replay(const std::vector<std::unique_ptr<Step>>& steps, size_t buffers, int result,
               int threads)
    : steps_(steps),
      needs_(steps.size()),
      stamps_stride_((buffers / kStampsPerLinePair + 2) * kStampsPerLinePair),
      stamps_(stamps_stride_ * static_cast<size_t>(threads)) {
  std::vector<int> writer(buffers, -1);
  for (size_t i = 0; i < steps_.size(); ++i) {
    std::vector<int>& needs = needs_[i];
    for (const int buffer : steps_[i]->info.in) {
      const int source = writer[buffer];
      if (!steps_[source]->may_replicate()) continue;
      needs.insert(needs.end(), needs_[source].begin(), needs_[source].end());
      needs.push_back(source);
    }
    std::sort(needs.begin(), needs.end());
    needs.erase(std::unique(needs.begin(), needs.end()), needs.end());
    writer[steps_[i]->info.out] = static_cast<int>(i);
  }
  result_ = writer[result];
}

bool Replay::run(ThreadPool& pool, const Run& run, int begin, int end, double* times) {
  run_ = &run;
  ++run_number_;
  times_ = times;
  begin_ = begin;
  end_ = end;
  cancelled_ = false;
  schedule();
  pool.run(*this);
  return !cancelled_;
}

uint64_t& Replay::stamp_of(int thread, int step) {
  return stamps_[static_cast<size_t>(thread) * stamps_stride_ + steps_[step]->info.out];
}

bool Replay::holds(int step) const { return stamps_[steps_[step]->info.out] == stamp(step); }

// Brings a thread's replica up to date.
void Replay::replicate(int thread, int step, bool measure) {
  uint64_t& held = stamp_of(thread, step);
  if (held == stamp(step) || !steps_[step]->replicates(*run_->frame)) return;
  const Clock::time_point start = measure ? Clock::now() : Clock::time_point();
  steps_[step]->replicate(*run_, thread);
  held = stamp(step);
  if (!measure) return;
  const double took = microseconds(Clock::now() - start);
  times_[step] += took;
  replicating_us_ += took;
}

void Replay::schedule() {
  const Frame& frame = *run_->frame;
  phases_.clear();
  sizes.clear();
  for (int i = begin_; i < end_; ++i) {
    const Step& step = *steps_[i];
    if (step.replicates(frame)) continue;
    for (int phase = 0, phases = step.phases(frame); phase < phases; ++phase) {
      const int items = step.items(frame, phase);
      if (items == 0) continue;
      phases_.push_back({i, phase});
      sizes.push_back(items);
    }
  }
}

void Replay::items(int index, int first, int last, int thread) {
  if (cancelled_) return;
  const Phase& at = phases_[index];
  // One thread takes the first item: its measurements meet nobody else's.
  for (const int source : needs_[at.step])
    replicate(thread, source, times_ != nullptr && first == 0);
  steps_[at.step]->run_items(*run_, at.phase, first, last, thread);
}

void Replay::begin(int index) {
  if (times_ != nullptr) {
    const Clock::time_point now = Clock::now();
    if (index > 0)
      times_[phases_[index - 1].step] += microseconds(now - phase_began_) - replicating_us_;
    replicating_us_ = 0;
    phase_began_ = now;
  }
  if (index == static_cast<int>(phases_.size())) {
    if (!cancelled_) finish();
  } else if (run_->cancel != nullptr && run_->cancel->load(std::memory_order_relaxed)) {
    cancelled_ = true;
  }
}

// What no later step reads but the caller may: the row steps at the end of a run that stops early,
// and the result. It goes into thread 0's replica, whichever thread this is: all others are done.
void Replay::finish() {
  const bool measure = times_ != nullptr;
  const auto compute = [&](int step) {
    for (const int source : needs_[step]) replicate(0, source, measure);
    replicate(0, step, measure);
  };
  if (end_ > result_) compute(result_);
  int first = end_;
  while (first > begin_ && steps_[first - 1]->replicates(*run_->frame)) --first;
  for (int step = first; step < end_; ++step) compute(step);
}

}  // namespace slmq
