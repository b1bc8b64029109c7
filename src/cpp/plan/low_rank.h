// The steps of a plan that takes adapters: products with A before a layer, with B within it.
#pragma once

#include <memory>
#include <vector>

#include "plan/step.h"

namespace slmq {

// Matrices that can be added to and multiply the same rows: the slot of the first, the buffer that they
// read, how many columns of it, and where their products begin.
struct LowRankInput {
  int first, x, k, column;
};

// t[:, column ...] = A x of every row's adapter; what no adapter asks for is left as it was.
std::unique_ptr<Step> low_rank_step(Domain domain, std::vector<LowRankInput> inputs, int out);

// y += B t for columns [column, column + count) of a matrix (multiples of 32), whose neighbours' products
// begin in column `products_at` of buffer `products`; rows [row, row + rows) of the run, y being the
// first of them.
struct LowRankUse {
  Domain domain;
  int slot, products, products_at;
};
void add_low_rank(const Run& run, const LowRankUse& use, int thread, int row, int rows, int column,
                  int count, float* y, int y_stride);
// Fetches what that reads of B into the first cache, if the rows are so few that they would wait for it.
void fetch_low_rank(const Run& run, const LowRankUse& use, int row, int column, int count);

}  // namespace slmq
