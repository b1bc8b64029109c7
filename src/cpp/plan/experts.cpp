// Mixtures of experts: rows are grouped by expert, each expert multiplies its own, and their results
// are added in the order of experts. Weights of experts that no row goes to are not touched.
#include "plan/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "plan/checks.h"
#include "plan/chunks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

constexpr int kTileRows = 64;
constexpr int kTileFloats = kTileRows * 64;  // rows x columns computed before what follows them

struct ExpertMatrix {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // padded to the pairs, or empty
};

// Bytes of a slot in a buffer whose rows hold `slots` of them.
size_t slot_bytes(const Buffer& b, int slots) { return b.row_bytes / slots; }

// Buffers of what experts take: as floats, and as integers; -1: nobody takes it so.
struct ExpertInput {
  int floats = -1, panels = -1;

  int of(Format format) const { return info(format).quantized ? panels : floats; }
  std::vector<int> all() const {
    std::vector<int> ids;
    for (const int id : {floats, panels})
      if (id >= 0) ids.push_back(id);
    return ids;
  }
};

// Rows [row, row + rows) of a buffer of so many slots a row, for a matrix.
LinearArgs arguments(const Run& run, const Matrix& m, const ExpertInput& input, int slots,
                     int thread, int row, int rows) {
  const Buffer& x = run.buffer(input.of(m.format));
  const size_t bytes = slot_bytes(x, slots);
  LinearArgs args{};
  args.ahead = run.tuning->ahead(m.format, rows);
  args.weight = m.data;
  args.groups = m.groups();
  args.m = rows;
  const uint8_t* first = x.bytes(run.frame->rows(Domain::tokens), thread) + row * bytes;
  if (info(m.format).quantized) {
    args.panel = first;  // rows that start at a panel block are a panel of their own
  } else {
    args.x = reinterpret_cast<const float*>(first);
    args.x_stride = static_cast<int>(bytes / sizeof(float));
  }
  return args;
}

void multiply(const Run& run, const Matrix& m, const LinearArgs& args, int pair_begin,
              int pair_end) {
  run.kernels->linear[static_cast<int>(m.format)](args, pair_begin, pair_end);
}

size_t total_bytes(const std::vector<ExpertMatrix>& experts) {
  size_t bytes = 0;
  for (const ExpertMatrix& e : experts) bytes += e.matrix->bytes();
  return bytes;
}

// Adds up what a run's experts hold.
size_t touched_bytes(const ExpertSlots& slots, const std::vector<ExpertMatrix>& experts) {
  size_t bytes = 0;
  for (int i = 0; i < slots.touched; ++i) bytes += experts[slots.expert[i]].matrix->bytes();
  return bytes;
}

// What experts take: rows of x, sorted into the table's slots on the way, or slots that an earlier
// step left in order. Integers are rounded here, each row as it would be alone.
class GroupStep final : public Step {
 public:
  GroupStep(Slice x, int routes, std::shared_ptr<ExpertTable> table, Activations activations,
            int out)
      : x_(x), routes_(routes), table_(std::move(table)), activations_(activations), out_(out) {}
  void prepare(const Frame&) override {
    if (sorts()) table_->clear();
  }
  bool may_replicate() const override { return true; }
  bool replicates(const Frame& frame) const override {
    return frame.rows(Domain::tokens) <= kReplicaRows;
  }
  void replicate(const Run& run, int thread) override {
    const int n = run.frame->rows(Domain::tokens);
    if (sorts()) table_->fill(run.buffer(routes_), n, thread);
    const int groups = table_->slots(n, thread).touched;
    for (int i = 0; i < groups; ++i) group(run, i, thread);
  }
  int phases(const Frame&) const override { return sorts() ? 2 : 1; }
  int items(const Frame& frame, int phase) const override {
    return phase + 1 < phases(frame) ? 1 : table_->most(frame.rows(Domain::tokens));
  }
  void item(const Run& run, int phase, int item, int thread) override {
    const int n = run.frame->rows(Domain::tokens);
    if (phase + 1 < phases(*run.frame)) {
      table_->fill(run.buffer(routes_), n, thread);
    } else if (item < table_->slots(n, thread).touched) {
      group(run, item, thread);
    }
  }

 private:
  bool sorts() const { return routes_ >= 0; }
  void group(const Run& run, int i, int thread) const;

  const Slice x_;
  const int routes_;  // -1: x holds slots
  const std::shared_ptr<ExpertTable> table_;
  const Activations activations_;
  const int out_;
};

