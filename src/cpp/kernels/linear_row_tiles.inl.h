// gemm with matrix registers where a row of weights and a row of activations have one scale each: sums
// over all columns stay in the registers. Codes are unsigned bytes there as they are stored.
//
// A product keeps the unit busy for sixteen cycles, however few columns it has: so two groups, a slab,
// are multiplied at once. The weights' lie side by side; the tokens' are laid so first, for all pairs of
// a call. Two blocks of tokens meet the two tiles of a pair, which makes four chains of sums: a product
// takes three times as long as it keeps the unit busy. Coarse planes of a few tokens are left to vectors.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// The registers: sums of both blocks with tiles A and B of a pair; a plane of each; the codes of A and B.
enum RowTileNames {
  kRowSums0A = 0,
  kRowSums0B = 1,
  kRowSums1A = 2,
  kRowSums1B = 3,
  kRowPlane0 = 4,
  kRowPlane1 = 5,
  kRowCodesA = 6,
  kRowCodesB = 7
};

// All registers are full: zeros stand behind the last token and column.
static constexpr TileConfig full_tiles() {
  TileConfig config;
  for (int tile = 0; tile < kTileRegisters; ++tile) {
    config.rows[tile] = kTileRows;
    config.row_bytes[tile] = kTileRowBytes;
  }
  return config;
}

static constexpr int kSlabGroups = kTileRowBytes / kGroup, kSlabBytes = kTileRows * kTileRowBytes;
static constexpr int kTwoBlocks = 2 * kPanelRows;
static_assert(kPanelRows == kTileRows && kSlabGroups == 2);

static constexpr int fewer(int a, int b) { return a < b ? a : b; }

// Which tokens of a block have a coarse plane in the groups of a slab.
struct WideTokens {
  static_assert(kPanelRows == 16);
  uint64_t flags[kSlabGroups][2] = {};  // a byte each
  int count = 0;

  WideTokens(const RowPanel& block, int slab, int groups) {
    for (int i = 0; i < fewer(kSlabGroups, groups - kSlabGroups * slab); ++i) {
      const uint8_t* wide = block.wide + (kSlabGroups * slab + i) * block.rows;
      if (block.rows == kPanelRows) {
        __builtin_memcpy(flags[i], wide, kPanelRows);
      } else {
        __builtin_memcpy(flags[i], wide, static_cast<size_t>(block.rows));
      }
      if ((flags[i][0] | flags[i][1]) == 0) continue;
      for (const uint64_t of_window : flags[i])
        count += static_cast<int>(of_window * 0x0101010101010101 >> 56);
    }
  }
  bool in_window(int group, int window) const { return flags[group][window] != 0; }
  bool has(int group, int token) const {
    return (flags[group][token / kPanelWindow] >> token % kPanelWindow * 8 & 1) != 0;
  }
};

// A part of the columns of one or two blocks of tokens, as they are multiplied.
struct SlabTokens {
  static constexpr int kPlanes = 72;  // 16 tokens x 64 columns each
  static constexpr int kFew = 3;      // coarse planes of a slab that vectors multiply
  struct Coarse {
    int slab;
    const int8_t* plane[2];  // of each block, or null
  };
  struct Alone {
    const int8_t* plane;  // of 32 columns
    uint32_t codes, row;  // bytes to the group's tile A; which row of sums
  };
  RowPanel block[2];
  int groups, slabs, blocks;
  int first, last;  // slabs
  int coarse_count, alone_count;
  Coarse coarse[kPlanes / 2];
  Alone alone[kFew * kPlanes];
  alignas(64) int8_t planes[kPlanes][kSlabBytes];

  // A second block if whole rows of both are likely to fit.
  void start(const LinearArgs& args, int row) {
    groups = args.groups;
    slabs = (groups + 1) / kSlabGroups;
    blocks = args.m - row > kPanelRows && 2 * slabs <= kPlanes * 3 / 4 ? 2 : 1;
    for (int b = 0; b < blocks; ++b)
      block[b] = row_panel(const_cast<void*>(args.panel), groups, args.m, row + b * kPanelRows);
  }

