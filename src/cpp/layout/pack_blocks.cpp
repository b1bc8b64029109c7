#include "layout/pack_blocks.h"

#include <cstring>

#include "layout/pack_parts.h"

namespace slmq {
namespace {

// What a block stores: a code for every column, then scales and mins as far as the type has them.
struct Integers {
  uint8_t *codes, *scales, *mins;
  uint16_t *d, *dmin;
};

// Bytes of a block, and where its codes go: nothing else lies there, so loops become vectors.
using In = const uint8_t* __restrict;
using Out = uint8_t* __restrict;

void copy_half(const uint8_t* from, uint16_t* to) { std::memcpy(to, from, 2); }

// Column c of a run of 32 has bit c of `high` above its nibble: low nibbles come first.
void five_bits(In high, In low, Out codes) {
  uint32_t bits;
  std::memcpy(&bits, high, 4);
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<uint8_t>((low[j] & 15) | (bits >> j & 1) << 4);
    codes[16 + j] = static_cast<uint8_t>(low[j] >> 4 | (bits >> (16 + j) & 1) << 4);
  }
}

void q5_0(In b, const Integers& out) {
  copy_half(b, out.d);
  five_bits(b + 2, b + 6, out.codes);
}

void q5_1(In b, const Integers& out) {
  copy_half(b, out.d);
  copy_half(b + 2, out.dmin);
  five_bits(b + 4, b + 8, out.codes);
}

// Nibbles of 32 columns: low ones first.
void four_bits(In low, Out codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = low[j] & 15;
    codes[16 + j] = low[j] >> 4;
  }
}

void iq4_nl(In b, const Integers& out) {
  copy_half(b, out.d);
  four_bits(b + 2, out.codes);
}

// d, then the upper two bits of eight scales, their lower four, and the codes. A scale is 32 less; its
// bit for another table, which is the lowest, stays 0.
void iq4_xs(In b, const Integers& out) {
  copy_half(b, out.d);
  for (int j = 0; j < 8; ++j) {
    const int low = j % 2 == 0 ? b[4 + j / 2] & 15 : b[4 + j / 2] >> 4;
    const int high = b[2 + j / 4] >> (2 * (j % 4)) & 3;
    out.scales[j] = static_cast<uint8_t>(2 * ((low | high << 4) - 32));
    four_bits(b + 8 + 16 * j, out.codes + 32 * j);
  }
}

void q2_k(In b, const Integers& out) {
  const Out codes = out.codes;
  for (int j = 0; j < 16; ++j) {
    out.scales[j] = b[j] & 15;
    out.mins[j] = b[j] >> 4;
  }
  for (int c = 0; c < 256; c += 32) {
    const uint8_t* q = b + 16 + c / 128 * 32;
    for (int j = 0; j < 32; ++j) codes[c + j] = q[j] >> c % 128 / 16 & 3;
  }
  copy_half(b + 80, out.d);
  copy_half(b + 82, out.dmin);
}

// Codes of three bits mean code - 4; among those of six, which mean code - 32, that is code + 28.
void q3_k(In b, const Integers& out) {
  const Out codes = out.codes;
  for (int c = 0; c < 256; c += 32) {
    const uint8_t* q = b + 32 + c / 128 * 32;
    for (int j = 0; j < 32; ++j)
      codes[c + j] =
          static_cast<uint8_t>(((q[j] >> c % 128 / 16 & 3) | (b[j] >> c / 32 & 1) << 2) + 32 - 4);
  }
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? b[96 + j] & 15 : b[96 + j - 8] >> 4;
    out.scales[j] = static_cast<uint8_t>((low | (b[104 + j % 4] >> j / 4 * 2 & 3) << 4) - 32);
  }
  copy_half(b + 108, out.d);
}

// d, dmin, eight scales and eight mins of six bits. The first four of each are the low bits of bytes
// 0-3 and 4-7; of the others bytes 8-11 hold four bits (scales in the low nibble), bytes 0-7 two.
void six_bit_factors(const uint8_t* b, const Integers& out) {
  copy_half(b, out.d);
  copy_half(b + 2, out.dmin);
  const uint8_t* s = b + 4;
  for (int j = 0; j < 4; ++j) {
    out.scales[j] = s[j] & 63;
    out.mins[j] = s[4 + j] & 63;
    out.scales[4 + j] = static_cast<uint8_t>((s[8 + j] & 15) | s[j] >> 6 << 4);
    out.mins[4 + j] = static_cast<uint8_t>(s[8 + j] >> 4 | s[4 + j] >> 6 << 4);
  }
}

