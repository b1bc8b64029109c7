#include "plan/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "machine/prefetch.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

// Queries of a block of rows: the kernels take six or eight at a time.
constexpr int kBlockQueries = 60;

// Least queries of a block for which the keys of its whole text are packed.
constexpr int kTextQueries = 32;

// Blocks are smaller where that gives all threads as much to do: not smaller than queries that share
// what a kernel reads.
constexpr int kFewQueries = 8;
constexpr int kTasksPerThread = 4;

// Below this many (row, head) tasks a sequence is split into parts so that all threads have work.
constexpr int kEnoughTasks = 64;

// What a kernel may read of a bias beyond the keys that a query sees, on each side.
constexpr int kBiasMargin = 15;

constexpr int kPartPages = kPartPositions / kPagePositions;

constexpr double kLog2E = 1.4426950408889634;

int position_of(const Segment& segment, int row) { return segment.position + row - segment.row; }

}  // namespace

// Per-thread buffers, carved out of the run's scratch.
struct AttentionStep::Scratch {
  float *queries, *prepared, *states, *totals, *scores, *key, *text, *rotated;
  Sight* sights;

  Scratch(const AttentionStep& step, uint8_t* memory) {
    const int stride = step.shape_.value_stride;
    queries = reinterpret_cast<float*>(memory);
    prepared = queries + kMaxQueries * stride;
    states = prepared + attend_query_floats(step.shape_);
    totals = states + kMaxQueries * step.state_floats();
    scores = totals + kMaxQueries * step.state_floats();
    key = scores + attend_scratch_floats(step.shape_);
    text = key + stride;  // stride: a multiple of 16
    rotated = text + text_floats(step.shape_);
    sights = reinterpret_cast<Sight*>(text + step.text_scratch());
  }
};

size_t kv_layer_bytes(const AttentionConfig& config) {
  return attention_shape(config).head_bytes * static_cast<size_t>(config.kv_heads);
}

const char* kv_type_name(KvType type) { return kKvTypeNames[static_cast<int>(type)]; }

AttentionShape attention_shape(const AttentionConfig& config) {
  AttentionShape shape;
  shape.head_dim = config.head_dim;
  shape.value_stride = static_cast<int>(round_up(config.head_dim, 16));
  shape.scale = config.scale;
  shape.softcap = config.softcap;
  shape.layer_offset = config.layer_offset;
  if (config.kv_type == KvType::int4) {
    const auto groups = static_cast<size_t>((config.head_dim + kGroup - 1) / kGroup);
    shape.value_offset = kPagePositions * groups * (kGroup / 2 + sizeof(uint16_t));
    shape.head_bytes =
        shape.value_offset + kPagePositions * (shape.value_stride / 2 + sizeof(float));
    return shape;
  }
  const bool int8 = config.kv_type == KvType::int8;
  const size_t element = int8 ? 1 : config.kv_type == KvType::f16 ? 2 : 4;
  const size_t scale = int8 ? sizeof(float) : 0;
  const auto key_channels = static_cast<size_t>(round_up(config.head_dim, int8 ? 4 : 1));
  shape.value_offset = kPagePositions * (key_channels * element + scale);
  shape.head_bytes = shape.value_offset + kPagePositions * (shape.value_stride * element + scale);
  return shape;
}

AttentionStep::AttentionStep(const AttentionConfig& config, Slice q, Slice k, Slice v, int rope,
                             const std::vector<float>& bias, const std::vector<float>& sinks,
                             int out, int threads)
    : config_(config),
      shape_(attention_shape(config)),
      q_(q),
      k_(k),
      v_(v),
      rope_(rope),
      out_(out),
      threads_(threads),
      sinks_(sinks.size() * static_cast<size_t>(state_floats()), 0.0f) {
  places_.resize(threads);
  for (size_t head = 0; head < sinks.size(); ++head) {
    float* state = sinks_.data() + head * static_cast<size_t>(state_floats());
    state[0] = static_cast<float>(sinks[head] * kLog2E);
    state[1] = 1.0f;
  }
  if (bias.empty()) return;
  const size_t distances = bias.size() / config.heads, stride = distances + 2 * kBiasMargin;
  bias_positions_ = static_cast<int>((distances + 1) / 2);
  bias_.assign(stride * config.heads, 0.0f);
  for (size_t i = 0; i < bias.size(); ++i)
    bias_[i / distances * stride + kBiasMargin + i % distances] =
        static_cast<float>(bias[i] * kLog2E);
}

