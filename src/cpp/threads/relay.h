// Steps of a run, passed on from thread to thread: who has time takes the next items, who finishes
// the last item of a step begins the next step.
//
// Unlike at a barrier nobody waits for a thread that holds no work. A thread that lost its core to
// a neighbour delays the others only while it holds items; when it comes back it joins whatever
// step is current.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "threads/barrier.h"

namespace slmq {

// What a run consists of. No function may throw.
class Steps {
 public:
  virtual ~Steps() = default;

  // Items [first, last) of a step, 0 <= first < last <= sizes[step]. The ranges of a step run at
  // once: in any order, on any threads, several of them on one thread. All items of the steps
  // before are done and visible.
  virtual void items(int step, int first, int last, int thread) = 0;

  // Called by one thread when all items of the steps before are done and visible, and once more
  // with the number of steps when all are done.
  virtual void begin(int /*step*/) {}

  // The number of items of every step, at least one each. Does not change during a run.
  std::vector<int> sizes;
};

class Relay {
 public:
  // A look tells the phase and what there is to do in it.
  using Look = uint64_t;

  explicit Relay(int threads) : threads_(threads), holders_(threads) {}

  // Runs steps with the other threads' help, who take part as soon as they look.
  void run(int thread, Steps& steps) noexcept {
    steps_ = &steps;
    first_phase_ = (phase_of(look()) + 1) & PhaseWord::kPhases;
    Look look = take_part(thread, begin(0, thread));
    while (!over(look)) {
      wait(look);
      look = help(thread, this->look());
    }
  }

  // Takes items as long as there are any, step after step. Returns what this thread saw when it
  // found none left to take.
  Look help(int thread, Look look) noexcept {
    const int done = take_items(thread, look, 0);
    return done == 0 ? look : take_part(thread, done);
  }

  // Begins a phase without items, between runs; the mark (not 0) says what it means.
  void announce(uint32_t mark) { word_.next(mark); }

  Look look() const { return word_.load(); }
  static uint32_t phase_of(Look look) { return PhaseWord::phase_of(look); }
  static bool over(Look look) { return (PhaseWord::payload_of(look) & kRunning) == 0; }
  static uint32_t mark_of(Look look) { return over(look) ? PhaseWord::payload_of(look) : 0; }

  // Returns when the phase that was seen has ended.
  void wait(Look look) {
    const uint32_t phase = phase_of(look);
    if (!word_.glance(phase)) word_.wait(phase, holders_.here_in(phase));
  }

 private:
  static constexpr uint32_t kRunning = uint32_t{1} << 31;

  static int left(Look look) {
    return over(look) ? 0 : static_cast<int>(PhaseWord::payload_of(look) & ~kRunning);
  }

  // How many of these items a thread takes at once. The more are left, the more: half of its part,
  // so that a thread of half the speed still ends with the others. A take costs an atomic operation
  // on a line that all want (about 0.1 us), and neighbouring items are one stream of memory.
  int share(int left) const { return std::max(1, left / (2 * threads_)); }

  int step_of(uint32_t phase) const {
    return static_cast<int>((phase - first_phase_) & PhaseWord::kPhases);
  }

  // Takes part with `done` items of the current step done.
  Look take_part(int thread, int done) noexcept {
    for (;;) {
      Look look = this->look();
      done = take_items(thread, look, done);
      if (done == 0) return look;  // the run may be over: its members are not to be read
      const int step = step_of(phase_of(look));
      const int size = steps_->sizes[static_cast<size_t>(step)];
      holders_.forget(thread);
      if (!is_last(done, size)) return look;
      done = begin(step + 1, thread);
    }
  }

  // Takes and does items until none is left, when `done` of the step are done already. Returns how
  // many are; `look` becomes what was seen then.
  int take_items(int thread, Look& look, int done) noexcept {
    while (left(look) > 0) {
      const int n = share(left(look));
      if (!word_.try_subtract(look, static_cast<uint32_t>(n))) continue;
      // Holding items keeps the step from ending. Only now may the run's members be read.
      const uint32_t phase = phase_of(look);
      const int step = step_of(phase),
                first = steps_->sizes[static_cast<size_t>(step)] - left(look);
      if (done == 0) holders_.note(thread, phase);
      steps_->items(step, first, first + n, thread);
      done += n;
      look = this->look();
    }
    return done;
  }

  // Whether these were the last items of the step. Nobody may touch the step after handing in.
  bool is_last(int done, int size) {
    if (done == size) return true;
    if (done_.fetch_add(done, std::memory_order_acq_rel) + done < size) return false;
    done_.store(0, std::memory_order_relaxed);
    return true;
  }

  // Begins a step and does this thread's share of it before anybody else can take it. Returns the
  // number of items done; 0 when the run is over.
  int begin(int step, int thread) noexcept {
    steps_->begin(step);
    if (step == static_cast<int>(steps_->sizes.size())) {
      word_.next(0);
      return 0;
    }
    const int size = steps_->sizes[static_cast<size_t>(step)], n = share(size);
    holders_.note(thread, (first_phase_ + static_cast<uint32_t>(step)) & PhaseWord::kPhases);
    word_.next(kRunning | static_cast<uint32_t>(size - n));
    steps_->items(step, 0, n, thread);
    return n;
  }

  const int threads_;
  PhaseWord word_;  // payload: kRunning and the number of items left, or a mark, or 0
  alignas(kLineBytes) std::atomic<int> done_{0};
  alignas(kLineBytes) Steps* steps_ = nullptr;  // of the run, as is the next
  uint32_t first_phase_ = 0;
  Whereabouts holders_;  // who has items, and where
};

}  // namespace slmq