void GroupStep::group(const Run& run, int i, int thread) const {
  const int n = run.frame->rows(Domain::tokens);
  if (sorts() && n == 1 && i > 0) return;  // all its experts read the one row
  const ExpertSlots& slots = table_->slots(n, thread);
  const Buffer &x = run.buffer(x_.buffer), &out = run.buffer(out_);
  const int width = out.width / table_->top_k(), count = slots.rows_of(i);
  const size_t bytes = slot_bytes(out, table_->top_k());
  uint8_t* to = out.bytes(n, thread) + static_cast<size_t>(slots.begin[i]) * bytes;
  const auto quantize = run.kernels->quantize[static_cast<int>(activations_)];
  for (int row = 0; row < count; ++row) {
    const int slot = slots.begin[i] + row;
    const float* from =
        x.floats(n, thread) + (sorts() ? static_cast<size_t>(slots.row[slot]) * x.width + x_.offset
                                       : static_cast<size_t>(slot) * width);
    if (out.type == BufferType::panel) {
      quantize(from, 0, width / kGroup, count, row, row + 1, to);
    } else {
      std::memcpy(to + static_cast<size_t>(row) * bytes, from, bytes);
    }
  }
}

// Slot by slot f(x @ gate.T (+ bias)) * (x @ up.T (+ bias)), of the slot's expert.
class ExpertGatedStep final : public Step {
 public:
  ExpertGatedStep(ExpertInput x, std::vector<ExpertMatrix> gate, std::vector<ExpertMatrix> up,
                  Gate activation, Clamp clamp, std::shared_ptr<ExpertTable> table, int out,
                  int threads);
  int items(const Frame& frame, int) const override {
    return table_->most(frame.rows(Domain::tokens)) * chunks_;
  }
  void run_items(const Run& run, int phase, int first, int last, int thread) override;
  size_t bytes_read() const override {
    return touched_bytes(table_->filled(), gate_) + touched_bytes(table_->filled(), up_);
  }
  size_t scratch_bytes() const override { return 2 * kTileFloats * sizeof(float); }

 private:
  void pairs(const Run& run, int thread, int i, int pair_begin, int pair_end) const;
  void tile(const Run& run, int thread, int i, int pair_begin, int pair_end, int row,
            int rows) const;
  void clamp(float* gate, float* up, int count) const;

  const ExpertInput x_;
  const std::vector<ExpertMatrix> gate_, up_;
  const Gate activation_;
  const Clamp clamp_;
  const std::shared_ptr<ExpertTable> table_;
  const int out_;
  int chunk_pairs_, chunks_;  // of an expert
};

ExpertGatedStep::ExpertGatedStep(ExpertInput x, std::vector<ExpertMatrix> gate,
                                 std::vector<ExpertMatrix> up, Gate activation, Clamp clamp,
                                 std::shared_ptr<ExpertTable> table, int out, int threads)
    : x_(x),
      gate_(std::move(gate)),
      up_(std::move(up)),
      activation_(activation),
      clamp_(clamp),
      table_(std::move(table)),
      out_(out) {
  const Matrix& m = *gate_[0].matrix;
  const size_t of_a_row = m.bytes() * static_cast<size_t>(table_->top_k());
  chunk_pairs_ = chunk_pairs(chunk_bytes_for(of_a_row, threads), pair_bytes(m.format, m.groups()));
  chunks_ = (m.pairs() + chunk_pairs_ - 1) / chunk_pairs_;
}

void ExpertGatedStep::run_items(const Run& run, int, int first, int last, int thread) {
  const ExpertSlots& slots = table_->slots(run.frame->rows(Domain::tokens), thread);
  while (first < last && first / chunks_ < slots.touched) {
    const int i = first / chunks_, end = std::min(last, (i + 1) * chunks_);
    pairs(run, thread, i, first % chunks_ * chunk_pairs_,
          std::min((end - i * chunks_) * chunk_pairs_, gate_[0].matrix->pairs()));
    first = end;
  }
}

void ExpertGatedStep::pairs(const Run& run, int thread, int i, int pair_begin, int pair_end) const {
  const int count = table_->slots(run.frame->rows(Domain::tokens), thread).rows_of(i);
  const int tile_rows = std::min(kTileRows, static_cast<int>(round_up(count, kPanelRows)));
  const int tile_pairs = std::max(1, kTileFloats / (tile_rows * kPairRows));
  for (int pair = pair_begin; pair < pair_end; pair += tile_pairs)
    for (int row = 0; row < count; row += tile_rows)
      tile(run, thread, i, pair, std::min(pair + tile_pairs, pair_end), row,
           std::min(tile_rows, count - row));
}

