// Records a model: every call checks its operands and appends a step, finish() makes the Plan.
//
// Operations return the buffer that they write. What is refused is std::invalid_argument. Each stands,
// with the step that it records, in norms.cpp, rows.cpp, lookup.cpp, positions.cpp, linear.cpp,
// attention.cpp, convolution.cpp, delta.cpp, routing.cpp or experts.cpp.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "layout/matrix.h"
#include "plan/adapter.h"
#include "plan/attention.h"
#include "plan/low_rank.h"
#include "plan/plan.h"
#include "plan/step.h"

namespace slmq {

struct Weight {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // n values, or empty
  int x = -1;               // the buffer that it reads; -1: that of its step
};

struct LinearPart;  // linear.cpp
struct RowTable;    // layout/row_table.h

// What becomes of the rows that an output spans: the only one of them; their mean; the largest of each
// column; their sum by the root of their number; their mean, a row weighted by its position + 1.
enum class Pool : int { row, mean, max, mean_sqrt_len, weighted_mean };
inline constexpr int kPools = 5;
inline constexpr const char* kPoolNames[kPools] = {"row", "mean", "max", "mean_sqrt_len",
                                                   "weighted_mean"};

// up x^2 + mid x above 0, down (exp(x) - 1 - x) + mid x below.
struct Xielu {
  float up, down, mid;
};

// Heads of the gated delta rule. A key head serves heads in a row; if tiled, those that are key_heads
// apart.
struct DeltaShape {
  int heads, key_heads, key_dim, value_dim;
  bool tiled;
};

// How a row's experts are found among its logits: those of the largest scores, which are the softmax of
// all logits, their sigmoid, or the logits themselves; in the last case weights are the softmax of the
// chosen ones, else the scores.
enum class Scores : int { softmax, sigmoid, chosen };
inline constexpr int kScores = 3;
inline constexpr const char* kScoresNames[kScores] = {"softmax", "sigmoid", "chosen"};

struct Routing {
  int top_k;
  Scores scores;
  bool normalized = false;  // weights are divided by their sum and eps
  float eps = 0.0f;
  float scale = 1.0f;         // of the weights
  std::vector<float> bias{};  // added to scores where experts are chosen; empty: none
};

// All experts of a layer: one matrix each of gate, up and down.
struct Experts {
  std::vector<Weight> gate, up, down;
};

// Where gated units are held: gates to at most limit, the others within it and one more; gates are
// multiplied by alpha within their activation only. limit 0: nowhere.
struct Clamp {
  float limit = 0.0f, alpha = 1.0f;
};

class ExpertTable;  // experts.h

class Recording {
 public:
  Recording(const Kernels& kernels, const PlanSizes& sizes, KvType kv_type);

  // From here on every matrix of linear() and gated() has a slot, in the order in which they come.
  void take_adapters();
  // The scope of the steps that follow, for people.
  void scope(std::string name) { scope_ = std::move(name); }

  // positions: may be null; else a sequence has at most as many positions as it has rows.
  // types: may be null; else the row of a token's type is added.
  int embed(std::shared_ptr<const Matrix> matrix, float scale,
            std::shared_ptr<const Matrix> positions = nullptr,
            std::shared_ptr<const Matrix> types = nullptr);
  int lookup(std::shared_ptr<const RowTable> table, float scale);
  int rmsnorm(Slice x, std::vector<float> weight, float eps, Slice add = {});
  // Heads of the weight's size.
  int head_norm(Slice x, std::vector<float> weight, float eps, Slice add = {});
  // Weight, and bias if not empty, of x.width values; heads of head_dim are normed by themselves.
  int layernorm(Slice x, const std::vector<float>& weight, const std::vector<float>& bias,
                int head_dim, float eps);
  // whole_rows: for weights whose rows have one scale.
  int quantize(Slice x, Activations activations, bool whole_rows = false);
  int gather(Slice x, std::vector<int32_t> columns);  // column c is column columns[c] of x
  int linear(int x, std::vector<Weight> parts, Slice add, std::optional<Unary> activation = {},
             float softcap = 0.0f);
  int gated(int x, Gate activation, Weight gate, Weight up);
  int xielu(Slice x, Xielu f);
  int rope(std::vector<float> frequencies, float factor);
  // Heads of head_dim channels, the first `rotary` of each turned by the angles in buffer `rope`.
  int rotate(Slice x, int rope, int rotary, int head_dim);
  int scale(Slice x, float factor);
  // x times 1 + growth * log(1 + the whole multiples of `every` in the row's position).
  int scale_by_position(Slice x, float growth, int every);
  // shared: the number (0, 1, ...) of the earlier attention whose keys and values q sees, k and v
  // being missing; -1: its own.
  int attention(Slice q, Slice k, Slice v, int rope, AttentionConfig config,
                const std::vector<float>& bias = {}, const std::vector<float>& sinks = {},
                int shared = -1);
  // Channel by channel: behind * f(bias + the sum of weight[channel][tap] * input), the inputs being
  // before * x of this position (the last tap) and of those before it. Factors may be missing.
  int convolution(Slice x, const std::vector<float>& weight, const std::vector<float>& bias,
                  Slice before, Slice behind, std::optional<Unary> activation);
  // exp(-rate * softplus(a + bias)) and sigmoid(b), which have a column a head.
  int decays(Slice a, Slice b, const std::vector<float>& rate, const std::vector<float>& bias);
  // What every head's state makes of its query, behind what it learns of its key and value.
  int delta_rule(Slice q, Slice k, Slice v, Slice decays, DeltaShape shape);
  int gate(Slice x, Gate f, Slice gate);  // f(gate) * x
  // The experts of every row, in order of their numbers, then the weights of each.
  int route(Slice logits, Routing routing);
  // Row by row the sum of what its experts make of x, each times its weight, in that order (+ add).
  int mixture(Slice x, int routes, Experts experts, Gate activation, Clamp clamp,
              Activations activations, Slice add);
  int select(Slice x, Pool pool = Pool::row);

