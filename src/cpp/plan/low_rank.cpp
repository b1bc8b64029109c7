#include "plan/low_rank.h"

#include <algorithm>
#include <thread>

#include "plan/adapter.h"
#include "threads/barrier.h"

namespace slmq {
namespace {

int blocks_of(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// Tiles of A that are multiplied together, and the column of their first product.
struct Tiles {
  const uint8_t* weight;
  int count, column;
};

// Those of an input's slots [first, last): they lie behind each other.
Tiles tiles_of(const Adapter& adapter, const LowRankInput& input, SlotRange slots) {
  const LowRankStack& stack = adapter.stack(input.slots.front());
  Tiles tiles = {stack.down, 0, 0};
  for (int i = slots.first; i < slots.last; ++i) {
    const LowRank* low = adapter.find(input.slots[static_cast<size_t>(i)]);
    if (low == nullptr) continue;
    if (tiles.count == 0) tiles.column = low->column;
    tiles.count += low->place() / kLanes;
  }
  tiles.weight +=
      static_cast<size_t>(tiles.column / kLanes) * low_rank_tile_bytes(stack.type, stack.columns);
  return tiles;
}

}  // namespace

LowRankAdditions::LowRankAdditions(Domain domain, std::vector<LowRankInput> inputs, int products)
    : domain_(domain), inputs_(std::move(inputs)), products_(products) {
  for (size_t i = 0; i < inputs_.size(); ++i)
    for (size_t slot = 0; slot < inputs_[i].slots.size(); ++slot)
      slots_.emplace_back(static_cast<int>(i), static_cast<int>(slot));
}

size_t LowRankAdditions::scratch_bytes() const {
  int widest = 0;
  for (const LowRankInput& input : inputs_) widest = std::max(widest, input.k);
  return static_cast<size_t>(round_up(widest, kGroup)) * kPanelRows * sizeof(float);
}

int LowRankAdditions::items(const Frame& frame) const {
  if (!in(frame) || early(frame)) return 0;
  return blocks_of(frame.rows(domain_)) * static_cast<int>(slots_.size());
}

void LowRankAdditions::take(const Run& run, int first, int last, int thread) {
  last = std::min(last, items(*run.frame));
  if (first >= last) return;
  const int rows = run.frame->rows(domain_), slots = static_cast<int>(slots_.size());
  for (int item = first, next; item < last; item = next) {
    const auto [input, slot] = slots_[static_cast<size_t>(item % slots)];
    const LowRankInput& in = inputs_[static_cast<size_t>(input)];
    const int count = static_cast<int>(in.slots.size());
    next = std::min(item + count - slot, last);
    const int begin = item / slots * kPanelRows;
    products(run, in, {slot, slot + next - item}, begin, std::min(begin + kPanelRows, rows),
             thread);
  }
  left_.fetch_sub(last - first, std::memory_order_release);
}

void LowRankAdditions::follow(const Run& run, int begin, int end, int thread) const {
  if (!in(*run.frame) || !early(*run.frame)) return;
  for (const LowRankInput& input : inputs_)
    products(run, input, {0, static_cast<int>(input.slots.size())}, begin, end, thread);
}

void LowRankAdditions::multiply(const Run& run, int begin, int end, int thread) {
  left_.store(0, std::memory_order_relaxed);  // of others, whose products are of other rows
  if (!in(*run.frame) || early(*run.frame)) return;
  for (int row = begin; row < end; row += kPanelRows)
    for (const LowRankInput& input : inputs_)
      products(run, input, {0, static_cast<int>(input.slots.size())}, row,
               std::min(row + kPanelRows, end), thread);
}

// Rows of one adapter that follow each other, from `row` on: the row behind them.
int LowRankAdditions::end_of_run(const Frame& frame, int row, int end) const {
  if (frame.one_adapter) return end;
  const Adapter* adapter = frame.adapter(domain_, row);
  int next = row + 1;
  while (next < end && frame.adapter(domain_, next) == adapter) ++next;
  return next;
}

// Integer matrices multiply rounded activations: so does A.
const float* LowRankAdditions::floats(const Run& run, const Buffer& x, int thread, int begin,
                                      int end) const {
  const int n = run.frame->rows(domain_);
  if (x.type == BufferType::f32) return x.floats(n, thread) + static_cast<size_t>(begin) * x.width;
  auto* values = reinterpret_cast<float*>(run.scratch_of(thread));
  const auto widen = x.type == BufferType::panel ? run.kernels->widen_activations
                                                 : run.kernels->widen_row_activations;
  widen(x.panel(n, thread), x.width / kGroup, n, begin, end, values, x.width);
  return values;
}

// From a row's products to the next one's. Those of one adapter lie close together.
int LowRankAdditions::product_stride(const Run& run, int row) const {
  const Frame& frame = *run.frame;
  const int width = run.buffer(products_).width;
  if (!frame.close_products || inputs_.size() > 1) return width;
  return std::min(frame.adapter(domain_, row)->widest(), width);
}

// t = A x of a block's rows, of neighbouring slots: what is read of the rows is the same.
void LowRankAdditions::products(const Run& run, const LowRankInput& input, SlotRange slots,
                                int begin, int end, int thread) const {
  const Frame& frame = *run.frame;
  const Buffer &x = run.buffer(input.x), &out = run.buffer(products_);
  const int n = frame.rows(domain_);
  for (int row = begin, next; row < end; row = next) {
    next = end_of_run(frame, row, end);
    const Adapter* adapter = frame.adapter(domain_, row);
    if (adapter == nullptr) continue;
    const LowRankStack& stack = adapter->stack(input.slots.front());
    const Tiles tiles = tiles_of(*adapter, input, slots);
    if (tiles.count == 0) continue;
    if (stack.type != LowRankType::i8) next = std::min(next, row + kPanelRows);  // see floats()
    const int stride = product_stride(run, row);
    float* y =
        out.floats(n, thread) + static_cast<size_t>(row) * stride + input.column + tiles.column;
    if (stack.type == LowRankType::i8) {
      LowRankDownArgs args{};
      args.weight = tiles.weight;
      args.tiles = tiles.count;
      args.groups = x.width / kGroup;
      args.m = n;
      args.panel = x.panel(n, thread);
      args.row_begin = row;
      args.row_end = next;
      args.ahead = run.tuning->ahead(Format::q8g32s, n);
      args.y = y;
      args.y_stride = stride;
      run.kernels->low_rank_down(args);
      for (const LowRank* part : stack.parts) {
        const int at = part->column - tiles.column;
        if (at < 0 || at >= tiles.count * kLanes) continue;
        run.kernels->low_rank_round(y + at, stride, next - row, part->place());
      }
      continue;
    }
    LowRankArgs args{};
    args.weight = tiles.weight;
    args.m = next - row;
    args.n = tiles.count * kLanes;
    args.k = input.k;
    args.x = floats(run, x, thread, row, next);
    args.x_stride = x.width;
    args.y = y;
    args.y_stride = stride;
    for (int i = 0; i < args.m; ++i) std::fill_n(y + static_cast<size_t>(i) * stride, args.n, 0.0f);
    run.kernels->low_rank[static_cast<int>(stack.type)](args);
  }
}

const LowRank* LowRankAdditions::found(const Frame& frame, const LowRankUse& use, int row) const {
  const Adapter* adapter = frame.adapter(domain_, row);
  return adapter == nullptr ? nullptr : adapter->find(use.slot);
}

// Of B from its first column on, and of t of rows from `row` on.
LowRankUp LowRankAdditions::up(const Run& run, const LowRankUse& use, const LowRank& low,
                               int row) const {
  const int stride = product_stride(run, row);
  const float* t = run.buffer(products_).floats(run.frame->rows(domain_), 0) +
                   static_cast<size_t>(row) * stride + use.products_at + low.column;
  return {low.up, low.rank, t, low.place(), stride};
}

// Products are made while the weights are multiplied: as a rule they are there.
void LowRankAdditions::wait() const {
  constexpr int kLooks = 256;
  for (int look = 0; !there(); ++look) {
    if (look < kLooks) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

bool LowRankAdditions::at_once(const Run& run, const LowRankUse& use, int row, int rows) const {
  if (end_of_run(*run.frame, row, row + rows) != row + rows) return false;
  const LowRank* low = found(*run.frame, use, row);
  return low == nullptr || (low->type == LowRankType::i8 && !low->changes() && there());
}

Behind LowRankAdditions::prepare(const Run& run, const LowRankUse& use, int row, int rows,
                                 LinearArgs* args) const {
  const Frame& frame = *run.frame;
  Behind behind;
  if (use.slot < 0 || !in(frame)) return behind;
  const LowRank* low = found(frame, use, row);
  if (low != nullptr && frame.rows(domain_) <= kReplicaRows) {  // B comes with the weights
    args->beside = low->up;
    args->beside_bytes = 2 * static_cast<int>(low->tile_bytes());
  }
  if (at_once(run, use, row, rows)) {
    if (low != nullptr) args->up = up(run, use, *low, row);
    return behind;
  }
  behind.products = true;
  bool changes = false;
  for (int at = row; at < row + rows && !changes; at = end_of_run(frame, at, row + rows)) {
    low = found(frame, use, at);
    changes = low != nullptr && low->changes();
  }
  if (changes) {
    behind.bias = args->bias;
    behind.add = args->add;
    behind.add_stride = args->add_stride;
    args->bias = args->add = nullptr;
  }
  return behind;
}

namespace {

// y = factor y + bias (+ add) of rows of one adapter, or of none: each product and sum is rounded by
// itself, as kernels do it.
void finish(const LowRank* low, const Behind& behind, int row, int rows, int column, int count,
            float* y, int y_stride) {
  const bool own = low != nullptr && !low->bias.empty();
  const float* factor =
      low == nullptr || low->factor.empty() ? nullptr : low->factor.data() + column;
  const float* bias = own ? low->bias.data() : behind.bias;
  for (int i = 0; i < rows; ++i, y += y_stride) {
    if (factor != nullptr)
      for (int c = 0; c < count; ++c) y[c] = y[c] * factor[c];
    if (bias != nullptr)
      for (int c = 0; c < count; ++c) y[c] = y[c] + bias[column + c];
    if (behind.add == nullptr) continue;
    const float* add = behind.add + static_cast<size_t>(row + i) * behind.add_stride + column;
    for (int c = 0; c < count; ++c) y[c] = y[c] + add[c];
  }
}

}  // namespace

void LowRankAdditions::add(const Run& run, const LowRankUse& use, const Behind& behind, int row,
                           int rows, int column, int count, float* y, int y_stride) const {
  if (!behind.products) return;
  const Frame& frame = *run.frame;
  wait();
  for (int at = row, next; at < row + rows; at = next) {
    next = end_of_run(frame, at, row + rows);
    const LowRank* low = found(frame, use, at);
    float* to = y + static_cast<size_t>(at - row) * y_stride;
    const bool changes = low != nullptr && low->changes();
    if (!changes) finish(nullptr, behind, at - row, next - at, column, count, to, y_stride);
    if (low == nullptr) continue;
    LowRankUp with = up(run, use, *low, at);
    with.weight += static_cast<size_t>(column / kLanes) * low->tile_bytes();
    if (low->type == LowRankType::i8) {
      run.kernels->low_rank_up({with, next - at, count, to, y_stride});
    } else {
      run.kernels->low_rank[static_cast<int>(low->type)](
          {with.weight, next - at, count, with.k, with.x, with.x_stride, to, y_stride});
    }
    if (changes) finish(low, behind, at - row, next - at, column, count, to, y_stride);
  }
}

}  // namespace slmq
