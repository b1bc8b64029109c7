#include "layout/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layout/half.h"

namespace slmq {
namespace {

struct SourceInfo {
  int group_bytes;   // 32 values
  int value_offset;  // quantized types: bytes of scales in front of the values
};
constexpr SourceInfo kSourceInfo[kSources] = {{128, 0}, {64, 0}, {64, 0},
                                              {18, 2},  {20, 4}, {34, 2}};

uint16_t read_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

bool finite_half(uint16_t h) { return (h & 0x7c00u) != 0x7c00u; }

void read_quantized(Source source, const uint8_t* block, float* values) {
  const float scale = half_to_float(read_u16(block));
  const uint8_t* q = block + kSourceInfo[static_cast<int>(source)].value_offset;
  if (source == Source::q8_0) {
    for (int c = 0; c < kGroup; ++c)
      values[c] = scale * static_cast<float>(static_cast<int8_t>(q[c]));
    return;
  }
  // Minus zero leaves the sign of a zero as it is.
  const float min = source == Source::q4_1 ? half_to_float(read_u16(block + 2)) : -0.0f;
  const int zero = source == Source::q4_0 ? 8 : 0;
  for (int c = 0; c < 16; ++c) {
    values[c] = scale * static_cast<float>((q[c] & 15) - zero) + min;
    values[16 + c] = scale * static_cast<float>((q[c] >> 4) - zero) + min;
  }
}

// Group g of a source row as float32; columns behind k are zero.
void read_group(Source source, const uint8_t* row, int k, int g, float* values) {
  const int count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
  const uint8_t* p =
      row + static_cast<size_t>(g) * kSourceInfo[static_cast<int>(source)].group_bytes;
  for (int c = 0; c < kGroup; ++c) values[c] = 0.0f;
  switch (source) {
    case Source::f32: std::memcpy(values, p, 4 * static_cast<size_t>(count)); break;
    case Source::f16:
      for (int c = 0; c < count; ++c) values[c] = half_to_float(read_u16(p + 2 * c));
      break;
    case Source::bf16:
      for (int c = 0; c < count; ++c) {
        const uint32_t bits = static_cast<uint32_t>(read_u16(p + 2 * c)) << 16;
        std::memcpy(&values[c], &bits, 4);
      }
      break;
    default: read_quantized(source, p, values);
  }
}

// The nearest whole number, of two the even one, for |x| < 2^22: as std::nearbyint, without a call.
float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// values[c] = x[c] * factor + offset, rounded and kept within low..high.
void round_all(const float* x, float factor, float offset, float low, float high, int* values) {
  for (int c = 0; c < kGroup; ++c) {
    const float r = round_even(x[c] * factor + offset);
    values[c] = static_cast<int>(r < low ? low : r > high ? high : r);
  }
}

// The place of one row within a pair-group.
struct Lane {
  uint8_t* tile;
  uint16_t* scale;
  uint16_t* min;  // q4g32a only
  int lane;

