// Other steps over rows: embedding, activation quantization, column orders, rope angles, selection.
#include <cmath>
#include <cstring>
#include <utility>

#include "layout/matrix.h"
#include "machine/math64.h"
#include "machine/prefetch.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

constexpr float kLargestFrequency = 1e9f;  // times any position it stays within exact_sincos

// A token's row times scale, plus the rows of its type and its position if these are learned.
class EmbedStep final : public RowStep {
 public:
  EmbedStep(std::shared_ptr<const Matrix> matrix, std::shared_ptr<const Matrix> positions,
            std::shared_ptr<const Matrix> types, float scale, int out)
      : RowStep(Domain::tokens, false),
        matrix_(std::move(matrix)),
        positions_(std::move(positions)),
        types_(std::move(types)),
        scale_(scale),
        out_(out) {}
  size_t scratch_bytes() const override {
    const bool adds = positions_ != nullptr || types_ != nullptr;
    return adds ? static_cast<size_t>(matrix_->k) * sizeof(float) : 0;
  }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  void add_row(const Run& run, int thread, const Matrix* learned, int row, float* y) const;
  std::shared_ptr<const Matrix> matrix_, positions_, types_;  // the last two: may be null
  float scale_;
  int out_;
};

// A row of a table has a few bytes in each of many lines, and the next token's is anywhere: it is
// fetched while the one before it is decoded.
void fetch_row(const Matrix& m, int row) {
  const FormatInfo& layout = info(m.format);
  const int in_run = run_groups(m.format, m.groups()), tile = row % kPairRows / kLanes;
  const size_t of_run = run_bytes(m.format, m.groups());
  const uint8_t* pair = m.data + row / kPairRows * pair_bytes(m.format, m.groups());
  for (int g = 0; g < m.groups(); ++g)
    fetch_lines(pair + g / in_run * of_run +
                    static_cast<size_t>(g % in_run) * group_step(m.format) +
                    static_cast<size_t>(tile) * tile_step(m.format, m.groups()),
                layout.tile_bytes);
}

void EmbedStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& out = run.buffer(out_);
  const Matrix& m = *matrix_;
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(row) * out.width;
    const int token = run.frame->tokens[row];
    if (row + 1 < end) fetch_row(m, run.frame->tokens[row + 1]);
    run.kernels->dequantize[static_cast<int>(m.format)](m.data, m.groups(), m.k, token, token + 1,
                                                        y, out.width);
    if (scale_ != 1.0f)
      for (int c = 0; c < m.k; ++c) y[c] = y[c] * scale_;
    add_row(run, thread, types_.get(), run.frame->types.empty() ? 0 : run.frame->types[row], y);
    add_row(run, thread, positions_.get(), run.frame->positions[row], y);
  }
}

void EmbedStep::add_row(const Run& run, int thread, const Matrix* learned, int row,
                        float* y) const {
  if (learned == nullptr) return;
  auto* values = reinterpret_cast<float*>(run.scratch_of(thread));
  run.kernels->dequantize[static_cast<int>(learned->format)](
      learned->data, learned->groups(), learned->k, row, row + 1, values, learned->k);
  for (int c = 0; c < learned->k; ++c) y[c] = y[c] + values[c];
}

class QuantizeStep final : public RowStep {
 public:
  QuantizeStep(Domain domain, Slice x, Activations activations, bool whole_rows, int out)
      : RowStep(domain, true),
        x_(x),
        activations_(activations),
        whole_rows_(whole_rows),
        out_(out) {}
  size_t scratch_bytes() const override { return adds_ == nullptr ? 0 : adds_->scratch_bytes(); }
  bool take_along(std::shared_ptr<LowRankAdditions> adds) override {
    adds_ = std::move(adds);
    return true;
  }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  Activations activations_;
  bool whole_rows_;
  int out_;
  std::shared_ptr<LowRankAdditions> adds_;  // null: none
};

void QuantizeStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  const int kind = static_cast<int>(activations_);
  const auto quantize =
      whole_rows_ ? run.kernels->quantize_rows[kind] : run.kernels->quantize[kind];
  const auto round = [&](int first, int last) {
    quantize(x.floats(n, thread) + x_.offset, x.width, out.width / kGroup, n, first, last,
             out.panel(n, thread));
  };
  if (adds_ == nullptr || !adds_->in(*run.frame)) return round(begin, end);
  constexpr int kRows = 4 * kPanelRows;  // they meet A while they are in a cache
  for (int row = begin; row < end; row += kRows) {
    const int last = std::min(row + kRows, end);
    round(row, last);
    adds_->follow(run, row, last, thread);
  }
}

// Columns in another order: y[c] = x[columns[c]]. For weights whose columns are stored in an order of
// their own; moving numbers rounds nothing.
class GatherStep final : public RowStep {
 public:
  GatherStep(Domain domain, Slice x, std::vector<int32_t> columns, int out)
      : RowStep(domain, true), x_(x), columns_(std::move(columns)), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  std::vector<int32_t> columns_;  // of x, each within its width
  int out_;
};

void GatherStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    for (size_t c = 0; c < columns_.size(); ++c) to[c] = from[columns_[c]];
  }
}

// Row r: cosines then sines of position[r] * frequency[i], times a factor, angles rounded to float32
// as transformers does.
class RopeStep final : public RowStep {
 public:
  RopeStep(std::vector<float> frequencies, float factor, int out)
      : RowStep(Domain::tokens, true),
        frequencies_(std::move(frequencies)),
        factor_(factor),
        out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  std::vector<float> frequencies_;
  float factor_;
  int out_;
};

void RopeStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& out = run.buffer(out_);
  const size_t half = frequencies_.size();
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(row) * out.width;
    const float position = static_cast<float>(run.frame->positions[row]);
    for (size_t i = 0; i < half; ++i) {
      double sine, cosine;
      exact_sincos(static_cast<double>(position * frequencies_[i]), &sine, &cosine);
      y[i] = static_cast<float>(cosine) * factor_;
      y[half + i] = static_cast<float>(sine) * factor_;
    }
  }
}

// xIELU of every value; not computed by every thread for itself, as it is as wide as an MLP.
class XieluStep final : public RowStep {
 public:
  XieluStep(Domain domain, Slice x, Xielu f, int out)
      : RowStep(domain, false), x_(x), f_(f), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  Xielu f_;
  int out_;
};

void XieluStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row)
    run.kernels->xielu(x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset,
                       out.width, f_.up, f_.down, f_.mid,
                       out.floats(n, thread) + static_cast<size_t>(row) * out.width);
}

class GateStep final : public RowStep {
 public:
  GateStep(Domain domain, Slice x, Gate f, Slice gate, int out)
      : RowStep(domain, true), x_(x), f_(f), gate_(gate), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  Gate f_;
  Slice gate_;
  int out_;
};

void GateStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer &x = run.buffer(x_.buffer), &gate = run.buffer(gate_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row)
    run.kernels->gated[static_cast<int>(f_)](
        gate.floats(n, thread) + static_cast<size_t>(row) * gate.width + gate_.offset,
        x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset, out.width,
        out.floats(n, thread) + static_cast<size_t>(row) * out.width);
}

// Not computed by every thread for itself: a sum that goes on from layer to layer would have to be
// replayed from the first.
class ScaleStep final : public RowStep {
 public:
  ScaleStep(Domain domain, Slice x, float factor, int out)
      : RowStep(domain, false), x_(x), factor_(factor), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  Slice x_;
  float factor_;
  int out_;
};

void ScaleStep::rows(const Run& run, int thread, int begin, int end) {
  const int n = run.frame->rows(domain_);
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  for (int row = begin; row < end; ++row) {
    const float* from = x.floats(n, thread) + static_cast<size_t>(row) * x.width + x_.offset;
    float* to = out.floats(n, thread) + static_cast<size_t>(row) * out.width;
    for (int c = 0; c < x_.width; ++c) to[c] = from[c] * factor_;
  }
}

