#include "training/logistic.h"

#include <algorithm>

#include "machine/math64.h"

namespace slmq {
namespace {

constexpr int kAtOnce = 4;  // terms of a sum that is loaded and stored once, added in order

// to[i] += factor[j] * from[j][i] for j = 0..count-1, in that order
void add_products(const double* factor, const double* const* from, int count, int n, double* to) {
  if (count == kAtOnce) {
    const double *a = from[0], *b = from[1], *c = from[2], *d = from[3];
    for (int i = 0; i < n; ++i) {
      double sum = to[i];
      sum += factor[0] * a[i];
      sum += factor[1] * b[i];
      sum += factor[2] * c[i];
      sum += factor[3] * d[i];
      to[i] = sum;
    }
    return;
  }
  for (int j = 0; j < count; ++j)
    for (int i = 0; i < n; ++i) to[i] += factor[j] * from[j][i];
}

// to[n] += the sum over `terms` lines of n values, each times its factor
void add_lines(const double* factors, const double* lines, int terms, int n, double* to) {
  for (int begin = 0; begin < terms; begin += kAtOnce) {
    const int count = std::min(kAtOnce, terms - begin);
    double factor[kAtOnce];
    const double* from[kAtOnce];
    for (int j = 0; j < count; ++j) {
      factor[j] = factors[begin + j];
      from[j] = lines + static_cast<size_t>(begin + j) * n;
    }
    add_products(factor, from, count, n, to);
  }
}

}  // namespace

void log_probabilities(double* scores, int count) {
  const double top = *std::max_element(scores, scores + count);
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += exact_exp(scores[i] - top);
  const double log_sum = exact_log(sum);
  for (int i = 0; i < count; ++i) scores[i] = scores[i] - top - log_sum;
}

void Regression::scores(const double* weights, double* scores) const {
  for (int c = 0; c < classes; ++c) {
    const double* w = weights + static_cast<size_t>(c) * (columns + 1);
    double* to = scores + static_cast<size_t>(c) * rows;
    std::fill(to, to + rows, w[columns]);
    add_lines(w, across.data(), columns, rows, to);
  }
}

double Regression::cost(const double* weights, double penalty, double* slope) const {
  std::vector<double> gaps(static_cast<size_t>(classes) * rows), row(classes);
  scores(weights, gaps.data());
  double loss = 0.0;
  for (int r = 0; r < rows; ++r) {
    double* score = gaps.data() + r;
    for (int c = 0; c < classes; ++c) row[c] = score[static_cast<size_t>(c) * rows];
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0.0;
    loss += top - row[y[r]];
    for (double& one : row) sum += one = exact_exp(one - top);
    loss += exact_log(sum);
    for (int c = 0; c < classes; ++c)
      score[static_cast<size_t>(c) * rows] = (row[c] / sum - (c == y[r] ? 1 : 0)) / rows;
  }
  double squares = 0.0;
  for (int c = 0; c < classes; ++c) {
    const double* w = weights + static_cast<size_t>(c) * (columns + 1);
    const double* gap = gaps.data() + static_cast<size_t>(c) * rows;
    double* to = slope + static_cast<size_t>(c) * (columns + 1);
    for (int i = 0; i < columns; ++i) {
      to[i] = penalty * w[i];
      squares += w[i] * w[i];
    }
    add_lines(gap, x.data(), rows, columns, to);
    to[columns] = 0.0;
    for (int r = 0; r < rows; ++r) to[columns] += gap[r];
  }
  return loss / rows + penalty / 2 * squares;
}

}  // namespace slmq
