#include "plan/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <utility>

#include "plan/row_steps.h"

namespace slmq {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

[[noreturn]] void fail_rows(int m) {
  fail("the sequences' rows must add up to " + std::to_string(m) + " tokens");
}

int padded(int width) { return static_cast<int>(round_up(width, kGroup)); }

constexpr float kLargestFrequency = 1e9f;  // times any position it stays within exact_sincos

// 0 is none; more than the largest cap of a model by far keeps 1 / cap a normal number.
void check_softcap(float softcap, const char* what) {
  if (!(softcap == 0.0f || (softcap >= 1e-6f && softcap <= 1e6f)))
    fail(std::string(what) + ": expected a softcap of 0 or 1e-6..1e6, got " +
         std::to_string(softcap));
}

std::string dims(int n, int k) { return std::to_string(n) + "x" + std::to_string(k); }

}  // namespace

Plan::Plan(const Kernels& kernels, int threads, int max_rows, int max_outputs, int vocabulary,
           KvType kv_type)
    : kernels_(kernels),
      threads_(threads),
      max_rows_(max_rows),
      max_outputs_(max_outputs),
      vocabulary_(vocabulary),
      kv_type_(kv_type) {
  if (threads < 1 || threads > 1024)
    fail("expected 1..1024 threads, got " + std::to_string(threads));
  if (max_rows < 1 || max_rows > 65536)
    fail("expected 1..65536 rows in a chunk, got " + std::to_string(max_rows));
  if (max_outputs < 1 || max_outputs > max_rows) {
    fail("expected 1.." + std::to_string(max_rows) + " output rows, got " +
         std::to_string(max_outputs));
  }
  if (vocabulary < 1)
    fail("expected a vocabulary of at least 1, got " + std::to_string(vocabulary));
}

// --- recording ---------------------------------------------------------------------------------

void Plan::check_recording() const {
  if (logits_ >= 0) fail("the plan is finished; record before finish()");
}

