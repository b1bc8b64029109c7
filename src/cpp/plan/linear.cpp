// Steps that read weights: linear layers (several at once) and the gated unit.
#include <algorithm>
#include <cmath>
#include <utility>

#include "plan/adapter.h"
#include "plan/checks.h"
#include "plan/chunks.h"
#include "plan/low_rank.h"
#include "plan/recording.h"

namespace slmq {

struct LinearPart {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // padded to the pairs, or empty
  int offset;               // first column in the output buffer
  int x;                    // buffer that it reads
  LowRankUse adds;          // of adapters
};

namespace {

constexpr const char* kBufferTypeNames[] = {"float32 rows", "quantized activations",
                                            "activations with one scale a row"};

BufferType input_type(Format format) {
  if (!info(format).quantized) return BufferType::f32;
  return info(format).row_panels ? BufferType::row_panel : BufferType::panel;
}

// Weights that a block of rows meets at a time, in the second-level cache with them.
constexpr size_t kBlockBytes = 256 * 1024;

// A range of pairs of one matrix: what a thread takes at a time.
struct Chunk {
  int part, pair_begin, pair_end;
};

void add_chunks(const Matrix& m, int part, size_t chunk_bytes, std::vector<Chunk>* chunks) {
  const int pairs = chunk_pairs(chunk_bytes, pair_bytes(m.format, m.groups()));
  for (int begin = 0; begin < m.pairs(); begin += pairs)
    chunks->push_back({part, begin, std::min(begin + pairs, m.pairs())});
}

// Neighbouring chunks of one matrix as one: a longer stream of memory. Moves *first behind them.
Chunk joined(const std::vector<Chunk>& chunks, int* first, int last) {
  Chunk chunk = chunks[(*first)++];
  for (; *first < last; ++*first) {
    const Chunk& next = chunks[*first];
    if (next.part != chunk.part || next.pair_begin != chunk.pair_end) break;
    chunk.pair_end = next.pair_end;
  }
  return chunk;
}

// Rows of a run. The first one begins a panel block, so that they are a panel of their own.
struct RowRange {
  int begin, end;
  int count() const { return end - begin; }
};

// Takes weights and activations of a matrix; the caller sets where the result goes.
LinearArgs arguments(const Run& run, const Matrix& m, int x_buffer, int n, RowRange rows,
                     int thread) {
  const Buffer& x = run.buffer(x_buffer);
  LinearArgs args{};
  args.ahead = run.tuning->ahead(m.format, n);
  args.weight = m.data;
  args.groups = m.groups();
  args.m = rows.count();
  if (info(m.format).quantized) {
    args.panel = static_cast<const uint8_t*>(x.panel(n, thread)) +
                 static_cast<size_t>(rows.begin) * args.groups * kActivationBytes;
  } else {
    args.x = x.floats(n, thread) + static_cast<size_t>(rows.begin) * x.width;
    args.x_stride = x.width;
  }
  return args;
}

void multiply(const Run& run, const Matrix& m, const LinearArgs& args, int pair_begin,
              int pair_end) {
  run.kernels->linear[static_cast<int>(m.format)](args, pair_begin, pair_end);
}

// out[:, offset of part] = x of part @ part.T (+ bias) (+ add), all parts in one phase; or f of it,
// which happens while the products are in cache. With a soft cap (> 0) y of that becomes
// softcap * tanh(y / softcap).
class LinearStep final : public Step {
 public:
  LinearStep(Domain domain, std::vector<LinearPart> parts, std::shared_ptr<LowRankAdditions> adds,
             Slice add, std::optional<Unary> activation, float softcap, int out, int threads);
  void prepare(const Frame& frame) override { adds_->prepare(frame); }
  size_t scratch_bytes() const override { return adds_->scratch_bytes(); }
  int items(const Frame& frame, int phase) const override;
  void run_items(const Run& run, int phase, int first, int last, int thread) override;
  void narrow(const std::vector<int32_t>& columns) override;
  bool takes_rows() const override { return domain_ == Domain::tokens; }
  void run_rows(const Run& run, int begin, int end, int thread) override;

 private:
  const Domain domain_;
  const std::vector<LinearPart> parts_;
  const std::shared_ptr<LowRankAdditions> adds_;
  const Slice add_;
  const std::optional<Unary> activation_;
  const float softcap_;
  const int out_;
  std::vector<Chunk> chunks_;
  std::vector<Chunk> block_chunks_;  // of a block of rows
  std::vector<Chunk> wanted_;        // those of some columns; empty: all of them

