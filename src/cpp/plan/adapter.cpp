#include "plan/adapter.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "layout/half.h"
#include "plan/checks.h"

namespace slmq {
namespace {

constexpr int kZeroCode = 128;

// A row's numbers as int8 with one scale, which is returned: the largest becomes 127.
float round_row(const float* values, int columns, std::vector<int8_t>* codes) {
  constexpr float kSmallest = 1e-30f;  // of what is told from zero
  float most = 0.0f;
  for (int c = 0; c < columns; ++c) most = std::max(most, std::fabs(values[c]));
  const float inverse = most > kSmallest ? 127.0f / most : 0.0f;
  for (int c = 0; c < columns; ++c)
    (*codes)[static_cast<size_t>(c)] = static_cast<int8_t>(std::nearbyint(values[c] * inverse));
  return most / 127.0f;
}

// Where a number stands in its tile.
size_t place_of(LowRankType type, int row, int column) {
  const int lane = row % kLanes;
  if (type != LowRankType::i8) return static_cast<size_t>(column) * kLanes + lane;
  return static_cast<size_t>(column / 4) * 4 * kLanes + 4 * lane + column % 4;
}

// rows x columns into tiles of `padded` columns; what is missing there stays as it is.
void put_tiles(const std::vector<float>& values, int rows, int columns, int padded,
               LowRankType type, uint8_t* tiles) {
  std::vector<int8_t> codes(static_cast<size_t>(columns));
  for (int row = 0; row < rows; ++row) {
    const float* from = values.data() + static_cast<size_t>(row) * columns;
    const size_t bytes = low_rank_tile_bytes(type, padded);
    uint8_t* tile = tiles + static_cast<size_t>(row / kLanes) * bytes;
    if (type == LowRankType::i8) {
      auto* scales = reinterpret_cast<float*>(tile + bytes) - kLanes;
      scales[row % kLanes] = round_row(from, columns, &codes);
    }
    for (int column = 0; column < columns; ++column) {
      const size_t at = place_of(type, row, column);
      switch (type) {
        case LowRankType::f16:
          reinterpret_cast<uint16_t*>(tile)[at] = float_to_half(from[column]);
          break;
        case LowRankType::f32: reinterpret_cast<float*>(tile)[at] = from[column]; break;
        case LowRankType::i8:
          tile[at] = static_cast<uint8_t>(codes[static_cast<size_t>(column)] + kZeroCode);
          break;
      }
    }
  }
}

// Zeros, which of i8 are codes of their own.
void clear_tiles(LowRankType type, int columns, int tiles, uint8_t* to) {
  const size_t bytes = low_rank_tile_bytes(type, columns);
  const size_t codes = type == LowRankType::i8 ? bytes - kLanes * sizeof(float) : 0;
  for (int tile = 0; tile < tiles; ++tile, to += bytes)
    std::fill_n(to, codes, static_cast<uint8_t>(kZeroCode));
}

int columns_of(LowRankType type, int columns, int unit) {
  return type == LowRankType::i8 ? static_cast<int>(round_up(columns, unit)) : columns;
}

int tiles_of(int rows) { return padded(rows) / kLanes; }

// Bytes of tiles, in whole cache lines.
size_t lines(LowRankType type, int columns, int tiles) {
  constexpr size_t kLine = 64;
  const size_t bytes = static_cast<size_t>(tiles) * low_rank_tile_bytes(type, columns);
  return (bytes + kLine - 1) / kLine * kLine;
}

void check(const LowRankSource& source, const Slots& slots) {
  if (source.slot < 0 || source.slot >= static_cast<int>(slots.size())) {
    fail("adapter: expected a slot below " + std::to_string(slots.size()) + ", got " +
         std::to_string(source.slot));
  }
  if (source.rank < 1 || source.rank > kMaxRank) {
    fail("adapter: expected a rank of 1.." + std::to_string(kMaxRank) + ", got " +
         std::to_string(source.rank));
  }
  const SlotSize size = slots[source.slot];
  const auto rank = static_cast<size_t>(source.rank);
  if (source.down.size() != rank * size.k || source.up.size() != rank * size.n) {
    fail("adapter: expected A of " + dims(source.rank, size.k) + " and B of " +
         dims(size.n, source.rank) + ", got " + std::to_string(source.down.size()) + " and " +
         std::to_string(source.up.size()) + " values");
  }
  for (const std::vector<float>* values : {&source.factor, &source.bias})
    if (!values->empty() && values->size() != static_cast<size_t>(size.n))
      fail("adapter: expected factors and biases of " + std::to_string(size.n) + " values, got " +
           std::to_string(values->size()));
}

std::vector<float> padded_values(std::vector<float> values) {
  if (!values.empty()) values.resize(padded(static_cast<int>(values.size())), 0.0f);
  return values;
}

}  // namespace

Adapter::Adapter(std::shared_ptr<const Slots> slots, std::vector<LowRankSource> sources,
                 LowRankType type)
    : slots_(std::move(slots)), parts_(slots_->size()), stacks_(slots_->size()) {
  // A of neighbours lie in the order of their slots, so that those of some are one matrix.
  std::stable_sort(sources.begin(), sources.end(),
                   [](const LowRankSource& a, const LowRankSource& b) { return a.slot < b.slot; });
  for (const LowRankSource& source : sources) {
    check(source, *slots_);
    std::optional<LowRank>& part = parts_[source.slot];
    if (part) fail("adapter: slot " + std::to_string(source.slot) + " comes twice");
    const SlotSize size = (*slots_)[source.slot];
    LowRankStack& stack = stacks_[size.first];
    part.emplace();
    part->type = stack.type = type == LowRankType::i8 && !size.rounded ? LowRankType::f16 : type;
    part->rank = columns_of(part->type, source.rank, kLanes);
    part->column = stack.tiles * kLanes;
    part->factor = padded_values(source.factor);
    part->bias = padded_values(source.bias);
    stack.columns = columns_of(stack.type, size.k, kGroup);
    stack.tiles += part->place() / kLanes;
    stack.parts.push_back(&*part);
    widest_ = std::max(widest_, stack.tiles * kLanes);
  }
  place();
  for (const LowRankSource& source : sources) {
    const SlotSize size = (*slots_)[source.slot];
    const LowRank& part = *parts_[source.slot];
    const LowRankStack& stack = stacks_[size.first];
    const size_t tile_bytes = low_rank_tile_bytes(stack.type, stack.columns);
    put_tiles(source.down, source.rank, size.k, stack.columns, stack.type,
              stack.down + static_cast<size_t>(part.column / kLanes) * tile_bytes);
    put_tiles(source.up, size.n, source.rank, part.rank, part.type, part.up);
  }
}

// Gives every matrix its memory, A of neighbours before their B.
void Adapter::place() {
  constexpr size_t kLarge = size_t{2} << 20;  // a large page
  constexpr size_t kBehind = 512;             // what kernels read there
  size_t bytes = 0;
  const auto each = [&](const auto& take) {
    for (size_t slot = 0; slot < slots_->size(); ++slot) {
      LowRankStack& stack = stacks_[slot];
      if (stack.tiles != 0) take(&stack.down, stack.type, stack.columns, stack.tiles);
      if (std::optional<LowRank>& part = parts_[slot])
        take(&part->up, part->type, part->rank, tiles_of((*slots_)[slot].n));
    }
  };
  each([&](uint8_t**, LowRankType type, int columns, int tiles) {
    bytes += lines(type, columns, tiles);
  });
  // Large pages pay from two of them on, and only if the last one is whole.
  const bool large = bytes >= 2 * kLarge;
  bytes += kBehind;
  if (large) bytes = (bytes + kLarge - 1) / kLarge * kLarge;
  memory_ = Memory(bytes, large);
  uint8_t* next = memory_.data();
  each([&](uint8_t** where, LowRankType type, int columns, int tiles) {
    *where = next;
    clear_tiles(type, columns, tiles, next);
    next += lines(type, columns, tiles);
  });
}

}  // namespace slmq
