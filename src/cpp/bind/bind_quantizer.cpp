// Search of scales and error feedback, for slmq.quantizer.
#include <atomic>
#include <string>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "core/pool.h"
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

Grid grid_of(int low, int high, int zero, bool has_min) {
  if (low > 0 || high < 1 || zero + low < 0 || zero + high > 255 || (!has_min && low == 0))
    throw py::value_error("expected levels low <= 0 < high whose codes fit a byte");
  return {low, high, zero, has_min};
}

struct Codes {  // what both ways of rounding fill
  py::array_t<uint8_t> codes;
  py::array_t<uint16_t> scales, mins;

  Codes(py::ssize_t n, py::ssize_t k, py::ssize_t columns)
      : codes({n, k}),
        scales({n, (k + columns - 1) / columns}),
        mins({n, (k + columns - 1) / columns}) {}
  py::tuple tuple() const {
    return py::make_tuple(codes, scales.attr("view")("float16"), mins.attr("view")("float16"));
  }
};

void check_columns(int columns) {
  if (columns < 8 || columns > kMaxGroup || columns % 8 != 0)
    throw py::value_error("expected groups of 8..128 columns, a multiple of 8, got " +
                          std::to_string(columns));
}

py::array_t<float> weights_of(const py::object& object) {
  auto w = checked_array<float>(object, {-1, -1}, "w");
  if (w.shape(0) < 1 || w.shape(1) < 1 || w.shape(0) > (1 << 28) || w.shape(1) > (1 << 28))
    throw py::value_error("w: expected 1..2^28 rows and columns");
  return w;
}

constexpr const char* kTooLarge = "a weight or its scale is too large for float16";

py::tuple search(const py::object& object, const py::object& importance, int columns, int low,
                 int high, int zero, bool has_min, int threads) {
  const auto w = weights_of(object);
  check_columns(columns);
  py::array_t<float> weight;
  if (!importance.is_none()) weight = checked_array<float>(importance, {w.shape(1)}, "importance");
  Codes out(w.shape(0), w.shape(1), columns);
  const SearchArgs args{grid_of(low, high, zero, has_min),
                        w.data(),
                        importance.is_none() ? nullptr : weight.data(),
                        static_cast<int>(w.shape(1)),
                        columns,
                        out.codes.mutable_data(),
                        out.scales.mutable_data(),
                        out.mins.mutable_data()};
  std::atomic<bool> fits{true};
  {
    py::gil_scoped_release release;
    for_each_item(threads, static_cast<int>(w.shape(0)), [&](int row) {
      if (!search_rows(args, row, row + 1)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return out.tuple();
}

py::tuple feedback(const py::object& object, const py::object& coupling, const py::object& weight,
                   int columns, int low, int high, int zero, bool has_min, int threads) {
  const auto w = weights_of(object);
  check_columns(columns);
  const py::ssize_t n = w.shape(0), k = w.shape(1);
  const auto u = checked_array<float>(coupling, {k, k}, "coupling");
  const auto d = checked_array<float>(weight, {k}, "weight");
  Codes out(n, k, columns);
  const FeedbackArgs args{grid_of(low, high, zero, has_min),
                          w.data(),
                          u.data(),
                          d.data(),
                          static_cast<int>(n),
                          static_cast<int>(k),
                          columns,
                          out.codes.mutable_data(),
                          out.scales.mutable_data(),
                          out.mins.mutable_data()};
  std::atomic<bool> fits{true};
  {
    py::gil_scoped_release release;
    const int blocks = (args.n + kFeedbackRows - 1) / kFeedbackRows;
    for_each_item(threads, blocks, [&](int block) {
      if (!feedback_block(args, block)) fits.store(false);
    });
  }
  if (!fits.load()) throw py::value_error(kTooLarge);
  return out.tuple();
}

py::tuple factorize(const py::object& object, int threads) {
  const auto h = checked_array<double>(object, {-1, -1}, "h");
  const py::ssize_t k = h.shape(0);
  if (h.shape(1) != k || k < 1 || k > (1 << 20)) throw py::value_error("h: expected float64[k, k]");
  py::array_t<double> work({k, k});
  std::copy(h.data(), h.data() + h.size(), work.mutable_data());
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
  m.def("search_scales", &search, arg("w"), arg("importance"), arg("columns"), arg("low"),
        arg("high"), arg("zero"), arg("has_min"), arg("threads") = 1);
  m.def("round_with_feedback", &feedback, arg("w"), arg("coupling"), arg("weight"), arg("columns"),
        arg("low"), arg("high"), arg("zero"), arg("has_min"), arg("threads") = 1);
  m.def("factorize", &factorize, arg("h"), arg("threads") = 1);
}

}  // namespace slmq