// Rows of a text see it from end to end, or as far as their window reaches.
Sight AttentionStep::sight(const Segment& segment, int row) const {
  const int position = position_of(segment, row), window = config_.window;
  if (config_.causal)
    return {window > 0 ? std::max(0, position - window + 1) : 0, position + 1, nullptr};
  const int end = segment.position + segment.count;
  if (window == 0) return {0, end, nullptr};
  return {std::max(0, position - window), std::min<int>(end, position + window + 1), nullptr};
}

size_t AttentionStep::scratch_bytes() const {
  const size_t stride = shape_.value_stride, state = state_floats();
  return sizeof(float) * (kMaxQueries * (stride + 2 * state) + attend_query_floats(shape_) +
                          attend_scratch_floats(shape_) + stride + text_scratch()) +
         sizeof(Sight) * kMaxQueries;
}

size_t AttentionStep::text_scratch() const {
  if (config_.causal) return 0;
  const size_t keys = static_cast<size_t>(kPartPositions) * shape_.value_stride;
  return text_floats(shape_) + (config_.rotary > 0 ? keys : 0);
}

// Most rows of a block, in a run of so many.
int AttentionStep::block_rows(int rows) const {
  const int fair = rows * config_.kv_heads / (kTasksPerThread * threads_);
  const auto of_group = [&](int queries) { return std::max(1, queries / group()); };
  if (texts_) return std::clamp(fair, of_group(kTextQueries), kPartPositions);
  return std::clamp(fair, of_group(kFewQueries), of_group(kBlockQueries));
}

bool AttentionStep::takes_texts(const Frame& frame) const {
  return !config_.causal && config_.kv_type == KvType::f32 &&
         std::all_of(frame.segments.begin(), frame.segments.end(),
                     [](const Segment& s) { return s.position == 0 && s.count <= kPartPositions; });
}

void AttentionStep::prepare(const Frame& frame) {
  blocks_.clear();
  parts_ = 1;
  texts_ = takes_texts(frame);
  const int most = block_rows(static_cast<int>(frame.tokens.size()));
  for (size_t i = 0; i < frame.segments.size(); ++i) {
    const Segment& s = frame.segments[i];
    const int blocks = (s.count + most - 1) / most;
    for (int b = 0; b < blocks; ++b) {  // of one size, or nearly
      const int begin = s.count * b / blocks, end = s.count * (b + 1) / blocks;
      blocks_.push_back({static_cast<int>(i), s.row + begin, end - begin});
    }
  }
  if (texts_ || !frame.one_row_each) return;
  find_shared(frame);
  const size_t tasks = blocks_.size() * static_cast<size_t>(config_.kv_heads);
  const auto shares = [](int parts) { return parts > 0; };
  if (tasks >= kEnoughTasks && std::none_of(shared_.begin(), shared_.end(), shares)) return;
  for (const Segment& s : frame.segments) parts_ = std::max(parts_, last_part(s, s.row) + 1);
  if (parts_ == 1) return;
  list_parts(frame);
  cut_runs();
  std::fill(places_.begin(), places_.end(), Place{});
  const size_t floats = tasks * parts_ * group() * state_floats();
  if (partial_.size() < floats) partial_.resize(floats);
  if (done_size_ < tasks) {
    done_ = std::make_unique<std::atomic<int>[]>(tasks);
    done_size_ = tasks;
  }
  for (size_t i = 0; i < tasks; ++i) done_[i].store(0, std::memory_order_relaxed);
}

