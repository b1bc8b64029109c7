// From the integers and scales of quantized weights to packed pairs: no rounding, no loss.
#pragma once

#include <cstdint>

#include "layout/pack.h"

namespace slmq {

// Row-major arrays. With `parts` of a group and runs of `run` groups, g = k rounded up / 32:
struct PartsArgs {
  Format format;
  int n, k;              // k is a multiple of info(format).columns
  const uint8_t* codes;  // [n, k]
  // float16 [n, g / run], [n, 1] of whole rows, or int8 [n, g * parts] if two-level: twice the factor
  // plus a bit where the format has a lift
  const void* scales;
  // The same again, or uint8 zeros [n, g / run]; null without an offset
  const void* mins;
  const uint16_t *d, *dmin;  // float16 [n, g / run], two-level formats; dmin is subtracted
  const int32_t* order;      // row r of the matrix is row order[r] of the parts; null: r
  uint8_t* out;              // all pairs, zeroed
};

// Packs pairs [pair_begin, pair_end).
PackStatus pack_parts(const PartsArgs& args, int pair_begin, int pair_end);

}  // namespace slmq
