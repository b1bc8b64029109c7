// gemm with matrix registers, for blocks of sixteen tokens: `Tiles` is AMX's (vec/amx_tiles.h), or a
// model of them. Sixteen tokens x 32 columns times 32 columns x sixteen rows of a weight are one
// instruction; what is done to its sums is the same as elsewhere, in the same order, and takes as long.
// So work is cut into units, a few groups of a pair: codes are unpacked once for a few blocks of tokens,
// then all products of a block are made and stored, then their sums are scaled and added, with those of
// a tile in registers. Vectors run at half their speed close to instructions on tiles: these are kept
// together.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// The registers: int32 sums of tokens x rows, of each part for tiles A and B; tokens x columns of each
// part of activations; codes of both tiles, lines as they are dotted.
enum TileNames { kSums = 0, kPlanes = 4, kCodes = 6 };

static constexpr TileConfig tile_shapes(int parts) {
  TileConfig config;
  for (int tile = 0; tile < kTileRegisters; ++tile) {
    config.rows[tile] = tile < kCodes ? kPanelRows : kGroup / 4 / parts;
    config.row_bytes[tile] = 4 * kLanes;
  }
  for (int tile = kPlanes; tile < kCodes; ++tile) config.row_bytes[tile] = kGroup / parts;
  return config;
}

static constexpr int kUnitBlocks = 4;

// The codes of a tile less the zero point, or what they stand for, in the order of an int8 tile.
template <class Weight>
SLMQ_INLINE void unpack_codes(const uint8_t* __restrict tile, int8_t* __restrict codes) {
  constexpr auto zero = static_cast<int8_t>(Weight::layout.zero);
  if constexpr (Weight::looks_up) {
    return unpack_lookup(tile, Weight::table.values, reinterpret_cast<uint8_t*>(codes));
  }
#if defined(SLMQ_WIDE_REGISTERS)
  __m512i columns[8];
  unpack<Weight>(tile, columns);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j)
    _mm512_store_si512(codes + 64 * j, _mm512_sub_epi8(columns[j], _mm512_set1_epi8(zero)));
#else
  for (int j = 0; j < 8; ++j) {
    const int half = j / 4;  // whose columns are in the upper nibbles
    for (int b = 0; b < 64; ++b) {
      int code;
      if constexpr (Weight::bits == 8) {
        code = tile[64 * j + b];
      } else if constexpr (Weight::bits == 2) {
        code = (tile[64 * half + b] >> (2 * (j % 4))) & 3;
      } else if constexpr (Weight::bits == 1) {
        code = (tile[b] >> j) & 1;
      } else {
        code = (tile[64 * (j % 4) + b] >> (4 * half)) & 15;
        if constexpr (Weight::bits == 5) code |= ((tile[256 + b] >> j) & 1) << 4;
        if constexpr (Weight::bits == 6)
          code |= ((tile[256 + 64 * half + b] >> (2 * (j % 4))) & 3) << 4;
      }
      codes[64 * j + b] = static_cast<int8_t>(code - zero);
    }
  }
#endif
}

// A pair-group and what its run shares.
template <class Weight>
struct TileGroup {
  static constexpr int kUnitGroups = 4;
  static constexpr bool kLongRuns = Weight::run == kWholeRow || Weight::run > kUnitGroups;
  static_assert(kLongRuns ? Weight::run % kUnitGroups == 0 : kUnitGroups % Weight::run == 0);
  const uint8_t *own, *shared;

  SLMQ_INLINE_MEMBER static TileGroup of(const uint8_t* pair, int groups, int g) {
    const int in_run = Weight::run == kWholeRow ? groups : Weight::run;
    const size_t own_bytes = static_cast<size_t>(in_run) * Weight::pair_group_bytes;
    const uint8_t* run =
        pair + static_cast<size_t>(g / in_run) * (own_bytes + Weight::shared_bytes);
    return {run + static_cast<size_t>(g % in_run) * Weight::pair_group_bytes, run + own_bytes};
  }
  // The gth one behind this, which begins a unit.
  SLMQ_INLINE_MEMBER TileGroup behind(int g) const {
    constexpr int in_run = kLongRuns ? kUnitGroups : Weight::run;
    const int run = kLongRuns ? 0 : g / in_run * Weight::run_bytes;
    return {own + run + g % in_run * Weight::pair_group_bytes, shared + run};
  }
};

