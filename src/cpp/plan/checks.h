// What the parts of the plan check with.
#pragma once

#include <stdexcept>
#include <string>

#include "core/formats.h"

namespace slmq {

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

// Columns of a buffer that holds rows of so many.
inline int padded(int width) { return static_cast<int>(round_up(width, kGroup)); }

}  // namespace slmq
