// Multinomial logistic regression in float64: its cost and slope, with sums in a written order, so that
// a head that is trained has the same bits on every CPU.
#pragma once

#include <cstddef>
#include <vector>

namespace slmq {

// Logarithms of the probabilities of `count` scores, in place.
void log_probabilities(double* scores, int count);

// Rows of columns with a class each.
struct Regression {
  std::vector<double> x, across;  // [rows][columns], and [columns][rows]
  std::vector<int> y;
  int rows, columns, classes;

  // scores[classes][rows] of weights[classes][columns + 1], whose last column is the bias.
  void scores(const double* weights, double* scores) const;
  // The mean of -log(probability of the row's class), plus penalty / 2 times the squared weights without
  // biases; slope like weights.
  double cost(const double* weights, double penalty, double* slope) const;
};

}  // namespace slmq
