// The self test as Python sees it: `slmq doctor --selftest`.
#include <cstdio>
#include <string>

#include "bind/bindings.h"
#include "kernels/dispatch.h"
#include "selftest/cases.h"

namespace slmq {
namespace {

py::tuple run_selftest(const std::string& isa, int max_threads) {
  if (max_threads < 1) throw py::value_error("max_threads: expected at least 1");
  const Kernels& kernels = kernels_named(isa);
  selftest::Results results;
  {
    const Released released;
    results = selftest::run_all(kernels, max_threads);
  }
  py::dict hashes;
  for (const selftest::Line& line : results.lines()) {
    char hash[17];
    std::snprintf(hash, sizeof hash, "%016llx", static_cast<unsigned long long>(line.hash));
    hashes[py::str(line.kernel)] = py::str(hash);
  }
  py::list faults;
  for (const std::string& fault : results.faults()) faults.append(fault);
  return py::make_tuple(hashes, faults);
}

}  // namespace

void bind_selftest(py::module_& m) {
  m.def("selftest", &run_selftest, py::arg("isa"), py::arg("max_threads") = 3,
        "Hash of every kernel's results on fixed inputs, and what contradicts itself.");
}

}  // namespace slmq