// The rows whose logits are asked for, or what pooling makes of those that each output spans.
class SelectStep final : public RowStep {
 public:
  SelectStep(Slice x, Pool pool, int out)
      : RowStep(Domain::outputs, true), x_(x), pool_(pool), out_(out) {}

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  float weight_of(const Frame& frame, int row) const {
    return pool_ == Pool::weighted_mean ? static_cast<float>(frame.positions[row] + 1) : 1.0f;
  }
  void add_row(const Frame& frame, const float* x, int row, float* y) const;
  void divide(const Frame& frame, int first, int count, float* y) const;
  Slice x_;
  Pool pool_;
  int out_;
};

void SelectStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& x = run.buffer(x_.buffer);
  const Buffer& out = run.buffer(out_);
  const float* from = x.floats(run.frame->rows(Domain::tokens), thread);
  float* to = out.floats(run.frame->rows(domain_), thread);
  const Frame& frame = *run.frame;
  for (int i = begin; i < end; ++i) {
    float* y = to + static_cast<size_t>(i) * out.width;
    const int first = frame.outputs[i], count = frame.spans.empty() ? 1 : frame.spans[i];
    const float* rows = from + static_cast<size_t>(first) * x.width + x_.offset;
    std::memcpy(y, rows, static_cast<size_t>(out.width) * sizeof(float));
    if (pool_ == Pool::row) continue;
    if (pool_ == Pool::weighted_mean)
      for (int c = 0; c < x_.width; ++c) y[c] = y[c] * weight_of(frame, first);
    for (int row = 1; row < count; ++row)
      add_row(frame, rows + static_cast<size_t>(row) * x.width, first + row, y);
    divide(frame, first, count, y);
  }
}

// One more row of a span; column by column, so that their order is that of the rows.
void SelectStep::add_row(const Frame& frame, const float* x, int row, float* y) const {
  const float weight = weight_of(frame, row);
  for (int c = 0; c < x_.width; ++c) {
    if (pool_ == Pool::max) {
      y[c] = x[c] > y[c] || x[c] != x[c] ? x[c] : y[c];  // a NaN stays
    } else {
      y[c] = y[c] + x[c] * weight;
    }
  }
}

void SelectStep::divide(const Frame& frame, int first, int count, float* y) const {
  if (pool_ == Pool::max) return;
  float by = 0.0f;
  for (int row = first; row < first + count; ++row) by += weight_of(frame, row);
  if (pool_ == Pool::mean_sqrt_len) by = std::sqrt(by);
  for (int c = 0; c < x_.width; ++c) y[c] = y[c] / by;
}

}  // namespace

int Recording::embed(std::shared_ptr<const Matrix> matrix, float scale,
                     std::shared_ptr<const Matrix> positions, std::shared_ptr<const Matrix> types) {
  if (matrix->n < made_.sizes.vocabulary) {
    fail("embedding: expected at least " + std::to_string(made_.sizes.vocabulary) + " rows, got " +
         std::to_string(matrix->n));
  }
  std::string format = info(matrix->format).name, shape = dims(matrix->n, matrix->k);
  for (const auto& [learned, what] :
       {std::pair(positions.get(), "positions"), std::pair(types.get(), "types")}) {
    if (learned == nullptr) continue;
    if (learned->k != matrix->k) {
      fail("embedding: expected " + std::string(what) + " of " + std::to_string(matrix->k) +
           " columns, got " + dims(learned->n, learned->k));
    }
    shape += " + " + dims(learned->n, learned->k);
  }
  if (positions != nullptr) limit_positions(positions->n);
  if (types != nullptr) made_.token_types = types->n;
  const int out = new_buffer(BufferType::f32, Domain::tokens, matrix->k, false);
  return add_step(std::make_unique<EmbedStep>(std::move(matrix), std::move(positions),
                                              std::move(types), scale, out),
                  out, {}, "embed", std::move(format), std::move(shape));
}

int Recording::quantize(Slice x, Activations activations, bool whole_rows) {
  checked_groups(x, "quantize");
  check_quantized_width(x.width);
  const Domain domain = buffer(x.buffer).domain;
  const BufferType type = whole_rows ? BufferType::row_panel : BufferType::panel;
  const int out = new_buffer(type, domain, x.width, true), kind = static_cast<int>(activations);
  return add_step(std::make_unique<QuantizeStep>(domain, x, activations, whole_rows, out), out,
                  {x.buffer}, "quantize",
                  whole_rows ? kRowActivationNames[kind] : kActivationNames[kind],
                  std::to_string(x.width));
}

