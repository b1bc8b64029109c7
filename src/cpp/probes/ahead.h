// How long products take when weights are fetched so far ahead, or otherwise.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/kernels.h"
#include "layout/memory.h"

namespace slmq {

// Weights for any format, more than caches hold, of which each product reads another piece.
class AheadTimer {
 public:
  // Throws std::bad_alloc.
  AheadTimer(const Kernels& kernels, size_t bytes);

  // Seconds of one product with so many rows, once for each candidate, on the calling thread.
  std::vector<double> time(Format format, int rows, const std::vector<Ahead>& candidates);

 private:
  const Kernels& kernels_;
  Memory weights_;
  size_t at_ = 0;
};

}  // namespace slmq
