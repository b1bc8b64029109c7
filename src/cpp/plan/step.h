// What a recorded step is, and what it sees while it runs.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/tuning.h"
#include "plan/buffer.h"
#include "plan/kv_cache.h"

namespace slmq {

class Adapter;
class LowRankAdditions;

// Consecutive tokens of one sequence, in rows [row, row + count).
struct Segment {
  KvSequence* sequence;
  int row, count, position;  // position of the first token
};

// What varies from run to run.
struct Frame {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;
  std::vector<int32_t> types;    // of the tokens; none: all 0
  std::vector<int32_t> outputs;  // rows whose logits are wanted
  std::vector<int32_t> spans;    // rows from there on that one output pools; none: one each
  std::vector<int32_t> columns;  // the logits that are wanted of them; none: all
  std::vector<Segment> segments;
  std::vector<const Adapter*> adapters;  // of the tokens, null for those without; none: nobody's
  bool one_adapter = false;              // all rows have the same
  bool close_products = false;  // ... whose products may lie closer than their buffer's rows
  bool one_row_each = false;    // no sequence has two rows

  int rows(Domain domain) const {
    return static_cast<int>(domain == Domain::tokens ? tokens.size() : outputs.size());
  }
  const Adapter* adapter(Domain domain, int row) const {
    return adapters[domain == Domain::tokens ? row : outputs[row]];
  }
};

struct Run {
  const Kernels* kernels;
  const Tuning* tuning;
  const Frame* frame;
  const std::vector<std::unique_ptr<Buffer>>* buffers;
  int threads;
  uint8_t* scratch;  // [threads][scratch_bytes]
  size_t scratch_bytes;
  const std::atomic<bool>* cancel;  // null, or looked at between steps

  const Buffer& buffer(int id) const { return *(*buffers)[id]; }
  uint8_t* scratch_of(int thread) const { return scratch + thread * scratch_bytes; }
};

// A handle of the recording: columns [offset, offset + width) of a buffer.
struct Slice {
  int buffer = -1;
  int offset = 0;
  int width = 0;
};

struct StepInfo {
  std::string scope, op, format, shape;
  int out = -1;             // buffer that the step writes
  std::vector<int> in;      // buffers that it reads
  size_t weight_bytes = 0;  // read once a run; of experts: by a run of one row
  double macs_per_row = 0;  // integer or float multiply-accumulates of the weights
};

// The work of a step comes in phases: all items of one are done, and visible, before the next phase
// or step begins. Items of one phase run at once, in any order, on any threads, several of them on
// one thread; which thread runs an item must not show in what it computes.
class Step {
 public:
  virtual ~Step() = default;
  // Sizes what depends on the frame; called once before the threads start. May throw.
  virtual void prepare(const Frame&) {}
  virtual int phases(const Frame&) const { return 1; }
  virtual int items(const Frame& frame, int phase) const = 0;  // 0: nothing to do
  // A step implements one of these two: run_items() if it gains by doing neighbours together.
  virtual void item(const Run&, int /*phase*/, int /*item*/, int /*thread*/) {}
  virtual void run_items(const Run& run, int phase, int first, int last, int thread) {
    for (int i = first; i < last; ++i) item(run, phase, i, thread);
  }
  virtual size_t scratch_bytes() const { return 0; }
  // Of its results only these columns are wanted, until this is called again; empty: all. It may
  // compute more.
  virtual void narrow(const std::vector<int32_t>& /*columns*/) {}
  // Bytes of the weights that the last run read.
  virtual size_t bytes_read() const { return info.weight_bytes; }

  // Whether, in this run, threads compute the whole step into replicas of their own instead of
  // sharing its items (replay.h says when they do).
  virtual bool may_replicate() const { return false; }
  virtual bool replicates(const Frame&) const { return false; }
  virtual void replicate(const Run&, int /*thread*/) {}

  // Makes what adapters add to a product with the step's result, with it, when threads share the rows.
  // False: not this step.
  virtual bool take_along(std::shared_ptr<LowRankAdditions> /*adds*/) { return false; }

  // Whether a row of the result needs no other rows of what the step reads; then run_rows() computes
  // rows [begin, end) of all tokens, begin a multiple of kPanelRows (replay.h says when).
  virtual bool takes_rows() const { return false; }
  virtual void run_rows(const Run&, int /*begin*/, int /*end*/, int /*thread*/) {}

  StepInfo info;
};

// A step over rows that are independent: with few rows every thread computes them all for itself.
class RowStep : public Step {
 public:
  RowStep(Domain domain, bool replicated) : domain_(domain), replicated_(replicated) {}
  // Items are whole panel blocks, so that no two threads write one cache line of a panel.
  int items(const Frame& frame, int) const final {
    return idle(frame) ? 0 : (frame.rows(domain_) + kPanelRows - 1) / kPanelRows;
  }
  void run_items(const Run& run, int, int first, int last, int thread) final {
    rows(run, thread, first * kPanelRows, std::min(last * kPanelRows, run.frame->rows(domain_)));
  }
  bool may_replicate() const final { return replicated_; }
  bool replicates(const Frame& frame) const final {
    return replicated_ && frame.rows(domain_) <= kReplicaRows;
  }
  void replicate(const Run& run, int thread) final {
    if (!idle(*run.frame)) rows(run, thread, 0, run.frame->rows(domain_));
  }
  bool takes_rows() const override { return domain_ == Domain::tokens; }
  void run_rows(const Run& run, int begin, int end, int thread) final {
    if (!idle(*run.frame)) rows(run, thread, begin, end);
  }

 protected:
  virtual bool idle(const Frame&) const { return false; }  // nothing to do in this run
  virtual void rows(const Run& run, int thread, int begin, int end) = 0;
  const Domain domain_;

 private:
  const bool replicated_;
};

}  // namespace slmq
