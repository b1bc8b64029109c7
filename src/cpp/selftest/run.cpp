// Everything that is hashed, and what is wrong with it.
#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>

#include "machine/cpu.h"
#include "selftest/cases.h"

namespace slmq::selftest {

Results run_all(const Kernels& kernels, int max_threads) {
  const DefaultFpMode mode;
  Results results;
  run_linear(kernels, &results);
  run_rows(kernels, &results);
  run_attention(kernels, &results);
  run_training(kernels, &results);
  run_model(kernels, max_threads, &results);
  return results;
}

std::vector<Line> parse_hashes(const std::string& text) {
  std::vector<Line> lines;
  std::istringstream stream(text);
  for (std::string row; std::getline(stream, row);) {
    if (!row.empty() && row.back() == '\r') row.pop_back();
    if (row.empty() || row[0] == '#') continue;
    std::istringstream words(row);
    std::string kernel, hash, more;
    words >> kernel >> hash;
    const bool hex = hash.size() == 16 && hash.find_first_not_of("0123456789abcdef") == hash.npos;
    if (!hex || words >> more)
      throw std::invalid_argument("expected lines of a name and 16 hex digits, got '" + row + "'");
    lines.push_back({kernel, std::strtoull(hash.c_str(), nullptr, 16)});
  }
  return lines;
}

std::vector<std::string> complaints(const Results& results, const std::vector<Line>& expected,
                                    const std::string& whose) {
  std::vector<std::string> list = results.faults();
  std::map<std::string, uint64_t> left;
  for (const Line& line : expected) left[line.kernel] = line.hash;
  for (const Line& line : results.lines()) {
    const auto found = left.find(line.kernel);
    if (found == left.end()) {
      list.push_back(line.kernel + ": not among those of " + whose);
      continue;
    }
    if (line.hash != found->second) list.push_back(line.kernel + ": not the bits of " + whose);
    left.erase(found);
  }
  for (const auto& [kernel, hash] : left) list.push_back(kernel + ": only among those of " + whose);
  return list;
}

}  // namespace slmq::selftest
