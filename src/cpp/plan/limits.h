// What this machine can do at most: the yardsticks for every fraction that slmq reports.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace slmq {

// Both run for about `seconds` on `threads` threads at once and return the best pass.
double memory_read_gb_per_s(int threads, size_t bytes, double seconds);  // throws std::bad_alloc
double integer_peak_gmac_per_s(const Kernels& kernels, int threads, double seconds);

}  // namespace slmq
