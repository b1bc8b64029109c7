// gemm with matrix registers where a row of weights and a row of activations have one scale each: sums
// over all columns stay in the registers. Codes are unsigned bytes there as they are stored. Up to two
// blocks of tokens meet a pair together, the second of any number of rows: four registers of sums,
// because a product takes three times as long as it keeps the unit busy.

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

// A single block has the registers of the second one, too.
static TileConfig row_shapes(int first, int second) {
  TileConfig config;
  for (const int tile : {kRowSums0A, kRowSums0B, kRowPlane0}) config.rows[tile] = first;
  for (const int tile : {kRowSums1A, kRowSums1B, kRowPlane1}) config.rows[tile] = second;
  for (const int tile : {kRowCodesA, kRowCodesB}) config.rows[tile] = kGroup / 4;
  for (int tile = 0; tile < kTileRegisters; ++tile) config.row_bytes[tile] = 4 * kLanes;
  for (const int tile : {kRowPlane0, kRowPlane1}) config.row_bytes[tile] = kGroup;
  return config;
}

struct RowTileSums {
  alignas(64) int32_t fine[4][kPanelRows * kLanes], coarse[4][kPanelRows * kLanes];
};

// The groups of a block of tokens that have a coarse plane. A plane tells nothing of a window in which no
// token has one.
struct CoarseGroups {
  static constexpr int kWindows = kPanelRows / kPanelWindow;
  static_assert(kWindows == 2 && 4 * kMaxGroups <= 65536);
  int count = 0;
  uint16_t at[kMaxGroups];  // 4 * group + which windows: 1, 2 or both
  alignas(64) int8_t window[kWindows][kPanelRows * kGroup];  // one of a plane, and zeros

  void fill(const RowPanel& block, int groups) {
    count = 0;
    int any = 0;
    for (int t = 0; t < block.rows; ++t) any |= block.info[t].wide;
    if (any == 0) return;
    __builtin_memset(window, 0, sizeof window);
    for (int g = 0; g < groups; ++g) {
      const uint8_t* wide = block.wide + g * block.rows;
      int windows = 0;
      for (int t = 0; t < block.rows; ++t) windows |= wide[t] << t / kPanelWindow;
      at[count] = static_cast<uint16_t>(4 * g + windows);
      count += windows != 0 ? 1 : 0;
    }
  }
  int group(int i) const { return at[i] / 4; }
  const int8_t* plane(const RowPanel& block, int i) {
    const int8_t* whole = block.coarse + static_cast<size_t>(group(i)) * block.rows * kGroup;
    const int windows = at[i] % 4, rows = block.rows;
    if (windows == 3 || rows <= kPanelWindow) return whole;
    constexpr int kBytes = kPanelWindow * kGroup;
    if (windows == 1) {
      __builtin_memcpy(window[0], whole, kBytes);
      return window[0];
    }
    for (int t = kPanelWindow; t < rows; ++t)
      __builtin_memcpy(window[1] + t * kGroup, whole + t * kGroup, kGroup);
    return window[1];
  }
};

// One or two blocks of tokens, and the products of a pair with them.
template <class Tiles>
struct RowTileBlocks {
  static constexpr int64_t kLine = 4 * kLanes;
  static constexpr int kGroupBytes = info(Format::q8rs).pair_group_bytes, kTileBytes = 512;
  Tiles tiles;
  RowPanel block[2];
  CoarseGroups coarse[2];
  int groups, blocks;
  RowTileSums sums;

  // Configures the registers, which the caller releases: a destructor would need tables for exceptions.
  RowTileBlocks(const LinearArgs& args, int row) : groups(args.groups) {
    blocks = args.m - row > kPanelRows ? 2 : 1;
    for (int i = 0; i < blocks; ++i) {
      block[i] =
          row_panel(const_cast<void*>(args.panel), args.groups, args.m, row + i * kPanelRows);
      coarse[i].fill(block[i], args.groups);
    }
    tiles.configure(row_shapes(block[0].rows, block[blocks - 1].rows));
  }

  void multiply(const uint8_t* weight, Ahead ahead) {
    for (int i = 0; i < blocks; ++i)
      if (coarse[i].count != 0) multiply_coarse(weight, i);
    if (blocks == 2) {
      multiply_two(weight, ahead);
    } else {
      multiply_one(weight, ahead);
    }
  }

 private:
  const int8_t* fine(int i, int g) const {
    return block[i].fine + static_cast<size_t>(g) * block[i].rows * kGroup;
  }
  void load_codes(const uint8_t* weight, int g) {
    const uint8_t* codes = weight + static_cast<size_t>(g) * kGroupBytes;
    tiles.template load<kRowCodesA>(codes, kLine);
    tiles.template load<kRowCodesB>(codes + kTileBytes, kLine);
  }
  void zero_sums() {
    tiles.template zero<kRowSums0A>();
    tiles.template zero<kRowSums0B>();
    tiles.template zero<kRowSums1A>();
    tiles.template zero<kRowSums1B>();
  }
  template <int Block>
  void dot() {
    constexpr int kSums = kRowSums0A + 2 * Block, kPlane = kRowPlane0 + Block;
    tiles.template dot_unsigned<kSums, kPlane, kRowCodesA>();
    tiles.template dot_unsigned<kSums + 1, kPlane, kRowCodesB>();
  }
  template <int Block>
  void store_sums(int32_t (&to)[4][kPanelRows * kLanes]) {
    tiles.template store<2 * Block>(to[2 * Block], kLine);
    tiles.template store<2 * Block + 1>(to[2 * Block + 1], kLine);
  }