// Which tokens of some blocks have a low plane, a bit each, group by group.
struct LowTokens {
  static_assert(kUnitBlocks * kPanelRows <= 64);
  uint64_t any = 0;
  uint64_t at[kMaxGroups];
  LowTokens(const LinearArgs& args, int row, int blocks) {
    for (int g = 0; g < args.groups; ++g) at[g] = 0;
    for (int block = 0; block < blocks; ++block) {
      PanelTokens a(args, row + block * kPanelRows);
      for (int g = 0; g < args.groups; ++g) {
        const uint64_t mask = a.info->wide;
        at[g] |= mask << (block * kPanelRows);
        any |= mask;
        a.next_group();
      }
    }
  }
};

// Pairs times up to kUnitBlocks blocks of tokens, from `row` on.
template <class Weight, class Tiles>
struct TileBlocks {
  static constexpr int64_t kLine = 4 * kLanes;
  static constexpr int kParts = Weight::parts, kColumns = kGroup / kParts;
  static constexpr int kUnitGroups = TileGroup<Weight>::kUnitGroups;
  static constexpr int kPlaneBytes = kPanelRows * kGroup;
  static constexpr int kPanelBytes = kPanelRows * static_cast<int>(kActivationBytes);  // of a group
  static constexpr bool kUnsigned = Weight::bits == 8 && Weight::layout.zero == 0;
  using Codes = int8_t[2][kGroup * kLanes];              // of both tiles
  using Dots = int32_t[2][kParts][kPanelRows * kLanes];  // the same

  Tiles& tiles;
  const LinearArgs& args;
  const int row, blocks;
  alignas(64) Codes codes[kUnitGroups];
  alignas(64) Dots dots[kUnitGroups];
  alignas(64) float sums[kUnitBlocks][kPanelRows * kPairRows];
  alignas(64) int8_t gathered[kPanelRows][kGroup] = {};  // low planes of tokens of several blocks
  const LowTokens low;

  TileBlocks(Tiles& tiles, const LinearArgs& args, int row, int blocks)
      : tiles(tiles), args(args), row(row), blocks(blocks), low(args, row, blocks) {}

  void times_pair(const uint8_t* weight, int pair) {
    for (int g = 0; g < args.groups; g += kUnitGroups) times_unit<false>(weight, g, pair);
    if (low.any != 0) add_low(weight);
    for (int block = 0; block < blocks; ++block)
      write_sums(args, row + block * kPanelRows, kPanelRows, pair, sums[block]);
  }

 private:
  // Where results of tokens [begin, end) of a block go and what is added to them.
  SLMQ_INLINE_MEMBER void fetch_outputs(int pair, int block, int begin, int end) const {
    for (int t = begin; t < end; ++t) {
      const int at = row + block * kPanelRows + t;
      const float* to = args.y + static_cast<size_t>(at) * args.y_stride + pair * kPairRows;
      prefetch_second_level(to);
      prefetch_second_level(to + kLanes);
      if (args.up.weight != nullptr)
        prefetch_second_level(args.up.x + static_cast<ptrdiff_t>(at) * args.up.x_stride);
      if (args.add == nullptr) continue;
      const float* from = args.add + static_cast<size_t>(at) * args.add_stride + pair * kPairRows;
      prefetch_second_level(from);
      prefetch_second_level(from + kLanes);
    }
  }

  // Of a block's group: high planes, low planes, and what is known of them.
  const int8_t* planes(int block, int g) const {
    const size_t at = static_cast<size_t>(row / kPanelRows + block) * args.groups + g;
    return static_cast<const int8_t*>(args.panel) + at * kPanelBytes;
  }
  SLMQ_INLINE_MEMBER static const ActivationInfo* infos(const int8_t* planes) {
    return reinterpret_cast<const ActivationInfo*>(planes + 2 * kPlaneBytes);
  }

