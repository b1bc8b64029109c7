// Low-rank additions to the linear layers of a plan (Hu et al., "LoRA", 2021): y += B (A x), for the
// rows of a run that ask for them; and, times a factor each (Liu et al., "DoRA", 2024) or with another
// bias, y = factor (W x + B (A x)) + bias.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/kernels.h"
#include "layout/memory.h"

namespace slmq {

// The size of a matrix that can be added to; its number is its slot. Matrices that multiply the same
// rows in one step are neighbours: `first` is the slot of the first of them. `rounded`: it multiplies
// activations with a scale a group.
struct SlotSize {
  int n, k, first;
  bool rounded;
};
using Slots = std::vector<SlotSize>;

// Bytes of sixteen rows: [columns][16], of i8 codes less 128 as [columns / 4][16][4] and a scale a row.
constexpr size_t low_rank_tile_bytes(LowRankType type, int columns) {
  const size_t numbers = static_cast<size_t>(columns) * kLanes;
  if (type == LowRankType::i8) return numbers + kLanes * sizeof(float);
  return numbers * (type == LowRankType::f16 ? 2 : 4);
}

// One matrix's addition, as kernels take it.
struct LowRank {
  LowRankType type;
  int rank = 0;           // columns of B: of i8 rounded up to 16
  int column = 0;         // of its products among those of its neighbours
  uint8_t* up = nullptr;  // B: tiles of its rows, an even number
  std::vector<float> factor,
      bias;  // of the outputs, padded to pairs; empty: 1, and the matrix's own
  bool changes() const { return !factor.empty() || !bias.empty(); }       // more than the sum
  int place() const { return static_cast<int>(round_up(rank, kLanes)); }  // of its products
  size_t tile_bytes() const { return low_rank_tile_bytes(type, rank); }
};

// A of neighbours, behind each other: one product serves them all.
struct LowRankStack {
  LowRankType type;
  int tiles = 0, columns = 0;  // of i8 rounded up to groups
  uint8_t* down = nullptr;     // a matrix takes rank / 16 tiles, rounded up
  std::vector<const LowRank*> parts;
  size_t bytes() const { return static_cast<size_t>(tiles) * low_rank_tile_bytes(type, columns); }
};

struct LowRankSource {
  int slot, rank;
  std::vector<float> down, up;      // A [rank][k], B [n][rank]
  std::vector<float> factor, bias;  // n each, or empty
};

class Adapter {
 public:
  // Matrices that meet no rounded activations are of f16 where the others are of i8. Throws
  // std::invalid_argument if a slot or a size is wrong or a slot comes twice.
  Adapter(std::shared_ptr<const Slots> slots, std::vector<LowRankSource> sources, LowRankType type);

  const LowRank* find(int slot) const {
    const std::optional<LowRank>& found = parts_[slot];
    return found ? &*found : nullptr;
  }
  // Of neighbours, by the first's slot; without tiles if nothing is added to any of them.
  const LowRankStack& stack(int first) const { return stacks_[first]; }
  int widest() const { return widest_; }
  size_t bytes() const { return memory_.size(); }
  const Slots* slots() const { return slots_.get(); }

 private:
  void place();

  const std::shared_ptr<const Slots> slots_;
  std::vector<std::optional<LowRank>> parts_;  // by slot
  std::vector<LowRankStack> stacks_;           // by the first slot of neighbours
  int widest_ = 0;                             // products of a row with one of them
  Memory memory_;  // all matrices, in the order in which steps read them
};

}  // namespace slmq
