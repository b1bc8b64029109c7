// The weight formats and the one byte layout that every ISA consumes.
//
// A matrix of n rows (outputs) and k columns (inputs) is cut into *pairs* of 32 rows and *groups* of
// 32 columns. Some groups in a row share scales: a *run* of 1 to 8 groups, or of all that a row has.
//
//   matrix      = pair 0 | pair 1 | ...                 (n rounded up to 32 rows)
//   pair        = run 0 | run 1 | ...                   (k rounded up to 32 columns; runs are whole)
//   run         = pair-group 0 | ... | what they share
//   pair-group  = tile A | tile B | what is its own     (A: rows 0-15 of the pair, B: rows 16-31)
//
// A tile is 16 rows x 32 columns in lines of 64 bytes; 32-bit lane r of a line belongs to row r. Codes
// of 1 to 6 bits lie in planes, one behind the other:
//
//   4 bits, lines j = 0..3      byte 0      byte 1      byte 2      byte 3
//        low nibble             col 4j      col 4j+1    col 4j+2    col 4j+3
//        high nibble            col 16+4j   col 17+4j   col 18+4j   col 19+4j
//   one bit, one line:          bit i of byte b is column 4i + b
//   two bits, lines h = 0, 1:   bits 2j and 2j+1 of byte b are column 16h + 4j + b
//
// Codes of two bits have the last plane alone, those of one bit the one before it. 8 bits: lines
// j = 0..7, columns 4j..4j+3, signed ones plus 128. f16 and f32: [32 columns][16 rows].
//
// Where rows of activations have one scale, too, all tiles A of a pair lie before all tiles B: sums run
// over whole rows there, and matrix registers take two groups at a time.
//
// Scales are float16[32], one per row of the pair, and so are mins and zeros (stored as -zero). They
// are the pair-group's own if the run is one group, else shared. Two-level formats share float16[32]
// d (and -dmin) in a run of 256 columns, or of a row; a pair-group's own are int8[parts][32] factors of
// d (and as many of dmin), where a part is 32 columns, or 16.
//
// Codes of some formats are places in a table of sixteen integers. Where a format has a lift, its factors
// are 2 * factor + bit, and the bit adds the lift to all that the table holds: that is a second table.
//
// All tiles begin at multiples of 64 bytes if a matrix does. Where a pair-group has half a line of factors,
// every second one of a run has them in front of its tiles: 512 | 32, 32 | 512, 512 | 32 bytes, and so on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slmq {

inline constexpr int kLanes = 16;     // rows of a tile; also the width of the vector layer
inline constexpr int kPairRows = 32;  // rows of a tile pair
inline constexpr int kGroup = 32;     // columns that share an activation's scale
inline constexpr int kWholeRow = 0;   // a run that is as long as its row

enum class Format : int {
  q4g32s = 0,
  q4g32a = 1,
  q8g32s = 2,
  f16 = 3,
  f32 = 4,
  q4k = 5,
  q5k = 6,
  q6k = 7,
  q2k = 8,
  q8g32a = 9,
  q4g32z = 10,
  q4g64z = 11,
  q4g128z = 12,
  q4g64s = 13,
  q4g128s = 14,
  q8rs = 15,
  q5g32s = 16,
  q5g32a = 17,
  q6g32s = 18,
  q2g64s = 19,
  q2g128s = 20,
  q2g256s = 21,
  q1g128a = 22,
  n4g32 = 23,
  n4k = 24,
  n4g32s = 25,
  f4g32s = 26
};
inline constexpr int kFormats = 27;

// What is added to scale * (q - zero): nothing, a min, or scale times a stored -zero.
enum class Offset : int { none, min, zero };

// What codes of four bits stand for, if not for themselves: int8, ascending or not.
struct Values {
  int8_t at[16];
};
// Places of a normal distribution, as in GGUF's IQ4_NL and IQ4_XS: dense around zero.
inline constexpr Values kNormal4 = {
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}};
// Twice the values of four-bit floats, E2M1.
inline constexpr Values kFloat4 = {{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}};
inline constexpr Values kCodes = {};  // codes stand for themselves

