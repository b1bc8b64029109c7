// Recording: what a model's forward appends its steps to.
#include <pybind11/stl.h>

#include <variant>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "bind/guarded.h"
#include "kernels/dispatch.h"
#include "layout/row_table.h"
#include "plan/recording.h"

namespace slmq {
namespace {

using GuardedRecording = Guarded<Recording>;
using SliceTuple = std::tuple<int, int, int>;  // buffer, offset, width

Slice to_slice(const SliceTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }

Slice optional_slice(const std::optional<SliceTuple>& t, const char* what) {
  if (t && std::get<0>(*t) < 0)
    throw py::value_error(std::string(what) + ": expected a buffer, got " +
                          std::to_string(std::get<0>(*t)));
  return t ? to_slice(*t) : Slice{};
}

std::vector<float> optional_floats(const py::object& object, const char* what) {
  return object.is_none() ? std::vector<float>() : checked_vector<float>(object, -1, what);
}

using MatrixPointer = std::shared_ptr<Matrix>;

Weight to_weight(const std::pair<MatrixPointer, py::object>& pair, const char* what) {
  if (pair.first == nullptr)
    throw py::type_error(std::string(what) + ": expected a Matrix, got None");
  return {pair.first, optional_floats(pair.second, what)};
}

// A buffer for all weights of a step, or one for each.
using Inputs = std::variant<int, std::vector<int>>;

void set_inputs(const Inputs& x, std::vector<Weight>* weights, const std::string& what) {
  const auto* each = std::get_if<std::vector<int>>(&x);
  if (each != nullptr && each->size() != weights->size())
    throw py::value_error(what + ": expected an input for each of " +
                          std::to_string(weights->size()) + " weights, got " +
                          std::to_string(each->size()));
  for (size_t i = 0; i < weights->size(); ++i) {
    const int id = each != nullptr ? (*each)[i] : std::get<int>(x);
    if (id < 0) throw py::value_error(what + ": expected a buffer, got " + std::to_string(id));
    (*weights)[i].x = id;
  }
}

int record_gated(GuardedRecording& r, const Inputs& x,
                 const std::pair<MatrixPointer, py::object>& gate,
                 const std::pair<MatrixPointer, py::object>& up, const std::string& activation) {
  const Gate kind = gate_named(activation);
  std::vector<Weight> both = {to_weight(gate, "gated gate"), to_weight(up, "gated up")};
  set_inputs(x, &both, "gated");
  return r->gated(-1, kind, std::move(both[0]), std::move(both[1]));
}

using WeightPair = std::pair<MatrixPointer, py::object>;

std::vector<Weight> to_weights(const std::vector<WeightPair>& pairs, const char* what) {
  std::vector<Weight> weights;
  for (const WeightPair& pair : pairs) weights.push_back(to_weight(pair, what));
  return weights;
}

int record_route(GuardedRecording& r, const SliceTuple& logits, int top_k,
                 const std::string& scores, bool normalized, float eps, float scale,
                 const py::object& bias) {
  return r->route(to_slice(logits), {top_k, scores_named(scores), normalized, eps, scale,
                                     optional_floats(bias, "route bias")});
}

int record_mixture(GuardedRecording& r, const SliceTuple& x, int routes,
                   const std::vector<WeightPair>& gate, const std::vector<WeightPair>& up,
                   const std::vector<WeightPair>& down, const std::string& activation,
                   const std::string& activations, const std::optional<SliceTuple>& add,
                   float limit, float alpha) {
  Experts experts{to_weights(gate, "mixture gate"), to_weights(up, "mixture up"),
                  to_weights(down, "mixture down")};
  return r->mixture(to_slice(x), routes, std::move(experts), gate_named(activation), {limit, alpha},
                    activations_named(activations), optional_slice(add, "mixture add"));
}

std::unique_ptr<GuardedRecording> new_recording(int threads, int max_rows, int max_outputs,
                                                int vocabulary, const std::string& kv_type,
                                                const std::optional<std::string>& isa) {
  const Kernels& kernels = !isa              ? active_kernels()
                           : *isa == "empty" ? empty_kernels()
                                             : kernels_named(*isa);
  const PlanSizes sizes{threads, max_rows, max_outputs, vocabulary};
  return std::make_unique<GuardedRecording>(
      std::make_unique<Recording>(kernels, sizes, kv_type_named(kv_type)));
}

}  // namespace

void bind_recording(py::module_& m) {
  py::class_<GuardedRecording> c(m, "Recording");
  c.def(py::init(&new_recording), py::arg("threads"), py::arg("max_rows"), py::arg("max_outputs"),
        py::arg("vocabulary"), py::arg("kv_type") = "f16", py::arg("isa") = py::none());
  c.def("scope", [](GuardedRecording& r, std::string name) { r->scope(std::move(name)); })
      .def(
          "embed",
          [](GuardedRecording& r, const MatrixPointer& m, float scale,
             const MatrixPointer& positions,
             const MatrixPointer& types) { return r->embed(m, scale, positions, types); },
          py::arg("matrix").none(false), py::arg("scale") = 1.0f, py::arg("positions") = py::none(),
          py::arg("types") = py::none())
      .def(
          "lookup",
          [](GuardedRecording& r, const std::shared_ptr<RowTable>& table, float scale) {
            return r->lookup(table, scale);
          },
          py::arg("table").none(false), py::arg("scale") = 1.0f)
      .def(
          "rmsnorm",
          [](GuardedRecording& r, const SliceTuple& x, const py::object& weight, float eps,
             const std::optional<SliceTuple>& add) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            return r->rmsnorm(to_slice(x), std::move(weights), eps,
                              optional_slice(add, "rmsnorm add"));
          },
          py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("add") = py::none())
      .def(
          "head_norm",
          [](GuardedRecording& r, const SliceTuple& x, const py::object& weight, float eps,
             const std::optional<SliceTuple>& add) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            return r->head_norm(to_slice(x), std::move(weights), eps,
                                optional_slice(add, "head_norm add"));
          },
          py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("add") = py::none())
      .def(
          "layernorm",
          [](GuardedRecording& r, const SliceTuple& x, const py::object& weight,
             const py::object& bias, int head_dim, float eps) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            auto biases = optional_floats(bias, "bias");
            return r->layernorm(to_slice(x), std::move(weights), std::move(biases), head_dim, eps);
          },
          py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("head_dim"), py::arg("eps"))
      .def(
          "quantize",
          [](GuardedRecording& r, const SliceTuple& x, const std::string& activations,
             bool whole_rows) {
            return r->quantize(to_slice(x), activations_named(activations), whole_rows);
          },
          py::arg("x"), py::arg("activations"), py::arg("whole_rows") = false)
      .def(
          "gather",
          [](GuardedRecording& r, const SliceTuple& x, const py::object& columns) {
            auto list = checked_vector<int32_t>(columns, -1, "columns");
            return r->gather(to_slice(x), std::move(list));
          },
          py::arg("x"), py::arg("columns"))
      .def(
          "linear",
          [](GuardedRecording& r, const Inputs& x,
             const std::vector<std::pair<MatrixPointer, py::object>>& parts,
             const std::optional<SliceTuple>& add, const std::optional<std::string>& activation,
             float softcap) {
            std::vector<Weight> list;
            for (const auto& weight : parts) list.push_back(to_weight(weight, "linear"));
            set_inputs(x, &list, "linear");
            return r->linear(-1, std::move(list), optional_slice(add, "linear add"),
                             activation ? std::optional(unary_named(*activation)) : std::nullopt,
                             softcap);
          },
          py::arg("x"), py::arg("parts"), py::arg("add") = py::none(),
          py::arg("activation") = py::none(), py::arg("softcap") = 0.0f)
      .def("gated", &record_gated, py::arg("x"), py::arg("gate"), py::arg("up"),
           py::arg("activation"))
      .def(
          "rope",
          [](GuardedRecording& r, const py::object& frequencies, float factor) {
            auto list = checked_vector<float>(frequencies, -1, "frequencies");
            return r->rope(std::move(list), factor);
          },
          py::arg("frequencies"), py::arg("factor") = 1.0f)
      .def(
          "convolution",
          [](GuardedRecording& r, const SliceTuple& x, const py::object& weight,
             const py::object& bias, const std::optional<SliceTuple>& before,
             const std::optional<SliceTuple>& behind,
             const std::optional<std::string>& activation) {
            const auto weights = checked_vector<float>(weight, -1, "weight");
            const auto biases = optional_floats(bias, "bias");
            return r->convolution(
                to_slice(x), weights, biases, optional_slice(before, "convolution before"),
                optional_slice(behind, "convolution behind"),
                activation ? std::optional(unary_named(*activation)) : std::nullopt);
          },
          py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
          py::arg("before") = py::none(), py::arg("behind") = py::none(),
          py::arg("activation") = py::none())
      .def(
          "decays",
          [](GuardedRecording& r, const SliceTuple& a, const SliceTuple& b, const py::object& rate,
             const py::object& bias) {
            const auto rates = checked_vector<float>(rate, -1, "rate");
            const auto biases = checked_vector<float>(bias, -1, "bias");
            return r->decays(to_slice(a), to_slice(b), rates, biases);
          },
          py::arg("a"), py::arg("b"), py::arg("rate"), py::arg("bias"))
      .def(
          "delta_rule",
          [](GuardedRecording& r, const SliceTuple& q, const SliceTuple& k, const SliceTuple& v,
             const SliceTuple& decays, int heads, int key_heads, int key_dim, int value_dim,
             bool tiled) {
            return r->delta_rule(to_slice(q), to_slice(k), to_slice(v), to_slice(decays),
                                 {heads, key_heads, key_dim, value_dim, tiled});
          },
          py::arg("q"), py::arg("k"), py::arg("v"), py::arg("decays"), py::arg("heads"),
          py::arg("key_heads"), py::arg("key_dim"), py::arg("value_dim"), py::arg("tiled") = false)
      .def(
          "gate",
          [](GuardedRecording& r, const SliceTuple& x, const SliceTuple& gate,
             const std::string& activation) {
            return r->gate(to_slice(x), gate_named(activation), to_slice(gate));
          },
          py::arg("x"), py::arg("gate"), py::arg("activation"))
      .def("route", &record_route, py::arg("logits"), py::arg("top_k"), py::arg("scores"),
           py::arg("normalized") = false, py::arg("eps") = 0.0f, py::arg("scale") = 1.0f,
           py::arg("bias") = py::none())
      .def("mixture", &record_mixture, py::arg("x"), py::arg("routes"), py::arg("gate"),
           py::arg("up"), py::arg("down"), py::arg("activation"), py::arg("activations"),
           py::arg("add") = py::none(), py::arg("limit") = 0.0f, py::arg("alpha") = 1.0f)
      .def(
          "rotate",
          [](GuardedRecording& r, const SliceTuple& x, int rope, int rotary, int head_dim) {
            return r->rotate(to_slice(x), rope, rotary, head_dim);
          },
          py::arg("x"), py::arg("rope"), py::arg("rotary"), py::arg("head_dim"))
      .def(
          "scale",
          [](GuardedRecording& r, const SliceTuple& x, float factor) {
            return r->scale(to_slice(x), factor);
          },
          py::arg("x"), py::arg("factor"))
      .def(
          "scale_by_position",
          [](GuardedRecording& r, const SliceTuple& x, float growth, int every) {
            return r->scale_by_position(to_slice(x), growth, every);
          },
          py::arg("x"), py::arg("growth"), py::arg("every"))
      .def(
          "xielu",
          [](GuardedRecording& r, const SliceTuple& x, float up, float down, float mid) {
            return r->xielu(to_slice(x), {up, down, mid});
          },
          py::arg("x"), py::arg("up"), py::arg("down"), py::arg("mid"))
      .def(
          "attention",
          [](GuardedRecording& r, const SliceTuple& q, const std::optional<SliceTuple>& k,
             const std::optional<SliceTuple>& v, int rope, int heads, int kv_heads, int head_dim,
             int rotary, float scale, int window, float softcap, bool causal,
             const py::object& bias, const py::object& sinks, int shared) {
            const AttentionConfig config{heads, kv_heads,    head_dim, rotary,  window,
                                         scale, KvType::f16, 0,        softcap, causal};
            if ((shared < 0) != k.has_value() || (shared < 0) != v.has_value())
              throw py::value_error(
                  "attention: expected k and v, or the number of the attention "
                  "whose keys and values are shared");
            return r->attention(to_slice(q), optional_slice(k, "attention k"),
                                optional_slice(v, "attention v"), rope, config,
                                optional_floats(bias, "bias"), optional_floats(sinks, "sinks"),
                                shared);
          },
          py::arg("q"), py::arg("k"), py::arg("v"), py::arg("rope"), py::arg("heads"),
          py::arg("kv_heads"), py::arg("head_dim"), py::arg("rotary"), py::arg("scale"),
          py::arg("window") = 0, py::arg("softcap") = 0.0f, py::arg("causal") = true,
          py::arg("bias") = py::none(), py::arg("sinks") = py::none(), py::arg("shared") = -1)
      .def(
          "select",
          [](GuardedRecording& r, const SliceTuple& x, const std::string& pool) {
            return r->select(to_slice(x), pool_named(pool));
          },
          py::arg("x"), py::arg("pool") = "row")
      .def("take_adapters", [](GuardedRecording& r) { r->take_adapters(); })
      .def("release", [](GuardedRecording& r, int buffer) { r->release(buffer); })
      .def(
          "finish",
          [](GuardedRecording& r, int logits, int columns) {
            return std::make_unique<Guarded<Plan>>(r->finish(logits, columns));
          },
          py::arg("logits"), py::arg("columns") = -1);
}

}  // namespace slmq