  void put_u4(const int* q) const {  // [32], 0..15
    for (int j = 0; j < 4; ++j) {
      uint8_t bytes[4];
      for (int i = 0; i < 4; ++i)
        bytes[i] = static_cast<uint8_t>(q[4 * j + i] | (q[16 + 4 * j + i] << 4));
      std::memcpy(tile + 64 * j + 4 * lane, bytes, 4);
    }
  }
  void put_u8(const int* q) const {  // [32], 0..255
    for (int j = 0; j < 8; ++j) {
      uint8_t bytes[4];
      for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(q[4 * j + i]);
      std::memcpy(tile + 64 * j + 4 * lane, bytes, 4);
    }
  }
};

Lane lane_of(Format format, uint8_t* pair_group, int row) {
  const FormatInfo& layout = info(format);
  auto* scales = reinterpret_cast<uint16_t*>(pair_group + 2 * layout.tile_bytes);
  return {pair_group + row / 16 * layout.tile_bytes, scales + row, scales + 32 + row, row % 16};
}

PackStatus quantize_q4s(const float* w, int count, const Lane& out) {
  float extreme = w[0];  // the first value of largest magnitude, with its sign, becomes -8
  for (int c = 1; c < count; ++c)
    if (std::fabs(w[c]) > std::fabs(extreme)) extreme = w[c];
  *out.scale = float_to_half(extreme / -8.0f);
  if (!finite_half(*out.scale)) return PackStatus::too_large;
  const float scale = half_to_float(*out.scale), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  int q[kGroup];
  round_all(w, inverse, 8.0f, 0.0f, 15.0f, q);
  out.put_u4(q);
  return PackStatus::ok;
}

PackStatus quantize_q4a(const float* w, int count, const Lane& out) {
  float low = w[0], high = w[0];
  for (int c = 1; c < count; ++c) {
    low = w[c] < low ? w[c] : low;
    high = w[c] > high ? w[c] : high;
  }
  low += 0.0f, high += 0.0f;  // a zero is +0, whichever of two zeros came first
  *out.scale = float_to_half((high - low) / 15.0f);
  *out.min = float_to_half(low);
  if (!finite_half(*out.scale) || !finite_half(*out.min)) return PackStatus::too_large;
  const float scale = half_to_float(*out.scale), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  const float min = half_to_float(*out.min);
  float above[kGroup] = {};
  for (int c = 0; c < count; ++c) above[c] = w[c] - min;
  int q[kGroup];
  round_all(above, inverse, 0.0f, 0.0f, 15.0f, q);
  out.put_u4(q);
  return PackStatus::ok;
}

float largest_of(const float* w, int count) {
  float largest = 0.0f;
  for (int c = 0; c < count; ++c) largest = std::fabs(w[c]) > largest ? std::fabs(w[c]) : largest;
  return largest;
}

PackStatus round_q8s(const float* w, float largest, const Lane& out) {
  *out.scale = float_to_half(largest / 127.0f);
  if (!finite_half(*out.scale)) return PackStatus::too_large;
  const float scale = half_to_float(*out.scale), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  int q[kGroup];
  round_all(w, inverse, 0.0f, -127.0f, 127.0f, q);
  for (int& value : q) value += 128;
  out.put_u8(q);
  return PackStatus::ok;
}

PackStatus quantize_q8s(const float* w, int count, const Lane& out) {
  return round_q8s(w, largest_of(w, count), out);
}

PackStatus write_floats(Format format, const float* w, const Lane& out) {
  for (int c = 0; c < kGroup; ++c) {
    if (format == Format::f32) {
      std::memcpy(out.tile + 4 * (c * 16 + out.lane), &w[c], 4);
      continue;
    }
    const uint16_t half = float_to_half(w[c]);
    if (!finite_half(half)) return PackStatus::too_large;
    std::memcpy(out.tile + 2 * (c * 16 + out.lane), &half, 2);
  }
  return PackStatus::ok;
}

bool all_finite(const float* w, int count) {
  for (int c = 0; c < count; ++c)
    if (!std::isfinite(w[c])) return false;
  return true;
}

PackStatus quantize_group(Format format, const float* w, int count, const Lane& out) {
  if (!all_finite(w, count)) return PackStatus::not_finite;
  switch (format) {
    case Format::q4g32s: return quantize_q4s(w, count, out);
    case Format::q4g32a: return quantize_q4a(w, count, out);
    case Format::q8g32s: return quantize_q8s(w, count, out);
    default: return write_floats(format, w, out);
  }
}

bool keeps_bits(Format format, Source source) {
  return (format == Format::q4g32s && source == Source::q4_0) ||
         (format == Format::q4g32a && source == Source::q4_1) ||
         (format == Format::q8g32s && source == Source::q8_0);
}

// A GGUF block into its own format: 32-bit words change places, nothing else.
PackStatus copy_block(Source source, const uint8_t* block, const Lane& out) {
  *out.scale = read_u16(block);
  if (!finite_half(*out.scale)) return PackStatus::not_finite;
  if (source == Source::q4_1) {
    *out.min = read_u16(block + 2);
    if (!finite_half(*out.min)) return PackStatus::not_finite;
  }
  const uint8_t* q = block + kSourceInfo[static_cast<int>(source)].value_offset;
  const int words = source == Source::q8_0 ? 8 : 4;
  for (int j = 0; j < words; ++j) {
    uint32_t word;
    std::memcpy(&word, q + 4 * j, 4);
    if (source == Source::q8_0) word ^= 0x80808080u;
    std::memcpy(out.tile + 64 * j + 4 * out.lane, &word, 4);
  }
  return PackStatus::ok;
}

}  // namespace

size_t source_row_bytes(Source source, int k) {
  const auto group_bytes = static_cast<size_t>(kSourceInfo[static_cast<int>(source)].group_bytes);
  return static_cast<size_t>(k) * group_bytes / kGroup;
}

PackStatus pack_whole_rows(const PackArgs& args, int pair_begin, int pair_end) {
  const int groups = matrix_groups(args.k);
  const size_t codes_bytes = 2 * tile_step(args.format, groups);
  const size_t row_bytes = source_row_bytes(args.source, args.k);
  const int last = pair_end * kPairRows < args.n ? pair_end * kPairRows : args.n;
  for (int row = pair_begin * kPairRows; row < last; ++row) {
    const uint8_t* source = args.rows + row_bytes * (args.order != nullptr ? args.order[row] : row);
    uint8_t* pair =
        args.out + static_cast<size_t>(row / kPairRows) * pair_bytes(args.format, groups);
    float values[kGroup], largest = 0.0f;
    for (int g = 0; g < groups; ++g) {
      read_group(args.source, source, args.k, g, values);
      if (!all_finite(values, kGroup)) return PackStatus::not_finite;
      largest = std::max(largest, largest_of(values, kGroup));
    }
    Lane lane{pair + row % kPairRows / kLanes * tile_step(args.format, groups),
              reinterpret_cast<uint16_t*>(pair + codes_bytes) + row % kPairRows, nullptr,
              row % kLanes};
    for (int g = 0; g < groups; ++g, lane.tile += group_step(args.format)) {
      read_group(args.source, source, args.k, g, values);
      const PackStatus status = round_q8s(values, largest, lane);
      if (status != PackStatus::ok) return status;
    }
  }
  return PackStatus::ok;
}

PackStatus pack_pairs(const PackArgs& args, int pair_begin, int pair_end) {
  if (info(args.format).run == kWholeRow) return pack_whole_rows(args, pair_begin, pair_end);
  const int groups = matrix_groups(args.k);
  const int group_bytes = info(args.format).pair_group_bytes;
  const size_t row_bytes = source_row_bytes(args.source, args.k);
  const int source_group_bytes = kSourceInfo[static_cast<int>(args.source)].group_bytes;
  const bool exact = keeps_bits(args.format, args.source);
  const int last = pair_end * kPairRows < args.n ? pair_end * kPairRows : args.n;
  for (int row = pair_begin * kPairRows; row < last; ++row) {
    const uint8_t* source = args.rows + row_bytes * (args.order != nullptr ? args.order[row] : row);
    uint8_t* pair = args.out + static_cast<size_t>(row / kPairRows) * groups * group_bytes;
    for (int g = 0; g < groups; ++g) {
      const Lane lane =
          lane_of(args.format, pair + static_cast<size_t>(g) * group_bytes, row % kPairRows);
      PackStatus status;
      if (exact) {
        status =
            copy_block(args.source, source + static_cast<size_t>(g) * source_group_bytes, lane);
      } else {
        float values[kGroup];
        const int count = args.k - g * kGroup < kGroup ? args.k - g * kGroup : kGroup;
        read_group(args.source, source, args.k, g, values);
        status = quantize_group(args.format, values, count, lane);
      }
      if (status != PackStatus::ok) return status;
    }
  }
  return PackStatus::ok;
}

}  // namespace slmq
