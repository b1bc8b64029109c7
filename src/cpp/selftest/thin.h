// Matrices of adapters in eight bits, and products with them.
#pragma once

#include <algorithm>
#include <vector>

#include "layout/memory.h"
#include "kernels/kernels.h"
#include "selftest/inputs.h"

namespace slmq::selftest {

// Tiles of codes with their scales.
inline Memory thin_tiles(Inputs* inputs, int tiles, int columns) {
  const size_t codes = static_cast<size_t>(columns) * kLanes;
  const size_t bytes = codes + kLanes * sizeof(float);
  Memory memory(static_cast<size_t>(tiles) * bytes + 512);
  for (int tile = 0; tile < tiles; ++tile) {
    uint8_t* to = memory.data() + static_cast<size_t>(tile) * bytes;
    std::generate_n(to, codes, [&] { return static_cast<uint8_t>(inputs->bits()); });
    const std::vector<float> scales = inputs->values(kLanes);
    std::copy_n(scales.data(), kLanes, reinterpret_cast<float*>(to + codes));
  }
  return memory;
}

// B of so many columns, and what it multiplies: rounded products of some rows with A.
class ThinUp {
 public:
  ThinUp(Inputs* inputs, const Kernels& kernels, int columns, int rank, int rows)
      : rank_(rank),
        stride_(rank + kLanes),
        b_(thin_tiles(inputs, columns / kLanes, rank)),
        products_(inputs->values(static_cast<size_t>(rows) * stride_)) {
    kernels.low_rank_round(products_.data(), stride_, rows, rank);
  }
  LowRankUp args() const { return {b_.data(), rank_, products_.data(), rank_, stride_}; }

 private:
  const int rank_, stride_;
  const Memory b_;
  std::vector<float> products_;
};

}  // namespace slmq::selftest
