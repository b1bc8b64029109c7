// The machine as Python sees it: CPU features, threads and why, the pool's health.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "machine/arm_names.h"
#include "machine/cpu.h"
#include "threads/pool.h"
#include "machine/topology.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace slmq {
namespace {

py::dict features_dict(const CpuFeatures& cpu) {
  return py::dict(
      "sse4_2"_a = cpu.sse4_2, "avx"_a = cpu.avx, "avx2"_a = cpu.avx2, "fma"_a = cpu.fma,
      "f16c"_a = cpu.f16c, "avxvnni"_a = cpu.avxvnni, "avx512f"_a = cpu.avx512f,
      "avx512bw"_a = cpu.avx512bw, "avx512dq"_a = cpu.avx512dq, "avx512vl"_a = cpu.avx512vl,
      "avx512vnni"_a = cpu.avx512vnni, "avx512bf16"_a = cpu.avx512bf16,
      "avx512vbmi"_a = cpu.avx512vbmi, "amx_tile"_a = cpu.amx_tile, "amx_int8"_a = cpu.amx_int8,
      "amx_bf16"_a = cpu.amx_bf16, "os_avx"_a = cpu.os_avx, "os_avx512"_a = cpu.os_avx512,
      "os_amx"_a = cpu.os_amx, "neon"_a = cpu.neon, "dotprod"_a = cpu.dotprod, "i8mm"_a = cpu.i8mm,
      "usable_avx2"_a = usable_avx2(cpu), "usable_avxvnni"_a = usable_avxvnni(cpu),
      "usable_avx512vnni"_a = usable_avx512vnni(cpu), "usable_amx_int8"_a = usable_amx_int8(cpu),
      "usable_neon_dotprod"_a = usable_neon_dotprod(cpu),
      "usable_neon_i8mm"_a = usable_neon_i8mm(cpu), "brand"_a = cpu.brand);
}

py::dict threads_dict(const ThreadChoice& c) {
  const py::object quota = c.quota_cpus < 0 ? py::object(py::none()) : py::float_(c.quota_cpus);
  return py::dict("threads"_a = c.threads, "why"_a = c.why, "affinity_cpus"_a = c.affinity_cpus,
                  "physical_cores"_a = c.physical_cores,
                  "performance_cores"_a = c.performance_cores, "quota_cpus"_a = quota);
}

// Seconds per barrier, all threads doing nothing else.
double time_barriers(int threads, int barriers) {
  if (barriers < 1) {
    throw std::invalid_argument("expected at least 1 barrier, got " + std::to_string(barriers));
  }
  struct Context {
    ThreadPool& pool;
    int barriers;
  };
  const std::shared_ptr<ThreadPool> pool = shared_pool(threads);
  Context context{*pool, barriers};
  const Released released;
  const auto start = std::chrono::steady_clock::now();
  pool->run(
      [](void* opaque, int) {
        const Context& c = *static_cast<Context*>(opaque);
        Barrier& barrier = c.pool.barrier();
        for (int i = 0; i < c.barriers; ++i) barrier.wait();
      },
      &context);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / barriers;
}

// What each thread of the pool computes for half of the smallest normal float (0 if subnormals are
// flushed) and for 1 + 1e-8 (not 1 if the mode rounds up). As bits: the caller's own mode may flush
// the number that it is shown.
std::vector<std::pair<uint32_t, uint32_t>> probe_fp_mode(int threads) {
  const std::shared_ptr<ThreadPool> pool = shared_pool(threads);
  std::vector<std::pair<uint32_t, uint32_t>> results(static_cast<size_t>(threads));
  const Released released;
  pool->run(
      [](void* opaque, int thread) {
        volatile float smallest = 1.17549435e-38f, half = 0.5f, one = 1.0f, tiny = 1e-8f;
        auto* results = static_cast<std::pair<uint32_t, uint32_t>*>(opaque);
        results[thread] = {std::bit_cast<uint32_t>(smallest * half),
                           std::bit_cast<uint32_t>(one + tiny)};
      },
      results.data());
  return results;
}

// Strings of a GGUF file: a length of 64 bits, then UTF-8, over and over; what does not decode
// becomes lone surrogates. Stops before the first whose length does not lie within the buffer or
// whose bytes do not lie below `limit`, and says where.
py::tuple read_strings(const py::buffer& buffer, uint64_t position, uint64_t limit,
                       uint64_t count) {
  const py::buffer_info bytes = buffer.request();
  const auto* data = static_cast<const char*>(bytes.ptr);
  const auto size = static_cast<uint64_t>(bytes.size * bytes.itemsize);
  limit = std::min(limit, size);
  py::list strings;
  for (uint64_t i = 0; i < count; ++i) {
    if (position > size || size - position < 8) break;
    uint64_t length;
    std::memcpy(&length, data + position, 8);
    if (position + 8 > limit || length > limit - (position + 8)) break;
    PyObject* text = PyUnicode_DecodeUTF8(data + position + 8, static_cast<Py_ssize_t>(length),
                                          "surrogateescape");
    if (text == nullptr) throw py::error_already_set();
    strings.append(py::reinterpret_steal<py::object>(text));
    position += 8 + length;
  }
  return py::make_tuple(strings, position);
}

}  // namespace

