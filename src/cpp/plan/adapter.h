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

// The size of a matrix that can be added to; its number is its slot.
struct SlotSize {
  int n, k;
};
using Slots = std::vector<SlotSize>;

// One matrix's addition, as kernels take it.
struct LowRank {
  int rank = 0;
  Memory down;  // A: [rank / 16, rounded up][k][16]
  Memory up;    // B: [n / 32, rounded up, times 2][rank][16]
};

struct LowRankSource {
  int slot, rank;
  std::vector<float> down, up;  // A [rank][k], B [n][rank]
};

class Adapter {
 public:
  // Throws std::invalid_argument if a slot or a size is wrong or a slot comes twice.
  Adapter(std::shared_ptr<const Slots> slots, const std::vector<LowRankSource>& sources, bool half);

  const LowRank* find(int slot) const {
    const std::optional<LowRank>& found = parts_[slot];
    return found ? &*found : nullptr;
  }
  int type() const { return half_ ? 0 : 1; }  // of Kernels::low_rank
  size_t element_bytes() const { return half_ ? 2 : 4; }
  size_t bytes() const;
  const Slots* slots() const { return slots_.get(); }

 private:
  const std::shared_ptr<const Slots> slots_;
  const bool half_;
  std::vector<std::optional<LowRank>> parts_;  // by slot
};

}  // namespace slmq
