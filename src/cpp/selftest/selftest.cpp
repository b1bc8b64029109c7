// slmq_selftest: runs every kernel of every ISA that this CPU has, and a tiny model, on fixed inputs,
// and prints a hash of the bits of each result. Without Python and, linked statically, without any
// library, so that it runs in emulators and on bare machines.
//
//   slmq_selftest [--isa NAME] [--threads N] [--against FILE]
//
// Ends with `OK`, or `DIFFERS: ...` for each kernel whose bits are not scalar's or depend on what
// they must not depend on (status 1). With --isa only that ISA runs. --threads is the most that the
// model uses (default 3). --against compares with the hashes of a file instead of scalar's: those of
// the package are src/slmq/machine/selftest.txt.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "machine/cpu.h"
#include "kernels/dispatch.h"
#include "selftest/cases.h"

namespace slmq::selftest {
namespace {

struct Options {
  std::string isa;  // empty: all
  int threads = 3;
  std::string against;  // empty: the first ISA that runs
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--isa" && !value.empty()) {
      options.isa = value;
    } else if (name == "--threads" && std::atoi(value.c_str()) >= 1) {
      options.threads = std::atoi(value.c_str());
    } else if (name == "--against" && !value.empty()) {
      options.against = value;
    } else {
      throw std::invalid_argument(
          "usage: slmq_selftest [--isa NAME] [--threads N] [--against FILE]");
    }
  }
  return options;
}

std::vector<Line> read_hashes(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::invalid_argument("cannot read " + path);
  const std::vector<Line> lines =
      parse_hashes({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()});
  if (lines.empty()) throw std::invalid_argument("no hashes in " + path);
  return lines;
}

Results run_and_print(const Kernels& kernels, int max_threads) {
  Results results = run_all(kernels, max_threads);
  for (const Line& line : results.lines())
    std::printf("%-12s %-18s %016llx\n", kernels.name, line.kernel.c_str(),
                static_cast<unsigned long long>(line.hash));
  std::fflush(stdout);
  return results;
}

int run(const Options& options) {
  std::vector<Line> expected;
  if (!options.against.empty()) expected = read_hashes(options.against);
  const Kernels* alone = options.isa.empty() ? nullptr : &kernels_named(options.isa);
  std::printf("%-12s %s\n", "cpu", cpu_features().brand);
  std::vector<std::pair<const char*, Results>> all;
  if (alone != nullptr) {
    all.emplace_back(alone->name, run_and_print(*alone, options.threads));
  } else {
    for (const Isa& isa : all_isas()) {
      if (isa.kernels == nullptr) {
        std::printf("%-12s is not run: it %s\n", isa.name, isa.missing.c_str());
      } else {
        all.emplace_back(isa.name, run_and_print(*isa.kernels, options.threads));
      }
    }
  }
  const std::string whose = expected.empty() ? all.front().first : options.against;
  if (expected.empty()) expected = all.front().second.lines();
  bool ok = true;
  if (options.isa.empty()) {
    Results tiles;
    std::printf("amx_int8 on a model of its registers: %d formats\n", run_tiles(&tiles));
    for (const std::string& fault : tiles.faults()) {
      std::printf("DIFFERS: %s\n", fault.c_str());
      ok = false;
    }
  }
  for (const auto& [name, results] : all) {
    for (const std::string& complaint : complaints(results, expected, whose)) {
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
