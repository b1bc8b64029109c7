// A recorded model: a straight list of steps over static buffers.
//
// Recording calls check shapes and append one step each; run() replays them with the frame's tokens.
// Recording is in operations.cpp. Errors of it and of frames are std::invalid_argument; nothing throws
// while threads run.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "layout/matrix.h"
#include "threads/pool.h"
#include "plan/attention_step.h"
#include "plan/linear_steps.h"
#include "plan/replay.h"
#include "plan/step.h"

namespace slmq {

struct RunRequest {
  std::vector<int32_t> tokens;
  std::vector<std::pair<std::shared_ptr<KvSequence>, int>> segments;  // sequence, rows
  std::vector<int32_t> outputs;                                       // rows, ascending or not
  int stop = -1;  // run steps [0, stop); -1: all
  // Set by another thread: the run ends between two steps, and its positions do not count.
  std::shared_ptr<const std::atomic<bool>> cancel;
  bool profile = false;  // time every step
};

struct Weight {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // n values, or empty
  int x = -1;               // the buffer that it reads; -1: that of its step
};

class Plan {
 public:
  Plan(const Kernels& kernels, int threads, int max_rows, int max_outputs, int vocabulary,
       KvType kv_type);

  // --- recording; all return buffer ids -------------------------------------------------------
  void scope(std::string name) { scope_ = std::move(name); }
  // positions: may be null; else a sequence has at most as many positions as it has rows.
  int embed(std::shared_ptr<const Matrix> matrix, float scale,
            std::shared_ptr<const Matrix> positions = nullptr);
  int rmsnorm(Slice x, std::vector<float> weight, float eps, Slice add = {});
  int head_norm(Slice x, std::vector<float> weight, float eps);  // heads of the weight's size
  // Weight, and bias if not empty, of x.width values; heads of head_dim are normed by themselves.
  int layernorm(Slice x, const std::vector<float>& weight, const std::vector<float>& bias,
                int head_dim, float eps);
  int quantize(Slice x, Activations activations);
  int gather(Slice x, std::vector<int32_t> columns);  // column c is column columns[c] of x
  int linear(int x, std::vector<Weight> parts, Slice add, std::optional<Unary> activation = {},
             float softcap = 0.0f);
  int gated(int x, Gate activation, Weight gate, Weight up);
  int rope(std::vector<float> frequencies, float factor);
  int attention(Slice q, Slice k, Slice v, int rope, AttentionConfig config);
  int select(Slice x);
  // Nothing that is recorded later reads it. It serves a later step once the replicas that are
  // computed from it are released too: threads compute them late (replay.h).
  void release(int buffer);
  void finish(int logits);  // the last buffer; recording ends

  // --- running ---------------------------------------------------------------------------------
  std::shared_ptr<KvCache> make_cache() const;
  // Appends the tokens to their sequences. Returns the microseconds of each step if profiled.
  std::vector<double> run(const RunRequest& request);
  bool cancelled() const { return ran_ == 0; }  // whether the last run was
  // Repeats the steps behind select() for other rows of the last run, which must not have stopped
  // early.
  void run_outputs(const std::vector<int32_t>& outputs);

  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
  const Buffer& buffer(int id) const;
  // Rows of the last run in this buffer, as float32 (a8: dequantized), into out. Both throw if the
  // run stopped before any step wrote it, read_buffer() also if the value is not kept.
  int buffer_rows(int id) const;
  void read_buffer(int id, float* out) const;
  int logits_buffer() const { return logits_; }
  int max_rows() const { return max_rows_; }
  int max_outputs() const { return max_outputs_; }
  int threads() const { return threads_; }
  size_t page_bytes() const { return page_bytes_; }
  size_t buffer_bytes() const;
  const Kernels& kernels() const { return kernels_; }

 private:
  int new_buffer(BufferType type, Domain domain, int width, bool replicated);
  int add_step(std::unique_ptr<Step> step, int out, std::vector<int> in, std::string op,
               std::string format, std::string shape);
  const Buffer& source(int id) const;  // that a step may read
  void free_unless_needed(int id);
  Slice checked(Slice slice, const char* what) const;
  // For steps that work in whole groups: what fills the slice's last one must be zeros.
  Slice checked_groups(Slice slice, const char* what) const;
  void check_add(Slice add, int width, Domain domain, const std::string& op) const;
  // Checks a weight against its input and pads its bias.
  LinearPart part(int x, Weight weight, int offset, Domain domain) const;
  void check_recording() const;
  int writer_of(int id) const;  // the last step of the last run that wrote this buffer
  static std::vector<std::unique_lock<std::mutex>> hold(const RunRequest& request);
  void prepare(const RunRequest& request);
  void check_outputs(const std::vector<int32_t>& outputs, size_t rows) const;
  std::vector<double> execute(int begin, int end, bool profile,
                              const std::atomic<bool>* cancel = nullptr);

  const Kernels& kernels_;
  const int threads_, max_rows_, max_outputs_, vocabulary_;
  const KvType kv_type_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<int> free_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::string scope_;
  size_t page_bytes_ = 0;
  int select_step_ = -1, logits_ = -1;
  int learned_positions_ = -1;  // most positions of a sequence; -1: any
  Frame frame_;
  int ran_ = 0;  // steps [0, ran_) hold values of the frame
  std::unique_ptr<Replay> replay_;
  Memory scratch_;
  size_t scratch_bytes_ = 0;
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace slmq
