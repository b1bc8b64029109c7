// A packed weight matrix: a view of bytes in the one layout, and whoever owns them.
#pragma once

#include <cstdint>
#include <memory>

#include "layout/formats.h"
#include "layout/memory.h"
#include "layout/pack.h"

namespace slmq {

struct Matrix {
  Format format;
  int n, k;
  uint8_t* data;                      // matrix_bytes(format, n, k), 64-byte aligned
  std::shared_ptr<const void> owner;  // keeps the bytes alive

  int pairs() const { return matrix_pairs(n); }
  int groups() const { return matrix_groups(k); }
  size_t bytes() const { return matrix_bytes(format, n, k); }
};

// One piece of memory for all weights of a model, so that 2 MiB pages can back small matrices too.
class Arena {
 public:
  explicit Arena(size_t bytes, bool huge) : memory_(bytes, huge) {}
  // The next `bytes` (64-byte aligned), or null when the arena is full.
  uint8_t* take(size_t bytes) {
    const size_t size = static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64));
    if (size > memory_.size() - used_) return nullptr;
    uint8_t* p = memory_.data() + used_;
    used_ += size;
    return p;
  }
  uint8_t* data() const { return memory_.data(); }
  size_t size() const { return memory_.size(); }
  size_t used() const { return used_; }

 private:
  Memory memory_;
  size_t used_ = 0;
};

}  // namespace slmq