void AttentionStep::append(const Run& run, int thread, const Segment& segment, int row, int kv_head,
                           Scratch& scratch) const {
  const int n = run.frame->rows(Domain::tokens);
  const Buffer& keys = run.buffer(k_.buffer);
  const Buffer& values = run.buffer(v_.buffer);
  const size_t head = static_cast<size_t>(kv_head) * config_.head_dim;
  const float* key =
      keys.floats(n, thread) + static_cast<size_t>(row) * keys.width + k_.offset + head;
  const float* value =
      values.floats(n, thread) + static_cast<size_t>(row) * values.width + v_.offset + head;
  if (config_.rotary > 0) {
    std::memcpy(scratch.key, key, sizeof(float) * config_.head_dim);
    key = scratch.key;
    const Buffer& rope = run.buffer(rope_);
    const float* angles = rope.floats(n, thread) + static_cast<size_t>(row) * rope.width;
    run.kernels->rope(scratch.key, angles, angles + config_.rotary / 2, config_.rotary);
  }
  run.kernels->kv_append[static_cast<int>(config_.kv_type)](
      shape_, segment.sequence->pages(), kv_head, position_of(segment, row), key, value);
}

void AttentionStep::append_block(const Run& run, int thread, const Block& block) const {
  Scratch scratch(*this, run.scratch_of(thread));
  // Sixteen positions of a head share its cache lines: rows of a head follow each other.
  for (int kv_head = 0; kv_head < config_.kv_heads; ++kv_head)
    for (int row = block.row; row < block.row + block.count; ++row)
      append(run, thread, run.frame->segments[block.segment], row, kv_head, scratch);
}

void AttentionStep::append_head(const Run& run, int thread, const Segment& segment,
                                int kv_head) const {
  Scratch scratch(*this, run.scratch_of(thread));
  for (int row = segment.row; row < segment.row + segment.count; ++row)
    append(run, thread, segment, row, kv_head, scratch);
}

// Queries of a block, rotated and zero-padded: [row][head of the group][value_stride], from query `at`.
void AttentionStep::load_queries(const Run& run, int thread, const Block& block, int kv_head,
                                 int at, Scratch& scratch) const {
  const int n = run.frame->rows(Domain::tokens), stride = shape_.value_stride;
  const Buffer& q = run.buffer(q_.buffer);
  for (int i = 0; i < block.count * group(); ++i) {
    const int row = block.row + i / group(), head = kv_head * group() + i % group();
    float* query = scratch.queries + static_cast<size_t>(at + i) * stride;
    std::memcpy(query,
                q.floats(n, thread) + static_cast<size_t>(row) * q.width + q_.offset +
                    static_cast<size_t>(head) * config_.head_dim,
                sizeof(float) * config_.head_dim);
    for (int d = config_.head_dim; d < stride; ++d) query[d] = 0.0f;
    if (config_.rotary > 0) {
      const Buffer& rope = run.buffer(rope_);
      const float* angles = rope.floats(n, thread) + static_cast<size_t>(row) * rope.width;
      run.kernels->rope(query, angles, angles + config_.rotary / 2, config_.rotary);
    }
    scratch.sights[at + i] = sight(run.frame->segments[block.segment], row);
    if (bias_positions_ > 0)
      scratch.sights[at + i].bias = bias_.data() +
                                    static_cast<size_t>(head) * (bias_.size() / config_.heads) +
                                    kBiasMargin + bias_positions_ - 1 - run.frame->positions[row];
  }
}

void AttentionStep::write_out(const Run& run, int thread, int row, int head, float* state) const {
  const Buffer& out = run.buffer(out_);
  if (!sinks_.empty())
    run.kernels->merge(shape_, sinks_.data() + static_cast<size_t>(head) * state_floats(), state);
  run.kernels->attend_finish(shape_, state,
                             out.floats(run.frame->rows(Domain::tokens), thread) +
                                 static_cast<size_t>(row) * out.width +
                                 static_cast<size_t>(head) * config_.head_dim);
}