void bind_system(py::module_& m) {
  m.def(
      "cpu_features", [] { return features_dict(cpu_features()); },
      "Features that this CPU and its operating system really offer.");
  m.def(
      "decode_cpu_features",
      [](uint32_t leaf1_ecx, uint32_t leaf7_ebx, uint32_t leaf7_ecx, uint32_t leaf7_edx,
         uint32_t leaf7_1_eax, uint64_t xcr0) {
        return features_dict(decode_cpu_features(
            CpuidWords{leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax, xcr0}));
      },
      py::kw_only(), "leaf1_ecx"_a = 0, "leaf7_ebx"_a = 0, "leaf7_ecx"_a = 0, "leaf7_edx"_a = 0,
      "leaf7_1_eax"_a = 0, "xcr0"_a = 0, "The same decision for the cpuid words of any machine.");
  m.def(
      "decode_arm_features",
      [](uint64_t hwcap, uint64_t hwcap2) {
        return features_dict(decode_cpu_features(ArmWords{hwcap, hwcap2}));
      },
      py::kw_only(), "hwcap"_a = 0, "hwcap2"_a = 0,
      "The same decision for what Linux tells of any 64-bit ARM CPU.");
  m.def(
      "choose_threads", [] { return threads_dict(choose_threads()); },
      "Default number of threads of this process, and why.");
  m.def(
      "choose_threads",
      [](const std::string& proc_root, const std::string& sys_root,
         const std::vector<int>& affinity) {
        return threads_dict(choose_threads(proc_root, sys_root, affinity));
      },
      "proc_root"_a, "sys_root"_a, "affinity"_a,
      "The same decision from other trees than /proc and /sys, for these CPU numbers.");
  m.def(
      "choose_threads_macos",
      [](const std::map<std::string, int>& sysctl) {
        return threads_dict(choose_threads_macos([&](const char* name) {
          const auto found = sysctl.find(name);
          return found == sysctl.end() ? 0 : found->second;
        }));
      },
      "sysctl"_a, "The same decision from these values of macOS' sysctl.");
  m.def(
      "choose_threads_windows",
      [](const py::bytes& records, uint16_t group, uint64_t mask) {
        const std::string text = records;
        return threads_dict(
            choose_threads_windows(std::vector<uint8_t>(text.begin(), text.end()), group, mask));
      },
      "records"_a, "group"_a, "mask"_a,
      "The same decision from records of GetLogicalProcessorInformationEx.");
  m.def("worker_quality", &worker_quality, "callers"_a,
        "Quality-of-service class of macOS that workers take, from their maker's.");
  m.def("arm_cpu_name", &arm_names::cpu_name, "proc_root"_a, "sys_root"_a,
        "What the 64-bit ARM cores of these trees like /proc and /sys are called.");
  m.def("arm_core_name", &arm_names::name_of_midr, "midr"_a,
        "What the core with this MIDR_EL1 is called.");
  m.def(
      "resolve_threads",
      [](std::optional<long long> requested) { return threads_dict(resolve_threads(requested)); },
      "requested"_a = py::none(), "The request, else SLMQ_NUM_THREADS, else choose_threads().");
  m.def("read_strings", &read_strings, "buffer"_a, "begin"_a, "limit"_a, "count"_a,
        "Strings of a GGUF file, and where the next one would begin.");
  m.def("time_barriers", &time_barriers, "threads"_a, "barriers"_a,
        "Seconds per barrier of the shared pool of that size.");
  m.def("probe_fp_mode", &probe_fp_mode, "threads"_a,
        "Bits of a subnormal product and of a rounded sum, as each thread of the pool sees them.");
}

}  // namespace slmq