void q4_k(In b, const Integers& out) {
  const Out codes = out.codes;
  six_bit_factors(b, out);
  for (int c = 0; c < 256; c += 64) {
    const uint8_t* q = b + 16 + c / 2;
    for (int j = 0; j < 32; ++j) {
      codes[c + j] = q[j] & 15;
      codes[c + 32 + j] = q[j] >> 4;
    }
  }
}

void q5_k(In b, const Integers& out) {
  const Out codes = out.codes;
  six_bit_factors(b, out);
  const uint8_t* high = b + 16;
  for (int c = 0; c < 256; c += 64) {
    const uint8_t* q = b + 48 + c / 2;
    for (int j = 0; j < 32; ++j) {
      codes[c + j] = static_cast<uint8_t>((q[j] & 15) | (high[j] >> c / 32 & 1) << 4);
      codes[c + 32 + j] = static_cast<uint8_t>(q[j] >> 4 | (high[j] >> (c / 32 + 1) & 1) << 4);
    }
  }
}

void q6_k(In b, const Integers& out) {
  const Out codes = out.codes;
  for (int c = 0; c < 256; c += 128) {
    const uint8_t *q = b + c / 2, *high = b + 128 + c / 4;
    for (int j = 0; j < 32; ++j) {
      codes[c + j] = static_cast<uint8_t>((q[j] & 15) | (high[j] & 3) << 4);
      codes[c + 32 + j] = static_cast<uint8_t>((q[32 + j] & 15) | (high[j] >> 2 & 3) << 4);
      codes[c + 64 + j] = static_cast<uint8_t>(q[j] >> 4 | (high[j] >> 4 & 3) << 4);
      codes[c + 96 + j] = static_cast<uint8_t>(q[32 + j] >> 4 | high[j] >> 6 << 4);
    }
  }
  std::memcpy(out.scales, b + 192, 16);
  copy_half(b + 208, out.d);
}

constexpr void (*kDecode[kBlocks])(const uint8_t*, const Integers&) = {
    q5_0, q5_1, iq4_nl, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs};

}  // namespace

// 256 columns of a pair at a time: their integers stay in the nearest cache.
PackStatus pack_blocks(const BlocksArgs& args, int pair_begin, int pair_end) {
  constexpr int kColumns = 256;
  uint8_t codes[kPairRows * kColumns], scales[kPairRows * 16], mins[kPairRows * 16];
  uint16_t d[kPairRows * 8], dmin[kPairRows * 8];
  const BlocksInfo& from = info(args.blocks);
  const FormatInfo& layout = info(args.format);
  const size_t row_bytes = static_cast<size_t>(args.k / from.columns) * from.bytes;
  const int factors = layout.two_level ? 8 * layout.parts : 0;  // of a block
  PartsArgs parts{};
  parts.format = args.format;
  parts.codes = codes;
  parts.scales = layout.two_level ? static_cast<const void*>(scales) : d;
  if (layout.has_offset) parts.mins = layout.two_level ? static_cast<const void*>(mins) : dmin;
  if (layout.two_level) parts.d = d;
  if (layout.two_level && layout.has_offset) parts.dmin = dmin;
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    const int left = args.n - pair * kPairRows;
    parts.n = left < kPairRows ? left : kPairRows;
    parts.out =
        args.out + static_cast<size_t>(pair) * pair_bytes(args.format, matrix_groups(args.k));
    for (int column = 0; column < args.k; column += kColumns) {
      parts.k = args.k - column < kColumns ? args.k - column : kColumns;
      Integers at = {codes, scales, mins, d, dmin};
      for (int r = 0; r < parts.n; ++r) {
        const int row = pair * kPairRows + r;
        const auto source = static_cast<size_t>(args.order != nullptr ? args.order[row] : row);
        const uint8_t* block = args.rows + source * row_bytes +
                               static_cast<size_t>(column / from.columns) * from.bytes;
        for (int c = 0; c < parts.k; c += from.columns, block += from.bytes) {
          kDecode[static_cast<int>(args.blocks)](block, at);
          at = {at.codes + from.columns, at.scales + factors, at.mins + factors, at.d + 1,
                at.dmin + 1};
        }
      }
      const PackStatus status = pack_parts(parts, 0, 1);
      if (status != PackStatus::ok) return status;
      parts.out += pair_bytes(args.format, parts.k / kGroup);
    }
  }
  return PackStatus::ok;
}

}  // namespace slmq