  // Slabs from `begin` on, as many as there is room for.
  void fill(int begin) {
    first = last = begin;
    coarse_count = alone_count = 0;
    int fine = 0, behind = kPlanes;  // planes from the front, and coarse ones from behind
    for (; last < slabs && fine + 2 * blocks <= behind; ++last) {
      Coarse of = {last, {nullptr, nullptr}};
      for (int b = 0; b < blocks; ++b) {
        lay_fine(block[b], last, planes[fine++]);
        const WideTokens wide(block[b], last, groups);
        if (wide.count > kFew) {
          lay_coarse(block[b], last, wide, planes[--behind]);
          of.plane[b] = planes[behind];
        } else if (wide.count > 0) {
          list_alone(b, last, wide);
        }
      }
      if (of.plane[0] != nullptr || of.plane[1] != nullptr) coarse[coarse_count++] = of;
    }
  }
  bool whole() const { return first == 0 && last == slabs; }
  const int8_t* fine(int slab, int b) const { return planes[(slab - first) * blocks + b]; }

 private:
  static void lay(const int8_t* from, int rows, int8_t* to) {
#pragma GCC unroll 8
    for (int t = 0; t < rows; ++t)
      __builtin_memcpy(to + t * kTileRowBytes, from + t * kGroup, kGroup);
  }
  void lay_fine(const RowPanel& from, int slab, int8_t* to) const {
    const int count = fewer(kSlabGroups, groups - kSlabGroups * slab);
    const int8_t* planes_of = from.fine + kSlabGroups * slab * from.rows * kGroup;
    if (count == kSlabGroups && from.rows == kPanelRows) {
      for (int i = 0; i < kSlabGroups; ++i)
        lay(planes_of + i * kPanelRows * kGroup, kPanelRows, to + i * kGroup);
      return;
    }
    __builtin_memset(to, 0, kSlabBytes);
    for (int i = 0; i < count; ++i)
      lay(planes_of + i * from.rows * kGroup, from.rows, to + i * kGroup);
  }
  // A plane tells nothing of a window in which no token has one.
  static void lay_coarse(const RowPanel& from, int slab, const WideTokens& wide, int8_t* to) {
    __builtin_memset(to, 0, kSlabBytes);
    for (int i = 0; i < kSlabGroups; ++i)
      for (int t = 0; t < from.rows; t += kPanelWindow) {
        if (!wide.in_window(i, t / kPanelWindow)) continue;
        const int at = (kSlabGroups * slab + i) * from.rows + t;
        lay(from.coarse + at * kGroup, fewer(kPanelWindow, from.rows - t),
            to + t * kTileRowBytes + i * kGroup);
      }
  }
  void list_alone(int b, int slab, const WideTokens& wide) {
    for (int i = 0; i < kSlabGroups; ++i)
      for (int t = 0; t < block[b].rows; ++t) {
        if (!wide.has(i, t)) continue;
        const int g = kSlabGroups * slab + i;
        alone[alone_count++] = {block[b].coarse + (g * block[b].rows + t) * kGroup,
                                static_cast<uint32_t>(g * info(Format::q8rs).tile_bytes),
                                static_cast<uint32_t>(b * kPanelRows + t)};
      }
  }
};

// What is done to the sums of each token.
struct RowEnds {
  float scale[kTwoBlocks];
  int32_t fine[kTwoBlocks], coarse[kTwoBlocks];  // what pays for the zero point
  bool wide[kTwoBlocks];
  int rows;

  void fill(const SlabTokens& tokens) {
    rows = 0;
    for (int b = 0; b < tokens.blocks; ++b)
      for (int t = 0; t < tokens.block[b].rows; ++t, ++rows) {
        const RowInfo& info = tokens.block[b].info[t];
        scale[rows] = info.scale;
        fine[rows] = 128 * info.sum_fine;
        coarse[rows] = 128 * info.sum_coarse;
        wide[rows] = info.wide != 0;
      }
  }
};

// One or two blocks of tokens, and the products of a pair with them.
template <class Tiles>
struct RowTileBlocks {
  static constexpr int64_t kLine = kTileRowBytes;
  static constexpr int kTileBytes = info(Format::q8rs).tile_bytes;
  using Sums = int32_t[2][kTwoBlocks][kLanes];  // of tiles A and B
  Tiles tiles;
  SlabTokens tokens;
  RowEnds ends;
  alignas(64) Sums fine, coarse;
  // Of the pair: where its tile B begins, and an odd last group beside nothing.
  size_t step;
  alignas(64) uint8_t odd[2][kSlabBytes];

