// Steps of a run, passed on from thread to thread: who has time takes the next item, who finishes
// the last item of a step begins the next step.
//
// Unlike at a barrier nobody waits for a thread that holds no work. A thread that lost its core to
// a neighbour delays the others only while it holds an item; when it comes back it joins whatever
// step is current.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/barrier.h"

namespace slmq {

// What a run consists of. Neither function may throw.
class Steps {
 public:
  virtual ~Steps() = default;

  // Called by one thread at a time, for step 0, 1, 2, ... when all items of the steps before are
  // done and visible. Returns the number of items of this step, 0 to skip it, kOver to end the run.
  virtual int begin(int step) = 0;

  // The items of a step run at once: in any order, on any threads, several of them on one thread.
  virtual void item(int step, int item, int thread) = 0;

  static constexpr int kOver = -1;
};

class Relay {
 public:
  // A look tells the phase and what there is to do in it.
  using Look = uint64_t;

  explicit Relay(int threads) : holders_(threads) {}

  // Begins a run. The caller then takes part until the run is over.
  void start(Steps& steps) {
    steps_ = &steps;
    step_ = -1;
    begin_next_step();
  }

  // Begins a phase without items, between runs; the mark (not 0) says what it means.
  void announce(uint32_t mark) { word_.next(mark); }

  Look look() const { return word_.load(); }
  static uint32_t phase_of(Look look) { return PhaseWord::phase_of(look); }
  static bool over(Look look) { return (PhaseWord::payload_of(look) & kRunning) == 0; }
  static uint32_t mark_of(Look look) { return over(look) ? PhaseWord::payload_of(look) : 0; }

  // Takes items of the step that was seen until none is left. True if the step has ended.
  bool help(int thread, Look look) noexcept {
    const uint32_t phase = phase_of(look);
    int done = 0;
    while (phase_of(look) == phase && left(look) > 0) {
      if (!word_.try_decrement(look)) continue;
      // Holding an item keeps the step from ending. Only now may its members be read.
      if (done++ == 0) holders_.note(thread, phase);
      steps_->item(step_, items_ - left(look), thread);
      look = word_.load();
    }
    if (done == 0) return phase_of(look) != phase;
    const int items = items_;  // of the next step, once this thread has handed its work in
    holders_.forget(thread);
    if (done_.fetch_add(done, std::memory_order_acq_rel) + done < items) return false;
    done_.store(0, std::memory_order_relaxed);
    begin_next_step();
    return true;
  }

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

  void begin_next_step() noexcept {
    do {
      items_ = steps_->begin(++step_);
    } while (items_ == 0);
    word_.next(items_ < 0 ? 0 : kRunning | static_cast<uint32_t>(items_));
  }

  PhaseWord word_;  // payload: kRunning and the number of items left, or a mark, or 0
  alignas(kLineBytes) std::atomic<int> done_{0};
  alignas(kLineBytes) Steps* steps_ = nullptr;
  int step_ = 0;
  int items_ = 0;
  Whereabouts holders_;  // who has items, and where
};

}  // namespace slmq