void ExpertGatedStep::tile(const Run& run, int thread, int i, int pair_begin, int pair_end, int row,
                           int rows) const {
  const int n = run.frame->rows(Domain::tokens), columns = (pair_end - pair_begin) * kPairRows;
  const ExpertSlots& slots = table_->slots(n, thread);
  const int expert = slots.expert[i], slot = slots.begin[i] + row;
  const Buffer& out = run.buffer(out_);
  auto* gate = reinterpret_cast<float*>(run.scratch_of(thread));
  float* up = gate + kTileFloats;
  for (const auto& [part, y] : {std::pair(&gate_[expert], gate), std::pair(&up_[expert], up)}) {
    const Matrix& m = *part->matrix;
    LinearArgs args = arguments(run, m, x_, table_->top_k(), thread, n == 1 ? 0 : slot, rows);
    args.y = y - static_cast<ptrdiff_t>(pair_begin) * kPairRows;
    args.y_stride = columns;
    args.bias = part->bias.empty() ? nullptr : part->bias.data();
    multiply(run, m, args, pair_begin, pair_end);
  }
  if (clamp_.limit > 0.0f) clamp(gate, up, rows * columns);
  const int width = out.width / table_->top_k();
  for (int r = 0; r < rows; ++r) {
    const ptrdiff_t from = static_cast<ptrdiff_t>(r) * columns;
    run.kernels->gated[static_cast<int>(activation_)](
        gate + from, up + from, columns,
        out.floats(n, thread) + static_cast<size_t>(slot + r) * width +
            static_cast<size_t>(pair_begin) * kPairRows);
  }
}

// g f(alpha g) (u + 1) is f(alpha g) alpha g (u + 1) / alpha: gates are handed on as alpha g.
void ExpertGatedStep::clamp(float* gate, float* up, int count) const {
  const float limit = clamp_.limit, alpha = clamp_.alpha;
  for (int c = 0; c < count; ++c) {
    gate[c] = std::min(gate[c], limit) * alpha;
    up[c] = (std::max(std::min(up[c], limit), -limit) + 1.0f) / alpha;
  }
}

// Row by row: the sum over its slots, in order, of weight * (slot @ down.T (+ bias)) (+ add). A thread
// takes columns of the sum, and with them the same rows of every expert's matrix.
class ExpertDownStep final : public Step {
 public:
  ExpertDownStep(ExpertInput x, std::vector<ExpertMatrix> down, Slice add,
                 std::shared_ptr<ExpertTable> table, int out, int threads);
  int items(const Frame&, int) const override { return chunks_; }
  void run_items(const Run& run, int phase, int first, int last, int thread) override;
  size_t bytes_read() const override { return touched_bytes(table_->filled(), down_); }
  size_t scratch_bytes() const override { return kTileFloats * sizeof(float); }

 private:
  void pairs(const Run& run, int thread, int pair_begin, int pair_end) const;
  void expert(const Run& run, int thread, int i, int pair_begin, int pair_end) const;

  const ExpertInput x_;
  const std::vector<ExpertMatrix> down_;
  const Slice add_;
  const std::shared_ptr<ExpertTable> table_;
  const int out_;
  int chunk_pairs_, chunks_;
};

ExpertDownStep::ExpertDownStep(ExpertInput x, std::vector<ExpertMatrix> down, Slice add,
                               std::shared_ptr<ExpertTable> table, int out, int threads)
    : x_(x), down_(std::move(down)), add_(add), table_(std::move(table)), out_(out) {
  const Matrix& m = *down_[0].matrix;
  const auto top_k = static_cast<size_t>(table_->top_k());
  chunk_pairs_ = chunk_pairs(chunk_bytes_for(m.bytes() * top_k, threads),
                             pair_bytes(m.format, m.groups()) * top_k);
  chunks_ = (m.pairs() + chunk_pairs_ - 1) / chunk_pairs_;
}

void ExpertDownStep::run_items(const Run& run, int, int first, int last, int thread) {
  const int n = run.frame->rows(Domain::tokens);
  const int end = std::min(last * chunk_pairs_, down_[0].matrix->pairs());
  // The fewer rows, the longer the stream of each expert.
  const int many = std::max(1, kTileFloats / (std::min(n, kTileRows) * kPairRows));
  for (int pair = first * chunk_pairs_; pair < end; pair += many)
    pairs(run, thread, pair, std::min(pair + many, end));
}

