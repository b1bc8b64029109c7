// What the parts of the plan check with.
#pragma once

#include <stdexcept>
#include <string>

#include "layout/formats.h"

namespace slmq {

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

// Columns of a buffer that holds rows of so many.
inline int padded(int width) { return static_cast<int>(round_up(width, kGroup)); }

inline void check_quantized_width(ptrdiff_t width) {
  constexpr int kMost = kMaxGroups * kGroup;
  if (width > kMost) {
    fail("a row to be quantized: expected at most " + std::to_string(kMost) + " values, got " +
         std::to_string(width));
  }
}

}  // namespace slmq
