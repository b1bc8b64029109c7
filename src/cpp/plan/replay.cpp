#include "plan/replay.h"

#include <algorithm>

namespace slmq {
namespace {

constexpr size_t kStampsPerLinePair = kLineBytes / sizeof(uint64_t);

// Rows that a thread takes through a chain: enough for the weights that they read, few enough for the
// second-level cache. With less than half as many for each thread, threads share the weights instead.
constexpr int kBlockRows = 64;

int panel_blocks(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// Blocks of nearly equal size, as many for every thread.
int chain_blocks(int rows, int threads) {
  if (2 * rows < kBlockRows * threads) return 0;
  const int wanted = (rows + kBlockRows - 1) / kBlockRows;
  return std::min((wanted + threads - 1) / threads * threads, panel_blocks(rows));
}

double microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

}  // namespace

Replay::Replay(const std::vector<std::unique_ptr<Step>>& steps, size_t buffers, int result,
               int threads, bool chains)
    : steps_(steps),
      needs_(steps.size()),
      threads_(threads),
      chains_(chains),
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
  blocks_ = chains_ ? chain_blocks(frame.rows(Domain::tokens), threads_) : 0;
  if (times_ != nullptr && blocks_ > 0) chain_us_.assign(steps_.size() * threads_, 0.0);
  for (int i = begin_; i < end_; ++i) {
    const int behind = chain_from(i);
    if (behind > i + 1) {
      phases_.push_back({i, behind, 0});
      sizes.push_back(blocks_);
      i = behind - 1;
      continue;
    }
    const Step& step = *steps_[i];
    if (step.replicates(frame)) continue;
    for (int phase = 0, phases = step.phases(frame); phase < phases; ++phase) {
      const int items = step.items(frame, phase);
      if (items == 0) continue;
      phases_.push_back({i, i + 1, phase});
      sizes.push_back(items);
    }
  }
}

// The step behind the chain that begins here.
int Replay::chain_from(int step) const {
  int behind = step;
  while (blocks_ > 0 && behind < end_ && steps_[behind]->takes_rows()) ++behind;
  return behind;
}

void Replay::take_rows(const Phase& chain, int block, int thread) {
  const int rows = run_->frame->rows(Domain::tokens), panels = panel_blocks(rows);
  const int begin = panels * block / blocks_ * kPanelRows;
  const int end = std::min(panels * (block + 1) / blocks_ * kPanelRows, rows);
  for (int i = chain.step; i < chain.behind; ++i) {
    const Clock::time_point start = times_ != nullptr ? Clock::now() : Clock::time_point();
    steps_[i]->run_rows(*run_, begin, end, thread);
    if (times_ != nullptr)
      chain_us_[static_cast<size_t>(thread) * steps_.size() + i] +=
          microseconds(Clock::now() - start);
  }
}

// A chain's time is shared out as its steps have taken it, on all threads.
void Replay::count_times(const Phase& at, double took) {
  if (!at.chain()) {
    times_[at.step] += took - replicating_us_;
    return;
  }
  double all = 0;
  std::vector<double> of_step(static_cast<size_t>(at.behind - at.step), 0.0);
  for (int thread = 0; thread < threads_; ++thread) {
    for (int i = at.step; i < at.behind; ++i) {
      const double us = chain_us_[static_cast<size_t>(thread) * steps_.size() + i];
      of_step[i - at.step] += us;
      all += us;
    }
  }
  for (int i = at.step; i < at.behind; ++i) times_[i] += took * of_step[i - at.step] / all;
}

void Replay::items(int index, int first, int last, int thread) {
  if (cancelled_) return;
  const Phase& at = phases_[index];
  if (at.chain()) {
    for (int block = first; block < last; ++block) take_rows(at, block, thread);
    return;
  }
  // One thread takes the first item: its measurements meet nobody else's.
  for (const int source : needs_[at.step])
    replicate(thread, source, times_ != nullptr && first == 0);
  steps_[at.step]->run_items(*run_, at.phase, first, last, thread);
}

void Replay::begin(int index) {
  if (times_ != nullptr) {
    const Clock::time_point now = Clock::now();
    if (index > 0) count_times(phases_[index - 1], microseconds(now - phase_began_));
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
