// Packed rows back to float32; also the embedding lookup. One multiplication a weight, exact in
// float32 for four-bit values (4 + 11 bits), so scale * q + min has a single rounding either way.

namespace slmq::SLMQ_ISA {

static inline float unpack_one(const uint8_t* pair_group, int lane32, int c, Format format) {
  const int tile = lane32 / 16, lane = lane32 % 16;
  const FormatInfo& layout = kFormatInfo[static_cast<int>(format)];
  const uint8_t* bytes = pair_group + tile * layout.tile_bytes;
  if (format == Format::f32) return reinterpret_cast<const float*>(bytes)[c * 16 + lane];
  if (format == Format::f16) {
    return half_to_float(reinterpret_cast<const uint16_t*>(bytes)[c * 16 + lane]);
  }
  const auto* scales = reinterpret_cast<const uint16_t*>(pair_group + 2 * layout.tile_bytes);
  const float scale = half_to_float(scales[lane32]);
  if (format == Format::q8g32s) {
    return scale * static_cast<float>(bytes[c / 4 * 64 + lane * 4 + c % 4] - 128);
  }
  const uint8_t byte = bytes[c % 16 / 4 * 64 + lane * 4 + c % 4];
  const int q = c < 16 ? byte & 15 : byte >> 4;
  if (format == Format::q4g32s) return scale * static_cast<float>(q - 8);
  return scale * static_cast<float>(q) + half_to_float(scales[32 + lane32]);
}

template <Format format>
static void dequantize(const uint8_t* weight, int groups, int k, int row_begin, int row_end,
                       float* out, int out_stride) {
  const size_t group_bytes = kFormatInfo[static_cast<int>(format)].pair_group_bytes;
  for (int row = row_begin; row < row_end; ++row, out += out_stride) {
    const uint8_t* pair = weight + static_cast<size_t>(row / kPairRows) * groups * group_bytes;
    for (int g = 0; g < groups; ++g) {
      const int columns = smaller(kGroup, k - g * kGroup);
      for (int c = 0; c < columns; ++c)
        out[g * kGroup + c] = unpack_one(pair + g * group_bytes, row % kPairRows, c, format);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
