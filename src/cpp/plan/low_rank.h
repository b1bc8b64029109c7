// The steps of a plan that takes adapters: products with A before a layer, with B within it.
#pragma once

#include <memory>
#include <vector>

#include "plan/step.h"

namespace slmq {

// A matrix that can be added to: its slot, the buffer that it reads, and how many columns of it.
struct LowRankInput {
  int slot, x, k;
};

// t[:, 256 i ...] = A_i x_i of row's adapter, for several matrices; what no adapter asks for is left as
// it was.
std::unique_ptr<Step> low_rank_step(Domain domain, std::vector<LowRankInput> inputs, int out);

// y += B t for columns [column, column + count) of a matrix (multiples of 32), whose products are columns
// [256 * part, ...) of buffer `products`; rows [row, row + rows) of the run, y being the first of them.
struct LowRankUse {
  Domain domain;
  int slot, products, part;
};
void add_low_rank(const Run& run, const LowRankUse& use, int thread, int row, int rows, int column,
                  int count, float* y, int y_stride);

}  // namespace slmq