struct FormatInfo {
  const char* name;
  int bits;        // of a code; 16 and 32: floats
  int zero;        // the code that means 0, in all groups
  Offset offset;   // what rows have beside their scales
  int run;         // groups that share scales; kWholeRow: all of a row
  bool two_level;  // scales are integers times d, mins integers times dmin
  int parts;       // of a group with scales of their own
  bool quantized;  // activations are panels of integers; else float32 rows
  bool has_offset;
  int columns;  // k is a multiple of it
  bool table;   // codes are places in `values`
  Values values;
  int lift;         // what a bit beside the factor adds to all values; 0: there is none
  bool row_panels;  // activations have one scale a row, too

  int tile_bytes;        // 16 rows x 32 columns, without scales
  int pair_group_bytes;  // two tiles and what is the group's own
  int shared_bytes;      // what the groups of a run share
  int run_bytes;         // 0 if a run is as long as its row
};

consteval FormatInfo make_format(const char* name, int bits, int zero, Offset offset, int run = 1,
                                 bool two_level = false, int parts = 1,
                                 const Values& values = kCodes, int lift = 0) {
  FormatInfo f{name,
               bits,
               zero,
               offset,
               run,
               two_level,
               parts,
               bits < 16,
               offset != Offset::none,
               run > 1     ? run * kGroup
               : two_level ? 2 * kGroup  // whole lines of factors
                           : 1,
               values.at[7] != 0,
               values,
               lift,
               run == kWholeRow && !two_level,
               0,
               0,
               0,
               0};
  const int lines = f.quantized ? f.has_offset ? 2 : 1 : 0;
  f.tile_bytes = kLanes * kGroup / 8 * bits;
  f.shared_bytes = run != 1 ? 64 * lines : 0;
  f.pair_group_bytes = 2 * f.tile_bytes + (two_level  ? kPairRows * parts * lines
                                           : run == 1 ? 64 * lines
                                                      : 0);
  f.run_bytes = run == kWholeRow ? 0 : run * f.pair_group_bytes + f.shared_bytes;
  return f;
}

inline constexpr FormatInfo kFormatInfo[kFormats] = {
    make_format("q4g32s", 4, 8, Offset::none),    // w = scale * (q - 8)
    make_format("q4g32a", 4, 0, Offset::min),     // w = scale * q + min
    make_format("q8g32s", 8, 128, Offset::none),  // w = scale * (q - 128)
    make_format("f16", 16, 0, Offset::none),
    make_format("f32", 32, 0, Offset::none),
    make_format("q4k", 4, 0, Offset::min, 8, true),       // w = d * scale * q - dmin * min
    make_format("q5k", 5, 0, Offset::min, 8, true),       // the same
    make_format("q6k", 6, 32, Offset::none, 8, true, 2),  // w = d * scale * (q - 32), by 16 columns
    make_format("q2k", 2, 0, Offset::min, 8, true,
                2),                             // w = d * scale * q - dmin * min, by 16 columns
    make_format("q8g32a", 8, 0, Offset::min),   // w = scale * q + min
    make_format("q4g32z", 4, 0, Offset::zero),  // w = scale * (q - zero)
    make_format("q4g64z", 4, 0, Offset::zero, 2),
    make_format("q4g128z", 4, 0, Offset::zero, 4),
    make_format("q4g64s", 4, 8, Offset::none, 2),  // w = scale * (q - 8)
    make_format("q4g128s", 4, 8, Offset::none, 4),
    make_format("q8rs", 8, 128, Offset::none, kWholeRow),  // w = scale * (q - 128)
    make_format("q5g32s", 5, 16, Offset::none),            // w = scale * (q - 16)
    make_format("q5g32a", 5, 0, Offset::min),              // w = scale * q + min
    make_format("q6g32s", 6, 32, Offset::none),            // w = scale * (q - 32)
    make_format("q2g64s", 2, 1, Offset::none, 2),          // w = scale * (q - 1)
    make_format("q2g128s", 2, 1, Offset::none, 4),
    make_format("q2g256s", 2, 1, Offset::none, 8),
    make_format("q1g128a", 1, 0, Offset::min, 4),  // w = scale * q + min
    // w = d * factor * (values[q] + lift * bit)
    make_format("n4g32", 4, 8, Offset::none, kWholeRow, true, 1, kNormal4, 4),
    make_format("n4k", 4, 8, Offset::none, 8, true, 1, kNormal4, 4),
    make_format("n4g32s", 4, 8, Offset::none, 1, false, 1, kNormal4),  // w = scale * values[q]
    make_format("f4g32s", 4, 0, Offset::none, 1, false, 1, kFloat4),
};