  const std::vector<Chunk>& chunks() const { return wanted_.empty() ? chunks_ : wanted_; }
  void multiply_pairs(const Run& run, const Chunk& chunk, RowRange rows, int thread) const;
  void multiply_rows(const Run& run, const Chunk& chunk, RowRange rows, int thread) const;
};

LinearStep::LinearStep(Domain domain, std::vector<LinearPart> parts,
                       std::shared_ptr<LowRankAdditions> adds, Slice add,
                       std::optional<Unary> activation, float softcap, int out, int threads)
    : domain_(domain),
      parts_(std::move(parts)),
      adds_(std::move(adds)),
      add_(add),
      activation_(activation),
      softcap_(softcap),
      out_(out) {
  size_t total = 0;
  for (const LinearPart& part : parts_) total += part.matrix->bytes();
  for (size_t i = 0; i < parts_.size(); ++i) {
    add_chunks(*parts_[i].matrix, static_cast<int>(i), chunk_bytes_for(total, threads), &chunks_);
    add_chunks(*parts_[i].matrix, static_cast<int>(i), kBlockBytes, &block_chunks_);
  }
}

int LinearStep::items(const Frame& frame, int) const {
  if (frame.rows(domain_) == 0) return 0;
  return adds_->items(frame) + static_cast<int>(chunks().size());
}

void LinearStep::run_items(const Run& run, int, int first, int last, int thread) {
  const RowRange all = {0, run.frame->rows(domain_)};
  adds_->take(run, first, last, thread);
  const int before = adds_->items(*run.frame);
  first = std::max(first - before, 0);
  last -= before;
  while (first < last) multiply_pairs(run, joined(chunks(), &first, last), all, thread);
}

void LinearStep::run_rows(const Run& run, int begin, int end, int thread) {
  adds_->multiply(run, begin, end, thread);
  for (const Chunk& chunk : block_chunks_) multiply_pairs(run, chunk, {begin, end}, thread);
}

// A pair is what a kernel computes at least: 32 neighbouring columns.
void LinearStep::narrow(const std::vector<int32_t>& columns) {
  wanted_.clear();
  for (const int32_t column : columns) {
    int part = static_cast<int>(parts_.size()) - 1;
    while (parts_[part].offset > column) --part;
    const int pair = (column - parts_[part].offset) / kPairRows;
    wanted_.push_back({part, pair, pair + 1});
  }
  const auto key = [](const Chunk& c) { return std::pair(c.part, c.pair_begin); };
  std::sort(wanted_.begin(), wanted_.end(),
            [&](const Chunk& a, const Chunk& b) { return key(a) < key(b); });
  const auto same = [&](const Chunk& a, const Chunk& b) { return key(a) == key(b); };
  wanted_.erase(std::unique(wanted_.begin(), wanted_.end(), same), wanted_.end());
}

// What is done to products is done while they are in cache.
void LinearStep::multiply_pairs(const Run& run, const Chunk& chunk, RowRange rows,
                                int thread) const {
  constexpr int kRows = 4 * kPanelRows;
  const LowRankUse& use = parts_[chunk.part].adds;
  if (!adds_->in(*run.frame) || adds_->at_once(run, use, rows.begin, rows.count()))
    return multiply_rows(run, chunk, rows, thread);
  for (int row = rows.begin; row < rows.end; row += kRows)
    multiply_rows(run, chunk, {row, std::min(row + kRows, rows.end)}, thread);
}

void LinearStep::multiply_rows(const Run& run, const Chunk& chunk, RowRange rows,
                               int thread) const {
  const int n = run.frame->rows(domain_);
  const Buffer& out = run.buffer(out_);
  const LinearPart& part = parts_[chunk.part];
  LinearArgs args = arguments(run, *part.matrix, part.x, n, rows, thread);
  args.y = out.floats(n, thread) + static_cast<size_t>(rows.begin) * out.width + part.offset;
  args.y_stride = out.width;
  args.bias = part.bias.empty() ? nullptr : part.bias.data();
  if (add_.buffer >= 0) {
    const Buffer& add = run.buffer(add_.buffer);
    args.add = add.floats(n, thread) + static_cast<size_t>(rows.begin) * add.width + add_.offset;
    args.add_stride = add.width;
  }
  const int first = chunk.pair_begin * kPairRows;
  const int columns = (chunk.pair_end - chunk.pair_begin) * kPairRows;
  const auto activate = activation_ ? run.kernels->unary[static_cast<int>(*activation_)] : nullptr;
  const bool adapts = part.adds.slot >= 0;
  if (slmq::info(part.matrix->format).row_panels && !adapts) args.activate = activate;
  const Behind behind = adds_->prepare(run, part.adds, rows.begin, rows.count(), &args);
  multiply(run, *part.matrix, args, chunk.pair_begin, chunk.pair_end);
  adds_->add(run, part.adds, behind, rows.begin, rows.count(), first, columns, args.y + first,
             args.y_stride);
  const bool activates = activate != nullptr && args.activate == nullptr;
  if (!activates && softcap_ == 0.0f) return;
  for (int row = 0; row < rows.count(); ++row) {
    float* y = args.y + static_cast<size_t>(row) * args.y_stride + first;
    if (activates) activate(y, columns, y);
    if (softcap_ != 0.0f) run.kernels->softcap(y, columns, softcap_, y);
  }
}

// out = f(x @ gate.T (+ bias)) * (x @ up.T (+ bias)): f happens while the products are in cache.
class GatedStep final : public Step {
 public:
  GatedStep(Domain domain, Gate activation, LinearPart gate, LinearPart up,
            std::shared_ptr<LowRankAdditions> adds, int out, int threads);
  void prepare(const Frame& frame) override { adds_->prepare(frame); }
  int items(const Frame& frame, int phase) const override;
  void run_items(const Run& run, int phase, int first, int last, int thread) override;
  size_t scratch_bytes() const override {
    return std::max(2 * kTileFloats * sizeof(float), adds_->scratch_bytes());
  }
  bool takes_rows() const override { return domain_ == Domain::tokens; }
  void run_rows(const Run& run, int begin, int end, int thread) override;