  void multiply_two(const uint8_t* weight, Ahead ahead) {
    zero_sums();
    for (int g = 0; g < groups; ++g) {
      fetch_ahead(weight + static_cast<size_t>(g) * kGroupBytes, kGroupBytes, ahead);
      load_codes(weight, g);
      tiles.template load<kRowPlane0>(fine(0, g), kGroup);
      dot<0>();
      tiles.template load<kRowPlane1>(fine(1, g), kGroup);
      dot<1>();
    }
    store_sums<0>(sums.fine);
    store_sums<1>(sums.fine);
  }

  // Every second group has sums of its own: integers are exact in any order.
  void multiply_one(const uint8_t* weight, Ahead ahead) {
    zero_sums();
    for (int g = 0; g < groups; g += 2) {
      fetch_ahead(weight + static_cast<size_t>(g) * kGroupBytes, 2 * kGroupBytes, ahead);
      load_codes(weight, g);
      tiles.template load<kRowPlane0>(fine(0, g), kGroup);
      dot<0>();
      if (g + 1 == groups) break;
      load_codes(weight, g + 1);
      tiles.template load<kRowPlane1>(fine(0, g + 1), kGroup);
      dot<1>();
    }
    store_sums<0>(sums.fine);
    store_sums<1>(sums.fine);
    for (int i = 0; i < block[0].rows * kLanes; i += kLanes)
      for (int tile = 0; tile < 2; ++tile)
        store_i32(sums.fine[tile] + i,
                  add(load_i32(sums.fine[tile] + i), load_i32(sums.fine[2 + tile] + i)));
  }

  void multiply_coarse(const uint8_t* weight, int i) {
    zero_sums();
    for (int n = 0; n < coarse[i].count; ++n) {
      const int8_t* plane = coarse[i].plane(block[i], n);
      load_codes(weight, coarse[i].group(n));
      if (i == 0) {
        tiles.template load<kRowPlane0>(plane, kGroup);
        dot<0>();
      } else {
        tiles.template load<kRowPlane1>(plane, kGroup);
        dot<1>();
      }
    }
    if (i == 0) {
      store_sums<0>(sums.coarse);
    } else {
      store_sums<1>(sums.coarse);
    }
  }
};

// What linear_rows.inl.h does to a tile's sums.
template <bool Coarse>
static void write_row_tile(const LinearArgs& args, int row, int half_pair, const RowPanel& block,
                           const int32_t* fine, const int32_t* coarse, f32x16 scale) {
  const size_t column = static_cast<size_t>(half_pair) * 16;
  const auto stride = static_cast<size_t>(args.y_stride);
  const auto add_stride = static_cast<size_t>(args.add_stride);
  const f32x16 bias = args.bias != nullptr ? load(args.bias + column) : splat(0.0f);
  const bool has_bias = args.bias != nullptr;
  const float* from =
      args.add == nullptr ? nullptr : args.add + static_cast<size_t>(row) * add_stride + column;
  float* to = args.y + static_cast<size_t>(row) * stride + column;
  for (int t = 0; t < block.rows; ++t) {
    const RowInfo& info = block.info[t];
    f32x16 sum = to_f32(sub(load_i32(fine + t * kLanes), splat_i32(128 * info.sum_fine)));
    if (Coarse) {
      const i32x16 dot = load_i32(coarse + t * kLanes);
      sum = fma(to_f32(sub(dot, splat_i32(128 * info.sum_coarse))), splat(256.0f), sum);
    }
    sum = mul(sum, mul(scale, splat(info.scale)));
    if (has_bias) sum = add(sum, bias);
    if (from != nullptr) sum = add(sum, load(from + t * add_stride));
    store(to + t * stride, sum);
  }
}

template <class Tiles>
static void write_row_tiles(const LinearArgs& args, int row, int pair, const uint8_t* weight,
                            const RowTileBlocks<Tiles>& of) {
  const auto* scales = reinterpret_cast<const uint16_t*>(
      weight + static_cast<size_t>(args.groups) * info(Format::q8rs).pair_group_bytes);
  for (int i = 0; i < of.blocks; ++i, row += kPanelRows) {
    const auto write = of.coarse[i].count != 0 ? write_row_tile<true> : write_row_tile<false>;
    for (int tile = 0; tile < 2; ++tile)
      write(args, row, 2 * pair + tile, of.block[i], of.sums.fine[2 * i + tile],
            of.sums.coarse[2 * i + tile], load_f16(scales + 16 * tile));
    if (args.activate == nullptr) continue;
    float* y = args.y + static_cast<size_t>(row) * args.y_stride + pair * kPairRows;
    for (int t = 0; t < of.block[i].rows; ++t, y += args.y_stride) args.activate(y, kPairRows, y);
  }
}

// Fewer tokens than a product is worth are the `below` table's.
template <class Tiles, const Kernels& below>
static void linear_row_tiles(const LinearArgs& args, int pair_begin, int pair_end) {
  constexpr int kFewest = 4;
  if (args.m < kFewest)
    return below.linear[static_cast<int>(Format::q8rs)](args, pair_begin, pair_end);
  const size_t bytes = pair_bytes(Format::q8rs, args.groups);
  for (int row = 0; row < args.m; row += 2 * kPanelRows) {
    RowTileBlocks<Tiles> blocks(args, row);
    for (int pair = pair_begin; pair < pair_end; ++pair) {
      const uint8_t* weight = args.weight + pair * bytes;
      blocks.multiply(weight, args.ahead);
      write_row_tiles(args, row, pair, weight, blocks);
    }
    blocks.tiles.release();
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
