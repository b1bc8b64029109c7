// What a model records: every operation checks its operands and appends a step.
#include <algorithm>
#include <cmath>
#include <utility>

#include "plan/checks.h"
#include "plan/plan.h"
#include "plan/row_steps.h"

namespace slmq {
namespace {

constexpr float kLargestFrequency = 1e9f;  // times any position it stays within exact_sincos

// 0 is none; more than the largest cap of a model by far keeps 1 / cap a normal number.
void check_softcap(float softcap, const char* what) {
  if (!(softcap == 0.0f || (softcap >= 1e-6f && softcap <= 1e6f)))
    fail(std::string(what) + ": expected a softcap of 0 or 1e-6..1e6, got " +
         std::to_string(softcap));
}

std::string dims(int n, int k) { return std::to_string(n) + "x" + std::to_string(k); }

}  // namespace

int Plan::embed(std::shared_ptr<const Matrix> matrix, float scale,
                std::shared_ptr<const Matrix> positions) {
  if (matrix->n < vocabulary_) {
    fail("embedding: expected at least " + std::to_string(vocabulary_) + " rows, got " +
         std::to_string(matrix->n));
  }
  std::string format = info(matrix->format).name, shape = dims(matrix->n, matrix->k);
  if (positions != nullptr) {
    if (positions->k != matrix->k) {
      fail("embedding: expected positions of " + std::to_string(matrix->k) + " columns, got " +
           dims(positions->n, positions->k));
    }
    learned_positions_ = positions->n;
    shape += " + " + dims(positions->n, positions->k);
  }
  const int out = new_buffer(BufferType::f32, Domain::tokens, matrix->k, false);
  return add_step(std::make_unique<EmbedStep>(std::move(matrix), std::move(positions), scale, out),
                  out, {}, "embed", std::move(format), std::move(shape));
}

int Plan::rmsnorm(Slice x, std::vector<float> weight, float eps, Slice add) {
  checked_groups(x, "rmsnorm");
  if (static_cast<int>(weight.size()) != x.width) {
    fail("rmsnorm: expected a weight of " + std::to_string(x.width) + " values, got " +
         std::to_string(weight.size()));
  }
  if (!(eps >= 0.0f)) fail("rmsnorm: expected eps >= 0");
  weight.resize(padded(x.width), 0.0f);
  const Domain domain = buffer(x.buffer).domain;
  const bool adds = add.buffer >= 0;
  if (adds) check_add(add, x.width, domain, "rmsnorm");
  const int out = new_buffer(BufferType::f32, domain, x.width, !adds);
  std::vector<int> in = {x.buffer};
  if (adds) in.push_back(add.buffer);
  return add_step(std::make_unique<RmsNormStep>(domain, x, std::move(weight), eps, add, out), out,
                  std::move(in), adds ? "rmsnorm+add" : "rmsnorm", "f32", std::to_string(x.width));
}

int Plan::head_norm(Slice x, std::vector<float> weight, float eps) {
  checked(x, "head_norm");
  const int head_dim = static_cast<int>(weight.size());
  if (head_dim < 1 || x.width % head_dim != 0) {
    fail("head_norm: expected a weight that divides " + std::to_string(x.width) +
         " channels, got " + std::to_string(head_dim) + " values");
  }
  if (!(eps >= 0.0f)) fail("head_norm: expected eps >= 0");
  if (buffer(x.buffer).domain != Domain::tokens) fail("head_norm: record it before select()");
  weight.resize(padded(head_dim), 0.0f);
  const int out = new_buffer(BufferType::f32, Domain::tokens, x.width, true);
  return add_step(std::make_unique<HeadNormStep>(x, std::move(weight), head_dim, eps, out), out,
                  {x.buffer}, "head_norm", "f32",
                  std::to_string(x.width / head_dim) + "x" + std::to_string(head_dim));
}

int Plan::layernorm(Slice x, const std::vector<float>& weight, const std::vector<float>& bias,
                    int head_dim, float eps) {
  const bool whole = head_dim == x.width;
  if (whole) {
    checked_groups(x, "layernorm");
  } else {
    checked(x, "layernorm");
  }
  if (head_dim < 1 || x.width % head_dim != 0) {
    fail("layernorm: expected heads that divide " + std::to_string(x.width) + " channels, got " +
         std::to_string(head_dim));
  }
  const size_t width = static_cast<size_t>(x.width);
  if (weight.size() != width || (!bias.empty() && bias.size() != width)) {
    fail("layernorm: expected a weight of " + std::to_string(width) +
         " values and as many in a bias, got " + std::to_string(weight.size()) + " and " +
         std::to_string(bias.size()));
  }
  if (!(eps >= 0.0f)) fail("layernorm: expected eps >= 0");
  const Domain domain = buffer(x.buffer).domain;
  const int out = new_buffer(BufferType::f32, domain, x.width, true);
  return add_step(
      std::make_unique<LayerNormStep>(domain, x, weight, bias, head_dim, eps, out), out, {x.buffer},
      "layernorm", "f32",
      (whole ? "" : std::to_string(x.width / head_dim) + "x") + std::to_string(head_dim));
}

int Plan::quantize(Slice x, Activations activations) {
  checked_groups(x, "quantize");
  check_quantized_width(x.width);
  const Domain domain = buffer(x.buffer).domain;
  const int out = new_buffer(BufferType::panel, domain, x.width, true);
  return add_step(std::make_unique<QuantizeStep>(domain, x, activations, out), out, {x.buffer},
                  "quantize", kActivationNames[static_cast<int>(activations)],
                  std::to_string(x.width));
}

int Plan::gather(Slice x, std::vector<int32_t> columns) {
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

LinearPart Plan::part(int x, Weight weight, int offset, Domain domain) const {
  if (weight.x >= 0) x = weight.x;
  const Buffer& b = source(x);
  const Matrix& m = *weight.matrix;
  const bool quantized = info(m.format).quantized;
  if (quantized == (b.type == BufferType::f32)) {
    fail(std::string("linear: weights in ") + info(m.format).name +
         (quantized ? " take quantized activations, got float32 rows"
                    : " take float32 rows, got quantized activations"));
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
  return {std::move(weight.matrix), std::move(weight.bias), offset, x};
}

void Plan::check_add(Slice add, int width, Domain domain, const std::string& op) const {
  if (checked_groups(add, (op + " add").c_str()).width != width) {
    fail(op + ": expected add= of width " + std::to_string(width) + ", got " +
         std::to_string(add.width));
  }
  if (buffer(add.buffer).domain != domain)
    fail(op + ": expected add= and the input to have the same rows; one is behind select()");
}

int Plan::linear(int x, std::vector<Weight> parts, Slice add, std::optional<Unary> activation,
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
  const int out = new_buffer(BufferType::f32, domain, logical, false);
  buffers_[out]->ends = std::move(ends);
  auto step = std::make_unique<LinearStep>(domain, std::move(recorded), add, activation, softcap,
                                           out, threads_);
  step->info.weight_bytes = bytes;
  step->info.macs_per_row = macs;
  if (add.buffer >= 0) in.push_back(add.buffer);
  std::string op = add.buffer >= 0 ? "linear+add" : "linear";
  if (activation) op += std::string("+") + kUnaryNames[static_cast<int>(*activation)];
  if (softcap > 0.0f) op += "+softcap";
  return add_step(std::move(step), out, std::move(in), std::move(op), std::move(format),
                  std::move(shape));
}

int Plan::gated(int x, Gate activation, Weight gate, Weight up) {
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
  const int out = new_buffer(BufferType::f32, domain, g.n, false);
  auto step = std::make_unique<GatedStep>(domain, activation, std::move(gate_part),
                                          std::move(up_part), out, threads_);
  step->info.weight_bytes = bytes;
  step->info.macs_per_row = macs;
  return add_step(std::move(step), out, std::move(in), op, std::move(format), std::move(shape));
}

int Plan::rope(std::vector<float> frequencies, float factor) {
  if (frequencies.empty()) fail("rope: expected at least one frequency");
  for (const float f : frequencies)
    if (!(std::fabs(f) <= kLargestFrequency)) fail("rope: expected finite frequencies");
  const int rotary = 2 * static_cast<int>(frequencies.size());
  const int out = new_buffer(BufferType::f32, Domain::tokens, rotary, true);
  return add_step(std::make_unique<RopeStep>(std::move(frequencies), factor, out), out, {}, "rope",
                  "f32", std::to_string(rotary));
}

int Plan::attention(Slice q, Slice k, Slice v, int rope, AttentionConfig config) {
  check_recording();
  if (select_step_ >= 0) fail("attention: record it before select()");
  checked(q, "attention q");
  checked(k, "attention k");
  checked(v, "attention v");
  if (config.heads < 1 || config.kv_heads < 1 || config.heads % config.kv_heads != 0) {
    fail("attention: expected heads to be a multiple of kv_heads, got " +
         std::to_string(config.heads) + " and " + std::to_string(config.kv_heads));
  }
  if (config.heads / config.kv_heads > kMaxQueries)
    fail("attention: at most 64 query heads may share a KV head");
  const int64_t head_dim = config.head_dim;
  if (head_dim < 1 || q.width != config.heads * head_dim || k.width != config.kv_heads * head_dim ||
      v.width != k.width) {
    fail("attention: q, k, v of widths " + std::to_string(q.width) + ", " +
         std::to_string(k.width) + ", " + std::to_string(v.width) + " do not fit " +
         std::to_string(config.heads) + " heads, " + std::to_string(config.kv_heads) +
         " KV heads of " + std::to_string(config.head_dim));
  }
  for (const int id : {q.buffer, k.buffer, v.buffer})
    if (buffer(id).domain != Domain::tokens) fail("attention: expected rows of all tokens");
  if (config.rotary < 0 || config.rotary > config.head_dim || config.rotary % 2 != 0)
    fail("attention: expected an even number of rotated channels within the head");
  if (config.rotary > 0) {
    const Buffer& angles = source(rope);
    if (angles.logical != config.rotary || angles.type != BufferType::f32 ||
        angles.domain != Domain::tokens)
      fail("attention: the rope angles do not fit the rotated channels");
  }
  if (config.window < 0) fail("attention: expected window >= 0");
  check_softcap(config.softcap, "attention");
  if (kv_type_ == KvType::int8 && config.head_dim > kMaxInt8HeadDim) {
    fail("attention: an int8 cache takes heads of at most 512 channels, got " +
         std::to_string(config.head_dim) + "; use kv_dtype='f16'");
  }
  config.kv_type = kv_type_;
  config.layer_offset = page_bytes_;
  page_bytes_ += kv_layer_bytes(config);
  const int out = new_buffer(BufferType::f32, Domain::tokens, q.width, false);
  std::vector<int> in = {q.buffer, k.buffer, v.buffer};
  if (config.rotary > 0) in.push_back(rope);
  return add_step(std::make_unique<AttentionStep>(config, q, k, v, rope, out), out, std::move(in),
                  "attention", kv_type_name(kv_type_),
                  std::to_string(config.heads) + "/" + std::to_string(config.kv_heads) + "x" +
                      std::to_string(config.head_dim));
}

int Plan::select(Slice x) {
  checked_groups(x, "select");
  if (buffer(x.buffer).domain != Domain::tokens || select_step_ >= 0)
    fail("select: rows are selected once, from all tokens");
  const int out = new_buffer(BufferType::f32, Domain::outputs, x.width, true);
  select_step_ = static_cast<int>(steps_.size());
  ++buffers_[x.buffer]->readers;  // for good: run_outputs() may ask for its other rows
  return add_step(std::make_unique<SelectStep>(x, out), out, {x.buffer}, "select", "f32",
                  std::to_string(x.width));
}

}  // namespace slmq
