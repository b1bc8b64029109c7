// Which tables this CPU can run, and which one runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace slmq {

struct Isa {
  const char* name;
  const Kernels* kernels;  // null: not usable here
  std::string missing;     // why not
};

const std::vector<Isa>& all_isas();  // from the plainest to the best

// The best usable table, or the one that the environment variable SLMQ_ISA names.
// Throws std::invalid_argument when it names an unknown or unusable one.
const Kernels& active_kernels();

// By name; throws std::invalid_argument that says what is available.
const Kernels& kernels_named(const std::string& name);

// Kernels that do nothing, to measure what is not kernels. Not an ISA: never listed or dispatched.
const Kernels& empty_kernels();

}  // namespace slmq
