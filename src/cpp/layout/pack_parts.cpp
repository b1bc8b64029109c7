#include "layout/pack_parts.h"

#include <cstring>

#include "layout/half.h"

namespace slmq {
namespace {

constexpr uint32_t kEveryByte = 0x01010101u;

void put_word(uint8_t* tile, int line, int row, uint32_t word) {
  std::memcpy(tile + 64 * line + 4 * row, &word, 4);
}

// The codes of a group of one row, four of neighbouring columns in a word, into the planes of its
// tile (see formats.h). False if one has more bits than the format.
bool put_codes(const FormatInfo& layout, const uint8_t* codes, int count, uint8_t* tile, int row) {
  uint8_t bytes[kGroup];
  std::memset(bytes, layout.zero, sizeof bytes);
  std::memcpy(bytes, codes, static_cast<size_t>(count));
  uint32_t words[8], all = 0;
  std::memcpy(words, bytes, sizeof words);
  for (const uint32_t word : words) all |= word;
  if ((all & ~(kEveryByte * ((1u << layout.bits) - 1))) != 0) return false;
  if (layout.bits == 8) {
    for (int j = 0; j < 8; ++j) put_word(tile, j, row, words[j]);
    return true;
  }
  if (layout.bits >= 4) {
    for (int j = 0; j < 4; ++j)
      put_word(tile, j, row, (words[j] & 15 * kEveryByte) | (words[4 + j] & 15 * kEveryByte) << 4);
  }
  const int nibble = layout.bits == 2 ? 0 : 4;  // bits that have a plane of their own
  if (layout.bits == 5 || layout.bits == 1) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (words[i] >> (layout.bits - 1) & kEveryByte) << i;
    put_word(tile, layout.bits - 1, row, bits);
  } else if (layout.bits != 4) {
    for (int h = 0; h < 2; ++h) {
      uint32_t upper = 0;
      for (int j = 0; j < 4; ++j) upper |= (words[4 * h + j] >> nibble & 3 * kEveryByte) << 2 * j;
      put_word(tile, nibble + h, row, upper);
    }
  }
  return true;
}

// Bytes of half a line in front of a group's tiles: its factors, in every second group of formats that
// have so few.
int in_front(const FormatInfo& layout, int group) {
  return group % 2 * (layout.pair_group_bytes % 64);
}

bool finite_half(uint16_t h) { return (h & 0x7c00u) != 0x7c00u; }

constexpr uint16_t kSign = 0x8000u;  // of a float16

// One row's float16 in a line of scales and a line of offsets; false if one is not finite.
bool put_halves(uint16_t* line, int row, uint16_t scale, const uint16_t* offset) {
  line[row] = scale;
  if (offset != nullptr) line[kPairRows + row] = *offset;
  return finite_half(scale) && (offset == nullptr || finite_half(*offset));
}

// What a row has beside its codes in run `r`; false if a float16 is not finite.
bool put_scales(const PartsArgs& args, size_t source, int r, uint8_t* run, int row) {
  const FormatInfo& layout = info(args.format);
  const int tiles = 2 * layout.tile_bytes, group_bytes = layout.pair_group_bytes;
  const int in_run = run_groups(args.format, matrix_groups(args.k));
  const size_t runs = static_cast<size_t>(matrix_groups(args.k) / in_run);
  const size_t at = source * runs + static_cast<size_t>(r);
  auto* line =
      reinterpret_cast<uint16_t*>(run + (layout.shared_bytes == 0 ? tiles : in_run * group_bytes));
  if (!layout.two_level) {
    uint16_t offset = 0;
    if (layout.offset == Offset::min) offset = static_cast<const uint16_t*>(args.mins)[at];
    if (layout.offset == Offset::zero)
      offset = float_to_half(-static_cast<float>(static_cast<const uint8_t*>(args.mins)[at]));
    return put_halves(line, row, static_cast<const uint16_t*>(args.scales)[at],
                      layout.has_offset ? &offset : nullptr);
  }
  const int count = in_run * layout.parts;  // factors of the row in this run
  const auto* scales = static_cast<const uint8_t*>(args.scales) + at * count;
  const auto* mins = static_cast<const uint8_t*>(args.mins);
  for (int i = 0; i < count; ++i) {
    const int group = i / layout.parts;
    uint8_t* own = run + group * group_bytes + (in_front(layout, group) != 0 ? 0 : tiles) + row;
    const int part = i % layout.parts;
    own[kPairRows * part] = scales[i];
    if (mins != nullptr) own[kPairRows * (layout.parts + part)] = mins[at * count + i];
  }
  const auto minus = static_cast<uint16_t>(args.dmin != nullptr ? args.dmin[at] ^ kSign : 0);
  return put_halves(line, row, args.d[at], args.dmin != nullptr ? &minus : nullptr);
}

PackStatus pack_row(const PartsArgs& args, size_t source, uint8_t* pair, int row) {
  const FormatInfo& layout = info(args.format);
  const int groups = matrix_groups(args.k), in_run = run_groups(args.format, groups);
  for (int g = 0; g < groups; ++g) {
    uint8_t* run = pair + static_cast<size_t>(g / in_run) * run_bytes(args.format, groups);
    uint8_t* tile = run + g % in_run * group_step(args.format) + in_front(layout, g % in_run) +
                    row / kLanes * tile_step(args.format, groups);
    const int count = args.k - g * kGroup < kGroup ? args.k - g * kGroup : kGroup;
    const uint8_t* codes = args.codes + source * static_cast<size_t>(args.k) + g * kGroup;
    if (!put_codes(layout, codes, count, tile, row % kLanes)) return PackStatus::beyond_bits;
    if (g % in_run == 0 && !put_scales(args, source, g / in_run, run, row))
      return PackStatus::not_finite;
  }
  return PackStatus::ok;
}

}  // namespace

PackStatus pack_parts(const PartsArgs& args, int pair_begin, int pair_end) {
  const size_t bytes = pair_bytes(args.format, matrix_groups(args.k));
  const int last = pair_end * kPairRows < args.n ? pair_end * kPairRows : args.n;
  for (int row = pair_begin * kPairRows; row < last; ++row) {
    const int source = args.order != nullptr ? args.order[row] : row;
    const PackStatus status =
        pack_row(args, static_cast<size_t>(source),
                 args.out + static_cast<size_t>(row / kPairRows) * bytes, row % kPairRows);
    if (status != PackStatus::ok) return status;
  }
  return PackStatus::ok;
}

}  // namespace slmq
