// Plan, KvCache and KvSequence. run() is the one place where generation leaves the GIL.
#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>
#include <variant>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/dispatch.h"
#include "plan/plan.h"

namespace slmq {
namespace {

using SliceTuple = std::tuple<int, int, int>;  // buffer, offset, width

Slice to_slice(const SliceTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }

Slice optional_slice(const std::optional<SliceTuple>& t, const char* what) {
  if (t && std::get<0>(*t) < 0)
    throw py::value_error(std::string(what) + ": expected a buffer, got " +
                          std::to_string(std::get<0>(*t)));
  return t ? to_slice(*t) : Slice{};
}

// A plan has one frame and one recording: calls from several Python threads queue, with or without a
// GIL. Whoever waits leaves the GIL; whoever runs a plan has left it, and needs it for nothing.
class GuardedPlan {
 public:
  GuardedPlan(const Kernels& kernels, int threads, int max_rows, int max_outputs, int vocabulary,
              KvType kv)
      : plan_(kernels, threads, max_rows, max_outputs, vocabulary, kv) {}

  // The plan, until the end of the statement. Arguments that call Python come before it.
  class Held {
   public:
    Held(Plan& plan, std::mutex& mutex) : plan_(plan), lock_(mutex, std::try_to_lock) {
      if (lock_.owns_lock()) return;
      const py::gil_scoped_release release;
      lock_.lock();
    }
    Plan* operator->() { return &plan_; }

   private:
    Plan& plan_;
    std::unique_lock<std::mutex> lock_;
  };
  Held operator->() { return {plan_, mutex_}; }
  const Plan& constants() const { return plan_; }  // what the constructor set for good

  // Calls work(plan) without the GIL.
  template <class Work>
  auto run(const Work& work) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return work(plan_);
  }