int Plan::new_buffer(BufferType type, Domain domain, int width, bool replicated) {
  check_recording();
  for (size_t i = 0; i < free_.size(); ++i) {
    const Buffer& b = *buffers_[free_[i]];
    if (b.type == type && b.domain == domain && b.logical == width && b.replicated == replicated) {
      const int id = free_[i];
      buffers_[id]->ends = {width};
      buffers_[id]->released = false;
      free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
      return id;
    }
  }
  const size_t row_bytes = buffer_row_bytes(type, padded(width));
  const int rows = domain == Domain::tokens ? max_rows_ : max_outputs_;
  auto buffer = std::make_unique<Buffer>();
  buffer->type = type;
  buffer->domain = domain;
  buffer->width = padded(width);
  buffer->logical = width;
  buffer->replicated = replicated;
  buffer->row_bytes = row_bytes;
  buffer->ends = {width};
  buffer->shared = Memory(row_bytes * rows);
  if (replicated) buffer->replicas = Memory(buffer->replica_bytes() * threads_);
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

const Buffer& Plan::buffer(int id) const {
  if (id < 0 || id >= static_cast<int>(buffers_.size()))
    fail("expected a buffer 0.." + std::to_string(buffers_.size()) + ", got " + std::to_string(id));
  return *buffers_[id];
}

Slice Plan::checked(Slice slice, const char* what) const {
  const Buffer& b = source(slice.buffer);
  if (b.type != BufferType::f32)
    fail(std::string(what) + ": expected a float32 buffer, got a quantized one");
  if (slice.offset < 0 || slice.width < 1 || slice.offset > b.width - slice.width) {
    fail(std::string(what) + ": columns " + std::to_string(slice.offset) + " + " +
         std::to_string(slice.width) + " are outside a buffer of " + std::to_string(b.width));
  }
  if (slice.offset % kLanes != 0) {
    fail(std::string(what) + ": expected an offset that is a multiple of 16, got " +
         std::to_string(slice.offset));
  }
  return slice;
}

Slice Plan::checked_groups(Slice slice, const char* what) const {
  checked(slice, what);
  const Buffer& b = buffer(slice.buffer);
  const int end = slice.offset + slice.width;
  if (slice.offset % kGroup != 0 ||
      (slice.width % kGroup != 0 && std::find(b.ends.begin(), b.ends.end(), end) == b.ends.end())) {
    fail(std::string(what) + ": expected whole groups of 32 columns or one result of a step, got " +
         std::to_string(slice.width) + " columns from " + std::to_string(slice.offset));
  }
  return slice;
}

int Plan::add_step(std::unique_ptr<Step> step, int out, std::vector<int> in, std::string op,
                   std::string format, std::string shape) {
  for (const int id : in) {
    if (select_step_ >= 0 && select_step_ != static_cast<int>(steps_.size()) &&
        buffers_[id]->domain == Domain::tokens)
      fail(op + ": behind select() only its rows can be read");
    if (!step->may_replicate()) continue;
    ++buffers_[id]->readers;
    buffers_[out]->sources.push_back(id);
  }
  step->info.scope = scope_;
  step->info.op = std::move(op);
  step->info.format = std::move(format);
  step->info.shape = std::move(shape);
  step->info.out = out;
  step->info.in = std::move(in);
  scratch_bytes_ = std::max(scratch_bytes_, step->scratch_bytes());
  steps_.push_back(std::move(step));
  return out;
}

void Plan::release(int buffer_id) {
  buffer(buffer_id);
  Buffer& b = *buffers_[buffer_id];
  if (b.released) fail("buffer " + std::to_string(buffer_id) + " is released twice");
  b.released = true;
  free_unless_needed(buffer_id);
}

void Plan::free_unless_needed(int id) {
  Buffer& b = *buffers_[id];
  if (!b.released || b.readers > 0) return;
  free_.push_back(id);
  for (const int source : std::exchange(b.sources, {})) {
    --buffers_[source]->readers;
    free_unless_needed(source);
  }
}

const Buffer& Plan::source(int id) const {
  const Buffer& b = buffer(id);
  if (b.released) fail("buffer " + std::to_string(id) + " was released; nothing may read it");
  return b;
}

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
  const std::string op = activation == Gate::silu ? "swiglu" : "geglu";
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

void Plan::finish(int logits) {
  check_recording();
  if (select_step_ < 0) fail("finish: record select() before the output head");
  const Buffer& b = source(logits);
  if (b.domain != Domain::outputs || b.type != BufferType::f32 || b.logical < vocabulary_)
    fail("finish: expected logits of at least " + std::to_string(vocabulary_) + " columns");
  logits_ = logits;
  replay_ = std::make_unique<Replay>(steps_, buffers_.size(), logits, threads_);
  scratch_bytes_ = static_cast<size_t>(round_up(static_cast<int64_t>(scratch_bytes_), 4096));
  scratch_ = Memory(scratch_bytes_ * threads_);
  pool_ = shared_pool(threads_);
}

// --- running -----------------------------------------------------------------------------------

std::shared_ptr<KvCache> Plan::make_cache() const { return std::make_shared<KvCache>(page_bytes_); }

void Plan::prepare(const RunRequest& request) {
  const int m = static_cast<int>(request.tokens.size());
  if (logits_ < 0) fail("the plan is not finished");
  if (m < 1 || m > max_rows_)
    fail("expected 1.." + std::to_string(max_rows_) + " tokens, got " + std::to_string(m));
  for (const int32_t token : request.tokens) {
    if (token < 0 || token >= vocabulary_)
      fail("expected token ids in 0.." + std::to_string(vocabulary_ - 1) + ", got " +
           std::to_string(token));
  }
  int row = 0;
  Frame frame;
  frame.one_row_each = true;
  for (const auto& [sequence, count] : request.segments) {
    if (count > m - row) fail_rows(m);
    if (sequence->cache()->page_bytes() != page_bytes_)
      fail("the sequence belongs to a cache of another model");
    frame.segments.push_back({sequence.get(), row, count, sequence->length()});
    if (learned_positions_ >= 0 && count > learned_positions_ - sequence->length()) {
      fail("expected at most " + std::to_string(learned_positions_) +
           " positions, which the model has learned, got " + std::to_string(sequence->length()) +
           " and " + std::to_string(count) + " more");
    }
    for (int i = 0; i < count; ++i) frame.positions.push_back(sequence->length() + i);
    frame.one_row_each = frame.one_row_each && count == 1;
    row += count;
  }
  if (row != m) fail_rows(m);
  for (const auto& [sequence, count] : request.segments) sequence->reserve(count);
  frame.tokens = request.tokens;
  frame_ = std::move(frame);
}

std::vector<double> Plan::execute(int begin, int end, bool profile) {
  ran_ = 0;
  for (int i = begin; i < end; ++i) steps_[i]->prepare(frame_);
  const Run run{&kernels_, &frame_, &buffers_, threads_, scratch_.data(), scratch_bytes_};
  std::vector<double> times(profile ? static_cast<size_t>(end) : 0);
  replay_->run(*pool_, run, begin, end, profile ? times.data() : nullptr);
  ran_ = end;
  return times;
}

std::vector<std::unique_lock<std::mutex>> Plan::hold(const RunRequest& request) {
  std::vector<KvSequence*> sequences;
  for (const auto& [sequence, count] : request.segments) {
    if (sequence == nullptr || count < 1) fail("expected sequences with at least one row each");
    sequences.push_back(sequence.get());
  }
  // In one order everywhere, so that runs of two plans never wait for each other.
  std::sort(sequences.begin(), sequences.end(), std::less<>());
  if (std::adjacent_find(sequences.begin(), sequences.end()) != sequences.end())
    fail("a sequence may appear once in a run");
  std::vector<std::unique_lock<std::mutex>> held;
  for (KvSequence* sequence : sequences) held.emplace_back(sequence->guard());
  return held;
}

std::vector<double> Plan::run(const RunRequest& request) {
  const int end = request.stop < 0 ? static_cast<int>(steps_.size()) : request.stop;
  if (end > static_cast<int>(steps_.size()))
    fail("expected a step 0.." + std::to_string(steps_.size()) + ", got " + std::to_string(end));
  check_outputs(request.outputs, request.tokens.size());
  const auto held = hold(request);
  prepare(request);
  frame_.outputs = request.outputs;
  std::vector<double> times = execute(0, end, request.profile);
  // A run that stops early can be repeated: its positions do not count.
  if (request.stop < 0)
    for (const auto& [sequence, count] : request.segments) sequence->advance(count);
  return times;
}

void Plan::check_outputs(const std::vector<int32_t>& outputs, size_t rows) const {
  if (static_cast<int>(outputs.size()) > max_outputs_)
    fail("expected at most " + std::to_string(max_outputs_) + " output rows, got " +
         std::to_string(outputs.size()));
  for (const int32_t row : outputs)
    if (row < 0 || row >= static_cast<int32_t>(rows))
      fail("expected output rows within the tokens, got " + std::to_string(row));
}

void Plan::run_outputs(const std::vector<int32_t>& outputs) {
  if (ran_ == 0) fail("run() must come before run_outputs()");
  if (ran_ < static_cast<int>(steps_.size()))
    fail("run_outputs: the last run stopped before step " + std::to_string(ran_) +
         "; repeat it to the end");
  if (outputs.empty()) fail("expected 1.." + std::to_string(max_outputs_) + " output rows, got 0");
  check_outputs(outputs, frame_.tokens.size());
  frame_.outputs = outputs;
  execute(select_step_, static_cast<int>(steps_.size()), false);
}

int Plan::writer_of(int id) const {
  buffer(id);
  for (int step = ran_ - 1; step >= 0; --step)
    if (steps_[step]->info.out == id) return step;
  fail("buffer " + std::to_string(id) +
       (ran_ == 0 ? ": nothing has run"
                  : ": the last run stopped "
                    "before the step that writes it") +
       "; run to the end");
}

int Plan::buffer_rows(int id) const {
  writer_of(id);
  return frame_.rows(buffer(id).domain);
}

void Plan::read_buffer(int id, float* out) const {
  const Buffer& b = buffer(id);
  const int rows = frame_.rows(b.domain), writer = writer_of(id);
  if (steps_[writer]->replicates(frame_) && !replay_->holds(writer))
    fail("buffer " + std::to_string(id) + " is not kept; stop the run behind step " +
         std::to_string(writer) + " to read it");
  for (int row = 0; row < rows; ++row) {
    float* y = out + static_cast<size_t>(row) * b.logical;
    if (b.type == BufferType::f32) {
      const float* x = b.floats(rows, 0) + static_cast<size_t>(row) * b.width;
      std::copy(x, x + b.logical, y);
      continue;
    }
    for (int c = 0; c < b.logical; ++c) {
      const ActivationGroup group =
          activation_group(b.panel(rows, 0), b.width / kGroup, rows, row, c / kGroup);
      const int q = 256 * group.high[c % kGroup] + group.low[c % kGroup];
      y[c] = group.info->scale * static_cast<float>(q);
    }
  }
}

size_t Plan::buffer_bytes() const {
  size_t bytes = scratch_.size();
  for (const auto& b : buffers_) bytes += b->shared.size() + b->replicas.size();
  return bytes;
}

}  // namespace slmq