  // Configures the registers, which the caller releases: a destructor would need tables for exceptions.
  void start(const LinearArgs& args, int row) {
    static constexpr TileConfig shapes = full_tiles();
    tokens.start(args, row);
    tokens.fill(0);
    ends.fill(tokens);
    step = tile_step(Format::q8rs, args.groups);
    if (tokens.groups % kSlabGroups != 0) __builtin_memset(odd, 0, sizeof odd);
    tiles.configure(shapes);
  }

  // Both planes with the pair. Tokens that did not fit are laid out anew for each pair.
  void multiply(const uint8_t* weight, Ahead ahead) {
    if (tokens.groups % kSlabGroups != 0) {
      const uint8_t* tile = weight + static_cast<size_t>(tokens.groups - 1) * kTileBytes;
      __builtin_memcpy(odd[0], tile, kTileBytes);
      __builtin_memcpy(odd[1], tile + step, kTileBytes);
    }
    if (tokens.whole()) return multiply_part(weight, ahead);
    for (int first = 0; first < tokens.slabs; first = tokens.last) {
      tokens.fill(first);
      multiply_part(weight, ahead);
    }
  }

 private:
  void load_codes(const uint8_t* weight, int slab) {
    const bool two = kSlabGroups * (slab + 1) <= tokens.groups;
    const uint8_t* codes = weight + static_cast<size_t>(slab) * kSlabBytes;
    tiles.template load<kRowCodesA>(two ? codes : odd[0], kLine);
    tiles.template load<kRowCodesB>(two ? codes + step : odd[1], kLine);
  }
  void fetch(const uint8_t* weight, int slab, Ahead ahead) const {
    const uint8_t* codes = weight + static_cast<size_t>(slab) * kSlabBytes;
    fetch_ahead(codes, kSlabBytes, ahead);
    fetch_ahead(codes + step, kSlabBytes, ahead);
  }
  // Zeros, or what an earlier part has left.
  void start_sums(const Sums& from) {
    if (tokens.first == 0) {
      tiles.template zero<kRowSums0A>();
      tiles.template zero<kRowSums0B>();
      tiles.template zero<kRowSums1A>();
      tiles.template zero<kRowSums1B>();
    } else {
      tiles.template load<kRowSums0A>(from[0], kLine);
      tiles.template load<kRowSums0B>(from[1], kLine);
      tiles.template load<kRowSums1A>(from[0] + kPanelRows, kLine);
      tiles.template load<kRowSums1B>(from[1] + kPanelRows, kLine);
    }
  }
  void store_sums(Sums& to) {
    tiles.template store<kRowSums0A>(to[0], kLine);
    tiles.template store<kRowSums0B>(to[1], kLine);
    tiles.template store<kRowSums1A>(to[0] + kPanelRows, kLine);
    tiles.template store<kRowSums1B>(to[1] + kPanelRows, kLine);
  }
  template <int Block>
  void dot(const int8_t* plane) {
    constexpr int kSums = kRowSums0A + 2 * Block, kPlane = kRowPlane0 + Block;
    tiles.template load<kPlane>(plane, kLine);
    tiles.template dot_unsigned<kSums, kPlane, kRowCodesA>();
    tiles.template dot_unsigned<kSums + 1, kPlane, kRowCodesB>();
  }

  void multiply_part(const uint8_t* weight, Ahead ahead) {
    if (tokens.coarse_count != 0) {
      multiply_coarse(weight);
    } else if (tokens.first == 0) {
      clear_wide();
    }
    if (tokens.alone_count != 0) multiply_alone(weight);
    if (tokens.blocks == 2) {
      multiply_two(weight, ahead);
    } else {
      multiply_one(weight, ahead);
    }
  }

  // Products of two blocks take so long that what is fetched early would be lost again.
  void multiply_two(const uint8_t* weight, Ahead ahead) {
    ahead.bytes = fewer(ahead.bytes, 2 * kSlabBytes);
    start_sums(fine);
    for (int slab = tokens.first; slab < tokens.last; ++slab) {
      fetch(weight, slab, ahead);
      load_codes(weight, slab);
      dot<0>(tokens.fine(slab, 0));
      dot<1>(tokens.fine(slab, 1));
    }
    store_sums(fine);
  }

  // Every second slab has sums of its own: integers are exact in any order.
  void multiply_one(const uint8_t* weight, Ahead ahead) {
    start_sums(fine);
    tiles.template zero<kRowSums1A>();
    tiles.template zero<kRowSums1B>();
    for (int slab = tokens.first; slab < tokens.last; ++slab) {
      fetch(weight, slab, ahead);
      load_codes(weight, slab);
      if (slab % 2 == 0) {
        dot<0>(tokens.fine(slab, 0));
      } else {
        dot<1>(tokens.fine(slab, 0));
      }
    }
    store_sums(fine);
    for (auto& tile : fine)
      for (int t = 0; t < kPanelRows; ++t)
        store_i32(tile[t], add(load_i32(tile[t]), load_i32(tile[kPanelRows + t])));
  }