  // A unit of the weight times high or low planes of all tokens.
  template <bool Low>
  void times_unit(const uint8_t* weight, int g, int pair = 0) {
    const int left = args.groups - g, count = left < kUnitGroups ? left : kUnitGroups;
    const auto first = TileGroup<Weight>::of(weight, args.groups, g);
    // A few tokens a unit: fetched at once, outputs of all would be in each other's way.
    const int begin = g * kPanelRows / args.groups, end = (g + count) * kPanelRows / args.groups;
    for (int i = 0; i < count; ++i) {
      const TileGroup<Weight> group = first.behind(i);
      if (!Low) fetch_ahead(group.own, Weight::pair_group_bytes, args.ahead);
      unpack_group(group, codes[i]);
    }
    for (int block = 0; block < blocks; ++block) {
      multiply(planes(block, g) + (Low ? kPlaneBytes : 0), count);
      const bool last = block + 1 == blocks;
      const int8_t* next = last ? planes(0, (g + count) % args.groups) : planes(block + 1, g);
      add_unit<Low>(first, planes(block, g), next, count, !Low && g == 0, sums[block]);
      if (!Low) fetch_outputs(pair, block, begin, end);
    }
  }

  static void unpack_group(const TileGroup<Weight>& group, Codes& to) {
    const uint8_t* lines = Weight::tiles(group.own);
    unpack_codes<Weight>(lines, to[0]);
    unpack_codes<Weight>(lines + Weight::tile_bytes, to[1]);
  }

  // Products of a group with a plane: both tiles, each part. Neighbouring groups have registers of their
  // own if a group is one part.
  template <int Turn, int Part = 0>
  SLMQ_INLINE_MEMBER void dot(const Codes& of, const int8_t* plane) {
    constexpr int kSum = kSums + 2 * Turn, kPlane = kPlanes + Turn;
    tiles.template load<kPlane>(plane + Part * kColumns, kGroup);
    dot_tile<kSum, kPlane, kCodes>(of[0] + Part * kColumns * kLanes);
    dot_tile<kSum + 1, kPlane, kCodes + 1>(of[1] + Part * kColumns * kLanes);
    if constexpr (Part + 1 < kParts) dot<Turn + 1, Part + 1>(of, plane);
  }
  template <int Sum, int Plane, int Code>
  SLMQ_INLINE_MEMBER void dot_tile(const int8_t* of) {
    tiles.template load<Code>(of, kLine);
    tiles.template zero<Sum>();
    if constexpr (kUnsigned) {
      tiles.template dot_unsigned<Sum, Plane, Code>();
    } else {
      tiles.template dot<Sum, Plane, Code>();
    }
  }
  template <int Turn, int Part = 0>
  SLMQ_INLINE_MEMBER void store_dots(Dots& to) {
    constexpr int kSum = kSums + 2 * Turn;
    tiles.template store<kSum>(to[0][Part], kLine);
    tiles.template store<kSum + 1>(to[1][Part], kLine);
    if constexpr (Part + 1 < kParts) store_dots<Turn + 1, Part + 1>(to);
  }
  // A product takes long: the one before is stored meanwhile.
  [[gnu::noinline]] void multiply(const int8_t* plane, int count) {
    if constexpr (kParts == 2) {
      for (int g = 0; g < count; ++g, plane += kPanelBytes) {
        dot<0>(codes[g], plane);
        store_dots<0>(dots[g]);
      }
    } else {
      dot<0>(codes[0], plane);
      for (int g = 1; g < count; g += 2) {
        dot<1>(codes[g], plane + g * kPanelBytes);
        store_dots<0>(dots[g - 1]);
        if (g + 1 < count) dot<0>(codes[g + 1], plane + (g + 1) * kPanelBytes);
        store_dots<1>(dots[g]);
      }
      if (count % 2 != 0) store_dots<0>(dots[count - 1]);
    }
  }

