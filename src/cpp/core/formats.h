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
  bool quantized;        // true: activations are panels of integers; false: float32 rows
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

// Activations of integer weights are rounded per token and group of 32 columns to
//
//   one plane:   x ~ scale_high * high,             |high| <= 127
//   two planes:  x ~ scale * (256 * high + low),    |256 * high + low| <= 127 * 256
//
// Two planes cost two int8 dots instead of one and lose nothing to speak of. a8g32 uses one plane
// throughout, a16g32 two; a8o16g32 gives two to the groups that stand out of their row: those are few
// and carry most of what one plane would lose.
enum class Activations : int { a8 = 0, a16 = 1, a8o16 = 2 };
inline constexpr int kActivations = 3;
inline constexpr const char* kActivationNames[kActivations] = {"a8g32", "a16g32", "a8o16g32"};

struct ActivationInfo {
  float scale;       // of 256 * high + low
  float scale_high;  // 256 * scale: of high alone
  float scaled_sum;  // scale * sum: pays for mins
  int32_t sum;       // of 256 * high + low
  int32_t sum_high;  // of high
  // -8 times the sums of columns 4j, 4j + 1 and of 4j + 2, 4j + 3: where 16-bit accumulators start to
  // pay for the zero point of int4.
  int16_t eights_high[2], eights_low[2];
  int32_t wide;  // not 0: two planes; else low is zero
};
static_assert(sizeof(ActivationInfo) == 32);

// A panel of m tokens is cut into blocks of 16 tokens; a block of r tokens holds for each group
//
//   int8 high[r][32] | int8 low[r][32] | ActivationInfo info[r]
//
// so that one plane of sixteen tokens stays within a few lines.
inline constexpr int kPanelRows = 16;
inline constexpr size_t kActivationBytes = 2 * kGroup + sizeof(ActivationInfo);  // token and group

inline constexpr int panel_rows(int m, int row) {  // tokens in the panel block that holds `row`
  const int left = m - row / kPanelRows * kPanelRows;
  return left < kPanelRows ? left : kPanelRows;
}

// One token's entries of one group. Those of the next token of its block lie 32 bytes (planes) and
// one ActivationInfo further, those of the next group panel_rows() * kActivationBytes.
struct ActivationGroup {
  int8_t *high, *low;
  ActivationInfo* info;
};
inline ActivationGroup activation_group(void* panel, int groups, int m, int row, int group) {
  const auto rows = static_cast<size_t>(panel_rows(m, row)),
             at = static_cast<size_t>(row) % kPanelRows;
  const size_t first = static_cast<size_t>(row) - at;
  auto* block =
      static_cast<int8_t*>(panel) +
      (first * static_cast<size_t>(groups) + static_cast<size_t>(group) * rows) * kActivationBytes;
  return {block + at * kGroup, block + (rows + at) * kGroup,
          reinterpret_cast<ActivationInfo*>(block + rows * 2 * kGroup) + at};
}

}  // namespace slmq
