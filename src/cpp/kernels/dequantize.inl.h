// Packed rows back to float32; also the embedding lookup. Products of a code and its scales are exact
// in float32 (at most 11 + 7 + 6 bits, or 11 + 6 + 7), so a min's addition is the only rounding there is.

namespace slmq::SLMQ_ISA {

// Column c of a row (0..15) of a tile of integers.
template <Format Name>
static inline int stored_code(const uint8_t* tile, int row, int c) {
  const int half = c / 16, j = c % 16 / 4, b = 4 * row + c % 4;
  switch (info(Name).bits) {
    case 8: return tile[256 * half + 64 * j + b];
    case 2: return (tile[64 * half + b] >> (2 * j)) & 3;
    case 1: return (tile[b] >> (c / 4)) & 1;
    default: break;
  }
  const int nibble = half == 0 ? tile[64 * j + b] & 15 : tile[64 * j + b] >> 4;
  switch (info(Name).bits) {
    case 6: return nibble | ((tile[256 + 64 * half + b] >> (2 * j)) & 3) << 4;
    case 5: return nibble | ((tile[256 + b] >> (c / 4)) & 1) << 4;
    default: return nibble;
  }
}

// A row (0..15) of a tile whose codes are signed bytes plus 128.
static inline void dequantize_bytes(const uint8_t* tile, int row, float row_scale, float* out) {
  int8_t codes[kGroup];
  for (int j = 0; j < kGroup / 4; ++j) {
    uint32_t four;
    __builtin_memcpy(&four, tile + 64 * j + 4 * row, 4);
    four ^= 0x80808080u;
    __builtin_memcpy(codes + 4 * j, &four, 4);
  }
  const f32x16 scale = splat(row_scale);
  for (int c = 0; c < kGroup; c += 16) store(out + c, mul(scale, to_f32(load_i8(codes + c))));
}

// A pair-group's first tile, how far the second one is, and what is its own. Half a line of factors lies
// in front of the tiles in every second group of a run.
struct PairGroup {
  const uint8_t* tiles;
  size_t tile_step;
  const uint8_t* own;
};
template <Format Name>
static inline PairGroup pair_group(const uint8_t* run, int groups, int group) {
  const uint8_t* pair = run + group * group_step(Name);
  const int half = group % 2 * (info(Name).pair_group_bytes % 64);
  return {pair + half, tile_step(Name, groups),
          half != 0 ? pair : pair + 2 * info(Name).tile_bytes};
}

// Row `row` (0..31) of a pair-group.
template <Format Name>
static inline void dequantize_group(const PairGroup& pair, const uint8_t* shared, int row,
                                    int columns, float* out) {
  static constexpr FormatInfo layout = info(Name);
  const uint8_t* tile = pair.tiles + row / 16 * pair.tile_step;
  const uint8_t* own = pair.own;
  const auto* halves = reinterpret_cast<const uint16_t*>(layout.shared_bytes == 0 ? own : shared);
  const auto* factors = reinterpret_cast<const int8_t*>(own) + row;
  [[maybe_unused]] const float row_scale = layout.quantized ? half_to_float(halves[row]) : 1.0f;
  if constexpr (layout.bits == 8 && layout.zero == 128 && !layout.two_level) {
    if (columns == kGroup) return dequantize_bytes(tile, row % 16, row_scale, out);
  }
  for (int c = 0; c < columns; ++c) {
    const int at = c * kLanes + row % 16, part = c * layout.parts / kGroup;
    if constexpr (Name == Format::f32) {
      out[c] = reinterpret_cast<const float*>(tile)[at];
    } else if constexpr (Name == Format::f16) {
      out[c] = half_to_float(reinterpret_cast<const uint16_t*>(tile)[at]);
    } else {
      const int code = stored_code<Name>(tile, row % 16, c);
      float q = static_cast<float>(layout.table ? layout.values.at[code] : code - layout.zero);
      float scale = row_scale, min = 0.0f;
      if constexpr (layout.has_offset) min = half_to_float(halves[kPairRows + row]);
      if constexpr (layout.two_level) {
        const int factor = factors[kPairRows * part];
        scale *= static_cast<float>(layout.lift != 0 ? factor >> 1 : factor);
        if (layout.lift != 0) q += static_cast<float>(layout.lift * (factor & 1));
        min *= layout.has_offset ? factors[kPairRows * (layout.parts + part)] : 0;
      }
      if constexpr (layout.offset == Offset::zero) q += min;
      out[c] = scale * q;
      if constexpr (layout.offset == Offset::min) out[c] += min;
    }
  }
}

template <Format Name>
static void dequantize(const uint8_t* weight, int groups, int k, int row_begin, int row_end,
                       float* out, int out_stride) {
  constexpr FormatInfo layout = info(Name);
  const size_t bytes = pair_bytes(Name, groups), of_run = run_bytes(Name, groups);
  const int in_run = run_groups(Name, groups);
  for (int row = row_begin; row < row_end; ++row, out += out_stride) {
    const uint8_t* pair = weight + static_cast<size_t>(row / kPairRows) * bytes;
    for (int g = 0; g < groups; ++g) {
      const uint8_t* run = pair + static_cast<size_t>(g / in_run) * of_run;
      dequantize_group<Name>(pair_group<Name>(run, groups, g % in_run),
                             run + in_run * layout.pair_group_bytes, row % kPairRows,
                             smaller(kGroup, k - g * kGroup), out + g * kGroup);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
