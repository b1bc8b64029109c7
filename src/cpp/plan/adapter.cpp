#include "plan/adapter.h"

#include <string>

#include "layout/half.h"
#include "plan/checks.h"

namespace slmq {
namespace {

// rows x columns as tiles of 16 rows, [tiles][columns][16]; rows that are missing are zeros.
Memory tiled(const std::vector<float>& values, int rows, int columns, int tiles, bool half) {
  const size_t bytes = half ? sizeof(uint16_t) : sizeof(float);
  Memory memory(static_cast<size_t>(tiles) * columns * kLanes * bytes);
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const size_t at = (static_cast<size_t>(row / kLanes) * columns + column) * kLanes +
                        static_cast<size_t>(row % kLanes);
      const float value = values[static_cast<size_t>(row) * columns + column];
      if (half) {
        memory.as<uint16_t>()[at] = float_to_half(value);
      } else {
        memory.as<float>()[at] = value;
      }
    }
  }
  return memory;
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
}

}  // namespace

Adapter::Adapter(std::shared_ptr<const Slots> slots, const std::vector<LowRankSource>& sources,
                 bool half)
    : slots_(std::move(slots)), half_(half), parts_(slots_->size()) {
  for (const LowRankSource& source : sources) {
    check(source, *slots_);
    std::optional<LowRank>& part = parts_[source.slot];
    if (part) fail("adapter: slot " + std::to_string(source.slot) + " comes twice");
    const SlotSize size = (*slots_)[source.slot];
    const int down_tiles = (source.rank + kLanes - 1) / kLanes, up_tiles = padded(size.n) / kLanes;
    part.emplace();
    part->rank = source.rank;
    part->down = tiled(source.down, source.rank, size.k, down_tiles, half);
    part->up = tiled(source.up, size.n, source.rank, up_tiles, half);
  }
}

size_t Adapter::bytes() const {
  size_t bytes = 0;
  for (const auto& part : parts_)
    if (part) bytes += part->down.size() + part->up.size();
  return bytes;
}

}  // namespace slmq