 private:
  Plan plan_;
  std::mutex mutex_;
};

using CancelFlag = std::atomic<bool>;

// The microseconds of each step, or None if the run was cancelled.
std::optional<std::vector<double>> run(
    GuardedPlan& self, const py::object& tokens,
    std::vector<std::pair<std::shared_ptr<KvSequence>, int>> segments, const py::object& outputs,
    int stop, bool profile, std::shared_ptr<CancelFlag> cancel) {
  RunRequest request;
  request.tokens = checked_vector<int32_t>(tokens, -1, "tokens");
  request.segments = std::move(segments);
  request.outputs = checked_vector<int32_t>(outputs, -1, "outputs");
  request.stop = stop;
  request.profile = profile;
  request.cancel = std::move(cancel);
  return self.run([&](Plan& plan) -> std::optional<std::vector<double>> {
    std::vector<double> times = plan.run(request);
    if (request.cancel != nullptr && plan.cancelled()) return std::nullopt;
    return times;
  });
}

py::array_t<float> read(GuardedPlan& self, int id) {
  GuardedPlan::Held plan = self.operator->();
  const py::ssize_t rows = plan->buffer_rows(id), width = plan->buffer(id).logical;
  py::array_t<float> out({rows, width});
  plan->read_buffer(id, out.mutable_data());
  return out;
}

py::list describe(GuardedPlan& self) {
  std::vector<StepInfo> infos;
  {
    GuardedPlan::Held plan = self.operator->();
    for (const auto& step : plan->steps()) infos.push_back(step->info);
  }
  py::list steps;
  for (const StepInfo& info : infos) {
    steps.append(py::dict(py::arg("scope") = info.scope, py::arg("op") = info.op,
                          py::arg("format") = info.format, py::arg("shape") = info.shape,
                          py::arg("buffer") = info.out, py::arg("weight_bytes") = info.weight_bytes,
                          py::arg("macs_per_row") = info.macs_per_row));
  }
  return steps;
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

int record_gated(GuardedPlan& p, const Inputs& x, const std::pair<MatrixPointer, py::object>& gate,
                 const std::pair<MatrixPointer, py::object>& up, const std::string& activation) {
  const Gate kind = gate_named(activation);
  std::vector<Weight> both = {to_weight(gate, "gated gate"), to_weight(up, "gated up")};
  set_inputs(x, &both, "gated");
  return p->gated(-1, kind, std::move(both[0]), std::move(both[1]));
}

void bind_recording(py::class_<GuardedPlan>& c) {
  c.def("scope", [](GuardedPlan& p, std::string name) { p->scope(std::move(name)); })
      .def(
          "embed",
          [](GuardedPlan& p, const MatrixPointer& m, float scale, const MatrixPointer& positions) {
            return p->embed(m, scale, positions);
          },
          py::arg("matrix").none(false), py::arg("scale") = 1.0f, py::arg("positions") = py::none())
      .def(
          "rmsnorm",
          [](GuardedPlan& p, const SliceTuple& x, const py::object& weight, float eps,
             const std::optional<SliceTuple>& add) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            return p->rmsnorm(to_slice(x), std::move(weights), eps,
                              optional_slice(add, "rmsnorm add"));
          },
          py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("add") = py::none())
      .def(
          "head_norm",
          [](GuardedPlan& p, const SliceTuple& x, const py::object& weight, float eps) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            return p->head_norm(to_slice(x), std::move(weights), eps);
          },
          py::arg("x"), py::arg("weight"), py::arg("eps"))
      .def(
          "layernorm",
          [](GuardedPlan& p, const SliceTuple& x, const py::object& weight, const py::object& bias,
             int head_dim, float eps) {
            auto weights = checked_vector<float>(weight, -1, "weight");
            auto biases = optional_floats(bias, "bias");
            return p->layernorm(to_slice(x), std::move(weights), std::move(biases), head_dim, eps);
          },
          py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("head_dim"), py::arg("eps"))
      .def(
          "quantize",
          [](GuardedPlan& p, const SliceTuple& x, const std::string& activations) {
            return p->quantize(to_slice(x), activations_named(activations));
          },
          py::arg("x"), py::arg("activations"))
      .def(
          "gather",
          [](GuardedPlan& p, const SliceTuple& x, const py::object& columns) {
            auto list = checked_vector<int32_t>(columns, -1, "columns");
            return p->gather(to_slice(x), std::move(list));
          },
          py::arg("x"), py::arg("columns"))
      .def(
          "linear",
          [](GuardedPlan& p, const Inputs& x,
             const std::vector<std::pair<MatrixPointer, py::object>>& parts,
             const std::optional<SliceTuple>& add, const std::optional<std::string>& activation,
             float softcap) {
            std::vector<Weight> list;
            for (const auto& weight : parts) list.push_back(to_weight(weight, "linear"));
            set_inputs(x, &list, "linear");
            return p->linear(-1, std::move(list), optional_slice(add, "linear add"),
                             activation ? std::optional(unary_named(*activation)) : std::nullopt,
                             softcap);
          },
          py::arg("x"), py::arg("parts"), py::arg("add") = py::none(),
          py::arg("activation") = py::none(), py::arg("softcap") = 0.0f)
      .def("gated", &record_gated, py::arg("x"), py::arg("gate"), py::arg("up"),
           py::arg("activation"))
      .def(
          "rope",
          [](GuardedPlan& p, const py::object& frequencies, float factor) {
            auto list = checked_vector<float>(frequencies, -1, "frequencies");
            return p->rope(std::move(list), factor);
          },
          py::arg("frequencies"), py::arg("factor") = 1.0f)
      .def(
          "attention",
          [](GuardedPlan& p, const SliceTuple& q, const SliceTuple& k, const SliceTuple& v,
             int rope, int heads, int kv_heads, int head_dim, int rotary, float scale, int window,
             float softcap) {
            const AttentionConfig config{heads, kv_heads,    head_dim, rotary, window,
                                         scale, KvType::f16, 0,        softcap};
            return p->attention(to_slice(q), to_slice(k), to_slice(v), rope, config);
          },
          py::arg("q"), py::arg("k"), py::arg("v"), py::arg("rope"), py::arg("heads"),
          py::arg("kv_heads"), py::arg("head_dim"), py::arg("rotary"), py::arg("scale"),
          py::arg("window") = 0, py::arg("softcap") = 0.0f)
      .def("select", [](GuardedPlan& p, const SliceTuple& x) { return p->select(to_slice(x)); })
      .def("release", [](GuardedPlan& p, int buffer) { p->release(buffer); })
      .def("finish", [](GuardedPlan& p, int logits) { p->finish(logits); });
}

// Waits for runs of other threads with this sequence, then checks a length against it.
std::unique_lock<std::mutex> hold(KvSequence& s, int length, const char* what) {
  std::unique_lock<std::mutex> held(s.guard(), std::defer_lock);
  {
    py::gil_scoped_release release;
    held.lock();
  }
  if (length < 0 || length > s.length()) {
    throw py::value_error(std::string(what) + ": expected 0.." + std::to_string(s.length()) +
                          ", got " + std::to_string(length));
  }
  return held;
}

