#include "kernels/tuning.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "machine/cpu.h"

namespace slmq {
namespace {

// The same for both classes of weights: four bits were measured.
Tuning by_rows(const Ahead (&rows)[Tuning::kRowClasses]) {
  Tuning tuning;
  for (auto& of_class : tuning.weights) std::copy(std::begin(rows), std::end(rows), of_class);
  return tuning;
}

}  // namespace

// Fractions are of plain reading, of one thread.
Tuning default_tuning(const char* table, const char* vendor) {
  const std::string_view isa = table;
  if (isa == "scalar" || isa == "empty") return {};
  if (isa.starts_with("neon")) return by_rows({{2048, false}, {}, {}, {}});  // not measured
  constexpr Ahead kFar = {9216, true};
  if (std::string_view(vendor) == "GenuineIntel") {
    // Sapphire Rapids, q4g32s, 1, 2, 4 rows: .95, .82, .75 so; .57, .43, .32 without; 2 KiB ahead
    // .86, .75, .70. 8 rows .53 4 KiB ahead, .41 without. AVX2: .93, .77, .60; .39, .36, .24 without.
    return by_rows({kFar, kFar, kFar, {4608, false}});
  }
  // Zen 4, 1 and 2 rows: .98, .94 without; .75 to .88 with any distance. 4, 8, 16 rows: .58 to .67,
  // .38, .20 so; .46, .24, .145 without.
  if (isa == "avx2" || isa == "avxvnni") return by_rows({{}, {}, {2048, false}, {}});
  return by_rows({{}, {}, {6144, false}, {6144, false}});
}

Tuning default_tuning(const Kernels& table) {
  return default_tuning(table.name, cpu_features().vendor);
}

}  // namespace slmq
