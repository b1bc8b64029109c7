// Weights as turned_rows.inl.h multiplies them. A `Layout` says where codes go: put(lines of
// signed bytes of both tiles of a pair, its number in the slab, to).

namespace slmq::SLMQ_ISA {
namespace {

// The code that lies in the middle of others: codes less this are signed, and rounding errors of what they
// are multiplied with stay small.
constexpr int middle(Format name) {
  if (info(name).table) return 0;
  return info(name).has_offset ? 1 << (info(name).bits - 1) : info(name).zero;
}

// [16 columns of a tile][slab's rows in pairs]: see turned_pairs.inl.h.
struct PairLayout {
  SLMQ_INLINE_MEMBER static void put(const int8_t (&lines)[2][kLanes * kGroup], int pair,
                                     TurnedGroup* to) {
    for (int j = 0; j < 8; ++j) {
      alignas(64) int8_t both[8 * kLanes];  // of a row of both tiles, four columns
      for (int b = 0; b < 64; ++b) {
        both[2 * b] = lines[0][64 * j + b];
        both[2 * b + 1] = lines[1][64 * j + b];
      }
      uint8_t* row = to->codes[j / 4] + pair * kLanes * 64 + j % 4 * 16;
      for (int i = 0; i < kLanes; ++i, row += 64) {
        int16_t words[8];
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) words[k] = both[8 * i + k];
        __builtin_memcpy(row, words, 16);
      }
    }
  }
};

// The codes of a tile as bytes in the order of an int8 tile; of a table what they find, which is signed.
template <Format Name>
static inline void code_bytes(const uint8_t* tile, uint8_t* bytes) {
  constexpr int bits = info(Name).bits;
  if constexpr (info(Name).table) {
    static constexpr LookupTable table = lookup_table(info(Name).values);
    return unpack_lookup(tile, table.values, bytes);
  }
  for (int half = 0; half < 2; ++half) {
    for (int j = 0; j < 4; ++j) {
      const uint8_t* codes = tile + 64 * j;
      uint8_t* to = bytes + 256 * half + 64 * j;
      for (int b = 0; b < 64; ++b) {
        if constexpr (bits == 8) {
          to[b] = tile[256 * half + 64 * j + b];
        } else if constexpr (bits == 2) {
          to[b] = static_cast<uint8_t>((tile[64 * half + b] >> (2 * j)) & 3);
        } else if constexpr (bits == 1) {
          to[b] = static_cast<uint8_t>((tile[b] >> (4 * half + j)) & 1);
        } else {
          int code = half == 0 ? codes[b] & 15 : codes[b] >> 4;
          if constexpr (bits == 6) code |= ((tile[256 + 64 * half + b] >> (2 * j)) & 3) << 4;
          if constexpr (bits == 5) code |= ((tile[256 + b] >> (4 * half + j)) & 1) << 4;
          to[b] = static_cast<uint8_t>(code);
        }
      }
    }
  }
}

// What rows of a tile are scaled with and what is added to them, for each half of a group's columns.
template <Format Name>
struct RowScales {
  alignas(64) float scale[2][kLanes], offset[2][kLanes];
  SLMQ_INLINE_MEMBER RowScales(const uint8_t* own, const uint8_t* shared, int tile) {
    constexpr FormatInfo layout = info(Name);
    const auto* halves = reinterpret_cast<const uint16_t*>(layout.shared_bytes == 0 ? own : shared);
    const auto* factors = reinterpret_cast<const int8_t*>(own) + kLanes * tile;
    for (int half = 0; half < 2; ++half) {
      const int part = half * layout.parts / 2;
      f32x16 scales = load_f16(halves + kLanes * tile), offsets = splat(0.0f);
      if constexpr (layout.has_offset) offsets = load_f16(halves + kPairRows + kLanes * tile);
      if constexpr (layout.two_level) {
        i32x16 factor = load_i8(factors + kPairRows * part);
        if constexpr (layout.lift != 0) {
          const i32x16 half_factor = halved(factor);
          const i32x16 bit = sub(factor, add(half_factor, half_factor));
          offsets = mul(to_f32(bit), splat(static_cast<float>(layout.lift)));
          factor = half_factor;
        }
        scales = mul(scales, to_f32(factor));
        if constexpr (layout.has_offset)
          offsets = mul(offsets, to_f32(load_i8(factors + kPairRows * (layout.parts + part))));
      }
      store(scale[half], scales);
      store(offset[half], offsets);
    }
  }
};

template <Format Name>
static inline void signed_codes(const uint8_t* tile, int8_t* to) {
  alignas(64) uint8_t lines[kLanes * kGroup];
  code_bytes<Name>(tile, lines);
  for (int i = 0; i < kLanes * kGroup; ++i) to[i] = static_cast<int8_t>(lines[i] - middle(Name));
}

// Scales and offsets of sixteen rows; zeros for those that the matrix does not have.
template <Format Name>
static inline void turn_scales(const uint8_t* own, const uint8_t* shared, int tile, int row,
                               int rows, TurnedGroup* to) {
  constexpr FormatInfo layout = info(Name);
  const RowScales<Name> scales(own, shared, tile);
  for (int part = 0; part < layout.parts; ++part) {
    const f32x16 scale = load(scales.scale[part]), offset = load(scales.offset[part]);
    store(to->scales[part] + row, keep_range(scale, 0, rows - row, 0.0f));
    if constexpr (turned_offsets(Name)) {
      constexpr bool adds = layout.offset == Offset::min;  // not to codes
      constexpr auto center = static_cast<float>(middle(Name) - (layout.table ? 0 : layout.zero));
      const f32x16 shift = adds ? splat(center) : add(splat(center), offset);
      const f32x16 total = fma(scale, shift, adds ? offset : splat(0.0f));
      store(to->offsets[part] + row, keep_range(total, 0, rows - row, 0.0f));
    }
  }
}

// Scales beside the largest of them.
static inline void level_scales(int rows, float* scales, float* largest) {
  f32x16 most = splat(kLeastLeveled), spoiled = splat(0.0f);
  for (int row = 0; row < rows; row += kLanes) {
    const f32x16 scale = load(scales + row);
    most = max(most, abs(scale));
    spoiled = fma(scale, splat(0.0f), spoiled);
  }
  const float found = reduce_max(most);
  for (int row = 0; row < rows; row += kLanes)
    store(scales + row, div(load(scales + row), splat(found)));
  *largest = found + reduce_add(spoiled);
}

// Nothing, behind the last pair.
template <class Layout>
static inline void turn_nothing(int parts, int row, TurnedGroup* to) {
  static constexpr int8_t zeros[2][kLanes * kGroup] = {};
  Layout::put(zeros, row / kPairRows, to);
  for (int part = 0; part < parts; ++part) {
    __builtin_memset(to->scales[part] + row, 0, sizeof(float) * kPairRows);
    __builtin_memset(to->offsets[part] + row, 0, sizeof(float) * kPairRows);
  }
}

template <Format Name, class Layout>
static void turn_slab(const uint8_t* weight, int groups, int n, int pair, int group,
                      TurnedGroup* to) {
  constexpr FormatInfo layout = info(Name);
  const int in_run = run_groups(Name, groups);
  const int rows = smaller(n - pair * kPairRows, kSlabRows);
  int row = 0;
  for (; row < rows; row += kPairRows) {
    const uint8_t* run = weight +
                         static_cast<size_t>(pair + row / kPairRows) * pair_bytes(Name, groups) +
                         static_cast<size_t>(group / in_run) * run_bytes(Name, groups);
    const PairGroup codes = pair_group<Name>(run, groups, group % in_run);
    alignas(64) int8_t lines[2][kLanes * kGroup];
    for (int tile = 0; tile < 2; ++tile) {
      signed_codes<Name>(codes.tiles + tile * codes.tile_step, lines[tile]);
      turn_scales<Name>(codes.own, run + in_run * layout.pair_group_bytes, tile,
                        row + tile * kLanes, rows, to);
    }
    Layout::put(lines, row / kPairRows, to);
  }
  for (; row % kTurnedWhole != 0; row += kPairRows) turn_nothing<Layout>(layout.parts, row, to);
  for (int part = 0; part < layout.parts; ++part)
    level_scales(row, to->scales[part], &to->largest[part]);
}

template <class Layout, int... Names>
static inline void turn_format(std::integer_sequence<int, Names...>, Format format,
                               const uint8_t* weight, int groups, int n, int pair, int group,
                               TurnedGroup* to) {
  const auto one = [&]<int Name>() {
    if constexpr (info(static_cast<Format>(Name)).quantized) {
      if (format == static_cast<Format>(Name))
        turn_slab<static_cast<Format>(Name), Layout>(weight, groups, n, pair, group, to);
    }
  };
  (one.template operator()<Names>(), ...);
}
template <class Layout>
static void turn(Format format, const uint8_t* weight, int groups, int n, int pair, int group,
                 TurnedGroup* to) {
  turn_format<Layout>(std::make_integer_sequence<int, kFormats>(), format, weight, groups, n, pair,
                      group, to);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
