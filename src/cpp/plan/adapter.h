// Low-rank additions to the linear layers of a plan (Hu et al., "LoRA", 2021): y += B (A x), for the
// rows of a run that ask for them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/kernels.h"
#include "layout/memory.h"

namespace slmq {

inline constexpr int kMaxRank = 256;  // of one matrix; every matrix has room for as many products

// The size of a matrix that can be added to; its number is its slot. Matrices that multiply the same
// rows in one step are neighbours: `first` is the slot of the first of them.
struct SlotSize {
  int n, k, first;
};
using Slots = std::vector<SlotSize>;

// One matrix's addition, as kernels take it.
struct LowRank {
  int rank = 0;
  int column = 0;             // of its products among those of its neighbours
  Memory up;                  // B: [n / 32, rounded up, times 2][rank][16]
  std::vector<float> scales;  // of its rows, if they are of i8
};

// A of neighbours, behind each other: one product serves them all.
struct LowRankStack {
  int tiles = 0;
  Memory down;  // [tiles][k][16], a matrix taking rank / 16 of them, rounded up
  std::vector<float> scales;
};

struct LowRankSource {
  int slot, rank;
  std::vector<float> down, up;  // A [rank][k], B [n][rank]
};

class Adapter {
 public:
  // Throws std::invalid_argument if a slot or a size is wrong or a slot comes twice.
  Adapter(std::shared_ptr<const Slots> slots, const std::vector<LowRankSource>& sources,
          LowRankType type);

  const LowRank* find(int slot) const {
    const std::optional<LowRank>& found = parts_[slot];
    return found ? &*found : nullptr;
  }
  // Of neighbours, by the first's slot; without tiles if nothing is added to any of them.
  const LowRankStack& stack(int first) const { return stacks_[first]; }
  int type() const { return static_cast<int>(type_); }  // of Kernels::low_rank
  size_t element_bytes() const;
  size_t bytes() const;
  const Slots* slots() const { return slots_.get(); }

 private:
  const std::shared_ptr<const Slots> slots_;
  const LowRankType type_;
  std::vector<std::optional<LowRank>> parts_;  // by slot
  std::vector<LowRankStack> stacks_;           // by the first slot of neighbours
};

}  // namespace slmq
