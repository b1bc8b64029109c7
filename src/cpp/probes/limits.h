// What this machine can do at most: the yardsticks for every fraction that slmq reports.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace slmq {

// Both run for about `seconds` on `threads` threads at once and return the best pass. Reading throws
// std::bad_alloc.
double memory_read_gb_per_s(const Kernels& kernels, int threads, size_t bytes, double seconds);
double integer_peak_gmac_per_s(const Kernels& kernels, int threads, double seconds);

}  // namespace slmq
