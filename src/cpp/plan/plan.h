// A recorded model: a straight list of steps over static buffers, run with a frame's tokens.
//
// A Recording (recording.h) makes it. Errors of frames are std::invalid_argument; nothing throws while
// threads run.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "plan/adapter.h"
#include "plan/replay.h"
#include "plan/step.h"
#include "threads/pool.h"

namespace slmq {

struct PlanSizes {
  int threads;
  int max_rows, max_outputs;  // tokens of a run, and rows of logits
  int vocabulary;             // token ids
};

// What a recording leaves behind.
struct Recorded {
  const Kernels* kernels;
  PlanSizes sizes;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<std::unique_ptr<Step>> steps;
  size_t page_bytes = 0;               // of the cache: 64 positions of all layers
  size_t state_bytes = 0;              // of a state: all layers that have one
  int learned_positions = -1;          // most positions of a sequence; -1: any
  int token_types = 0;                 // that rows may have; 0: none
  bool causal = true;                  // if not, a run takes texts from end to end
  int select_step = -1;                // the step behind which rows are those of outputs
  int logits = -1;                     // the buffer that runs are for
  int columns = 0;                     // of it that can be asked for
  bool pools = false;                  // outputs may span several rows
  int head_step = -1;                  // the step that writes it
  std::shared_ptr<const Slots> slots;  // of adapters; null: it takes none
};

struct RunRequest {
  std::vector<int32_t> tokens;
  std::vector<std::pair<std::shared_ptr<KvSequence>, int>> segments;  // sequence, rows
  std::vector<int32_t> types;                                         // of the tokens; none: all 0
  std::vector<int32_t> outputs;                                       // rows, ascending or not
  std::vector<int32_t> spans;    // rows from there on that one output pools; none: one each
  std::vector<int32_t> columns;  // of the logits, as wanted; none: all
  std::vector<std::shared_ptr<const Adapter>> adapters;  // of the segments, may be null; none: all
  int stop = -1;                                         // run steps [0, stop); -1: all
  // Set by another thread: the run ends between two steps, and its positions do not count.
  std::shared_ptr<const std::atomic<bool>> cancel;
  bool profile = false;  // time every step
};

class Plan {
 public:
  explicit Plan(Recorded recorded);

  std::shared_ptr<KvCache> make_cache() const;
  // Appends the tokens to their sequences. Returns the microseconds of each step if profiled.
  std::vector<double> run(const RunRequest& request);
  bool cancelled() const { return ran_ == 0; }  // whether the last run was
  // Repeats the steps behind select() for other rows of the last run, which must not have stopped
  // early.
  void run_outputs(const std::vector<int32_t>& outputs, const std::vector<int32_t>& columns,
                   const std::vector<int32_t>& spans = {});

  // Rows of the last run in this buffer, as float32 (a8: dequantized), into out. Both throw if the
  // run stopped before any step wrote it, read_buffer() also if the value is not kept.
  int buffer_rows(int id) const;
  void read_buffer(int id, float* out) const;
  // Logits of the last run: as many columns as were wanted, in that order.
  int logit_columns() const;
  void read_logits(float* out) const;

  const Kernels& kernels() const { return *made_.kernels; }
  const PlanSizes& sizes() const { return made_.sizes; }
  const std::vector<std::unique_ptr<Step>>& steps() const { return made_.steps; }
  const Buffer& buffer(int id) const;
  int logits_buffer() const { return made_.logits; }
  std::shared_ptr<const Slots> slots() const { return made_.slots; }
  size_t page_bytes() const { return made_.page_bytes; }
  size_t state_bytes() const { return made_.state_bytes; }
  int state_interval() const;  // positions between two states that are kept
  size_t buffer_bytes() const;
  // Of all weights, in all runs since the plan was made.
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  int step_count() const { return static_cast<int>(made_.steps.size()); }
  int writer_of(int id) const;  // the last step of the last run that wrote this buffer
  static std::vector<std::unique_lock<std::mutex>> hold(const RunRequest& request);
  void prepare(const RunRequest& request);
  void set_adapters(const RunRequest& request, Frame* frame);
  void check_types(const std::vector<int32_t>& types, size_t rows) const;
  void check_outputs(const std::vector<int32_t>& outputs, const std::vector<int32_t>& columns,
                     const std::vector<int32_t>& spans, size_t rows) const;
  std::vector<double> execute(int begin, int end, bool profile,
                              const std::atomic<bool>* cancel = nullptr);

  const Recorded made_;
  const Tuning tuning_;
  Replay replay_;
  const size_t scratch_bytes_;  // of a thread
  Memory scratch_;
  const std::shared_ptr<ThreadPool> pool_;
  Frame frame_;
  std::vector<std::shared_ptr<const Adapter>> adapters_;  // of the frame
  uint64_t bytes_read_ = 0;
  int ran_ = 0;  // steps [0, ran_) hold values of the frame
};

}  // namespace slmq