inline constexpr const FormatInfo& info(Format f) { return kFormatInfo[static_cast<int>(f)]; }

// The values of a format with a table as kernels look them up: as signed bytes; plus 128; and, in numbers
// of five bits, less what sixteen times the code comes to: values[q] = 16 * (q - 8) + rests[q] - 16. Values
// that are small need no steps: values[q] = rests[q] - 16.
struct LookupTable {
  alignas(16) uint8_t values[16];
  alignas(16) uint8_t bytes[16];
  alignas(16) uint8_t rests[16];
  bool steps;
};
consteval LookupTable lookup_table(const Values& values) {
  LookupTable table{};
  for (const int8_t value : values.at) table.steps = table.steps || value < -15 || value > 15;
  for (int i = 0; i < 16; ++i) {
    const int value = values.at[i], rest = value - (table.steps ? 16 * (i - 8) : 0);
    if (rest < -15 || rest > 15) throw "expected values near a straight line";
    table.values[i] = static_cast<uint8_t>(value);
    table.bytes[i] = static_cast<uint8_t>(value + 128);
    table.rests[i] = static_cast<uint8_t>(rest + 16);
  }
  return table;
}

constexpr bool stays_aligned() {
  for (const FormatInfo& f : kFormatInfo) {
    const int groups = f.run == kWholeRow ? f.columns / kGroup : f.run;  // at the least
    if (f.pair_group_bytes % 32 != 0 || f.shared_bytes % 64 != 0) return false;
    if (groups * f.pair_group_bytes % 64 != 0) return false;
  }
  return true;
}
static_assert(stays_aligned());
static_assert(info(Format::q4g32s).run_bytes == 576 && info(Format::q4g32a).run_bytes == 640);
static_assert(info(Format::q8g32s).run_bytes == 1088 && info(Format::f16).run_bytes == 2048);
static_assert(info(Format::q4k).run_bytes == 8 * 576 + 128);
static_assert(info(Format::q6k).run_bytes == 8 * 832 + 64);
static_assert(info(Format::q5g32s).run_bytes == 704 && info(Format::q6g32s).run_bytes == 832);
static_assert(info(Format::q2g256s).run_bytes == 8 * 256 + 64);
static_assert(info(Format::q1g128a).run_bytes == 4 * 128 + 128);
static_assert(info(Format::n4k).run_bytes == 8 * 544 + 64);
static_assert(info(Format::n4g32).pair_group_bytes == 544 && info(Format::n4g32s).run_bytes == 576);

inline constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Groups that share scales, in rows of so many.
inline constexpr int run_groups(Format f, int groups) {
  return info(f).run == kWholeRow ? groups : info(f).run;
}
inline constexpr size_t run_bytes(Format f, int groups) {
  const FormatInfo& layout = info(f);
  return static_cast<size_t>(run_groups(f, groups)) * layout.pair_group_bytes + layout.shared_bytes;
}
// Bytes of a pair of `groups` groups.
inline constexpr size_t pair_bytes(Format f, int groups) {
  const int run = run_groups(f, groups);
  return static_cast<size_t>((groups + run - 1) / run) * run_bytes(f, groups);
}