// The keys of a KV head, rotated if they are to be.
const float* AttentionStep::text_keys(const Run& run, int thread, const Segment& segment,
                                      int kv_head, Scratch& scratch, int* stride) const {
  const int n = run.frame->rows(Domain::tokens), head_dim = config_.head_dim;
  const Buffer& keys = run.buffer(k_.buffer);
  const float* first = keys.floats(n, thread) + static_cast<size_t>(segment.row) * keys.width +
                       k_.offset + static_cast<size_t>(kv_head) * head_dim;
  *stride = keys.width;
  if (config_.rotary == 0) return first;
  const Buffer& rope = run.buffer(rope_);
  for (int i = 0; i < segment.count; ++i) {
    float* key = scratch.rotated + static_cast<size_t>(i) * shape_.value_stride;
    std::memcpy(key, first + static_cast<size_t>(i) * keys.width, sizeof(float) * head_dim);
    const float* angles =
        rope.floats(n, thread) + static_cast<size_t>(segment.row + i) * rope.width;
    run.kernels->rope(key, angles, angles + config_.rotary / 2, config_.rotary);
  }
  *stride = shape_.value_stride;
  return scratch.rotated;
}

// Asks for rows [row, end) of the KV head that this thread is likely to attend next: a head's channels
// are a line or two of each row, which no hardware foresees.
void AttentionStep::fetch_next_head(const Run& run, int thread, int kv_head, int row,
                                    int end) const {
  const int next = kv_head - threads_, n = run.frame->rows(Domain::tokens);
  if (next < 0) return;
  const auto fetch = [&](Slice slice, int heads) {
    const Buffer& buffer = run.buffer(slice.buffer);
    const size_t channels = static_cast<size_t>(heads) * config_.head_dim;
    const float* first = buffer.floats(n, thread) + slice.offset + next * channels;
    for (int i = row; i < end; ++i)
      fetch_lines(first + static_cast<size_t>(i) * buffer.width, channels * sizeof(float));
  };
  fetch(q_, group());
  fetch(k_, 1);
  fetch(v_, 1);
}

// Some rows of a text and one KV head.
void AttentionStep::attend_text(const Run& run, int thread, const Block& block, int kv_head) const {
  Scratch scratch(*this, run.scratch_of(thread));
  const Segment& segment = run.frame->segments[block.segment];
  const Buffer& values = run.buffer(v_.buffer);
  int key_stride;
  const float* keys = text_keys(run, thread, segment, kv_head, scratch, &key_stride);
  run.kernels->pack_text(shape_, segment.count, keys, key_stride,
                         values.floats(run.frame->rows(Domain::tokens), thread) +
                             static_cast<size_t>(segment.row) * values.width + v_.offset +
                             static_cast<size_t>(kv_head) * config_.head_dim,
                         values.width, scratch.text);
  const int most = std::max(1, kMaxQueries / group()), end = block.row + block.count;
  for (int row = block.row; row < end; row += most) {
    const Block part = {block.segment, row, std::min(most, end - row)};
    fetch_next_head(run, thread, kv_head, row, row + part.count);
    load_queries(run, thread, part, kv_head, 0, scratch);
    const int queries = part.count * group();
    run.kernels->attend_text(shape_, segment.count, scratch.text, scratch.queries, scratch.sights,
                             queries, scratch.totals, scratch.scores);
    for (int i = 0; i < queries; ++i)
      write_out(run, thread, row + i / group(), kv_head * group() + i % group(),
                scratch.totals + static_cast<size_t>(i) * state_floats());
  }
}

