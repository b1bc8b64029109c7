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

// What codes of sixteen rows less their middle are multiplied with, and what is added to that.
template <Format Name>
struct TurnedScales {
  f32x16 scale[2], offset[2];  // by part
  SLMQ_INLINE_MEMBER TurnedScales(const uint8_t* own, const uint8_t* shared, int tile) {
    constexpr FormatInfo layout = info(Name);
    const RowScales<Name> stored(own, shared, tile);
    for (int part = 0; part < layout.parts; ++part) {
      scale[part] = load(stored.scale[part]);
      offset[part] = splat(0.0f);
      if constexpr (turned_offsets(Name)) {
        constexpr bool adds = layout.offset == Offset::min;  // not to codes
        constexpr auto center = static_cast<float>(middle(Name) - (layout.table ? 0 : layout.zero));
        const f32x16 own_offset = load(stored.offset[part]);
        const f32x16 shift = adds ? splat(center) : add(splat(center), own_offset);
        offset[part] = fma(scale[part], shift, adds ? own_offset : splat(0.0f));
      }
    }
  }
};

// The same beside the largest of their rows; zeros for those that the matrix does not have.
template <Format Name>
static inline void turn_scales(const TurnedScales<Name>& scales, const float* most, int row,
                               int rows, TurnedGroup* to) {
  const f32x16 of_row = load(most + row);
  for (int part = 0; part < info(Name).parts; ++part) {
    store(to->scales[part] + row, keep_range(div(scales.scale[part], of_row), 0, rows - row, 0.0f));
    if constexpr (turned_offsets(Name))
      store(to->offsets[part] + row,
            keep_range(div(scales.offset[part], of_row), 0, rows - row, 0.0f));
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

template <Format Name>
static inline const uint8_t* run_of(const uint8_t* weight, int groups, int pair, int group) {
  return weight + static_cast<size_t>(pair) * pair_bytes(Name, groups) +
         static_cast<size_t>(group / run_groups(Name, groups)) * run_bytes(Name, groups);
}

template <Format Name, class Layout>
static void turn_slab(const uint8_t* weight, int groups, int n, int pair, int group,
                      const float* most, TurnedGroup* to) {
  constexpr FormatInfo layout = info(Name);
  const int in_run = run_groups(Name, groups);
  const int rows = smaller(n - pair * kPairRows, kSlabRows);
  int row = 0;
  for (; row < rows; row += kPairRows) {
    const uint8_t* run = run_of<Name>(weight, groups, pair + row / kPairRows, group);
    const PairGroup codes = pair_group<Name>(run, groups, group % in_run);
    alignas(64) int8_t lines[2][kLanes * kGroup];
    for (int tile = 0; tile < 2; ++tile) {
      signed_codes<Name>(codes.tiles + tile * codes.tile_step, lines[tile]);
      const TurnedScales<Name> scales(codes.own, run + in_run * layout.pair_group_bytes, tile);
      turn_scales<Name>(scales, most, row + tile * kLanes, rows, to);
    }
    Layout::put(lines, row / kPairRows, to);
  }
  for (; row % kTurnedWhole != 0; row += kPairRows) turn_nothing<Layout>(layout.parts, row, to);
  for (int part = 0; part < layout.parts; ++part)
    level_scales(row, to->scales[part], &to->largest[part]);
}

// The largest of all groups' scales, by row of a pair. A row of nothing but an offset has one, too, and one
// of nothing at all is not divided by.
template <Format Name>
static void most_scales(const uint8_t* weight, int groups, int pair, float* most) {
  constexpr FormatInfo layout = info(Name);
  const int in_run = run_groups(Name, groups);
  f32x16 of[2] = {splat(0.0f), splat(0.0f)};
  for (int group = 0; group < groups; ++group) {
    const uint8_t* run = run_of<Name>(weight, groups, pair, group);
    const uint8_t* own = pair_group<Name>(run, groups, group % in_run).own;
    for (int tile = 0; tile < 2; ++tile) {
      const TurnedScales<Name> scales(own, run + in_run * layout.pair_group_bytes, tile);
      for (int part = 0; part < layout.parts; ++part) {
        of[tile] = max(of[tile], abs(scales.scale[part]));
        of[tile] = max(of[tile], mul(abs(scales.offset[part]), splat(1.0f / 16)));
      }
    }
  }
  for (int tile = 0; tile < 2; ++tile)
    store(most + tile * kLanes, max(of[tile], splat(kLeastLeveled)));
}

// Calls one<Name>() of this format, which is one of integers.
template <class One, int... Names>
SLMQ_INLINE void of_format(Format format, std::integer_sequence<int, Names...>, const One& one) {
  const auto of = [&]<int Name>() {
    if constexpr (info(static_cast<Format>(Name)).quantized)
      if (format == static_cast<Format>(Name)) one.template operator()<static_cast<Format>(Name)>();
  };
  (of.template operator()<Names>(), ...);
}
template <class Layout>
static void turn(Format format, const uint8_t* weight, int groups, int n, int pair, int group,
                 const float* most, TurnedGroup* to) {
  of_format(format, std::make_integer_sequence<int, kFormats>(), [&]<Format Name>() {
    turn_slab<Name, Layout>(weight, groups, n, pair, group, most, to);
  });
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
