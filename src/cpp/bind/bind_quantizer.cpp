// Search of scales and error feedback, for slmq.quantizer.
#include <algorithm>
#include <atomic>
#include <string>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "threads/pool.h"
#include "quantizer/feedback.h"
#include "quantizer/search.h"

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

constexpr const char* kTooLarge = "a weight or its scale is too large for float16";

// Where a matrix is read from and its codes are written to; keeps the arrays alive.
struct Rounding {
  py::array_t<float> w, importance, d, dmin;
  py::array_t<uint8_t> codes;
  py::array_t<float> scales, mins;
  RoundArgs args;

  py::tuple tuple() const { return py::make_tuple(codes, scales, mins); }
};

// grid: columns, low, high, zero, has_min. stored: kind, low, high, groups per d. units: d, dmin as
// float32[n, ...], or None.
Rounding rounding_of(const py::object& object, const py::tuple& grid, const py::tuple& stored,
                     const py::object& units) {
  Rounding r;
  r.w = checked_array<float>(object, {-1, -1}, "w");
  const py::ssize_t n = r.w.shape(0), k = r.w.shape(1);
  if (n < 1 || k < 1 || n > (1 << 28) || k > (1 << 28))
    throw py::value_error("w: expected 1..2^28 rows and columns");
  if (grid.size() != 5 || stored.size() != 4)
    throw py::value_error("expected a grid of 5 numbers and 4 on what is stored");
  RoundArgs& a = r.args;
  a.columns = grid[0].cast<int>();
  a.grid = {grid[1].cast<int>(), grid[2].cast<int>(), grid[3].cast<int>(), grid[4].cast<bool>()};
  if (a.columns < 8 || a.columns > kMaxGroup || a.columns % 8 != 0)
    throw py::value_error("expected groups of 8..128 columns, a multiple of 8, got " +
                          std::to_string(a.columns));
  if (a.grid.low > 0 || a.grid.high < 1 || a.grid.zero + a.grid.low < 0 ||
      a.grid.zero + a.grid.high > 255 || (!a.grid.has_min && a.grid.low == 0))
    throw py::value_error("expected levels low <= 0 < high whose codes fit a byte");
  const int kind = stored[0].cast<int>();
  if (kind < 0 || kind > static_cast<int>(Stored::zero_point))
    throw py::value_error("expected 0 (halves), 1 (multiples) or 2 (zero point)");
  a.stored = {static_cast<Stored>(kind), stored[1].cast<int>(), stored[2].cast<int>(), 0, 0};
  a.groups_per_unit = stored[3].cast<int>();
  if (a.groups_per_unit < 1) throw py::value_error("expected at least one group per d");
  a.n = static_cast<int>(n);
  a.k = static_cast<int>(k);
  a.w = r.w.data();
  a.importance = nullptr;
  a.d = a.dmin = nullptr;
  if (!units.is_none()) {
    const auto both = units.cast<py::tuple>();
    if (both.size() != 2) throw py::value_error("expected d and dmin");
    r.d = checked_array<float>(both[0], {n, a.units()}, "d");
    r.dmin = checked_array<float>(both[1], {n, a.units()}, "dmin");
    a.d = r.d.data();
    a.dmin = r.dmin.data();
  }
  r.codes = py::array_t<uint8_t>({n, k});
  r.scales = py::array_t<float>({n, static_cast<py::ssize_t>(a.groups())});
  r.mins = py::array_t<float>({n, static_cast<py::ssize_t>(a.groups())});
  a.codes = r.codes.mutable_data();
  a.scales = r.scales.mutable_data();
  a.mins = r.mins.mutable_data();
  return r;
}

py::tuple search(const py::object& w, const py::object& importance, const py::tuple& grid,
                 const py::tuple& stored, const py::object& units, int threads) {
  Rounding r = rounding_of(w, grid, stored, units);
  if (!importance.is_none()) {
    r.importance = checked_array<float>(importance, {r.w.shape(1)}, "importance");
    r.args.importance = r.importance.data();
  }
  std::atomic<bool> fits{true};
  {
    py::gil_scoped_release release;
    for_each_item(threads, r.args.n, [&](int row) {
      if (!search_rows(r.args, row, row + 1)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return r.tuple();
}

py::tuple feedback(const py::object& w, const py::object& coupling, const py::object& weight,
                   const py::tuple& grid, const py::tuple& stored, const py::object& units,
                   int threads) {
  Rounding r = rounding_of(w, grid, stored, units);
  const py::ssize_t k = r.w.shape(1);
  const auto u = checked_array<float>(coupling, {k, k}, "coupling");
  const auto d = checked_array<float>(weight, {k}, "weight");
  const FeedbackArgs args{r.args, u.data(), d.data()};
  std::atomic<bool> fits{true};
  {
    py::gil_scoped_release release;
    const int blocks = (r.args.n + kFeedbackRows - 1) / kFeedbackRows;
    for_each_item(threads, blocks, [&](int block) {
      if (!feedback_block(args, block)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return r.tuple();
}

py::tuple refine(const py::object& w, const py::tuple& rounded, const py::object& h,
                 const py::tuple& grid, const py::tuple& stored, const py::object& units,
                 int sweeps, int threads) {
  Rounding r = rounding_of(w, grid, stored, units);
  const py::ssize_t n = r.w.shape(0), k = r.w.shape(1), groups = r.args.groups();
  if (rounded.size() != 3) throw py::value_error("expected codes, scales and mins");
  const auto codes = checked_array<uint8_t>(rounded[0], {n, k}, "codes");
  const auto scales = checked_array<float>(rounded[1], {n, groups}, "scales");
  const auto mins = checked_array<float>(rounded[2], {n, groups}, "mins");
  std::copy(codes.data(), codes.data() + codes.size(), r.args.codes);
  std::copy(scales.data(), scales.data() + scales.size(), r.args.scales);
  std::copy(mins.data(), mins.data() + mins.size(), r.args.mins);
  const auto gram = checked_array<float>(h, {k, k}, "h");
  {
    py::gil_scoped_release release;
    const int blocks = (r.args.n + kFeedbackRows - 1) / kFeedbackRows;
    for_each_item(threads, blocks,
                  [&](int block) { refine_block(r.args, gram.data(), sweeps, block); });
  }
  return r.tuple();
}

// In place: h may be the largest array of all.
py::tuple factorize(const py::object& object, int threads) {
  auto work = checked_array<double>(object, {-1, -1}, "h");
  const py::ssize_t k = work.shape(0);
  if (work.shape(1) != k || k < 1 || k > (1 << 20))
    throw py::value_error("h: expected float64[k, k]");
  py::array_t<float> coupling({k, k});
  py::array_t<float> weight(k);
  bool ok;
  {
    py::gil_scoped_release release;
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
  return py::make_tuple(coupling, weight);
}

}  // namespace

void bind_quantizer(py::module_& m) {
  using py::arg;
  m.def("search_scales", &search, arg("w"), arg("importance"), arg("grid"), arg("stored"),
        arg("units"), arg("threads") = 1);
  m.def("round_with_feedback", &feedback, arg("w"), arg("coupling"), arg("weight"), arg("grid"),
        arg("stored"), arg("units"), arg("threads") = 1);
  m.def("refine_rounding", &refine, arg("w"), arg("rounded"), arg("h"), arg("grid"), arg("stored"),
        arg("units"), arg("sweeps"), arg("threads") = 1);
  m.def("factorize", &factorize, arg("h"), arg("threads") = 1);
}

}  // namespace slmq