// One block of rows and one KV head, all parts in order.
void AttentionStep::attend_block(const Run& run, int thread, const Block& block,
                                 int kv_head) const {
  Scratch scratch(*this, run.scratch_of(thread));
  const Segment& segment = run.frame->segments[block.segment];
  if (appends_itself(*run.frame)) append(run, thread, segment, block.row, kv_head, scratch);
  load_queries(run, thread, block, kv_head, 0, scratch);
  const int queries = block.count * group(), stride = state_floats();
  const auto type = static_cast<int>(config_.kv_type);
  run.kernels->prepare_queries[type](shape_, scratch.queries, queries, scratch.prepared);
  const int first = first_part(segment, block.row);
  const int last = last_part(segment, block.row + block.count - 1);
  for (int part = first; part <= last; ++part) {
    float* states = part == first ? scratch.totals : scratch.states;
    Following next;
    if (part < last) next = following(segment, block.row + block.count - 1, kv_head, part + 1);
    next.not_asked = part == first;
    run.kernels->attend[type](shape_, segment.sequence->pages(), kv_head, scratch.prepared,
                              scratch.sights, queries, part, next, states, scratch.scores);
    if (part == first) continue;
    for (int i = 0; i < queries; ++i)
      run.kernels->merge(shape_, states + static_cast<size_t>(i) * stride,
                         scratch.totals + static_cast<size_t>(i) * stride);
  }
  for (int i = 0; i < queries; ++i)
    write_out(run, thread, block.row + i / group(), kv_head * group() + i % group(),
              scratch.totals + static_cast<size_t>(i) * stride);
}

// Pages of a part of which a row sees any.
Following AttentionStep::following(const Segment& segment, int row, int kv_head, int part) const {
  const Sight seen = sight(segment, row);
  const int first = std::max(part * kPartPages, seen.begin / kPagePositions);
  const int end = std::min((part + 1) * kPartPages, (seen.end - 1) / kPagePositions + 1);
  return {segment.sequence->pages() + first, std::max(0, end - first),
          shape_.layer_offset + static_cast<size_t>(kv_head) * shape_.head_bytes, false};
}

// Queries of all rows of an item, as they multiply; often those of the thread's item before.
void AttentionStep::load_split(const Run& run, int thread, const PartItem& item, Scratch& scratch) {
  Place& place = places_[thread];
  if (place.block == item.block && place.blocks == item.blocks && place.kv_head == item.kv_head)
    return;
  for (int i = 0; i < item.blocks; ++i)
    load_queries(run, thread, blocks_[item.block + i], item.kv_head, i * group(), scratch);
  run.kernels->prepare_queries[static_cast<int>(config_.kv_type)](
      shape_, scratch.queries, item.blocks * group(), scratch.prepared);
  place.block = item.block, place.blocks = item.blocks, place.kv_head = item.kv_head;
}

// One part of one KV head, of a row or of all that share it; whether it is the first or the last of a run.
void AttentionStep::attend_split(const Run& run, int thread, int at, bool first, bool last) {
  const PartItem& item = items_[at];
  const Segment& segment = run.frame->segments[blocks_[item.block].segment];
  Scratch scratch(*this, run.scratch_of(thread));
  if (item.part == last_part(segment, segment.row) && appends())
    append(run, thread, segment, segment.row, item.kv_head, scratch);
  load_split(run, thread, item, scratch);
  Following next;
  if (!last) {
    const PartItem& then = items_[at + 1];
    const Segment& of = run.frame->segments[blocks_[then.block].segment];
    next = following(of, of.row, then.kv_head, then.part);
  }
  next.not_asked = first;
  float* states = item.blocks > 1 ? scratch.states : partial(item.block, item.kv_head, item.part);
  run.kernels->attend[static_cast<int>(config_.kv_type)](
      shape_, segment.sequence->pages(), item.kv_head, scratch.prepared, scratch.sights,
      item.blocks * group(), item.part, next, states, scratch.scores);
  const size_t floats = static_cast<size_t>(group()) * state_floats();
  for (int i = 0; i < item.blocks; ++i) {
    float* own = partial(item.block + i, item.kv_head, item.part);
    if (item.blocks > 1) std::copy_n(states + i * floats, floats, own);
    finish_part(run, thread, item.block + i, item.kv_head);
  }
}