  template <int Part>
  static TileScales<Weight, Part> scales(const TileGroup<Weight>& group, int tile) {
    return {Weight::own(group.own), group.shared, tile};
  }
  template <int Part, bool Low>
  SLMQ_INLINE_MEMBER static void add_part(const TileGroup<Weight>& group, int tile, const Dots& of,
                                          const ActivationInfo* info, f32x16 (&sum)[kPanelRows]) {
    const TileScales<Weight, Part> w = scales<Part>(group, tile);
#pragma GCC unroll 16
    for (int t = 0; t < kPanelRows; ++t)
      sum[t] = accumulate<Weight, Part, Low>(sum[t], load_i32(of[tile][Part] + t * kLanes), w.scale,
                                             w.min, info[t]);
    if constexpr (Part + 1 < kParts) add_part<Part + 1, Low>(group, tile, of, info, sum);
  }
  // to[token][32 rows] += what the unit's products with high planes gave, or with low ones. Asks for what
  // comes next: a panel lies in the second-level cache, and no hardware guesses the order of its use.
  template <bool Low>
  [[gnu::noinline]] void add_unit(const TileGroup<Weight>& first, const int8_t* planes,
                                  const int8_t* next, int count, bool begins, float* to) const {
#pragma GCC unroll 1
    for (int tile = 0; tile < 2; ++tile, to += kLanes) {
      f32x16 sum[kPanelRows];
#pragma GCC unroll 16
      for (int t = 0; t < kPanelRows; ++t) sum[t] = begins ? splat(0.0f) : load(to + t * kPairRows);
#pragma GCC unroll 1
      for (int g = 0; g < count; ++g) {
        constexpr int kPlane = Low ? kPlaneBytes : 0;
        const int8_t* lines = next + g * kPanelBytes + (tile == 0 ? kPlane : 2 * kPlaneBytes);
#pragma GCC unroll 8
        for (int line = 0; line < kPlaneBytes; line += 64) prefetch(lines + line);
        add_part<0, Low>(first.behind(g), tile, dots[g], infos(planes + g * kPanelBytes), sum);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kPanelRows; ++t) store(to + t * kPairRows, sum[t]);
    }
  }

  // A token of a group whose low plane is multiplied, and its sums.
  struct LowToken {
    const ActivationInfo* info;
    float* sums;
  };

  template <int Part>
  SLMQ_INLINE_MEMBER void add_low_part(const TileGroup<Weight>& group, int tile,
                                       const LowToken* tokens, int count) const {
    const TileScales<Weight, Part> w = scales<Part>(group, tile);
    for (int i = 0; i < count; ++i) {
      float* sum = tokens[i].sums + tile * kLanes;
      store(sum,
            accumulate<Weight, Part, true>(load(sum), load_i32(dots[0][tile][Part] + i * kLanes),
                                           w.scale, w.min, *tokens[i].info));
    }
    if constexpr (Part + 1 < kParts) add_low_part<Part + 1>(group, tile, tokens, count);
  }
  // Up to sixteen tokens of those whose bits are set, whose planes are one tile; returns the others.
  uint64_t add_low_tile(const TileGroup<Weight>& group, int g, uint64_t mask) {
    LowToken tokens[kPanelRows];
    int count = 0;
    for (; mask != 0 && count < kPanelRows; mask &= mask - 1, ++count) {
      const int bit = __builtin_ctzll(mask), block = bit / kPanelRows, t = bit % kPanelRows;
      const int8_t* high = planes(block, g);
      __builtin_memcpy(gathered[count], high + kPlaneBytes + t * kGroup, kGroup);
      tokens[count] = {infos(high) + t, sums[block] + t * kPairRows};
    }
    dot<0>(codes[0], gathered[0]);
    store_dots<0>(dots[0]);
    for (int tile = 0; tile < 2; ++tile) add_low_part<0>(group, tile, tokens, count);
    return mask;
  }
  void add_low_token(const TileGroup<Weight>& group, int g, int bit) {
    const int block = bit / kPanelRows, t = bit % kPanelRows;
    const PanelTokens a = PanelTokens(args, row + block * kPanelRows).token(g, t);
    add_low_tokens<Weight, 1>(group.own, group.shared, a, sums[block] + t * kPairRows);
  }
  // Up to four bits: counted so, no instruction is needed that other tables do without.
  static bool few(uint64_t mask) {
    for (int i = 0; i < 4; ++i) mask &= mask - 1;
    return mask == 0;
  }
  // Weights are unpacked once for the tokens of all blocks. Few tokens are worth no product of sixteen.
  [[gnu::noinline]] void add_low_group(const uint8_t* weight, int g) {
    uint64_t mask = low.at[g];
    if (mask == 0) return;
    const auto group = TileGroup<Weight>::of(weight, args.groups, g);
    if (few(mask)) {
      for (; mask != 0; mask &= mask - 1) add_low_token(group, g, __builtin_ctzll(mask));
    } else {
      unpack_group(group, codes[0]);
      while (mask != 0) mask = add_low_tile(group, g, mask);
    }
  }
  // Whether all tokens of a unit have low planes: nothing has to be gathered then.
  bool all_low(int g, int end) const {
    const uint64_t every = ~uint64_t{0} >> (64 - blocks * kPanelRows);
    for (; g < end; ++g)
      if (low.at[g] != every) return false;
    return true;
  }
  void add_low(const uint8_t* weight) {
    for (int g = 0; g < args.groups; g += kUnitGroups) {
      const int end = g + kUnitGroups < args.groups ? g + kUnitGroups : args.groups;
      if (all_low(g, end)) {
        times_unit<true>(weight, g);
      } else {
        for (int i = g; i < end; ++i) add_low_group(weight, i);
      }
    }
  }
};

