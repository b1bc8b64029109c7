// The factors of second moments by which rounding with feedback hands errors on.
#pragma once

namespace slmq {

// Replaces the lower triangle of H [k][k], float64, by U transposed, and D on its diagonal.
// Rows of a block of columns are handed to `each`, which calls work(context, row) for all rows
// 0..rows-1 in any order, on any threads. False if H is not positive definite.
using RowWork = void (*)(void* context, int row);
using EachRow = void (*)(void* opaque, int rows, RowWork work, void* context);
bool factor(double* h, int k, EachRow each, void* opaque);

}  // namespace slmq
