#include "plan/linear_steps.h"

#include <algorithm>

namespace slmq {
namespace {

constexpr size_t kMaxChunkBytes = 128 * 1024;
constexpr int kChunksPerThread = 8;  // enough that a slow core holds nobody back for long

void add_chunks(const Matrix& m, int part, size_t chunk_bytes, std::vector<Chunk>* chunks) {
  const int pairs =
      std::max<int>(1, static_cast<int>(chunk_bytes / pair_bytes(m.format, m.groups())));
  for (int begin = 0; begin < m.pairs(); begin += pairs)
    chunks->push_back({part, begin, std::min(begin + pairs, m.pairs())});
}

size_t chunk_bytes_for(size_t total_bytes, int threads) {
  return std::min(kMaxChunkBytes, total_bytes / static_cast<size_t>(threads * kChunksPerThread));
}

// Neighbouring chunks of one matrix as one: a longer stream of memory. Moves *first behind them.
Chunk joined(const std::vector<Chunk>& chunks, int* first, int last) {
  Chunk chunk = chunks[(*first)++];
  for (; *first < last && chunks[*first].part == chunk.part; ++*first)
    chunk.pair_end = chunks[*first].pair_end;
  return chunk;
}

// Takes weights and activations of a matrix; the caller sets where the result goes.
LinearArgs arguments(const Matrix& m, const Buffer& x, int n, int thread) {
  LinearArgs args{};
  args.weight = m.data;
  args.groups = m.groups();
  args.m = n;
  if (info(m.format).quantized) {
    args.panel = x.panel(n, thread);
  } else {
    args.x = x.floats(n, thread);
    args.x_stride = x.width;
  }
  return args;
}

void multiply(const Run& run, const Matrix& m, const LinearArgs& args, int pair_begin,
              int pair_end) {
  run.kernels->linear[static_cast<int>(m.format)](args, pair_begin, pair_end);
}

}  // namespace

LinearStep::LinearStep(Domain domain, std::vector<LinearPart> parts, Slice add,
                       std::optional<Unary> activation, float softcap, int out, int threads)
    : domain_(domain),
      parts_(std::move(parts)),
      add_(add),
      activation_(activation),
      softcap_(softcap),
      out_(out) {
  size_t total = 0;
  for (const LinearPart& part : parts_) total += part.matrix->bytes();
  for (size_t i = 0; i < parts_.size(); ++i)
    add_chunks(*parts_[i].matrix, static_cast<int>(i), chunk_bytes_for(total, threads), &chunks_);
}

int LinearStep::items(const Frame& frame, int) const {
  return frame.rows(domain_) == 0 ? 0 : static_cast<int>(chunks_.size());
}

void LinearStep::run_items(const Run& run, int, int first, int last, int thread) {
  while (first < last) multiply_pairs(run, joined(chunks_, &first, last), thread);
}

void LinearStep::multiply_pairs(const Run& run, const Chunk& chunk, int thread) const {
  const int n = run.frame->rows(domain_);
  const Buffer& out = run.buffer(out_);
  const LinearPart& part = parts_[chunk.part];
  LinearArgs args = arguments(*part.matrix, run.buffer(part.x), n, thread);
  args.y = out.floats(n, thread) + part.offset;
  args.y_stride = out.width;
  args.bias = part.bias.empty() ? nullptr : part.bias.data();
  if (add_.buffer >= 0) {
    const Buffer& add = run.buffer(add_.buffer);
    args.add = add.floats(n, thread) + add_.offset;
    args.add_stride = add.width;
  }
  multiply(run, *part.matrix, args, chunk.pair_begin, chunk.pair_end);
  if (!activation_ && softcap_ == 0.0f) return;
  const int columns = (chunk.pair_end - chunk.pair_begin) * kPairRows;
  for (int row = 0; row < n; ++row) {
    float* y = args.y + static_cast<size_t>(row) * args.y_stride +
               static_cast<size_t>(chunk.pair_begin) * kPairRows;
    if (activation_) run.kernels->unary[static_cast<int>(*activation_)](y, columns, y);
    if (softcap_ != 0.0f) run.kernels->softcap(y, columns, softcap_, y);
  }
}

GatedStep::GatedStep(Domain domain, Gate activation, LinearPart gate, LinearPart up, int out,
                     int threads)
    : domain_(domain),
      activation_(activation),
      gate_(std::move(gate)),
      up_(std::move(up)),
      out_(out) {
  const Matrix& m = *gate_.matrix;
  add_chunks(m, 0, chunk_bytes_for(m.bytes(), threads), &chunks_);
}

void GatedStep::tile(const Run& run, int thread, int pair_begin, int pair_end, int row, int rows) {
  const int n = run.frame->rows(domain_), columns = (pair_end - pair_begin) * kPairRows;
  const Buffer& out = run.buffer(out_);
  auto* gate = reinterpret_cast<float*>(run.scratch_of(thread));
  float* up = gate + kTileFloats;
  float* results[2] = {gate, up};
  const LinearPart* parts[2] = {&gate_, &up_};
  for (int i = 0; i < 2; ++i) {
    const Matrix& m = *parts[i]->matrix;
    LinearArgs args = arguments(m, run.buffer(parts[i]->x), n, thread);
    args.m = rows;  // rows that start at a panel block are a panel of their own
    if (args.panel != nullptr) {
      args.panel = static_cast<const uint8_t*>(args.panel) +
                   static_cast<size_t>(row) * args.groups * kActivationBytes;
    }
    if (args.x != nullptr) args.x += static_cast<size_t>(row) * args.x_stride;
    args.y = results[i] - static_cast<ptrdiff_t>(pair_begin) * kPairRows;
    args.y_stride = columns;
    args.bias = parts[i]->bias.empty() ? nullptr : parts[i]->bias.data();
    multiply(run, m, args, pair_begin, pair_end);
  }
  const auto activate = run.kernels->gated[static_cast<int>(activation_)];
  for (int r = 0; r < rows; ++r) {
    float* y = out.floats(n, thread) + static_cast<size_t>(row + r) * out.width +
               static_cast<size_t>(pair_begin) * kPairRows;
    activate(gate + static_cast<size_t>(r) * columns, up + static_cast<size_t>(r) * columns,
             columns, y);
  }
}

int GatedStep::items(const Frame& frame, int) const {
  return frame.rows(domain_) == 0 ? 0 : static_cast<int>(chunks_.size());
}

void GatedStep::run_items(const Run& run, int, int first, int last, int thread) {
  const int n = run.frame->rows(domain_);
  const Chunk chunk = joined(chunks_, &first, last);  // all of one matrix
  const int tile_rows = std::min(64, static_cast<int>(round_up(n, kPanelRows)));
  const int tile_pairs = std::max(1, kTileFloats / (tile_rows * kPairRows));
  for (int pair = chunk.pair_begin; pair < chunk.pair_end; pair += tile_pairs) {
    const int pair_end = std::min(pair + tile_pairs, chunk.pair_end);
    for (int row = 0; row < n; row += tile_rows)
      tile(run, thread, pair, pair_end, row, std::min(tile_rows, n - row));
  }
}

}  // namespace slmq
