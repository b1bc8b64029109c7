#include "plan/recording.h"

#include <algorithm>
#include <utility>

#include "plan/checks.h"
#include "plan/experts.h"

namespace slmq {
namespace {

// From which on a buffer has large pages: attention takes a head's few channels of every row, and each
// row would be another page to look up.
constexpr size_t kLarge = size_t{2} << 20;

}  // namespace

Recording::Recording(const Kernels& kernels, const PlanSizes& sizes, KvType kv_type)
    : kv_type_(kv_type) {
  made_.kernels = &kernels;
  made_.sizes = sizes;
  if (sizes.threads < 1 || sizes.threads > 1024)
    fail("expected 1..1024 threads, got " + std::to_string(sizes.threads));
  if (sizes.max_rows < 1 || sizes.max_rows > 65536)
    fail("expected 1..65536 rows in a chunk, got " + std::to_string(sizes.max_rows));
  if (sizes.max_outputs < 1 || sizes.max_outputs > sizes.max_rows) {
    fail("expected 1.." + std::to_string(sizes.max_rows) + " output rows, got " +
         std::to_string(sizes.max_outputs));
  }
  if (sizes.vocabulary < 1)
    fail("expected a vocabulary of at least 1, got " + std::to_string(sizes.vocabulary));
}

// --- what operations check ---------------------------------------------------------------------

void Recording::check_recording() const {
  if (finished_) fail("the recording is finished; record before finish()");
}

const Buffer& Recording::buffer(int id) const {
  check_recording();
  return buffer_of(made_.buffers, id);
}

const Buffer& Recording::source(int id) const {
  const Buffer& b = buffer(id);
  if (uses_[id].released)
    fail("buffer " + std::to_string(id) + " was released; nothing may read it");
  return b;
}

Slice Recording::checked(Slice slice, const char* what) const {
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

Slice Recording::checked_groups(Slice slice, const char* what) const {
  checked(slice, what);
  const std::vector<int>& ends = uses_[slice.buffer].ends;
  const int end = slice.offset + slice.width;
  if (slice.offset % kGroup != 0 ||
      (slice.width % kGroup != 0 && std::find(ends.begin(), ends.end(), end) == ends.end())) {
    fail(std::string(what) + ": expected whole groups of 32 columns or one result of a step, got " +
         std::to_string(slice.width) + " columns from " + std::to_string(slice.offset));
  }
  return slice;
}

void Recording::check_add(Slice add, int width, Domain domain, const std::string& op) const {
  if (checked_groups(add, (op + " add").c_str()).width != width) {
    fail(op + ": expected add= of width " + std::to_string(width) + ", got " +
         std::to_string(add.width));
  }
  if (buffer(add.buffer).domain != domain)
    fail(op + ": expected add= and the input to have the same rows; one is behind select()");
}

// --- what operations append --------------------------------------------------------------------

int Recording::new_buffer(BufferType type, Domain domain, int width, bool replicated) {
  check_recording();
  for (size_t i = 0; i < free_.size(); ++i) {
    const int id = free_[i];
    const Buffer& b = *made_.buffers[id];
    if (b.type == type && b.domain == domain && b.logical == width && b.replicated == replicated) {
      uses_[id] = Use(width);
      tables_.erase(id);
      free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
      return id;
    }
  }
  const int rows = domain == Domain::tokens ? made_.sizes.max_rows : made_.sizes.max_outputs;
  auto buffer = std::make_unique<Buffer>();
  buffer->type = type;
  buffer->domain = domain;
  buffer->width = padded(width);
  buffer->logical = width;
  buffer->replicated = replicated;
  buffer->row_bytes = buffer_row_bytes(type, buffer->width);
  const size_t bytes = buffer->row_bytes * rows;
  buffer->shared = Memory(bytes, bytes >= kLarge);
  if (replicated) buffer->replicas = Memory(buffer->replica_bytes() * made_.sizes.threads);
  made_.buffers.push_back(std::move(buffer));
  uses_.emplace_back(width);
  return static_cast<int>(uses_.size()) - 1;
}

int Recording::add_step(std::unique_ptr<Step> step, int out, std::vector<int> in, std::string op,
                        std::string format, std::string shape) {
  for (const int id : in) {
    if (made_.select_step >= 0 && made_.select_step != static_cast<int>(made_.steps.size()) &&
        made_.buffers[id]->domain == Domain::tokens)
      fail(op + ": behind select() only its rows can be read");
    if (!step->may_replicate()) continue;
    ++uses_[id].readers;
    uses_[out].sources.push_back(id);
  }
  step->info.scope = scope_;
  step->info.op = std::move(op);
  step->info.format = std::move(format);
  step->info.shape = std::move(shape);
  step->info.out = out;
  step->info.in = std::move(in);
  made_.steps.push_back(std::move(step));
  return out;
}

// --- the lives of buffers, and the end ---------------------------------------------------------

void Recording::release(int id) {
  if (finished_) return;
  buffer(id);
  if (uses_[id].released) fail("buffer " + std::to_string(id) + " is released twice");
  uses_[id].released = true;
  free_unless_needed(id);
}

void Recording::free_unless_needed(int id) {
  Use& use = uses_[id];
  if (!use.released || use.readers > 0) return;
  free_.push_back(id);
  for (const int source : std::exchange(use.sources, {})) {
    --uses_[source].readers;
    free_unless_needed(source);
  }
}

void Recording::take_adapters() {
  check_recording();
  if (slots_ == nullptr) slots_ = std::make_shared<Slots>();
}

void Recording::limit_positions(int most) {
  const int known = made_.learned_positions;
  made_.learned_positions = known < 0 ? most : std::min(known, most);
}

std::unique_ptr<Plan> Recording::finish(int logits, int columns) {
  check_recording();
  if (made_.select_step < 0) fail("finish: record select() before the output head");
  const Buffer& b = source(logits);
  made_.columns = columns < 0 ? made_.sizes.vocabulary : columns;
  if (b.domain != Domain::outputs || b.type != BufferType::f32 || b.logical < made_.columns)
    fail("finish: expected logits of at least " + std::to_string(made_.columns) + " columns");
  made_.logits = logits;
  made_.head_step = static_cast<int>(made_.steps.size()) - 1;
  while (made_.steps[made_.head_step]->info.out != logits) --made_.head_step;
  made_.slots = slots_;
  finished_ = true;
  return std::make_unique<Plan>(std::move(made_));
}

}  // namespace slmq