void ExpertDownStep::pairs(const Run& run, int thread, int pair_begin, int pair_end) const {
  const int n = run.frame->rows(Domain::tokens);
  const int first = pair_begin * kPairRows, columns = (pair_end - pair_begin) * kPairRows;
  const Buffer& out = run.buffer(out_);
  for (int row = 0; row < n; ++row)
    std::fill_n(out.floats(n, thread) + static_cast<size_t>(row) * out.width + first, columns,
                0.0f);
  const int touched = table_->slots(n, thread).touched;
  for (int i = 0; i < touched; ++i) expert(run, thread, i, pair_begin, pair_end);
  if (add_.buffer < 0) return;
  const Buffer& add = run.buffer(add_.buffer);
  for (int row = 0; row < n; ++row) {
    const float* from =
        add.floats(n, thread) + static_cast<size_t>(row) * add.width + add_.offset + first;
    float* y = out.floats(n, thread) + static_cast<size_t>(row) * out.width + first;
    for (int c = 0; c < columns; ++c) y[c] = y[c] + from[c];
  }
}

void ExpertDownStep::expert(const Run& run, int thread, int i, int pair_begin, int pair_end) const {
  const int n = run.frame->rows(Domain::tokens);
  const int first = pair_begin * kPairRows, columns = (pair_end - pair_begin) * kPairRows;
  const ExpertSlots& slots = table_->slots(n, thread);
  const ExpertMatrix& down = down_[slots.expert[i]];
  const Buffer& out = run.buffer(out_);
  auto* made = reinterpret_cast<float*>(run.scratch_of(thread));
  for (int row = 0; row < slots.rows_of(i); row += kTileRows) {
    const int rows = std::min(kTileRows, slots.rows_of(i) - row), slot = slots.begin[i] + row;
    LinearArgs args = arguments(run, *down.matrix, x_, table_->top_k(), thread, slot, rows);
    args.y = made - first;
    args.y_stride = columns;
    args.bias = down.bias.empty() ? nullptr : down.bias.data();
    multiply(run, *down.matrix, args, pair_begin, pair_end);
    for (int r = 0; r < rows; ++r) {
      const float weight = slots.weight[slot + r];
      const float* from = made + static_cast<ptrdiff_t>(r) * columns;
      float* y =
          out.floats(n, thread) + static_cast<size_t>(slots.row[slot + r]) * out.width + first;
      for (int c = 0; c < columns; ++c) y[c] = y[c] + weight * from[c];
    }
  }
}

// All experts' matrices of one kind, of one size.
std::vector<ExpertMatrix> checked_experts(std::vector<Weight> weights, int experts, int n, int k,
                                          const std::string& what) {
  if (static_cast<int>(weights.size()) != experts)
    fail("mixture: expected a matrix " + what + " of each of " + std::to_string(experts) +
         " experts, got " + std::to_string(weights.size()));
  std::vector<ExpertMatrix> checked;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix& m = *weights[i].matrix;
    const std::string name = "mixture: " + what + " of expert " + std::to_string(i);
    if (m.n != n || m.k != k) fail(name + ": expected " + dims(n, k) + ", got " + dims(m.n, m.k));
    if (info(m.format).row_panels)
      fail(name + ": expected a format whose scales are shared by groups, got " +
           info(m.format).name);
    if (info(m.format).quantized) check_quantized_width(k);
    std::vector<float> bias = std::move(weights[i].bias);
    if (!bias.empty() && static_cast<int>(bias.size()) != n)
      fail(name + ": expected a bias of " + std::to_string(n) + " values, got " +
           std::to_string(bias.size()));
    if (!bias.empty()) bias.resize(padded(n), 0.0f);
    checked.push_back({std::move(weights[i].matrix), std::move(bias)});
  }
  return checked;
}

// Whether any of these takes floats, or integers.
bool take(const std::vector<Weight>& weights, bool integers) {
  return std::any_of(weights.begin(), weights.end(), [&](const Weight& weight) {
    return info(weight.matrix->format).quantized == integers;
  });
}

std::string sizes(const ExpertTable& table, const Matrix& m, const char* times = "") {
  return std::to_string(table.top_k()) + "/" + std::to_string(table.experts()) + "x" + times +
         dims(m.n, m.k);
}

}  // namespace

