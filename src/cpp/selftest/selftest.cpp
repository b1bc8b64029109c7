// slmq_selftest: runs every kernel of every ISA that this CPU has, and a tiny model, on fixed inputs,
// and prints a hash of the bits of each result. Without Python and, linked statically, without any
// library, so that it runs in emulators and on bare machines.
//
//   slmq_selftest [--isa NAME] [--threads N]
//
// Ends with `OK`, or `DIFFERS: ...` for each kernel whose bits are not scalar's or depend on what
// they must not depend on (status 1). With --isa only that ISA runs: compare its lines with another
// machine's. --threads is the most that the model uses (default 3).
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/cpu.h"
#include "kernels/dispatch.h"
#include "selftest/cases.h"

namespace slmq::selftest {
namespace {

struct Options {
  std::string isa;  // empty: all
  int threads = 3;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--isa" && !value.empty()) {
      options.isa = value;
    } else if (name == "--threads" && std::atoi(value.c_str()) >= 1) {
      options.threads = std::atoi(value.c_str());
    } else {
      throw std::invalid_argument("usage: slmq_selftest [--isa NAME] [--threads N]");
    }
  }
  return options;
}

Results run_isa(const Kernels& kernels, int max_threads) {
  const DefaultFpMode mode;
  Results results;
  run_linear(kernels, &results);
  run_rows(kernels, &results);
  run_attention(kernels, &results);
  run_model(kernels, max_threads, &results);
  for (const Line& line : results.lines())
    std::printf("%-12s %-18s %016llx\n", kernels.name, line.kernel.c_str(),
                static_cast<unsigned long long>(line.hash));
  std::fflush(stdout);
  return results;
}

// What is wrong with an ISA's results.
std::vector<std::string> complaints(const Results& results, const Results& reference) {
  std::vector<std::string> list = results.faults();
  for (size_t i = 0; i < results.lines().size(); ++i) {
    const Line &line = results.lines()[i], &expected = reference.lines()[i];
    if (line.hash != expected.hash) list.push_back(line.kernel + ": not the bits of scalar");
  }
  return list;
}

int run(const Options& options) {
  bool ok = true;
  std::vector<std::pair<const char*, Results>> all;
  if (!options.isa.empty()) {
    const Kernels& kernels = kernels_named(options.isa);
    all.emplace_back(kernels.name, run_isa(kernels, options.threads));
  } else {
    for (const Isa& isa : all_isas()) {
      if (isa.kernels == nullptr) {
        std::printf("%-12s is not run: it %s\n", isa.name, isa.missing.c_str());
      } else {
        all.emplace_back(isa.name, run_isa(*isa.kernels, options.threads));
      }
    }
  }
  for (const auto& [name, results] : all) {
    for (const std::string& complaint : complaints(results, all.front().second)) {
      std::printf("DIFFERS: %s %s\n", name, complaint.c_str());
      ok = false;
    }
  }
  if (ok) std::printf("OK\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace slmq::selftest

int main(int argc, char** argv) {
  try {
    return slmq::selftest::run(slmq::selftest::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "slmq_selftest: %s\n", error.what());
    return 2;
  }
}
