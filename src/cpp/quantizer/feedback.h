// Error feedback across columns: what a column loses to rounding, later columns make up for.
//
// With H = X^T X of the inputs, a row's output error is e H e^T, e = w - rounded(w). Written as
// H = (U + 1) D (U + 1)^T, U strictly upper triangular, it is the sum over the columns j of
// D[j] * (target[j] - rounded[j])^2 with target[j] = w[j] + sum over i < j of e[i] * U[i][j]: each
// column is rounded towards its target. That is GPTQ (Frantar et al., 2023) in the form of LDLQ
// (Chee et al., 2023), which needs no inverse of H.
#pragma once

#include <cstdint>

#include "quantizer/search.h"

namespace slmq {

// Replaces the lower triangle of H [k][k], float64, by U transposed, and D on its diagonal.
// Rows of a block of columns are handed to `each`, which calls work(context, row) for all rows
// 0..rows-1 in any order, on any threads. False if H is not positive definite.
using RowWork = void (*)(void* context, int row);
using EachRow = void (*)(void* opaque, int rows, RowWork work, void* context);
bool factor(double* h, int k, EachRow each, void* opaque);

struct FeedbackArgs {
  RoundArgs round;        // its importance is not used
  const float* feedback;  // U transposed: [k][k], row j holds U[i][j] for i < j
  const float* weight;    // D: [k]
};

inline constexpr int kFeedbackRows = 16;  // rows that are rounded together

// Rows of block `block` (16 rows). False if some scale does not fit.
bool feedback_block(const FeedbackArgs& args, int block);

// Improves a rounded matrix, 16 rows at a time: group by group, codes and then scale and min take
// the values that lower the output error e H e^T, all else as it stands. H [k][k] is symmetric.
void refine_block(const RoundArgs& args, const float* h, int sweeps, int block);

}  // namespace slmq
