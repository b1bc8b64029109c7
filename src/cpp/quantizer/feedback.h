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
  Grid grid;
  const float* w;         // [n][k]
  const float* feedback;  // U transposed: [k][k], row j holds U[i][j] for i < j
  const float* weight;    // D: [k]
  int n, k, columns;
  uint8_t* codes;           // [n][k]
  uint16_t *scales, *mins;  // float16 [n][groups]
};

inline constexpr int kFeedbackRows = 16;  // rows that are rounded together

// Rows of block `block` (16 rows). False if some scale does not fit float16.
bool feedback_block(const FeedbackArgs& args, int block);

}  // namespace slmq
