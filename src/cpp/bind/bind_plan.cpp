// Plan, KvCache and KvSequence. run() is the one place where generation leaves the GIL.
#include <pybind11/stl.h>

#include <mutex>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "bind/guarded.h"
#include "plan/plan.h"

namespace slmq {
namespace {

using GuardedPlan = Guarded<Plan>;

using CancelFlag = std::atomic<bool>;

// None: all of them.
std::vector<int32_t> wanted_columns(const py::object& columns) {
  if (columns.is_none()) return {};
  std::vector<int32_t> wanted = checked_vector<int32_t>(columns, -1, "columns");
  if (wanted.empty())
    throw py::value_error("columns: expected at least one of the logits, got none");
  return wanted;
}

std::vector<int32_t> optional_ids(const py::object& ids, const char* what) {
  return ids.is_none() ? std::vector<int32_t>() : checked_vector<int32_t>(ids, -1, what);
}

using AdapterPointer = std::shared_ptr<Adapter>;
// Slot, A [rank, k], B [n, rank], factors [n] or None, biases [n] or None.
using AdapterPart = std::tuple<int, py::object, py::object, py::object, py::object>;

std::vector<float> thin_matrix(const py::object& object, const char* what, int* rows) {
  const auto array = py::array_t<float, py::array::c_style>::ensure(object);
  if (!array || array.ndim() != 2)
    throw py::value_error(std::string(what) + ": expected float32[rows, columns]");
  if (array.shape(0) > INT32_MAX)
    throw py::value_error(std::string(what) + ": expected fewer rows");
  *rows = static_cast<int>(array.shape(0));
  return std::vector<float>(array.data(), array.data() + array.size());
}

std::vector<float> thin_vector(const py::object& object, const char* what) {
  if (object.is_none()) return {};
  const auto array = py::array_t<float, py::array::c_style>::ensure(object);
  if (!array || array.ndim() != 1 || array.size() == 0)
    throw py::value_error(std::string(what) + ": expected float32[outputs]");
  return std::vector<float>(array.data(), array.data() + array.size());
}

AdapterPointer make_adapter(GuardedPlan& self, const std::vector<AdapterPart>& parts,
                            const std::string& type_name) {
  const LowRankType type = low_rank_type_named(type_name);
  std::vector<LowRankSource> sources;
  for (const auto& [slot, down, up, factor, bias] : parts) {
    LowRankSource source{};
    int outputs = 0;
    source.slot = slot;
    source.down = thin_matrix(down, "A", &source.rank);
    source.up = thin_matrix(up, "B", &outputs);
    source.factor = thin_vector(factor, "factors");
    source.bias = thin_vector(bias, "biases");
    sources.push_back(std::move(source));
  }
  const std::shared_ptr<const Slots> slots = self->slots();
  if (slots == nullptr) throw py::value_error("this plan takes no adapters");
  Released release;
  return std::make_shared<Adapter>(slots, std::move(sources), type);
}

std::vector<std::pair<int, int>> slot_sizes(GuardedPlan& self) {
  std::vector<std::pair<int, int>> sizes;
  if (const std::shared_ptr<const Slots> slots = self->slots())
    for (const SlotSize& size : *slots) sizes.emplace_back(size.n, size.k);
  return sizes;
}

// The microseconds of each step, or None if the run was cancelled.
std::optional<std::vector<double>> run(
    GuardedPlan& self, const py::object& tokens,
    std::vector<std::pair<std::shared_ptr<KvSequence>, int>> segments, const py::object& outputs,
    int stop, bool profile, std::shared_ptr<CancelFlag> cancel, const py::object& columns,
    const py::object& types, const py::object& spans,
    const std::optional<std::vector<AdapterPointer>>& adapters) {
  RunRequest request;
  request.tokens = checked_vector<int32_t>(tokens, -1, "tokens");
  request.segments = std::move(segments);
  request.outputs = checked_vector<int32_t>(outputs, -1, "outputs");
  request.columns = wanted_columns(columns);
  request.types = optional_ids(types, "types");
  request.spans = optional_ids(spans, "spans");
  if (adapters) request.adapters.assign(adapters->begin(), adapters->end());
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

py::array_t<float> logits(GuardedPlan& self) {
  GuardedPlan::Held plan = self.operator->();
  const py::ssize_t rows = plan->buffer_rows(plan->logits_buffer());
  py::array_t<float> out({rows, static_cast<py::ssize_t>(plan->logit_columns())});
  plan->read_logits(out.mutable_data());
  return out;
}

// The same without a copy; the next run, of anybody, writes over them.
py::array_t<float> logits_view(const py::object& owner) {
  auto& self = owner.cast<GuardedPlan&>();
  GuardedPlan::Held plan = self.operator->();
  const int id = plan->logits_buffer();
  const Buffer& b = plan->buffer(id);
  const py::ssize_t rows = plan->buffer_rows(id);
  const auto stride = static_cast<py::ssize_t>(b.row_bytes);
  py::array_t<float> view({rows, static_cast<py::ssize_t>(b.logical)},
                          {stride, static_cast<py::ssize_t>(sizeof(float))},
                          b.floats(static_cast<int>(rows), 0), owner);
  view.attr("setflags")(py::arg("write") = false);
  return view;
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

// Waits for runs of other threads with this sequence, then checks a length against it.
std::unique_lock<std::mutex> hold(KvSequence& s, int length, const char* what) {
  std::unique_lock<std::mutex> held(s.guard(), std::defer_lock);
  {
    Released release;
    held.lock();
  }
  if (length < 0 || length > s.length()) {
    throw py::value_error(std::string(what) + ": expected 0.." + std::to_string(s.length()) +
                          ", got " + std::to_string(length));
  }
  return held;
}

void check_kept(const KvSequence& s, int length, const char* what) {
  const int kept = s.kept(length);
  if (kept != length)
    throw py::value_error(std::string(what) + ": no state is kept behind position " +
                          std::to_string(length) + ", the nearest before it is " +
                          std::to_string(kept));
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
      .def("trim", &KvCache::trim, py::call_guard<Released>());
  py::class_<KvSequence, std::shared_ptr<KvSequence>>(m, "KvSequence")
      .def_property_readonly("length", &KvSequence::length)
      .def(
          "kept",
          [](KvSequence& s, int length) {
            const auto held = hold(s, length, "kept");
            return s.kept(length);
          },
          py::arg("length"))
      .def_property_readonly("pages_held",
                             [](KvSequence& s) {
                               const auto held = hold(s, 0, "pages_held");
                               return s.pages_held();
                             })
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
            check_kept(s, length, "truncate");
            s.truncate(length);
          },
          py::arg("length"))
      .def(
          "fork",
          [](KvSequence& s, int length) {
            const auto held = hold(s, length, "fork");
            check_kept(s, length, "fork");
            return s.fork(length);
          },
          py::arg("length"));
}

}  // namespace

void bind_plan(py::module_& m) {
  bind_cache(m);
  py::class_<Adapter, AdapterPointer>(m, "Adapter")  // made by Plan.adapter()
      .def_property_readonly("nbytes", &Adapter::bytes);
  py::class_<GuardedPlan>(m, "Plan")  // made by Recording.finish()
      .def("make_cache", [](GuardedPlan& p) { return p->make_cache(); })
      .def("run", &run, py::arg("tokens"), py::arg("segments"), py::arg("outputs"),
           py::arg("stop") = -1, py::arg("profile") = false, py::arg("cancel") = py::none(),
           py::arg("columns") = py::none(), py::arg("types") = py::none(),
           py::arg("spans") = py::none(), py::arg("adapters") = py::none())
      .def("adapter", &make_adapter, py::arg("parts"), py::arg("type"))
      .def_property_readonly("slots", &slot_sizes)
      .def(
          "run_outputs",
          [](GuardedPlan& p, const py::object& outputs, const py::object& columns,
             const py::object& spans) {
            const auto rows = checked_vector<int32_t>(outputs, -1, "outputs");
            const auto wanted = wanted_columns(columns);
            const auto counts = optional_ids(spans, "spans");
            p.run([&](Plan& plan) { plan.run_outputs(rows, wanted, counts); });
          },
          py::arg("outputs"), py::arg("columns") = py::none(), py::arg("spans") = py::none())
      .def("read", &read, py::arg("buffer"))
      .def("logits", &logits)
      .def("logits_view", [](const py::object& self) { return logits_view(self); })
      .def("describe", &describe)
      .def_property_readonly(
          "isa", [](const GuardedPlan& p) { return std::string(p.constants().kernels().name); })
      .def_property_readonly("threads",
                             [](const GuardedPlan& p) { return p.constants().sizes().threads; })
      .def_property_readonly("max_rows",
                             [](const GuardedPlan& p) { return p.constants().sizes().max_rows; })
      .def_property_readonly("max_outputs",
                             [](const GuardedPlan& p) { return p.constants().sizes().max_outputs; })
      .def_property_readonly("page_bytes", [](GuardedPlan& p) { return p->page_bytes(); })
      .def_property_readonly("state_bytes", [](GuardedPlan& p) { return p->state_bytes(); })
      .def_property_readonly("state_interval", [](GuardedPlan& p) { return p->state_interval(); })
      .def_property_readonly("bytes_read", [](GuardedPlan& p) { return p->bytes_read(); })
      .def_property_readonly("buffer_bytes", [](GuardedPlan& p) { return p->buffer_bytes(); });
}

}  // namespace slmq
