// Settings of the kernels that no result shows: what they are, what they cost, another choice.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/bindings.h"
#include "kernels/dispatch.h"
#include "kernels/tuning.h"
#include "probes/ahead.h"
#include "probes/tuned.h"

namespace slmq {
namespace {

// As Python has them: bytes, and whether into the second-level cache only. By class of weights,
// then of rows.
using AheadPair = std::pair<int, bool>;
using TuningLists = std::vector<std::vector<AheadPair>>;

constexpr int kMostBytes =
    1 << 20;  // beyond that nothing that was fetched is there when it is used

Ahead ahead_of(const AheadPair& pair) {
  if (pair.first < 0 || pair.first > kMostBytes)
    throw py::value_error("ahead: expected 0 to " + std::to_string(kMostBytes) + " bytes, got " +
                          std::to_string(pair.first));
  return {pair.first, pair.second};
}

TuningLists lists_of(const Tuning& tuning) {
  TuningLists lists;
  for (const auto& rows : tuning.weights) {
    lists.emplace_back();
    for (const Ahead& ahead : rows) lists.back().emplace_back(ahead.bytes, ahead.second_level);
  }
  return lists;
}

Tuning tuning_of(const TuningLists& lists) {
  Tuning tuning;
  if (lists.size() != Tuning::kWeightClasses)
    throw py::value_error("tuning: expected " + std::to_string(Tuning::kWeightClasses) +
                          " classes of weights, got " + std::to_string(lists.size()));
  for (size_t w = 0; w < lists.size(); ++w) {
    if (lists[w].size() != Tuning::kRowClasses)
      throw py::value_error("tuning: expected " + std::to_string(Tuning::kRowClasses) +
                            " classes of rows, got " + std::to_string(lists[w].size()));
    for (size_t r = 0; r < lists[w].size(); ++r) tuning.weights[w][r] = ahead_of(lists[w][r]);
  }
  return tuning;
}

std::vector<double> time_aheads(AheadTimer& timer, const std::string& format, int rows,
                                const std::vector<AheadPair>& candidates) {
  const Format stored = format_named(format);
  if (rows < 1 || rows > kPanelRows)
    throw py::value_error("rows: expected 1 to " + std::to_string(kPanelRows) + ", got " +
                          std::to_string(rows));
  std::vector<Ahead> aheads;
  for (const AheadPair& pair : candidates) aheads.push_back(ahead_of(pair));
  Released release;
  return timer.time(stored, rows, aheads);
}

}  // namespace

void bind_tuning(py::module_& m) {
  py::class_<AheadTimer>(m, "AheadTimer")
      .def(py::init([](const std::string& isa, size_t bytes) {
             const Kernels& kernels = kernels_named(isa);
             Released release;
             return std::make_unique<AheadTimer>(kernels, bytes);
           }),
           py::arg("isa"), py::arg("nbytes"))
      .def("time", &time_aheads, py::arg("format"), py::arg("rows"), py::arg("candidates"));
  m.def(
      "default_tuning",
      [](const std::string& isa) { return lists_of(default_tuning(kernels_named(isa))); },
      py::arg("isa"));
  m.def(
      "active_tuning",
      [](const std::string& isa) { return lists_of(active_tuning(kernels_named(isa))); },
      py::arg("isa"));
  m.def(
      "set_tuning",
      [](const std::string& isa, const TuningLists& lists) {
        set_tuning(kernels_named(isa), tuning_of(lists));
      },
      py::arg("isa"), py::arg("tuning"));
}

}  // namespace slmq