int Recording::dispatch(Slice x, int routes, int by, BufferType type, Activations activations) {
  const std::shared_ptr<ExpertTable> table = tables_.at(by);
  const int out = new_buffer(type, Domain::tokens, table->top_k() * padded(x.width), true);
  tables_[out] = table;
  return add_step(std::make_unique<GroupStep>(x, routes, table, activations, out), out,
                  {x.buffer, by}, routes >= 0 ? "experts" : "quantize",
                  type == BufferType::f32 ? "f32" : kActivationNames[static_cast<int>(activations)],
                  std::to_string(table->top_k()) + "x" + std::to_string(x.width));
}

int Recording::mixture(Slice x, int routes, Experts experts, Gate activation, Clamp clamp,
                       Activations activations, Slice add) {
  checked_groups(x, "mixture");
  source(routes);
  if (tables_.find(routes) == tables_.end()) fail("mixture: expected what route() returned");
  if (buffer(x.buffer).domain != Domain::tokens) fail("mixture: record it before select()");
  if (experts.gate.empty() || experts.up.empty() || experts.down.empty())
    fail("mixture: expected matrices of experts, got none");
  if (!(clamp.limit >= 0.0f && clamp.limit <= 1e6f && clamp.alpha >= 1e-3f && clamp.alpha <= 1e3f))
    fail("mixture: expected a limit of 0..1e6 and an alpha of 1e-3..1e3");
  const std::shared_ptr<ExpertTable> table = tables_.at(routes);
  const Matrix gate = *experts.gate[0].matrix, down = *experts.down[0].matrix;
  if (gate.k != x.width || down.k != gate.n)
    fail("mixture: expected gates with k = " + std::to_string(x.width) +
         " and as many rows as down has columns, got " + dims(gate.n, gate.k) + " and " +
         dims(down.n, down.k));
  if (add.buffer >= 0) check_add(add, down.n, Domain::tokens, "mixture");
  const bool floats[2] = {take(experts.gate, false) || take(experts.up, false),
                          take(experts.down, false)};
  const bool integers[2] = {take(experts.gate, true) || take(experts.up, true),
                            take(experts.down, true)};
  const int count = table->experts(), threads = made_.sizes.threads;
  auto gates = checked_experts(std::move(experts.gate), count, gate.n, gate.k, "gate");
  auto ups = checked_experts(std::move(experts.up), count, gate.n, gate.k, "up");
  auto downs = checked_experts(std::move(experts.down), count, down.n, down.k, "down");
  const auto of_a_row = [&](size_t bytes) {
    return bytes / static_cast<size_t>(count) * static_cast<size_t>(table->top_k());
  };

  ExpertInput in;
  if (floats[0]) in.floats = dispatch(x, routes, routes, BufferType::f32, activations);
  if (integers[0]) in.panels = dispatch(x, routes, routes, BufferType::panel, activations);
  const int sorted = in.all().front();
  const size_t gate_bytes = total_bytes(gates) + total_bytes(ups);
  const int middle =
      new_buffer(BufferType::f32, Domain::tokens, table->top_k() * padded(gate.n), false);
  auto first = std::make_unique<ExpertGatedStep>(in, std::move(gates), std::move(ups), activation,
                                                 clamp, table, middle, threads);
  first->info.weight_bytes = of_a_row(gate_bytes);
  first->info.macs_per_row = 2.0 * table->top_k() * gate.n * gate.k;
  add_step(std::move(first), middle, in.all(),
           std::string("experts.") + kUnitNames[static_cast<int>(activation)],
           info(gate.format).name, sizes(*table, gate, "2x"));

  ExpertInput slots;
  if (floats[1]) slots.floats = middle;
  if (integers[1])
    slots.panels = dispatch({middle, 0, gate.n}, -1, sorted, BufferType::panel, activations);
  std::vector<int> read = slots.all();
  read.push_back(sorted);  // whose step sorted the rows
  if (add.buffer >= 0) read.push_back(add.buffer);
  const size_t down_bytes = total_bytes(downs);
  const int out = new_buffer(BufferType::f32, Domain::tokens, down.n, false);
  auto last = std::make_unique<ExpertDownStep>(slots, std::move(downs), add, table, out, threads);
  last->info.weight_bytes = of_a_row(down_bytes);
  last->info.macs_per_row = static_cast<double>(table->top_k()) * down.n * down.k;
  add_step(std::move(last), out, std::move(read),
           add.buffer >= 0 ? "experts.down+add" : "experts.down", info(down.format).name,
           sizes(*table, down));
  if (slots.panels >= 0) release(slots.panels);
  release(middle);
  for (const int id : in.all()) release(id);
  return out;
}

}  // namespace slmq
