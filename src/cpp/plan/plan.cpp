#include "plan/plan.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "plan/checks.h"
#include "probes/tuned.h"

namespace slmq {
namespace {

constexpr size_t kStateShare = 4;
constexpr int kMostIntervalPages = 64;

[[noreturn]] void fail_rows(int m) {
  fail("the sequences' rows must add up to " + std::to_string(m) + " tokens");
}

size_t scratch_of(const std::vector<std::unique_ptr<Step>>& steps) {
  size_t most = 0;
  for (const auto& step : steps) most = std::max(most, step->scratch_bytes());
  return static_cast<size_t>(round_up(static_cast<int64_t>(most), 4096));
}

}  // namespace

Plan::Plan(Recorded recorded)
    : made_(std::move(recorded)),
      tuning_(active_tuning(*made_.kernels)),
      replay_(made_.steps, made_.buffers.size(), made_.logits, made_.sizes.threads, !made_.causal),
      scratch_bytes_(scratch_of(made_.steps)),
      scratch_(scratch_bytes_ * made_.sizes.threads),
      pool_(shared_pool(made_.sizes.threads)) {}

const Buffer& Plan::buffer(int id) const { return buffer_of(made_.buffers, id); }

std::shared_ptr<KvCache> Plan::make_cache() const {
  return std::make_shared<KvCache>(made_.page_bytes, made_.state_bytes, state_interval());
}

// The fewest pages whose keys and values take a quarter of what a state takes.
int Plan::state_interval() const {
  int pages = 1;
  while (pages < kMostIntervalPages &&
         made_.state_bytes > kStateShare * made_.page_bytes * static_cast<size_t>(pages))
    pages *= 2;
  return pages * kPagePositions;
}

void Plan::prepare(const RunRequest& request) {
  const int m = static_cast<int>(request.tokens.size());
  if (m < 1 || m > made_.sizes.max_rows)
    fail("expected 1.." + std::to_string(made_.sizes.max_rows) + " tokens, got " +
         std::to_string(m));
  for (const int32_t token : request.tokens) {
    if (token < 0 || token >= made_.sizes.vocabulary)
      fail("expected token ids in 0.." + std::to_string(made_.sizes.vocabulary - 1) + ", got " +
           std::to_string(token));
  }
  int row = 0;
  Frame frame;
  frame.one_row_each = true;
  for (const auto& [sequence, count] : request.segments) {
    if (count > m - row) fail_rows(m);
    if (sequence->cache()->page_bytes() != made_.page_bytes ||
        sequence->cache()->states().bytes() != made_.state_bytes)
      fail("the sequence belongs to a cache of another model");
    if (!made_.causal && sequence->length() > 0)
      fail("expected an empty sequence: this model takes a text from end to end");
    frame.segments.push_back({sequence.get(), row, count, sequence->length()});
    if (made_.learned_positions >= 0 && count > made_.learned_positions - sequence->length()) {
      fail("expected at most " + std::to_string(made_.learned_positions) +
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
  check_types(request.types, request.tokens.size());
  set_adapters(request, &frame);
  frame.tokens = request.tokens;
  frame.types = request.types;
  frame_ = std::move(frame);
}

void Plan::set_adapters(const RunRequest& request, Frame* frame) {
  const auto& given = request.adapters;
  if (!given.empty() && given.size() != request.segments.size())
    fail("expected an adapter or None for each of " + std::to_string(request.segments.size()) +
         " sequences, got " + std::to_string(given.size()));
  for (const auto& adapter : given)
    if (adapter != nullptr && (made_.slots == nullptr || adapter->slots() != made_.slots.get()))
      fail("the adapter was made for another plan");
  if (std::any_of(given.begin(), given.end(), [](const auto& a) { return a != nullptr; }))
    for (size_t i = 0; i < given.size(); ++i)
      frame->adapters.insert(frame->adapters.end(), static_cast<size_t>(frame->segments[i].count),
                             given[i].get());
  frame->one_adapter =
      std::all_of(given.begin(), given.end(), [&](const auto& a) { return a == given.front(); });
  // In a chain threads are at different steps, and a row of any buffer must stay at its place (replay.h).
  frame->close_products = frame->one_adapter && made_.causal;
  adapters_ = given;  // they live as long as the frame, whose outputs may be asked for again
}

std::vector<double> Plan::execute(int begin, int end, bool profile,
                                  const std::atomic<bool>* cancel) {
  ran_ = 0;
  if (end > made_.head_step) made_.steps[made_.head_step]->narrow(frame_.columns);
  for (int i = begin; i < end; ++i) made_.steps[i]->prepare(frame_);
  const Run run{made_.kernels,       &tuning_,        &frame_,        &made_.buffers,
                made_.sizes.threads, scratch_.data(), scratch_bytes_, cancel};
  std::vector<double> times(profile ? static_cast<size_t>(end) : 0);
  if (replay_.run(*pool_, run, begin, end, profile ? times.data() : nullptr)) ran_ = end;
  for (int i = begin; i < end; ++i) {
    const Step& step = *made_.steps[i];
    if (frame_.rows(buffer(step.info.out).domain) > 0) bytes_read_ += step.bytes_read();
  }
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
  const int end = request.stop < 0 ? step_count() : request.stop;
  if (end > step_count())
    fail("expected a step 0.." + std::to_string(made_.steps.size()) + ", got " +
         std::to_string(end));
  check_outputs(request.outputs, request.columns, request.spans, request.tokens.size());
  const auto held = hold(request);
  prepare(request);
  frame_.outputs = request.outputs;
  frame_.columns = request.columns;
  frame_.spans = request.spans;
  std::vector<double> times = execute(0, end, request.profile, request.cancel.get());
  // A run that stops early can be repeated: its positions do not count. Nor do those of a text that
  // nothing can follow.
  if (request.stop < 0 && ran_ == end && made_.causal)
    for (const auto& [sequence, count] : request.segments) sequence->advance(count);
  return times;
}

void Plan::check_types(const std::vector<int32_t>& types, size_t rows) const {
  if (types.empty()) return;
  if (types.size() != rows)
    fail("expected a type for each of " + std::to_string(rows) + " tokens, got " +
         std::to_string(types.size()));
  for (const int32_t type : types) {
    if (type < 0 || type >= made_.token_types)
      fail("expected types of tokens below " + std::to_string(made_.token_types) + ", got " +
           std::to_string(type));
  }
}

void Plan::check_outputs(const std::vector<int32_t>& outputs, const std::vector<int32_t>& columns,
                         const std::vector<int32_t>& spans, size_t rows) const {
  if (static_cast<int>(outputs.size()) > made_.sizes.max_outputs)
    fail("expected at most " + std::to_string(made_.sizes.max_outputs) + " output rows, got " +
         std::to_string(outputs.size()));
  for (const int32_t row : outputs)
    if (row < 0 || row >= static_cast<int32_t>(rows))
      fail("expected output rows within the tokens, got " + std::to_string(row));
  for (const int32_t column : columns) {
    if (column < 0 || column >= made_.columns)
      fail("expected columns of logits in 0.." + std::to_string(made_.columns - 1) + ", got " +
           std::to_string(column));
  }
  if (spans.empty()) return;
  if (!made_.pools) fail("expected no spans: this plan does not pool rows");
  if (spans.size() != outputs.size())
    fail("expected as many spans as outputs, " + std::to_string(outputs.size()) + ", got " +
         std::to_string(spans.size()));
  for (size_t i = 0; i < spans.size(); ++i)
    if (spans[i] < 1 || static_cast<size_t>(spans[i]) > rows - static_cast<size_t>(outputs[i]))
      fail("expected spans within the tokens, got " + std::to_string(spans[i]) + " rows from " +
           std::to_string(outputs[i]));
}

void Plan::run_outputs(const std::vector<int32_t>& outputs, const std::vector<int32_t>& columns,
                       const std::vector<int32_t>& spans) {
  if (ran_ == 0) fail("run() must come before run_outputs()");
  if (ran_ < step_count())
    fail("run_outputs: the last run stopped before step " + std::to_string(ran_) +
         "; repeat it to the end");
  if (outputs.empty())
    fail("expected 1.." + std::to_string(made_.sizes.max_outputs) + " output rows, got 0");
  check_outputs(outputs, columns, spans, frame_.tokens.size());
  frame_.outputs = outputs;
  frame_.columns = columns;
  frame_.spans = spans;
  execute(made_.select_step, step_count(), false);
}

int Plan::writer_of(int id) const {
  buffer(id);
  for (int step = ran_ - 1; step >= 0; --step)
    if (made_.steps[step]->info.out == id) return step;
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
  if (made_.steps[writer]->replicates(frame_) && !replay_.holds(writer))
    fail("buffer " + std::to_string(id) + " is not kept; stop the run behind step " +
         std::to_string(writer) + " to read it");
  if (writer == made_.head_step && !frame_.columns.empty())
    fail("buffer " + std::to_string(id) + ": only some of its columns were wanted");
  std::vector<float> values(static_cast<size_t>(b.width));
  for (int row = 0; row < rows; ++row) {
    float* y = out + static_cast<size_t>(row) * b.logical;
    if (b.type == BufferType::f32) {
      const float* x = b.floats(rows, 0) + static_cast<size_t>(row) * b.width;
      std::copy(x, x + b.logical, y);
      continue;
    }
    const auto widen =
        b.type == BufferType::panel ? kernels().widen_activations : kernels().widen_row_activations;
    widen(b.panel(rows, 0), b.width / kGroup, rows, row, row + 1, values.data(), b.width);
    std::copy_n(values.data(), b.logical, y);
  }
}

int Plan::logit_columns() const {
  return static_cast<int>(frame_.columns.empty() ? buffer(made_.logits).logical
                                                 : frame_.columns.size());
}

void Plan::read_logits(float* out) const {
  if (frame_.columns.empty()) return read_buffer(made_.logits, out);
  const Buffer& b = buffer(made_.logits);
  const int rows = buffer_rows(made_.logits);
  for (int row = 0; row < rows; ++row) {
    const float* x = b.floats(rows, 0) + static_cast<size_t>(row) * b.width;
    for (const int32_t column : frame_.columns) *out++ = x[column];
  }
}

size_t Plan::buffer_bytes() const {
  size_t bytes = scratch_.size();
  for (const auto& b : made_.buffers) bytes += b->shared.size() + b->replicas.size();
  return bytes;
}

}  // namespace slmq
