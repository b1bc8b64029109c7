#include "plan/plan.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "plan/checks.h"

namespace slmq {
namespace {

[[noreturn]] void fail_rows(int m) {
  fail("the sequences' rows must add up to " + std::to_string(m) + " tokens");
}

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
  // All or nothing, as far as the limit goes: other plans and threads may share the cache.
  int pages = 0;
  for (const auto& [sequence, count] : request.segments) pages += sequence->pages_needed(count);
  if (pages > 0) request.segments.front().first->cache()->check_room(pages);
  for (const auto& [sequence, count] : request.segments) sequence->reserve(count);
  frame.tokens = request.tokens;
  frame_ = std::move(frame);
}

std::vector<double> Plan::execute(int begin, int end, bool profile,
                                  const std::atomic<bool>* cancel) {
  ran_ = 0;
  for (int i = begin; i < end; ++i) steps_[i]->prepare(frame_);
  const Run run{&kernels_, &frame_, &buffers_, threads_, scratch_.data(), scratch_bytes_, cancel};
  std::vector<double> times(profile ? static_cast<size_t>(end) : 0);
  if (replay_->run(*pool_, run, begin, end, profile ? times.data() : nullptr)) ran_ = end;
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
  std::vector<double> times = execute(0, end, request.profile, request.cancel.get());
  // A run that stops early can be repeated: its positions do not count.
  if (request.stop < 0 && ran_ == end)
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
