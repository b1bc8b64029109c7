// What a recorded step is, and what it sees while it runs.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "plan/buffer.h"
#include "plan/kv_cache.h"

namespace slmq {

// Consecutive tokens of one sequence, in rows [row, row + count).
struct Segment {
  KvSequence* sequence;
  int row, count, position;  // position of the first token
};

// Work is handed out by counters, one cache line pair each.
struct alignas(128) Counter {
  std::atomic<int> next{0};
};

// What varies from run to run.
struct Frame {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;
  std::vector<int32_t> outputs;  // rows whose logits are wanted
  std::vector<Segment> segments;
  bool one_row_each = false;  // no sequence has two rows

  int rows(Domain domain) const {
    return static_cast<int>(domain == Domain::tokens ? tokens.size() : outputs.size());
  }
};

struct Run {
  const Kernels* kernels;
  const Frame* frame;
  const std::vector<std::unique_ptr<Buffer>>* buffers;
  int threads;
  Counter* counters;  // kCountersPerStep for each step
  uint8_t* scratch;   // [threads][scratch_bytes]
  size_t scratch_bytes;
  void (*wait)(const Run&);  // all threads meet
  void* pool;

  const Buffer& buffer(int id) const { return *(*buffers)[id]; }
  uint8_t* scratch_of(int thread) const { return scratch + thread * scratch_bytes; }
};

inline constexpr int kCountersPerStep = 2;

// A handle of the recording: columns [offset, offset + width) of a buffer.
struct Slice {
  int buffer = -1;
  int offset = 0;
  int width = 0;
};

struct StepInfo {
  std::string scope, op, format, shape;
  int out = -1;             // buffer that the step writes
  size_t weight_bytes = 0;  // read once a run
  double macs_per_row = 0;  // integer or float multiply-accumulates of the weights
};

class Step {
 public:
  virtual ~Step() = default;
  // Sizes what depends on the frame; called once before the threads start. May throw.
  virtual void prepare(const Frame&) {}
  virtual void run(const Run& run, int thread, Counter* counters) = 0;
  // Whether all threads must meet before the next step.
  virtual bool joins(const Frame& frame) const = 0;
  virtual size_t scratch_bytes() const { return 0; }

  StepInfo info;
};

// A step over rows that are independent: with few rows every thread computes them all for itself.
class RowStep : public Step {
 public:
  RowStep(Domain domain, bool replicated) : domain_(domain), replicated_(replicated) {}
  void run(const Run& run, int thread, Counter* counters) final;
  bool joins(const Frame& frame) const final { return !replicates(frame); }

 protected:
  virtual void rows(const Run& run, int thread, int begin, int end) = 0;
  const Domain domain_;

 private:
  bool replicates(const Frame& frame) const {
    return replicated_ && frame.rows(domain_) <= kReplicaRows;
  }
  const bool replicated_;
};

}  // namespace slmq
