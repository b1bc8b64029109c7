#include "plan/adapter.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "layout/half.h"
#include "plan/checks.h"

namespace slmq {
namespace {

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

// rows x columns as tiles of 16 rows, [tiles][columns][16]; rows that are missing are zeros already.
void put_tiles(const std::vector<float>& values, int rows, int columns, LowRankType type,
               uint8_t* tiles, float* scales) {
  std::vector<int8_t> codes(static_cast<size_t>(columns));
  for (int row = 0; row < rows; ++row) {
    const float* from = values.data() + static_cast<size_t>(row) * columns;
    if (type == LowRankType::i8) scales[row] = round_row(from, columns, &codes);
    for (int column = 0; column < columns; ++column) {
      const size_t at = (static_cast<size_t>(row / kLanes) * columns + column) * kLanes +
                        static_cast<size_t>(row % kLanes);
      switch (type) {
        case LowRankType::f16:
          reinterpret_cast<uint16_t*>(tiles)[at] = float_to_half(from[column]);
          break;
        case LowRankType::f32: reinterpret_cast<float*>(tiles)[at] = from[column]; break;
        case LowRankType::i8:
          reinterpret_cast<int8_t*>(tiles)[at] = codes[static_cast<size_t>(column)];
          break;
      }
    }
  }
}

float* scales_from(std::vector<float>& scales, int row) {
  return scales.empty() ? nullptr : scales.data() + row;
}

int tiles_of(int rows) { return (rows + kLanes - 1) / kLanes; }

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
}

}  // namespace

Adapter::Adapter(std::shared_ptr<const Slots> slots, const std::vector<LowRankSource>& sources,
                 LowRankType type)
    : slots_(std::move(slots)), type_(type), parts_(slots_->size()), stacks_(slots_->size()) {
  for (const LowRankSource& source : sources) {
    check(source, *slots_);
    std::optional<LowRank>& part = parts_[source.slot];
    if (part) fail("adapter: slot " + std::to_string(source.slot) + " comes twice");
    const SlotSize size = (*slots_)[source.slot];
    const auto rows = static_cast<size_t>(padded(size.n));
    part.emplace();
    part->rank = source.rank;
    part->up = Memory(rows * source.rank * element_bytes());
    if (type == LowRankType::i8) part->scales.resize(rows);
    put_tiles(source.up, size.n, source.rank, type, part->up.data(), scales_from(part->scales, 0));
    LowRankStack& stack = stacks_[size.first];
    part->column = stack.tiles * kLanes;
    stack.tiles += tiles_of(source.rank);
  }
  for (const LowRankSource& source : sources) {
    const SlotSize size = (*slots_)[source.slot];
    const int column = parts_[source.slot]->column;
    LowRankStack& stack = stacks_[size.first];
    const size_t column_bytes = static_cast<size_t>(size.k) * element_bytes();
    if (stack.down.size() == 0) {
      const auto rows = static_cast<size_t>(stack.tiles) * kLanes;
      stack.down = Memory(rows * column_bytes);
      if (type == LowRankType::i8) stack.scales.resize(rows);
    }
    put_tiles(source.down, source.rank, size.k, type, stack.down.data() + column * column_bytes,
              scales_from(stack.scales, column));
  }
}

size_t Adapter::element_bytes() const {
  return type_ == LowRankType::i8 ? 1 : type_ == LowRankType::f16 ? 2 : 4;
}

size_t Adapter::bytes() const {
  size_t bytes = 0;
  for (const auto& part : parts_)
    if (part) bytes += part->up.size() + part->scales.size() * sizeof(float);
  for (const LowRankStack& stack : stacks_)
    bytes += stack.down.size() + stack.scales.size() * sizeof(float);
  return bytes;
}

}  // namespace slmq