// Whoever finishes the last part of a row merges all in order.
void AttentionStep::finish_part(const Run& run, int thread, int block, int kv_head) {
  const Segment& segment = run.frame->segments[blocks_[block].segment];
  const int first = first_part(segment, segment.row), last = last_part(segment, segment.row);
  std::atomic<int>& done = done_[block * config_.kv_heads + kv_head];
  if (done.fetch_add(1, std::memory_order_acq_rel) != last - first) return;
  const size_t stride = state_floats();
  float* total = partial(block, kv_head, first);
  for (int part = first + 1; part <= last; ++part)
    for (int i = 0; i < group(); ++i)
      run.kernels->merge(shape_, partial(block, kv_head, part) + i * stride, total + i * stride);
  for (int i = 0; i < group(); ++i)
    write_out(run, thread, segment.row, kv_head * group() + i, total + i * stride);
}

int AttentionStep::items(const Frame& frame, int phase) const {
  const int blocks = static_cast<int>(blocks_.size());
  if (!appending(frame, phase))
    return parts_ > 1 ? static_cast<int>(runs_.size()) - 1 : blocks * config_.kv_heads;
  return by_heads() ? static_cast<int>(frame.segments.size()) * config_.kv_heads : blocks;
}

void AttentionStep::item(const Run& run, int phase, int item, int thread) {
  if (appending(*run.frame, phase)) {
    if (!by_heads()) return append_block(run, thread, blocks_[item]);
    const Segment& segment = run.frame->segments[item / config_.kv_heads];
    return append_head(run, thread, segment, item % config_.kv_heads);
  }
  if (parts_ > 1) {
    const int begin = runs_[item], end = runs_[item + 1];
    for (int at = begin; at < end; ++at) attend_split(run, thread, at, at == begin, at + 1 == end);
    return;
  }
  // Late blocks of a prompt see the most keys: they go first.
  const int task = static_cast<int>(blocks_.size()) * config_.kv_heads - 1 - item;
  const Block& block = blocks_[task / config_.kv_heads];
  const int kv_head = task % config_.kv_heads;
  if (texts_) return attend_text(run, thread, block, kv_head);
  attend_block(run, thread, block, kv_head);
}

void Recording::check_bias(const AttentionConfig& config, const std::vector<float>& bias) {
  const size_t heads = config.heads, distances = bias.size() / heads;
  if (bias.size() % heads != 0 || distances % 2 == 0) {
    fail("attention bias: expected " + std::to_string(heads) +
         " heads of an odd number of distances, got " + std::to_string(bias.size()) + " values");
  }
  if (config.softcap != 0.0f) fail("attention bias: expected no softcap beside it");
  for (const float value : bias)
    if (!(std::fabs(value) <= 1e30f)) fail("attention bias: expected finite values");
  limit_positions(static_cast<int>((distances + 1) / 2));
}

void Recording::check_angles(int rope, int rotary, int head_dim, const std::string& op) const {
  if (rotary < 2 || rotary > head_dim || rotary % 2 != 0)
    fail(op + ": expected an even number of rotated channels within the head");
  const Buffer& angles = source(rope);
  if (angles.logical != rotary || angles.type != BufferType::f32 || angles.domain != Domain::tokens)
    fail(op + ": the rope angles do not fit the rotated channels");
}

void Recording::check_keys(Slice q, Slice k, Slice v, const AttentionConfig& config) const {
  checked(k, "attention k");
  checked(v, "attention v");
  if (k.width != config.kv_heads * config.head_dim || v.width != k.width) {
    fail("attention: q, k, v of widths " + std::to_string(q.width) + ", " +
         std::to_string(k.width) + ", " + std::to_string(v.width) + " do not fit " +
         std::to_string(config.heads) + " heads, " + std::to_string(config.kv_heads) +
         " KV heads of " + std::to_string(config.head_dim));
  }
  for (const int id : {k.buffer, v.buffer})
    if (buffer(id).domain != Domain::tokens) fail("attention: expected rows of all tokens");
}

