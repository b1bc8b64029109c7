// From checkpoint rows to packed pairs, and the round-to-nearest quantizer. Plain C++: one
// implementation, so packed bytes are the same everywhere.
#pragma once

#include <cstdint>

#include "layout/formats.h"

namespace slmq {

// What a checkpoint stores. Quantized types are GGUF's, rows of blocks of 32 values.
enum class Source : int { f32 = 0, f16 = 1, bf16 = 2, q4_0 = 3, q4_1 = 4, q8_0 = 5 };
inline constexpr int kSources = 6;

size_t source_row_bytes(Source source, int k);  // k multiple of 32 for quantized types

// too_large: for a float16; beyond_bits: a code
enum class PackStatus : int { ok, not_finite, too_large, beyond_bits };

// Formats that weights can be rounded to; the others hold what was rounded elsewhere.
inline constexpr bool rounds(Format f) { return static_cast<int>(f) < 5 || f == Format::q8rs; }

struct PackArgs {
  Format format;  // one that rounds()
  Source source;
  const uint8_t* rows;  // n rows of source_row_bytes(source, k); any alignment
  int n, k;
  const int32_t* order;  // row r of the matrix is source row order[r]; null: r
  uint8_t* out;          // all pairs, zeroed
};

// Packs pairs [pair_begin, pair_end). GGUF types into their own format keep every bit.
PackStatus pack_pairs(const PackArgs& args, int pair_begin, int pair_end);

inline int matrix_pairs(int n) { return static_cast<int>(round_up(n, kPairRows) / kPairRows); }
inline int matrix_groups(int k) { return static_cast<int>(round_up(k, kGroup) / kGroup); }
inline size_t matrix_bytes(Format f, int n, int k) {
  return static_cast<size_t>(matrix_pairs(n)) * pair_bytes(f, matrix_groups(k));
}

}  // namespace slmq