  void multiply_coarse(const uint8_t* weight) {
    start_sums(coarse);
    for (int i = 0; i < tokens.coarse_count; ++i) {
      const SlabTokens::Coarse& of = tokens.coarse[i];
      load_codes(weight, of.slab);
      if (of.plane[0] != nullptr) dot<0>(of.plane[0]);
      if (of.plane[1] != nullptr) dot<1>(of.plane[1]);
    }
    store_sums(coarse);
  }
  void clear_wide() {
    for (int t = 0; t < ends.rows; ++t) {
      if (!ends.wide[t]) continue;
      for (auto& tile : coarse) store_i32(tile[t], splat_i32(0));
    }
  }
  void multiply_alone(const uint8_t* weight) {
    for (int i = 0; i < tokens.alone_count; ++i) {
      const SlabTokens::Alone& of = tokens.alone[i];
      i32x16 dots[2][1];
      for (int tile = 0; tile < 2; ++tile) {
        dot_u8<1>(weight + of.codes + static_cast<size_t>(tile) * step, of.plane, dots[tile]);
        int32_t* sum = coarse[tile][of.row];
        store_i32(sum, add(load_i32(sum), dots[tile][0]));
      }
    }
  }
};

// What linear_rows.inl.h does to sums, of tokens from `row` on.
template <class Tiles>
static void write_row_tiles(const LinearArgs& args, int row, int pair, const uint8_t* weight,
                            const RowTileBlocks<Tiles>& of) {
  const auto* scales = reinterpret_cast<const uint16_t*>(weight + 2 * of.step);
  const auto column = static_cast<size_t>(pair) * kPairRows;
  const auto stride = static_cast<size_t>(args.y_stride);
  const auto add_stride = static_cast<size_t>(args.add_stride);
  const bool has_bias = args.bias != nullptr;
  const f32x16 scale[2] = {load_f16(scales), load_f16(scales + kLanes)};
  f32x16 bias[2] = {splat(0.0f), splat(0.0f)};
  for (int tile = 0; tile < 2 && has_bias; ++tile)
    bias[tile] = load(args.bias + column + tile * kLanes);
  const float* from =
      args.add == nullptr ? nullptr : args.add + static_cast<size_t>(row) * add_stride + column;
  float* const to = args.y + static_cast<size_t>(row) * stride + column;
  const RowEnds& ends = of.ends;
  for (int t = 0; t < ends.rows; ++t) {
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      f32x16 sum = to_f32(sub(load_i32(of.fine[tile][t]), splat_i32(ends.fine[t])));
      if (ends.wide[t]) {
        const i32x16 dot = sub(load_i32(of.coarse[tile][t]), splat_i32(ends.coarse[t]));
        sum = fma(to_f32(dot), splat(256.0f), sum);
      }
      sum = mul(sum, mul(scale[tile], splat(ends.scale[t])));
      if (has_bias) sum = add(sum, bias[tile]);
      if (from != nullptr) sum = add(sum, load(from + t * add_stride + tile * kLanes));
      store(to + t * stride + tile * kLanes, sum);
    }
  }
  if (args.activate == nullptr) return;
  for (int t = 0; t < ends.rows; ++t) args.activate(to + t * stride, kPairRows, to + t * stride);
}

// Fewer tokens than a product is worth are the `below` table's.
template <class Tiles, const Kernels& below>
static void linear_row_tiles(const LinearArgs& args, int pair_begin, int pair_end) {
  constexpr int kFewest = 4;
  if (args.m < kFewest)
    return below.linear[static_cast<int>(Format::q8rs)](args, pair_begin, pair_end);
  const size_t bytes = pair_bytes(Format::q8rs, args.groups);
  RowTileBlocks<Tiles> of;
  for (int row = 0; row < args.m; row += of.ends.rows) {
    of.start(args, row);
    for (int pair = pair_begin; pair < pair_end; ++pair) {
      const uint8_t* weight = args.weight + pair * bytes;
      of.multiply(weight, args.ahead);
      write_row_tiles(args, row, pair, weight, of);
    }
    of.tiles.release();
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