void bind_cache(py::module_& m) {
  py::register_exception<CacheFullError>(m, "CacheFullError", PyExc_MemoryError);
  py::class_<CancelFlag, std::shared_ptr<CancelFlag>>(m, "CancelFlag")
      .def(py::init([] { return std::make_shared<CancelFlag>(false); }))
      .def("set", [](CancelFlag& flag) { flag.store(true, std::memory_order_relaxed); })
      .def_property_readonly("is_set", [](const CancelFlag& flag) { return flag.load(); });
  py::class_<KvCache, std::shared_ptr<KvCache>>(m, "KvCache")
      .def("sequence",
           [](std::shared_ptr<KvCache> cache) {
             return std::make_shared<KvSequence>(std::move(cache));
           })
      .def_property_readonly("page_bytes", &KvCache::page_bytes)
      .def_property_readonly("allocated_bytes", &KvCache::allocated_bytes)
      .def_property_readonly("pages_in_use", &KvCache::pages_in_use)
      .def_property("limit", &KvCache::limit,
                    [](KvCache& cache, int pages) {
                      if (pages < 1)
                        throw py::value_error("limit: expected at least 1 page, got " +
                                              std::to_string(pages));
                      cache.set_limit(pages);
                    })
      .def("trim", &KvCache::trim, py::call_guard<py::gil_scoped_release>());
  py::class_<KvSequence, std::shared_ptr<KvSequence>>(m, "KvSequence")
      .def_property_readonly("length", &KvSequence::length)
      .def(
          "pages_needed",
          [](KvSequence& s, int count) {
            if (count < 0)
              throw py::value_error("pages_needed: expected 0 or more positions, got " +
                                    std::to_string(count));
            const auto held = hold(s, 0, "pages_needed");
            return s.pages_needed(count);
          },
          py::arg("count"))
      .def(
          "truncate",
          [](KvSequence& s, int length) {
            const auto held = hold(s, length, "truncate");
            s.truncate(length);
          },
          py::arg("length"))
      .def(
          "fork",
          [](KvSequence& s, int length) {
            const auto held = hold(s, length, "fork");
            return s.fork(length);
          },
          py::arg("length"));
}

}  // namespace

void bind_plan(py::module_& m) {
  bind_cache(m);
  py::class_<GuardedPlan> c(m, "Plan");
  c.def(py::init([](int threads, int max_rows, int max_outputs, int vocabulary,
                    const std::string& kv_dtype, const std::optional<std::string>& isa) {
          const Kernels& kernels = !isa              ? active_kernels()
                                   : *isa == "empty" ? empty_kernels()
                                                     : kernels_named(*isa);
          return std::make_unique<GuardedPlan>(kernels, threads, max_rows, max_outputs, vocabulary,
                                               kv_type_named(kv_dtype));
        }),
        py::arg("threads"), py::arg("max_rows"), py::arg("max_outputs"), py::arg("vocabulary"),
        py::arg("kv_dtype") = "f16", py::arg("isa") = py::none());
  bind_recording(c);
  c.def("make_cache", [](GuardedPlan& p) { return p->make_cache(); })
      .def("run", &run, py::arg("tokens"), py::arg("segments"), py::arg("outputs"),
           py::arg("stop") = -1, py::arg("profile") = false, py::arg("cancel") = py::none())
      .def(
          "run_outputs",
          [](GuardedPlan& p, const py::object& outputs) {
            const auto rows = checked_vector<int32_t>(outputs, -1, "outputs");
            p.run([&](Plan& plan) { plan.run_outputs(rows); });
          },
          py::arg("outputs"))
      .def("read", &read, py::arg("buffer"))
      .def("logits",
           [](GuardedPlan& p) {
             const int buffer = p->logits_buffer();  // holds the plan, as read() will
             return read(p, buffer);
           })
      .def("describe", &describe)
      .def_property_readonly(
          "isa", [](const GuardedPlan& p) { return std::string(p.constants().kernels().name); })
      .def_property_readonly("threads",
                             [](const GuardedPlan& p) { return p.constants().threads(); })
      .def_property_readonly("max_rows",
                             [](const GuardedPlan& p) { return p.constants().max_rows(); })
      .def_property_readonly("max_outputs",
                             [](const GuardedPlan& p) { return p.constants().max_outputs(); })
      .def_property_readonly("page_bytes", [](GuardedPlan& p) { return p->page_bytes(); })
      .def_property_readonly("buffer_bytes", [](GuardedPlan& p) { return p->buffer_bytes(); });
}

}  // namespace slmq
