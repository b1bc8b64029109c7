// Search of scales and error feedback, for slmq.quantizer.
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/dispatch.h"
#include "threads/pool.h"
#include "quantizer/factor.h"
#include "quantizer/rounding.h"

namespace slmq {
namespace {

// Calls body(item) for items 0..count-1, on all threads of the pool.
template <class Body>
void for_each_item(int threads, int count, Body body) {
  struct Shared {
    Body& body;
    int count;
    std::atomic<int> next{0};
  } shared{body, count};
  const auto task = [](void* opaque, int) {
    auto& s = *static_cast<Shared*>(opaque);
    for (int item; (item = s.next.fetch_add(1)) < s.count;) s.body(item);
  };
  shared_pool(threads)->run(task, &shared);
}

// The groups of a format: what their codes are and how their scales are stored.
struct Groups {
  int columns;
  Grid grid;
  Scales stored;
  int per_unit;  // groups that share a d
};

// What groups share: d and dmin, float32[n, units].
struct Units {
  py::array_t<float> d, dmin;
};

// A rounded matrix: codes uint8[n, k], scales and mins float32[n, groups].
struct Rounding {
  py::array_t<uint8_t> codes;
  py::array_t<float> scales, mins;
};

// H as FeedbackArgs takes it: float32[k, k] and float32[k].
struct Factors {
  py::array_t<float> coupling, weight;
};

constexpr const char* kTooLarge = "a weight or its scale is too large for float16";

Table table_of(const std::vector<int>& values, int lift) {
  Table table{};
  if (values.size() > Table::kMost)
    throw py::value_error("expected a table of at most 16 values, got " +
                          std::to_string(values.size()));
  table.count = static_cast<int>(values.size());
  table.lift = static_cast<float>(lift);
  for (size_t i = 0; i < values.size(); ++i) {
    table.values[i] = static_cast<float>(values[i]);
    if (i == 0) continue;
    if (values[i] <= values[i - 1]) throw py::value_error("expected values that ascend");
    table.steps[i - 1] = table.values[i] - table.values[i - 1];
    table.middles[i - 1] = 0.5f * (table.values[i] + table.values[i - 1]);
  }
  return table;
}

Groups groups_of(int columns, int low, int high, int zero, bool has_min, const std::string& stored,
                 int scale_low, int scale_high, int per_unit, const std::vector<int>& values,
                 int lift) {
  if (columns < 8 || columns > kMaxGroup || columns % 8 != 0)
    throw py::value_error("expected groups of 8..128 columns, a multiple of 8, got " +
                          std::to_string(columns));
  if (low > 0 || high < 1 || zero + low < 0 || zero + high > 255 || (!has_min && low == 0))
    throw py::value_error("expected levels low <= 0 < high whose codes fit a byte");
  if (!values.empty() && (has_min || low != values.front() || high != values.back()))
    throw py::value_error("expected a table from low to high, and no min");
  if (per_unit < 1) throw py::value_error("expected at least one group per d");
  return {columns,
          {low, high, zero, has_min, table_of(values, lift)},
          {static_cast<Stored>(place_of(stored, kStoredNames, "stored")), scale_low, scale_high,
           0.0f, 0.0f},
          per_unit};
}

// Where a matrix is read from and its codes are written to; keeps the arrays alive.
struct Work {
  py::array_t<float> w, importance;
  std::optional<Units> units;
  Rounding result;
  RoundArgs args;
};

Work work_of(const py::object& object, const Groups& groups, const std::optional<Units>& units) {
  Work work;
  work.w = checked_array<float>(object, {-1, -1}, "w");
  const py::ssize_t n = work.w.shape(0), k = work.w.shape(1);
  if (n < 1 || k < 1 || n > (1 << 28) || k > (1 << 28))
    throw py::value_error("w: expected 1..2^28 rows and columns");
  RoundArgs& a = work.args;
  a = {};
  a.grid = groups.grid;
  a.w = work.w.data();
  a.n = static_cast<int>(n);
  a.k = static_cast<int>(k);
  a.columns = groups.columns;
  a.stored = groups.stored;
  a.groups_per_unit = groups.per_unit;
  if (units) {
    work.units = Units{checked_array<float>(units->d, {n, a.units()}, "d"),
                       checked_array<float>(units->dmin, {n, a.units()}, "dmin")};
    a.d = work.units->d.data();
    a.dmin = work.units->dmin.data();
  }
  work.result.codes = py::array_t<uint8_t>({n, k});
  work.result.scales = py::array_t<float>({n, static_cast<py::ssize_t>(a.groups())});
  work.result.mins = py::array_t<float>({n, static_cast<py::ssize_t>(a.groups())});
  a.codes = work.result.codes.mutable_data();
  a.scales = work.result.scales.mutable_data();
  a.mins = work.result.mins.mutable_data();
  return work;
}

// Calls body(block, scratch) for all blocks of rows.
template <class Body>
void for_each_block(int threads, const RoundArgs& args, Body body) {
  const int blocks = (args.n + kRoundedRows - 1) / kRoundedRows;
  for_each_item(threads, blocks, [&](int block) {
    std::vector<float> scratch(rounding_scratch(args));
    body(block, scratch.data());
  });
}

Rounding search(const py::object& w, const py::object& importance, const Groups& groups,
                const std::optional<Units>& units, int threads) {
  Work r = work_of(w, groups, units);
  if (!importance.is_none()) {
    r.importance = checked_array<float>(importance, {r.w.shape(1)}, "importance");
    r.args.importance = r.importance.data();
  }
  const Kernels& kernels = active_kernels();
  std::atomic<bool> fits{true};
  {
    Released release;
    for_each_item(threads, r.args.n, [&](int row) {
      if (!kernels.search_rows(r.args, row, row + 1)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return r.result;
}

Rounding feedback(const py::object& w, const Factors& factors, const Groups& groups,
                  const std::optional<Units>& units, int threads) {
  Work r = work_of(w, groups, units);
  const py::ssize_t k = r.w.shape(1);
  const auto u = checked_array<float>(factors.coupling, {k, k}, "coupling");
  const auto d = checked_array<float>(factors.weight, {k}, "weight");
  const FeedbackArgs args{r.args, u.data(), d.data()};
  const Kernels& kernels = active_kernels();
  std::atomic<bool> fits{true};
  {
    Released release;
    for_each_block(threads, r.args, [&](int block, float* scratch) {
      if (!kernels.feedback_block(args, block, scratch)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return r.result;
}

Rounding refine(const py::object& w, const Rounding& rounding, const py::object& h,
                const Groups& groups, const std::optional<Units>& units, int sweeps, int threads) {
  Work r = work_of(w, groups, units);
  const py::ssize_t n = r.w.shape(0), k = r.w.shape(1), count = r.args.groups();
  const auto codes = checked_array<uint8_t>(rounding.codes, {n, k}, "codes");
  const auto scales = checked_array<float>(rounding.scales, {n, count}, "scales");
  const auto mins = checked_array<float>(rounding.mins, {n, count}, "mins");
  std::copy(codes.data(), codes.data() + codes.size(), r.args.codes);
  std::copy(scales.data(), scales.data() + scales.size(), r.args.scales);
  std::copy(mins.data(), mins.data() + mins.size(), r.args.mins);
  const auto gram = checked_array<float>(h, {k, k}, "h");
  const Kernels& kernels = active_kernels();
  {
    Released release;
    for_each_block(threads, r.args, [&](int block, float* scratch) {
      kernels.refine_block(r.args, gram.data(), sweeps, block, scratch);
    });
  }
  return r.result;
}

// In place: h may be the largest array of all.
Factors factorize(const py::object& object, int threads) {
  auto work = checked_array<double>(object, {-1, -1}, "h");
  const py::ssize_t k = work.shape(0);
  if (work.shape(1) != k || k < 1 || k > (1 << 20))
    throw py::value_error("h: expected float64[k, k]");
  py::array_t<float> coupling({k, k});
  py::array_t<float> weight(k);
  bool ok;
  {
    Released release;
    const auto each = [](void* opaque, int rows, RowWork task, void* context) {
      for_each_item(*static_cast<int*>(opaque), rows, [&](int row) { task(context, row); });
    };
    ok = factor(work.mutable_data(), static_cast<int>(k), each, &threads);
  }
  if (!ok) throw py::value_error("h: expected a positive definite matrix; raise the damping");
  for (py::ssize_t j = 0; j < k; ++j) {
    weight.mutable_at(j) = static_cast<float>(work.at(j, j));
    for (py::ssize_t i = 0; i < k; ++i)
      coupling.mutable_at(j, i) = i < j ? static_cast<float>(work.at(j, i)) : 0.0f;
  }
  return {coupling, weight};
}

}  // namespace

void bind_quantizer(py::module_& m) {
  using py::arg;
  py::class_<Groups>(m, "Groups")
      .def(py::init(&groups_of), py::kw_only(), arg("columns"), arg("low"), arg("high"),
           arg("zero"), arg("has_min"), arg("stored"), arg("scale_low"), arg("scale_high"),
           arg("per_unit"), arg("values") = std::vector<int>(), arg("lift") = 0);
  py::class_<Units>(m, "Units")
      .def(py::init([](const py::object& d, const py::object& dmin) {
             return Units{checked_array<float>(d, {-1, -1}, "d"),
                          checked_array<float>(dmin, {-1, -1}, "dmin")};
           }),
           py::kw_only(), arg("d"), arg("dmin"))
      .def_readonly("d", &Units::d)
      .def_readonly("dmin", &Units::dmin);
  py::class_<Rounding>(m, "Rounding")
      .def_readonly("codes", &Rounding::codes)
      .def_readonly("scales", &Rounding::scales)
      .def_readonly("mins", &Rounding::mins);
  py::class_<Factors>(m, "Factors")
      .def_readonly("coupling", &Factors::coupling)
      .def_readonly("weight", &Factors::weight);
  m.def("search_scales", &search, arg("w"), arg("importance"), arg("groups"), arg("units"),
        arg("threads") = 1);
  m.def("round_with_feedback", &feedback, arg("w"), arg("factors"), arg("groups"), arg("units"),
        arg("threads") = 1);
  m.def("refine_rounding", &refine, arg("w"), arg("rounding"), arg("h"), arg("groups"),
        arg("units"), arg("sweeps"), arg("threads") = 1);
  m.def("factorize", &factorize, arg("h"), arg("threads") = 1);
}

}  // namespace slmq