int Recording::gather(Slice x, std::vector<int32_t> columns) {
  checked(x, "gather");
  if (columns.empty()) fail("gather: expected at least one column");
  for (const int32_t column : columns) {
    if (column < 0 || column >= x.width)
      fail("gather: expected columns in 0.." + std::to_string(x.width - 1) + ", got " +
           std::to_string(column));
  }
  const Domain domain = buffer(x.buffer).domain;
  const int width = static_cast<int>(columns.size());
  const int out = new_buffer(BufferType::f32, domain, width, true);
  return add_step(std::make_unique<GatherStep>(domain, x, std::move(columns), out), out, {x.buffer},
                  "gather", "f32", std::to_string(width));
}

int Recording::xielu(Slice x, Xielu f) {
  checked_groups(x, "xielu");
  for (const float value : {f.up, f.down, f.mid})
    if (!(std::fabs(value) <= 1e6f)) fail("xielu: expected parameters of -1e6..1e6");
  const Domain domain = buffer(x.buffer).domain;
  const int out = new_buffer(BufferType::f32, domain, x.width, false);
  return add_step(std::make_unique<XieluStep>(domain, x, f, out), out, {x.buffer}, "xielu", "f32",
                  std::to_string(x.width));
}

int Recording::gate(Slice x, Gate f, Slice gate) {
  checked_groups(x, "gate");
  checked_groups(gate, "gate");
  const Domain domain = buffer(x.buffer).domain;
  if (gate.width != x.width || buffer(gate.buffer).domain != domain)
    fail("gate: expected a gate for each of " + std::to_string(x.width) + " values, got " +
         std::to_string(gate.width));
  std::vector<int> in = {x.buffer};
  if (gate.buffer != x.buffer) in.push_back(gate.buffer);
  const int out = new_buffer(BufferType::f32, domain, x.width, true);
  return add_step(std::make_unique<GateStep>(domain, x, f, gate, out), out, std::move(in),
                  std::string("gate.") + kGateNames[static_cast<int>(f)], "f32",
                  std::to_string(x.width));
}

int Recording::scale(Slice x, float factor) {
  checked(x, "scale");
  if (!(std::fabs(factor) <= 1e6f))
    fail("scale: expected a factor of -1e6..1e6, got " + std::to_string(factor));
  const Domain domain = buffer(x.buffer).domain;
  const int out = new_buffer(BufferType::f32, domain, x.width, false);
  return add_step(std::make_unique<ScaleStep>(domain, x, factor, out), out, {x.buffer}, "scale",
                  "f32", std::to_string(x.width));
}

int Recording::rope(std::vector<float> frequencies, float factor) {
  if (frequencies.empty()) fail("rope: expected at least one frequency");
  for (const float f : frequencies)
    if (!(std::fabs(f) <= kLargestFrequency)) fail("rope: expected finite frequencies");
  const int rotary = 2 * static_cast<int>(frequencies.size());
  const int out = new_buffer(BufferType::f32, Domain::tokens, rotary, true);
  return add_step(std::make_unique<RopeStep>(std::move(frequencies), factor, out), out, {}, "rope",
                  "f32", std::to_string(rotary));
}

int Recording::select(Slice x, Pool pool) {
  checked_groups(x, "select");
  if (buffer(x.buffer).domain != Domain::tokens || made_.select_step >= 0)
    fail("select: rows are selected once, from all tokens");
  const int out = new_buffer(BufferType::f32, Domain::outputs, x.width, true);
  made_.select_step = static_cast<int>(made_.steps.size());
  made_.pools = pool != Pool::row;
  ++uses_[x.buffer].readers;  // for good: run_outputs() may ask for its other rows
  return add_step(std::make_unique<SelectStep>(x, pool, out), out, {x.buffer},
                  pool == Pool::row ? "select" : kPoolNames[static_cast<int>(pool)], "f32",
                  std::to_string(x.width));
}

}  // namespace slmq
