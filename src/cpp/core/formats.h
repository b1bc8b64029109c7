// The weight formats and the one byte layout that every ISA consumes.
//
// A matrix of n rows (outputs) and k columns (inputs) is cut into *pairs* of 32 rows and *groups* of
// 32 columns. A pair-group is stored in one piece; pair-groups of a pair follow each other along k:
//
//   matrix      = pair 0 | pair 1 | ...                 (n rounded up to 32 rows)
//   pair        = group 0 | group 1 | ...               (k rounded up to 32 columns)
//   pair-group  = tile A | tile B | scales | mins       (A: rows 0-15 of the pair, B: rows 16-31)
//
//   int4 tile, 256 bytes: line j = 0..3 of 64 bytes; 32-bit lane r of a line belongs to row r
//
//     line j, lane r:   byte 0      byte 1      byte 2      byte 3
//        low nibble     col 4j      col 4j+1    col 4j+2    col 4j+3
//        high nibble    col 16+4j   col 17+4j   col 18+4j   col 19+4j
//
//   int8 tile, 512 bytes: line j = 0..7, lane r: columns 4j..4j+3, stored as w + 128 (unsigned)
//   f16 / f32 tile:       [32 columns][16 rows]
//   scales, mins:         float16[32], one per row of the pair (64 bytes each: lines stay aligned)
//
// Every part is a multiple of 64 bytes, so a matrix that starts aligned stays aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slmq {

inline constexpr int kLanes = 16;     // rows of a tile; also the width of the vector layer
inline constexpr int kPairRows = 32;  // rows of a tile pair
inline constexpr int kGroup = 32;     // columns that share a scale

enum class Format : int { q4g32s = 0, q4g32a = 1, q8g32s = 2, f16 = 3, f32 = 4 };
inline constexpr int kFormats = 5;

struct FormatInfo {
  const char* name;
  int tile_bytes;        // 16 rows x 32 columns, without scales
  int pair_group_bytes;  // two tiles, their scales and mins
  bool quantized;        // true: activations are a8g32; false: float32 rows
};

inline constexpr FormatInfo kFormatInfo[kFormats] = {
    {"q4g32s", 256, 2 * 256 + 64, true},   // w = scale * (q - 8)
    {"q4g32a", 256, 2 * 256 + 128, true},  // w = scale * q + min
    {"q8g32s", 512, 2 * 512 + 64, true},   // w = scale * q, q in [-128, 127]
    {"f16", 1024, 2 * 1024, false},       {"f32", 2048, 2 * 2048, false},
};

inline constexpr const FormatInfo& info(Format f) { return kFormatInfo[static_cast<int>(f)]; }

static_assert(kFormatInfo[0].pair_group_bytes == 576 && kFormatInfo[0].pair_group_bytes % 64 == 0);
static_assert(kFormatInfo[1].pair_group_bytes == 640 && kFormatInfo[1].pair_group_bytes % 64 == 0);
static_assert(kFormatInfo[2].pair_group_bytes == 1088 && kFormatInfo[2].pair_group_bytes % 64 == 0);

inline constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Activations of one token: 32 columns a block, x ~ scale * q.
//   a8g32:  q = high, |q| <= 127
//   a16g32: q = 256 * high + low, |q| <= 127 * 256: two int8 dots instead of one, no loss to speak of
struct A8Block {
  int8_t high[kGroup];
  float scale;
  int32_t sum;       // of q: pays for zero points
  float scaled_sum;  // scale * sum: pays for mins
  int32_t unused;    // keeps blocks 16-byte aligned
};
struct A16Block {
  int8_t high[kGroup], low[kGroup];
  float scale;
  int32_t sum;
  float scaled_sum;
  int32_t unused;
};
static_assert(sizeof(A8Block) == 48 && sizeof(A16Block) == 80);

enum class Activations : int { a8 = 0, a16 = 1 };
inline constexpr int kActivations = 2;
inline constexpr size_t activation_block_bytes(Activations a) {
  return a == Activations::a8 ? sizeof(A8Block) : sizeof(A16Block);
}

// A panel of m tokens is cut into blocks of 16 tokens; inside, [group][token of the block], dense in
// the rows that are there, so that one token is contiguous and sixteen stay within a few lines.
inline constexpr int kPanelRows = 16;

inline constexpr int panel_rows(int m, int row) {  // tokens in the panel block that holds `row`
  const int left = m - row / kPanelRows * kPanelRows;
  return left < kPanelRows ? left : kPanelRows;
}
inline constexpr size_t panel_offset(int groups, int m, int row, int group) {  // in blocks
  const size_t first = static_cast<size_t>(row / kPanelRows) * kPanelRows;
  return first * groups + static_cast<size_t>(group) * panel_rows(m, row) + row % kPanelRows;
}

}  // namespace slmq
