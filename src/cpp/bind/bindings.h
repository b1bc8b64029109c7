// What the parts of the Python module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bind/released.h"
#include "layout/formats.h"

namespace slmq {

namespace py = pybind11;

struct Kernels;
struct Matrix;
enum class Gate : int;
enum class KvType : int;
enum class LowRankType : int;
enum class Pool : int;
enum class Scores : int;
enum class Unary : int;

// Where a name stands in a list; else an error that shows the list.
template <int count>
int place_of(const std::string& name, const char* const (&names)[count], const char* what) {
  std::string known;
  for (int i = 0; i < count; ++i) {
    if (name == names[i]) return i;
    known += std::string(i == 0 ? "'" : i + 1 < count ? ", '" : " or '") + names[i] + "'";
  }
  throw py::value_error(std::string(what) + ": expected " + known + ", got '" + name + "'");
}

Format format_named(const std::string& name);  // throws ValueError
inline constexpr const char* kDefaultActivations = "a8o16g32";
LowRankType low_rank_type_named(const std::string& name);  // throws ValueError
Activations activations_named(const std::string& name);    // throws ValueError
KvType kv_type_named(const std::string& name);             // throws ValueError
Unary unary_named(const std::string& name);                // throws ValueError
Gate gate_named(const std::string& name);                  // throws ValueError
Pool pool_named(const std::string& name);                  // throws ValueError
Scores scores_named(const std::string& name);              // throws ValueError
py::array_t<float> matmul(const Kernels& kernels, const Matrix& m, const py::object& x, int threads,
                          Activations activations);

void bind_system(py::module_& m);
void bind_matrix(py::module_& m);
void bind_kernels(py::module_& m);
void bind_logistic(py::module_& m);
void bind_plan(py::module_& m);
void bind_recording(py::module_& m);
void bind_quantizer(py::module_& m);
void bind_selftest(py::module_& m);
void bind_training(py::module_& m);
void bind_tuning(py::module_& m);

}  // namespace slmq