  // Nothing that is recorded later reads it. It serves a later step once the replicas that are
  // computed from it are released too: threads compute them late (replay.h). Does nothing once the
  // recording is finished, when nothing can be recorded any more.
  void release(int buffer);
  // The plan, whose runs are for the first `columns` of this buffer; -1: for those of the vocabulary.
  // Nothing can be recorded behind it.
  std::unique_ptr<Plan> finish(int logits, int columns = -1);

 private:
  // Who still needs what a buffer holds.
  struct Use {
    explicit Use(int width) : ends{width} {}
    std::vector<int> ends;     // columns behind which zeros fill up to a multiple of 32
    bool released = false;     // no later step reads it
    int readers = 0;           // live replicas that are computed from it
    std::vector<int> sources;  // what this replica is computed from
  };

  void check_recording() const;
  const Buffer& buffer(int id) const;
  const Buffer& source(int id) const;  // that a step may read
  Slice checked(Slice slice, const char* what) const;
  // For steps that work in whole groups: what fills the slice's last one must be zeros.
  Slice checked_groups(Slice slice, const char* what) const;
  void check_add(Slice add, int width, Domain domain, const std::string& op) const;
  void check_angles(int rope, int rotary, int head_dim, const std::string& op) const;
  void check_bias(const AttentionConfig& config, const std::vector<float>& bias);
  void check_keys(Slice q, Slice k, Slice v, const AttentionConfig& config) const;
  size_t shared_cache(const AttentionConfig& config, int shared) const;
  void limit_positions(int most);
  size_t new_state(size_t floats);  // the first of so many floats of the states
  // Checks a weight against its input and pads its bias.
  LinearPart part(int x, Weight weight, int offset, Domain domain) const;
  std::shared_ptr<LowRankAdditions> low_rank(const std::vector<LinearPart*>& parts, Domain domain);

  // Rows of x as a mixture's experts take them, sorted by `routes`; or of slots, if that is -1. `by` has
  // the table.
  int dispatch(Slice x, int routes, int by, BufferType type, Activations activations);

  int new_buffer(BufferType type, Domain domain, int width, bool replicated);
  int add_step(std::unique_ptr<Step> step, int out, std::vector<int> in, std::string op,
               std::string format, std::string shape);
  void free_unless_needed(int id);

  Recorded made_;  // so far
  const KvType kv_type_;
  bool finished_ = false;
  std::vector<Use> uses_;  // of the buffers
  std::vector<int> free_;  // buffers that nobody needs any more
  std::string scope_;
  std::vector<AttentionConfig> attentions_;
  std::shared_ptr<Slots> slots_;  // null: no adapters
  // Buffers of products with A, by rows, width, and whether their step has one input: theirs alone,
  // since they may be made early.
  std::map<std::tuple<Domain, int, bool>, int> products_;
  // Of buffers that hold routes, and of those that were dispatched by them.
  std::map<int, std::shared_ptr<ExpertTable>> tables_;
};

}  // namespace slmq
