// Logistic regression in float64, for slmq.embedding.logistic.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "training/logistic.h"

namespace slmq {
namespace {

using F64 = py::array_t<double>;

std::shared_ptr<Regression> make_regression(const py::handle& x, const std::vector<int>& y,
                                            int classes) {
  const auto array = checked_array<double>(x, {-1, -1}, "x");
  const auto rows = static_cast<int>(array.shape(0)), columns = static_cast<int>(array.shape(1));
  if (rows < 1 || y.size() != static_cast<size_t>(rows))
    throw std::invalid_argument("y: expected a class for each of " + std::to_string(rows) +
                                " rows and at least one, got " + std::to_string(y.size()));
  for (const int one : y)
    if (one < 0 || one >= classes)
      throw std::invalid_argument("y: expected classes below " + std::to_string(classes) +
                                  ", got " + std::to_string(one));
  auto made = std::make_shared<Regression>();
  made->x.assign(array.data(), array.data() + array.size());
  made->across.resize(made->x.size());
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c)
      made->across[static_cast<size_t>(c) * rows + r] =
          made->x[static_cast<size_t>(r) * columns + c];
  made->y = y;
  made->rows = rows;
  made->columns = columns;
  made->classes = classes;
  return made;
}

F64 checked_weights(const Regression& of, const py::handle& weights) {
  return checked_array<double>(weights, {of.classes, of.columns + 1}, "weights");
}

py::tuple cost(const Regression& self, const py::handle& weights, double penalty) {
  const F64 given = checked_weights(self, weights);
  F64 slope({self.classes, self.columns + 1});
  double value;
  {
    double* to = slope.mutable_data();
    const Released release;
    value = self.cost(given.data(), penalty, to);
  }
  return py::make_tuple(value, slope);
}

F64 scores(const Regression& self, const py::handle& weights) {
  const F64 given = checked_weights(self, weights);
  F64 found({self.classes, self.rows});
  self.scores(given.data(), found.mutable_data());
  return found;
}

F64 log_probabilities_of(const py::handle& scores) {
  const auto array = checked_array<double>(scores, {-1, -1}, "scores");
  if (array.shape(1) == 0) throw std::invalid_argument("scores: expected some columns, got none");
  F64 found({array.shape(0), array.shape(1)});
  std::copy(array.data(), array.data() + array.size(), found.mutable_data());
  for (py::ssize_t row = 0; row < array.shape(0); ++row)
    log_probabilities(found.mutable_data(row, 0), static_cast<int>(array.shape(1)));
  return found;
}

}  // namespace

void bind_logistic(py::module_& m) {
  using py::arg;
  py::class_<Regression, std::shared_ptr<Regression>>(m, "Regression")
      .def(py::init(&make_regression), arg("x"), arg("y"), arg("classes"))
      .def("cost", &cost, arg("weights"), arg("penalty"))
      .def("scores", &scores, arg("weights"));
  m.def("log_probabilities", &log_probabilities_of, arg("scores"));
}

}  // namespace slmq