// Whole blocks of sixteen tokens; the rest is the `below` table's.
template <Format Name, class Tiles, const Kernels& below>
static void linear_tiles(const LinearArgs& args, int pair_begin, int pair_end) {
  const int blocks = args.m / kPanelRows, rows = blocks * kPanelRows;
  const size_t bytes = pair_bytes(Name, args.groups);
  if (blocks > 0) {
    static constexpr TileConfig shapes = tile_shapes(info(Name).parts);
    Tiles tiles;
    tiles.configure(shapes);
    for (int block = 0; block < blocks; block += kUnitBlocks) {
      const int some = blocks - block < kUnitBlocks ? blocks - block : kUnitBlocks;
      TileBlocks<Weight<Name>, Tiles> of(tiles, args, block * kPanelRows, some);
      for (int pair = pair_begin; pair < pair_end; ++pair)
        of.times_pair(args.weight + pair * bytes, pair);
    }
    tiles.release();
  }
  if (rows == args.m) return;
  LinearArgs rest = args;
  rest.m -= rows;
  rest.panel = static_cast<const uint8_t*>(args.panel) +
               static_cast<size_t>(rows) * args.groups * kActivationBytes;
  rest.y += static_cast<size_t>(rows) * args.y_stride;
  if (args.add != nullptr) rest.add += static_cast<size_t>(rows) * args.add_stride;
  rest.up.x += static_cast<ptrdiff_t>(rows) * args.up.x_stride;
  below.linear[static_cast<int>(Name)](rest, pair_begin, pair_end);
}

// As many dots as the unit takes: six chains of products of full registers.
template <class Tiles>
static int64_t peak_tiles(int rounds, int32_t* sink) {
  alignas(64) int8_t ones[kTileRows * kTileRowBytes];
  alignas(64) int32_t sums[kTileRows * kLanes];
  TileConfig full;
  for (int tile = 0; tile < kTileRegisters; ++tile) {
    full.rows[tile] = kTileRows;
    full.row_bytes[tile] = kTileRowBytes;
  }
  for (int8_t& byte : ones) byte = 1;
  Tiles tiles;
  tiles.configure(full);
  tiles.template load<6>(ones, kTileRowBytes);
  tiles.template load<7>(ones, kTileRowBytes);
  [&]<int... T>(std::integer_sequence<int, T...>) {
    (tiles.template zero<T>(), ...);
    for (int round = 0; round < rounds; ++round) (tiles.template dot<T, 6, 7>(), ...);
  }(std::make_integer_sequence<int, 6>());
  tiles.template store<0>(sums, kTileRowBytes);
  tiles.release();
  for (int i = 0; i < kLanes; ++i) sink[i] = sums[i];
  return int64_t{rounds} * 6 * kTileRows * kLanes * kTileRowBytes;
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