 private:
  static constexpr int kTileFloats = 64 * 64;  // rows x columns computed before the activation
  void tiles(const Run& run, const Chunk& chunk, RowRange rows, int thread) const;
  void tile(const Run& run, int thread, int pair_begin, int pair_end, RowRange rows) const;

  const Domain domain_;
  const Gate activation_;
  const LinearPart gate_, up_;
  const std::shared_ptr<LowRankAdditions> adds_;
  const int out_;
  std::vector<Chunk> chunks_;
};

GatedStep::GatedStep(Domain domain, Gate activation, LinearPart gate, LinearPart up,
                     std::shared_ptr<LowRankAdditions> adds, int out, int threads)
    : domain_(domain),
      activation_(activation),
      gate_(std::move(gate)),
      up_(std::move(up)),
      adds_(std::move(adds)),
      out_(out) {
  const Matrix& m = *gate_.matrix;
  add_chunks(m, 0, chunk_bytes_for(m.bytes(), threads), &chunks_);
}

void GatedStep::tile(const Run& run, int thread, int pair_begin, int pair_end,
                     RowRange rows) const {
  const int n = run.frame->rows(domain_), columns = (pair_end - pair_begin) * kPairRows;
  const Buffer& out = run.buffer(out_);
  auto* gate = reinterpret_cast<float*>(run.scratch_of(thread));
  float* up = gate + kTileFloats;
  float* results[2] = {gate, up};
  const LinearPart* parts[2] = {&gate_, &up_};
  for (int i = 0; i < 2; ++i) {
    const Matrix& m = *parts[i]->matrix;
    LinearArgs args = arguments(run, m, parts[i]->x, n, rows, thread);
    args.y = results[i] - static_cast<ptrdiff_t>(pair_begin) * kPairRows;
    args.y_stride = columns;
    args.bias = parts[i]->bias.empty() ? nullptr : parts[i]->bias.data();
    const Behind behind = adds_->prepare(run, parts[i]->adds, rows.begin, rows.count(), &args);
    multiply(run, m, args, pair_begin, pair_end);
    adds_->add(run, parts[i]->adds, behind, rows.begin, rows.count(), pair_begin * kPairRows,
               columns, results[i], columns);
  }
  const auto activate = run.kernels->gated[static_cast<int>(activation_)];
  for (int r = 0; r < rows.count(); ++r) {
    float* y = out.floats(n, thread) + static_cast<size_t>(rows.begin + r) * out.width +
               static_cast<size_t>(pair_begin) * kPairRows;
    activate(gate + static_cast<size_t>(r) * columns, up + static_cast<size_t>(r) * columns,
             columns, y);
  }
}

int GatedStep::items(const Frame& frame, int) const {
  if (frame.rows(domain_) == 0) return 0;
  return adds_->items(frame) + static_cast<int>(chunks_.size());
}

void GatedStep::run_items(const Run& run, int, int first, int last, int thread) {
  adds_->take(run, first, last, thread);
  const int before = adds_->items(*run.frame);
  first = std::max(first - before, 0);
  last -= before;
  if (first < last)
    tiles(run, joined(chunks_, &first, last), {0, run.frame->rows(domain_)}, thread);
}

void GatedStep::run_rows(const Run& run, int begin, int end, int thread) {
  adds_->multiply(run, begin, end, thread);
  for (const Chunk& chunk : chunks_) tiles(run, chunk, {begin, end}, thread);
}

void GatedStep::tiles(const Run& run, const Chunk& chunk, RowRange rows, int thread) const {
  const int tile_rows = std::min(64, static_cast<int>(round_up(rows.count(), kPanelRows)));
  const int tile_pairs = std::max(1, kTileFloats / (tile_rows * kPairRows));
  for (int pair = chunk.pair_begin; pair < chunk.pair_end; pair += tile_pairs) {
    const int pair_end = std::min(pair + tile_pairs, chunk.pair_end);
    for (int row = rows.begin; row < rows.end; row += tile_rows)
      tile(run, thread, pair, pair_end, {row, std::min(row + tile_rows, rows.end)});
  }
}

}  // namespace

LinearPart Recording::part(int x, Weight weight, int offset, Domain domain) const {
  if (weight.x >= 0) x = weight.x;
  const Buffer& b = source(x);
  const Matrix& m = *weight.matrix;
  const BufferType wanted = input_type(m.format);
  if (b.type != wanted) {
    fail(std::string("linear: weights in ") + info(m.format).name + " take " +
         kBufferTypeNames[static_cast<int>(wanted)] + ", got " +
         kBufferTypeNames[static_cast<int>(b.type)]);
  }
  if (b.domain != domain) fail("linear: expected inputs of the same rows; one is behind select()");
  if (b.logical != m.k) {
    fail("linear: expected weights with k = " + std::to_string(b.logical) + ", got " +
         dims(m.n, m.k));
  }
  if (!weight.bias.empty()) {
    if (static_cast<int>(weight.bias.size()) != m.n) {
      fail("linear: expected a bias of " + std::to_string(m.n) + " values, got " +
           std::to_string(weight.bias.size()));
    }
    weight.bias.resize(padded(m.n), 0.0f);
  }
  return {std::move(weight.matrix), std::move(weight.bias), offset, x, {-1, 0}};
}

// Gives matrices slots, and a buffer to what multiplies their inputs with A.
std::shared_ptr<LowRankAdditions> Recording::low_rank(const std::vector<LinearPart*>& parts,
                                                      Domain domain) {
  using Inputs = std::vector<LowRankInput>;
  if (slots_ == nullptr) return std::make_shared<LowRankAdditions>(domain, Inputs(), -1);
  constexpr int kApart = kGroup;  // columns, so that rows do not meet in the same cache sets
  Inputs inputs;
  int width = 0;
  for (LinearPart* part : parts) {
    const Matrix& m = *part->matrix;
    const int slot = static_cast<int>(slots_->size());
    auto input = std::find_if(inputs.begin(), inputs.end(),
                              [&](const LowRankInput& i) { return i.x == part->x; });
    if (input == inputs.end()) {
      const auto sharing = [&](const LinearPart* other) { return other->x == part->x; };
      inputs.push_back({{}, part->x, m.k, width});
      input = inputs.end() - 1;
      width += kMaxRank * static_cast<int>(std::count_if(parts.begin(), parts.end(), sharing));
    }
    input->slots.push_back(slot);
    slots_->push_back({m.n, m.k, input->slots.front(), buffer(part->x).type == BufferType::panel});
    part->adds = {slot, input->column};
  }
  const bool alone = inputs.size() == 1;
  const auto [products, added] = products_.try_emplace({domain, width + kApart, alone}, -1);
  if (added) products->second = new_buffer(BufferType::f32, domain, width + kApart, false);
  auto adds = std::make_shared<LowRankAdditions>(domain, inputs, products->second);
  // No step between the one that makes the input and this one has products of its own to put there.
  if (alone && !made_.steps.empty() && made_.steps.back()->info.out == inputs.front().x &&
      made_.steps.back()->take_along(adds))
    adds->follow_input();
  return adds;
}

int Recording::linear(int x, std::vector<Weight> parts, Slice add, std::optional<Unary> activation,
                      float softcap) {
  if (parts.empty()) fail("linear: expected at least one matrix");
  check_softcap(softcap, "linear");
  std::vector<LinearPart> recorded;
  std::vector<int> ends;
  int width = 0, logical = 0;
  double macs = 0;
  size_t bytes = 0;
  std::string shape, format;
  const Domain domain = buffer(parts[0].x < 0 ? x : parts[0].x).domain;
  std::vector<int> in;
  for (Weight& weight : parts) {
    const std::shared_ptr<const Matrix> matrix = weight.matrix;
    recorded.push_back(part(x, std::move(weight), width, domain));
    if (std::find(in.begin(), in.end(), recorded.back().x) == in.end())
      in.push_back(recorded.back().x);
    logical = width + matrix->n;
    ends.push_back(logical);
    macs += static_cast<double>(matrix->n) * matrix->k;
    bytes += matrix->bytes();
    shape += (shape.empty() ? "" : " + ") + dims(matrix->n, matrix->k);
    const std::string name = info(matrix->format).name;
    if (format.find(name) == std::string::npos) format += (format.empty() ? "" : "+") + name;
    width += padded(matrix->n);
  }
  if (add.buffer >= 0) {
    if (recorded.size() != 1) fail("linear: expected one matrix with add=, got several");
    check_add(add, logical, domain, "linear");
  }
  std::vector<LinearPart*> added;
  for (LinearPart& one : recorded) added.push_back(&one);
  std::shared_ptr<LowRankAdditions> adds = low_rank(added, domain);
  const int out = new_buffer(BufferType::f32, domain, logical, false);
  uses_[out].ends = std::move(ends);
  auto step = std::make_unique<LinearStep>(domain, std::move(recorded), std::move(adds), add,
                                           activation, softcap, out, made_.sizes.threads);
  step->info.weight_bytes = bytes;
  step->info.macs_per_row = macs;
  if (add.buffer >= 0) in.push_back(add.buffer);
  std::string op = add.buffer >= 0 ? "linear+add" : "linear";
  if (activation) op += std::string("+") + kUnaryNames[static_cast<int>(*activation)];
  if (softcap > 0.0f) op += "+softcap";
  add_step(std::move(step), out, std::move(in), std::move(op), std::move(format), std::move(shape));
  return out;
}

int Recording::gated(int x, Gate activation, Weight gate, Weight up) {
  const std::string op = kUnitNames[static_cast<int>(activation)];
  const Matrix &g = *gate.matrix, &u = *up.matrix;
  if (g.n != u.n) {
    fail(op + ": expected gate and up of one shape, got " + dims(g.n, g.k) + " in " +
         info(g.format).name + " and " + dims(u.n, u.k) + " in " + info(u.format).name);
  }
  const size_t bytes = g.bytes() + u.bytes();
  const double macs = 2.0 * g.n * g.k;
  std::string format = info(g.format).name, shape = "2x" + dims(g.n, g.k);
  const Domain domain = buffer(gate.x < 0 ? x : gate.x).domain;
  LinearPart gate_part = part(x, std::move(gate), 0, domain);
  LinearPart up_part = part(x, std::move(up), 0, domain);
  std::vector<int> in = {gate_part.x};
  if (up_part.x != gate_part.x) in.push_back(up_part.x);
  std::shared_ptr<LowRankAdditions> adds = low_rank({&gate_part, &up_part}, domain);
  const int out = new_buffer(BufferType::f32, domain, g.n, false);
  auto step =
      std::make_unique<GatedStep>(domain, activation, std::move(gate_part), std::move(up_part),
                                  std::move(adds), out, made_.sizes.threads);
  step->info.weight_bytes = bytes;
  step->info.macs_per_row = macs;
  add_step(std::move(step), out, std::move(in), op, std::move(format), std::move(shape));
  return out;
}

}  // namespace slmq