// Where in a page an earlier attention keeps what this one sees.
size_t Recording::shared_cache(const AttentionConfig& config, int shared) const {
  const int count = static_cast<int>(attentions_.size());
  if (shared >= count) {
    fail("attention: expected keys and values of an earlier attention, of which there are " +
         std::to_string(count) + ", got number " + std::to_string(shared));
  }
  const AttentionConfig& other = attentions_[shared];
  if (other.kv_heads != config.kv_heads || other.head_dim != config.head_dim || !config.causal) {
    fail("attention: expected the keys of attention " + std::to_string(shared) + ", " +
         std::to_string(other.kv_heads) + " causal heads of " + std::to_string(other.head_dim) +
         ", got " + std::to_string(config.kv_heads) + " of " + std::to_string(config.head_dim));
  }
  return other.layer_offset;
}

int Recording::attention(Slice q, Slice k, Slice v, int rope, AttentionConfig config,
                         const std::vector<float>& bias, const std::vector<float>& sinks,
                         int shared) {
  check_recording();
  if (made_.select_step >= 0) fail("attention: record it before select()");
  checked(q, "attention q");
  if (config.heads < 1 || config.kv_heads < 1 || config.heads % config.kv_heads != 0) {
    fail("attention: expected heads to be a multiple of kv_heads, got " +
         std::to_string(config.heads) + " and " + std::to_string(config.kv_heads));
  }
  if (config.heads / config.kv_heads > kMaxQueries)
    fail("attention: at most 64 query heads may share a KV head");
  const int64_t head_dim = config.head_dim;
  if (head_dim < 1 || q.width != config.heads * head_dim) {
    fail("attention: " + std::to_string(q.width) + " channels of q do not fit " +
         std::to_string(config.heads) + " heads of " + std::to_string(config.head_dim));
  }
  if (buffer(q.buffer).domain != Domain::tokens) fail("attention: expected rows of all tokens");
  if (shared < 0) check_keys(q, k, v, config);
  if (config.rotary != 0) check_angles(rope, config.rotary, config.head_dim, "attention");
  if (config.window < 0) fail("attention: expected window >= 0");
  check_softcap(config.softcap, "attention");
  if (!bias.empty()) check_bias(config, bias);
  if (!sinks.empty() && static_cast<int>(sinks.size()) != config.heads)
    fail("attention sinks: expected one for each of " + std::to_string(config.heads) +
         " heads, got " + std::to_string(sinks.size()));
  for (const float value : sinks)
    if (!(std::fabs(value) <= 1e30f)) fail("attention sinks: expected finite values");
  const bool integers = kv_type_ == KvType::int8 || kv_type_ == KvType::int4;
  if (integers && config.head_dim > kMaxInt8HeadDim) {
    fail(std::string("attention: an ") + kv_type_name(kv_type_) +
         " cache takes heads of at most 512 channels, got " + std::to_string(config.head_dim) +
         "; use kv_dtype='f16'");
  }
  config.kv_type = kv_type_;
  if (made_.page_bytes > 0 && made_.causal != config.causal)
    fail("attention: expected all layers to be causal, or none");
  made_.causal = config.causal;
  std::vector<int> in = {q.buffer};
  if (shared >= 0) {
    config.layer_offset = shared_cache(config, shared);
    k = v = {};
  } else {
    // A text that is computed at once needs the keys of a layer until the next one only.
    config.layer_offset = config.causal ? made_.page_bytes : 0;
    made_.page_bytes = std::max(made_.page_bytes, config.layer_offset + kv_layer_bytes(config));
    in.insert(in.end(), {k.buffer, v.buffer});
  }
  attentions_.push_back(config);
  const int out = new_buffer(BufferType::f32, Domain::tokens, q.width, false);
  if (config.rotary > 0) in.push_back(rope);
  auto step =
      std::make_unique<AttentionStep>(config, q, k, v, rope, bias, sinks, out, made_.sizes.threads);
  return add_step(std::move(step), out, std::move(in), "attention", kv_type_name(kv_type_),
                  std::to_string(config.heads) + "/" + std::to_string(config.kv_heads) + "x" +
                      std::to_string(config.head_dim) +
                      (shared < 0 ? "" : " keys of " + std::to_string(shared)));
}

}  // namespace slmq
