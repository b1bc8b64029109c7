// Every kernel of every ISA, callable from Python: for tests and for comparing machines.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "machine/math64.h"
#include "layout/matrix.h"
#include "kernels/dispatch.h"
#include "plan/attention.h"
#include "plan/checks.h"
#include "plan/kv_cache.h"
#include "probes/limits.h"

namespace slmq {
namespace {

struct IsaTable {
  const Kernels* kernels;
};

std::vector<float> padded_copy(const float* x, py::ssize_t n) {
  std::vector<float> copy(static_cast<size_t>(round_up(n, kGroup)), 0.0f);
  std::copy(x, x + n, copy.begin());
  return copy;
}

// q (256 * high + low), scale and sum of every group: x ~ scale * q.
py::tuple quantize(const IsaTable& isa, const py::object& object, const std::string& name) {
  const auto x = checked_array<float>(object, {-1, -1}, "x");
  const Activations activations = activations_named(name);
  const py::ssize_t m = x.shape(0), k = x.shape(1);
  check_quantized_width(k);
  const int groups = matrix_groups(static_cast<int>(k)), width = groups * kGroup;
  const int rows = static_cast<int>(m);
  std::vector<float> padded(static_cast<size_t>(m) * width, 0.0f);
  for (py::ssize_t r = 0; r < m; ++r)
    std::copy(x.data() + r * k, x.data() + (r + 1) * k, padded.begin() + r * width);
  std::vector<ActivationInfo> panel(static_cast<size_t>(m) * groups * kActivationBytes /
                                    sizeof(ActivationInfo));
  isa.kernels->quantize[static_cast<int>(activations)](padded.data(), width, groups, rows, 0, rows,
                                                       panel.data());
  py::array_t<int32_t> q({m, static_cast<py::ssize_t>(width)});
  py::array_t<float> scale({m, static_cast<py::ssize_t>(groups)});
  py::array_t<int32_t> sum({m, static_cast<py::ssize_t>(groups)});
  for (int r = 0; r < rows; ++r)
    for (int g = 0; g < groups; ++g) {
      const ActivationGroup group = activation_group(panel.data(), groups, rows, r, g);
      for (int c = 0; c < kGroup; ++c)
        *q.mutable_data(r, g * kGroup + c) = 256 * group.high[c] + group.low[c];
      *scale.mutable_data(r, g) = group.info->scale;
      *sum.mutable_data(r, g) = group.info->sum;
    }
  return py::make_tuple(q, scale, sum);
}

// q (256 * coarse + fine) of every column and the scale of every row: x ~ scale * q.
py::tuple quantize_rows(const IsaTable& isa, const py::object& object, const std::string& name) {
  const auto x = checked_array<float>(object, {-1, -1}, "x");
  const int kind = static_cast<int>(activations_named(name)), rows = static_cast<int>(x.shape(0));
  const py::ssize_t m = x.shape(0), k = x.shape(1);
  check_quantized_width(k);
  const int groups = matrix_groups(static_cast<int>(k)), width = groups * kGroup;
  std::vector<float> padded(static_cast<size_t>(m) * width, 0.0f);
  for (py::ssize_t r = 0; r < m; ++r)
    std::copy(x.data() + r * k, x.data() + (r + 1) * k, padded.begin() + r * width);
  std::vector<RowInfo> panel(static_cast<size_t>(m) * groups * kActivationBytes / sizeof(RowInfo));
  isa.kernels->quantize_rows[kind](padded.data(), width, groups, rows, 0, rows, panel.data());
  py::array_t<int32_t> q({m, static_cast<py::ssize_t>(width)});
  py::array_t<float> scale(m);
  for (int r = 0; r < rows; ++r) {
    const RowPanel block = row_panel(panel.data(), groups, rows, r);
    *scale.mutable_data(r) = block.info[r % kPanelRows].scale;
    for (int c = 0; c < width; ++c) {
      const int at = (c / kGroup * block.rows + r % kPanelRows) * kGroup + c % kGroup;
      const int coarse = block.wide[at / kGroup] != 0 ? block.coarse[at] : 0;
      *q.mutable_data(r, c) = 256 * coarse + block.fine[at];
    }
  }
  return py::make_tuple(q, scale);
}

py::array_t<float> rmsnorm(const IsaTable& isa, const py::object& object, const py::object& weight,
                           float eps) {
  const auto x = checked_array<float>(object, {-1, -1}, "x");
  const py::ssize_t k = x.shape(1);
  if (k < 1) throw py::value_error("x: expected at least one column");
  const auto w = checked_array<float>(weight, {k}, "weight");
  const std::vector<float> w_padded = padded_copy(w.data(), k);
  py::array_t<float> out({x.shape(0), k});
  for (py::ssize_t r = 0; r < x.shape(0); ++r) {
    const std::vector<float> row = padded_copy(x.data(r, 0), k);
    std::vector<float> y(row.size());
    isa.kernels->rmsnorm(row.data(), w_padded.data(), static_cast<int>(k), eps, y.data());
    std::copy(y.begin(), y.begin() + k, out.mutable_data(r, 0));
  }
  return out;
}

py::array_t<float> layernorm(const IsaTable& isa, const py::object& object,
                             const py::object& weight, const py::object& bias, float eps) {
  const auto x = checked_array<float>(object, {-1, -1}, "x");
  const py::ssize_t k = x.shape(1);
  if (k < 1) throw py::value_error("x: expected at least one column");
  const std::vector<float> w = padded_copy(checked_array<float>(weight, {k}, "weight").data(), k);
  std::vector<float> b;
  if (!bias.is_none()) b = padded_copy(checked_array<float>(bias, {k}, "bias").data(), k);
  py::array_t<float> out({x.shape(0), k});
  for (py::ssize_t r = 0; r < x.shape(0); ++r) {
    const std::vector<float> row = padded_copy(x.data(r, 0), k);
    std::vector<float> y(row.size());
    isa.kernels->layernorm(row.data(), w.data(), b.empty() ? nullptr : b.data(),
                           static_cast<int>(k), eps, y.data());
    std::copy(y.begin(), y.begin() + k, out.mutable_data(r, 0));
  }
  return out;
}

py::array_t<float> unary(const IsaTable& isa, const std::string& name, const py::object& object) {
  const auto x = checked_array<float>(object, {-1}, "x");
  std::vector<float> y = padded_copy(x.data(), x.size());
  isa.kernels->unary[static_cast<int>(unary_named(name))](y.data(), static_cast<int>(y.size()),
                                                          y.data());
  return py::array_t<float>(x.shape(0), y.data());
}

py::array_t<float> rope(const IsaTable& isa, const py::object& object, const py::object& cosines,
                        const py::object& sines) {
  const auto x = checked_array<float>(object, {-1, -1}, "x");
  const auto c = checked_array<float>(cosines, {-1}, "cosines");
  const auto s = checked_array<float>(sines, {c.shape(0)}, "sines");
  if (2 * c.shape(0) > x.shape(1)) {
    throw py::value_error("cosines: expected at most half of x's " + std::to_string(x.shape(1)) +
                          " columns, got " + std::to_string(c.shape(0)));
  }
  py::array_t<float> out({x.shape(0), x.shape(1)});
  std::copy(x.data(), x.data() + x.size(), out.mutable_data());
  for (py::ssize_t r = 0; r < x.shape(0); ++r)
    isa.kernels->rope(out.mutable_data(r, 0), c.data(), s.data(), 2 * static_cast<int>(c.shape(0)));
  return out;
}

py::array_t<float> gated(const IsaTable& isa, const std::string& name, const py::object& gate,
                         const py::object& up) {
  const auto g = checked_array<float>(gate, {-1}, "gate");
  const auto u = checked_array<float>(up, {g.shape(0)}, "up");
  const std::vector<float> g_padded = padded_copy(g.data(), g.size());
  const std::vector<float> u_padded = padded_copy(u.data(), u.size());
  std::vector<float> y(g_padded.size());
  isa.kernels->gated[static_cast<int>(gate_named(name))](g_padded.data(), u_padded.data(),
                                                         static_cast<int>(y.size()), y.data());
  return py::array_t<float>(g.shape(0), y.data());
}

py::array_t<float> softcap(const IsaTable& isa, const py::object& object, float cap) {
  const auto x = checked_array<float>(object, {-1}, "x");
  if (!(cap > 0.0f)) throw py::value_error("cap: expected a number > 0");
  const std::vector<float> padded = padded_copy(x.data(), x.size());
  std::vector<float> y(padded.size());
  isa.kernels->softcap(padded.data(), static_cast<int>(y.size()), cap, y.data());
  return py::array_t<float>(x.shape(0), y.data());
}

py::array_t<float> softmax(const Kernels& kernels, const py::object& object, float scale) {
  const auto x = checked_array<float>(object, {-1}, "x");
  if (x.size() < 1) throw py::value_error("x: expected at least one value");
  if (!std::isfinite(scale)) throw py::value_error("scale: expected a finite number");
  py::array_t<float> out(x.size());
  float* y = out.mutable_data();
  {
    Released release;
    kernels.softmax(x.data(), static_cast<int>(x.size()), scale, y);
  }
  return out;
}

// q [m, heads, hd] at the last m positions of k, v [t, kv_heads, hd]: through a real paged cache.
py::array_t<float> attention(const IsaTable& isa, const py::object& queries, const py::object& keys,
                             const py::object& values, float scale, int window,
                             const std::string& kv_type, float softcap, bool causal,
                             const py::object& bias) {
  const auto q = checked_array<float>(queries, {-1, -1, -1}, "q");
  const auto k = checked_array<float>(keys, {-1, -1, q.shape(2)}, "k");
  const auto v = checked_array<float>(values, {k.shape(0), k.shape(1), q.shape(2)}, "v");
  const int m = static_cast<int>(q.shape(0)), heads = static_cast<int>(q.shape(1));
  const int t = static_cast<int>(k.shape(0)), kv_heads = static_cast<int>(k.shape(1));
  const int hd = static_cast<int>(q.shape(2));
  if (m < 1 || t < m || kv_heads < 1 || heads % kv_heads != 0 || heads / kv_heads > kMaxQueries)
    throw py::value_error("attention: expected 1 <= m <= t and heads a multiple of kv heads");
  // bias: of each head, for keys t - 1 before to t - 1 behind a query.
  const int distances = 2 * t - 1;
  std::vector<float> added;
  if (!bias.is_none()) {
    const auto b = checked_array<float>(bias, {heads, distances}, "bias");
    added.assign(static_cast<size_t>(heads) * (distances + 30), 0.0f);
    for (int h = 0; h < heads; ++h)
      for (int d = 0; d < distances; ++d)
        added[static_cast<size_t>(h) * (distances + 30) + 15 + d] =
            static_cast<float>(b.data(h, 0)[d] * 1.4426950408889634);
  }
  if (hd < 1) throw py::value_error("attention: expected head_dim >= 1");
  if (!(softcap >= 0.0f)) throw py::value_error("attention: expected softcap >= 0");
  const KvType type = kv_type_named(kv_type);
  if ((type == KvType::int8 || type == KvType::int4) && hd > kMaxInt8HeadDim)
    throw py::value_error("attention: " + kv_type + " takes heads of at most 512 channels, got " +
                          std::to_string(hd));
  AttentionConfig config{heads, kv_heads, hd, 0, window, scale, type, 0, softcap, causal};
  AttentionShape shape = attention_shape(config);
  auto cache = std::make_shared<KvCache>(kv_layer_bytes(config));
  KvSequence sequence(cache);
  sequence.reserve(t);
  for (int p = 0; p < t; ++p)
    for (int h = 0; h < kv_heads; ++h)
      isa.kernels->kv_append[static_cast<int>(type)](shape, sequence.pages(), h, p, k.data(p, h, 0),
                                                     v.data(p, h, 0));
  const int group = heads / kv_heads, state = kStateHeader + shape.value_stride;
  std::vector<float> query(static_cast<size_t>(group) * shape.value_stride, 0.0f);
  std::vector<float> total(static_cast<size_t>(group) * state), part(total.size());
  std::vector<float> scratch(attend_scratch_floats(shape)), prepared(attend_query_floats(shape));
  py::array_t<float> out({q.shape(0), q.shape(1), q.shape(2)});
  for (int r = 0; r < m; ++r)
    for (int h = 0; h < kv_heads; ++h) {
      const int at = t - m + r;
      const int begin = window == 0 ? 0 : std::max(0, causal ? at - window + 1 : at - window);
      const int end = causal ? at + 1 : window == 0 ? t : std::min(t, at + window + 1);
      std::vector<Sight> sights(group, {begin, end, nullptr});
      for (int g = 0; g < group && !added.empty(); ++g)
        sights[g].bias =
            added.data() + static_cast<size_t>(h * group + g) * (distances + 30) + 15 + t - 1 - at;
      for (int g = 0; g < group; ++g)
        std::copy(q.data(r, h * group + g, 0), q.data(r, h * group + g, 0) + hd,
                  query.begin() + static_cast<ptrdiff_t>(g) * shape.value_stride);
      isa.kernels->prepare_queries[static_cast<int>(type)](shape, query.data(), group,
                                                           prepared.data());
      for (int p = 0; p <= (end - 1) / kPartPositions; ++p) {
        isa.kernels->attend[static_cast<int>(type)](
            shape, sequence.pages(), h, prepared.data(), sights.data(), group, p, {},
            p == 0 ? total.data() : part.data(), scratch.data());
        for (int g = 0; p > 0 && g < group; ++g)
          isa.kernels->merge(shape, part.data() + static_cast<ptrdiff_t>(g) * state,
                             total.data() + static_cast<ptrdiff_t>(g) * state);
      }
      for (int g = 0; g < group; ++g)
        isa.kernels->attend_finish(shape, total.data() + static_cast<ptrdiff_t>(g) * state,
                                   out.mutable_data(r, h * group + g, 0));
    }
  return out;
}

py::array_t<float> dequantize_all(const IsaTable& isa, const Matrix& m) {
  py::array_t<float> out({static_cast<py::ssize_t>(m.n), static_cast<py::ssize_t>(m.k)});
  isa.kernels->dequantize[static_cast<int>(m.format)](m.data, m.groups(), m.k, 0, m.n,
                                                      out.mutable_data(), m.k);
  return out;
}

py::tuple sincos(double x) {
  double sine, cosine;
  if (!(std::fabs(x) < 1e9)) throw py::value_error("expected |x| < 1e9");
  exact_sincos(x, &sine, &cosine);
  return py::make_tuple(sine, cosine);
}

}  // namespace

void bind_kernels(py::module_& m) {
  py::class_<IsaTable>(m, "IsaTable")
      .def_property_readonly("name", [](const IsaTable& t) { return t.kernels->name; })
      .def(
          "linear",
          [](const IsaTable& t, const Matrix& matrix, const py::object& x, int threads,
             const std::string& activations) {
            return matmul(*t.kernels, matrix, x, threads, activations_named(activations));
          },
          py::arg("matrix"), py::arg("x"), py::arg("threads") = 1,
          py::arg("activations") = kDefaultActivations)
      .def("quantize", &quantize, py::arg("x"), py::arg("activations") = kDefaultActivations)
      .def("quantize_rows", &quantize_rows, py::arg("x"),
           py::arg("activations") = kDefaultActivations)
      .def("dequantize", &dequantize_all, py::arg("matrix"))
      .def("rmsnorm", &rmsnorm, py::arg("x"), py::arg("weight"), py::arg("eps"))
      .def("layernorm", &layernorm, py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("eps"))
      .def("unary", &unary, py::arg("name"), py::arg("x"))
      .def("rope", &rope, py::arg("x"), py::arg("cosines"), py::arg("sines"))
      .def("gated", &gated, py::arg("name"), py::arg("gate"), py::arg("up"))
      .def("softcap", &softcap, py::arg("x"), py::arg("cap"))
      .def(
          "softmax",
          [](const IsaTable& t, const py::object& x, float scale) {
            return softmax(*t.kernels, x, scale);
          },
          py::arg("x"), py::arg("scale") = 1.0f)
      .def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"),
           py::arg("window") = 0, py::arg("kv_type") = "f16", py::arg("softcap") = 0.0f,
           py::arg("causal") = true, py::arg("bias") = py::none());
  m.def("isa_tables", [] {
    py::dict tables;
    for (const Isa& isa : all_isas()) {
      if (isa.kernels != nullptr) {
        tables[isa.name] = IsaTable{isa.kernels};
      } else {
        tables[isa.name] = py::none();
      }
    }
    return tables;
  });
  m.def("isa_missing", [] {
    py::dict missing;
    for (const Isa& isa : all_isas())
      if (isa.kernels == nullptr) missing[isa.name] = isa.missing;
    return missing;
  });
  m.def("active_isa", [] { return std::string(active_kernels().name); });
  m.def(
      "softmax",
      [](const py::object& x, float scale) { return softmax(active_kernels(), x, scale); },
      py::arg("x"), py::arg("scale") = 1.0f);
  // For the sampler, which calls it without the GIL: void (const float* x, int n, float scale,
  // float* y), as the kernel table has it.
  m.def("softmax_address", [] { return reinterpret_cast<uintptr_t>(active_kernels().softmax); });
  m.def(
      "memory_read_gb_per_s",
      [](int threads, size_t bytes, double seconds) {
        if (bytes < (1u << 20)) throw py::value_error("nbytes: expected at least 1 MiB");
        Released release;
        return memory_read_gb_per_s(active_kernels(), threads, bytes, seconds);
      },
      py::arg("threads"), py::arg("nbytes") = size_t{1} << 30, py::arg("seconds") = 1.0);
  m.def(
      "integer_peak_gmac_per_s",
      [](int threads, const std::optional<std::string>& isa, double seconds) {
        const Kernels& kernels = isa ? kernels_named(*isa) : active_kernels();
        Released release;
        return integer_peak_gmac_per_s(kernels, threads, seconds);
      },
      py::arg("threads"), py::arg("isa") = py::none(), py::arg("seconds") = 0.3);
  m.def("exact_exp", &exact_exp, py::arg("x"));
  m.def(
      "exact_log",
      [](double x) {
        if (!(x > 0) || !std::isfinite(x)) throw py::value_error("expected a finite x > 0");
        return exact_log(x);
      },
      py::arg("x"));
  m.def(
      "exact_pow",
      [](double base, double power) {
        if (!(base > 0) || !std::isfinite(base) || !std::isfinite(power))
          throw py::value_error("expected a finite base > 0 and a finite power");
        return exact_pow(base, power);
      },
      py::arg("base"), py::arg("power"));
  m.def("exact_sincos", &sincos, py::arg("x"));
}

}  // namespace slmq