// Bytes from the tiles of a run's group to those of the next one, and from its tile A to its tile B.
inline constexpr size_t group_step(Format f) {
  return static_cast<size_t>(info(f).row_panels ? info(f).tile_bytes : info(f).pair_group_bytes);
}
inline constexpr size_t tile_step(Format f, int groups) {
  return static_cast<size_t>(info(f).tile_bytes) *
         (info(f).row_panels ? static_cast<size_t>(groups) : 1);
}

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
  float scale;                    // of 256 * high + low
  float scale_high;               // 256 * scale: of high alone
  float scaled_sum;               // scale * sum: pays for mins
  int32_t sum;                    // of 256 * high + low
  int16_t sum_high;               // of high
  uint16_t wide;                  // of a block's first token alone: see has_low_plane()
  int16_t first_high, first_low;  // sums of the first sixteen columns
  // -8 times the sums of columns 4j, 4j + 1 and of 4j + 2, 4j + 3: where 16-bit accumulators start to
  // pay for the zero point of int4.
  int16_t eights_high[2], eights_low[2];
};
static_assert(sizeof(ActivationInfo) == 32);

// A panel of m tokens is cut into blocks of 16 tokens; a block of r tokens holds for each group
//
//   int8 high[r][32] | int8 low[r][32] | ActivationInfo info[r]
//
// so that one plane of sixteen tokens stays within a few lines.
inline constexpr int kPanelRows = 16;
inline constexpr int kMaxGroups = 2048;  // of a row: what is known of each at once
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

// Whether token t of a block has two planes in a group, of which `first` is its first token's: bit t. Of
// others low is zero. All in one place: products with many tokens ask for all of them.
inline bool has_low_plane(const ActivationInfo& first, int t) { return (first.wide >> t & 1) != 0; }
inline void set_low_plane(ActivationInfo* first, int t, bool wide) {
  const uint32_t others = first->wide & ~(uint32_t{1} << t);
  first->wide = static_cast<uint16_t>(others | (uint32_t{wide} << t));
}

// Weights whose rows have one scale take activations whose rows have one scale, so that integers are
// summed over all columns:
//
//   x ~ scale * (256 * coarse + fine),   |fine| <= 127 and coarse = 0 but in groups that stand out
//
// Groups stand out if their largest magnitude is more than four times the row's median (a8), 15/8 of
// it (a8o16), or all of them do (a16).
inline constexpr const char* kRowActivationNames[kActivations] = {"a8r", "a16r", "a8o16r"};

struct RowInfo {
  float scale;
  int32_t sum_fine, sum_coarse;  // pay for the zero point
  int32_t wide;                  // groups that stand out
};
static_assert(sizeof(RowInfo) == 16);

// A block of r tokens holds, in a panel of rows,
//
//   int8 fine[groups][r][32] | int8 coarse[groups][r][32] | RowInfo info[r] | uint8 wide[groups][r]
//
// and begins where a block of the other panels does: it is never larger. A coarse plane holds anything
// in a group that stands out in none of a window's rows; where it does in any, zeros for the others.
inline constexpr int kPanelWindow = 8;  // rows [8 i, 8 i + 8) of a block
static_assert(kPanelRows % kPanelWindow == 0);

struct RowPanel {
  int8_t *fine, *coarse;
  RowInfo* info;
  uint8_t* wide;  // 1: the group stands out
  int rows;
};
static_assert(sizeof(RowInfo) + 1 <= kActivationBytes - 2 * kGroup);

// The block that holds `row`.
inline RowPanel row_panel(void* panel, int groups, int m, int row) {
  const int rows = panel_rows(m, row);
  const size_t first = static_cast<size_t>(row) / kPanelRows * kPanelRows;
  const size_t plane = static_cast<size_t>(groups) * static_cast<size_t>(rows) * kGroup;
  auto* fine = static_cast<int8_t*>(panel) + first * static_cast<size_t>(groups) * kActivationBytes;
  auto* infos = reinterpret_cast<RowInfo*>(fine + 2 * plane);
  return {fine, fine + plane, infos, reinterpret_cast<uint8_t*>(infos + rows), rows};
}

}  // namespace slmq
