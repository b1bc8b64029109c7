// Replays the steps of a plan on a pool's threads.
//
// Steps with items are handed on by the relay (threads/relay.h): nobody waits for a thread without work.
//
// Where a run has many rows, and a plan of encoders has, neighbouring steps that take rows are a chain:
// a thread takes a block of rows through all of them, so that what one step writes is in its caches
// when the next one reads it. Threads are then at different steps, which write buffers that others
// have had before. Nobody minds: a row lies at one place of a buffer, and only its thread touches it.
//
// Row steps that replicate have no phase of their own. A thread computes them into its own replicas
// just before its first item of a step that reads them, and only what is not there yet: a thread
// that takes no item of a step never computes what that step needs. Why a late thread still reads
// what it should:
//   1. While a thread holds an item of step S, S cannot end, so no step behind S has begun: nothing
//      recorded behind S has written anything yet.
//   2. Let row step R write a replica that S reads, R before S. Steps write only buffers that were
//      free when they were recorded, and a plan does not free what R reads before R's own result is
//      released (Plan::release), which is after S was recorded. So no step behind R, up to and with
//      S itself, writes what R reads, and R gives the same result whenever it runs until S ends.
//   3. The same holds for a replica that R reads, as it is R's source. Whether a replica is current
//      is known by the step and the run that wrote it, so one that was reused is computed again.
#pragma once

#include <chrono>
#include <vector>

#include "threads/pool.h"
#include "plan/step.h"

namespace slmq {

class Replay final : private Steps {
 public:
  // Of a finished recording, which outlives it; `result` is the buffer that runs are for. Only with
  // `chains` are there any.
  Replay(const std::vector<std::unique_ptr<Step>>& steps, size_t buffers, int result, int threads,
         bool chains);

  // Runs steps [begin, end). `times`: null, or microseconds of every step, to be added to. What a
  // row step takes that replicates is measured on one of its threads and counts as its own.
  // False if it was cancelled: then steps may be left out, and buffers hold anything.
  bool run(ThreadPool& pool, const Run& run, int begin, int end, double* times);

  // Whether thread 0's replica holds what this step wrote in the last run.
  bool holds(int step) const;

 private:
  using Clock = std::chrono::steady_clock;

  // A phase of a step that has items in this run, or a chain of steps [step, behind).
  struct Phase {
    int step, behind, phase;
    bool chain() const { return behind > step + 1; }
  };

  void schedule();
  int chain_from(int step) const;
  void take_rows(const Phase& chain, int block, int thread);
  void count_times(const Phase& at, double took);
  void begin(int index) override;
  void items(int index, int first, int last, int thread) override;
  void finish();
  void replicate(int thread, int step, bool measure);
  uint64_t stamp(int step) const { return run_number_ * steps_.size() + step; }
  uint64_t& stamp_of(int thread, int step);

  const std::vector<std::unique_ptr<Step>>& steps_;
  std::vector<std::vector<int>> needs_;  // of each step: row steps that may replicate, in order
  int result_;                           // the step that writes what runs are for
  const int threads_;
  const bool chains_;
  size_t stamps_stride_;
  std::vector<uint64_t> stamps_;  // [threads][buffers]: by which step of which run, of a replica

  // Of the run:
  const Run* run_ = nullptr;
  uint64_t run_number_ = 0;
  int begin_ = 0, end_ = 0;
  std::vector<Phase> phases_;
  int blocks_ = 0;  // of rows, in chains; 0: there are none
  double* times_ = nullptr;
  std::vector<double> chain_us_;  // [threads][steps], of the current chain
  bool cancelled_ = false;        // written between phases, by one thread
  double replicating_us_ = 0;     // within the current phase
  Clock::time_point phase_began_;
};

}  // namespace slmq
