// What the parts of the plan check with.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "layout/formats.h"
#include "plan/buffer.h"

namespace slmq {

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

// Columns of a buffer that holds rows of so many.
inline int padded(int width) { return static_cast<int>(round_up(width, kGroup)); }

inline std::string dims(int n, int k) { return std::to_string(n) + "x" + std::to_string(k); }

inline const Buffer& buffer_of(const std::vector<std::unique_ptr<Buffer>>& buffers, int id) {
  const int count = static_cast<int>(buffers.size());
  if (id < 0 || id >= count) {
    fail("expected a buffer " +
         (count == 0 ? "of an earlier step" : "0.." + std::to_string(count - 1)) + ", got " +
         std::to_string(id));
  }
  return *buffers[id];
}

inline void check_quantized_width(ptrdiff_t width) {
  constexpr int kMost = kMaxGroups * kGroup;
  if (width > kMost) {
    fail("a row to be quantized: expected at most " + std::to_string(kMost) + " values, got " +
         std::to_string(width));
  }
}

// 0 is none; more than the largest cap of a model by far keeps 1 / cap a normal number.
inline void check_softcap(float softcap, const char* what) {
  if (!(softcap == 0.0f || (softcap >= 1e-6f && softcap <= 1e6f))) {
    fail(std::string(what) + ": expected a softcap of 0 or 1e-6..1e6, got " +
         std::to_string(softcap));
  }
}

}  // namespace slmq
