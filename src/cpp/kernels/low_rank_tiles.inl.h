// Products with the thin matrices of adapters on matrix registers, for whole blocks of sixteen tokens: what
// low_rank_int8.inl.h computes, in the same order. What is left of the rows is the `below` table's.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Up to four blocks of sixteen tokens and a few tiles of A, a few groups at a time, as in linear_tiles.inl.h,
// whose registers these are: products are made and stored, then scaled and added, with the sums of a tile
// in registers. Codes are unsigned bytes, and a product with -128s pays for their zero point: a register
// must wait for bytes that were just stored.
template <class Tiles>
struct ThinBlocks {
  static constexpr int64_t kLine = 4 * kLanes;
  static constexpr int kUnit = 8, kTiles = 4, kCodeBytes = kGroup * kLanes;
  static constexpr int kPlaneBytes = kPanelRows * kGroup;
  static constexpr size_t kPanelBytes = kPanelRows * kActivationBytes;  // of a group

  Tiles& tiles;
  const int groups, blocks;
  const int8_t* const panel;  // of the first block
  alignas(64) int32_t dots[kUnit][kPanelRows * kLanes];
  alignas(64) float sums[kUnitBlocks][kTiles][kPanelRows * kLanes];

  ThinBlocks(Tiles& tiles, const LowRankDownArgs& args, int row, int blocks)
      : tiles(tiles),
        groups(args.groups),
        blocks(blocks),
        panel(static_cast<const int8_t*>(args.panel) +
              static_cast<size_t>(row) * args.groups * kActivationBytes) {
    static constexpr Zeros zeros;
    tiles.template load<kZeros>(zeros.bytes, kLine);
  }

  // sums = planes times `count` tiles, so far from each other.
  void times_tiles(const uint8_t* tile, size_t step, int count) {
    for (int g = 0; g < groups; g += kUnit) times_unit<false>(tile, step, count, g);
    for (int g = 0; g < groups; g += kUnit)
      if (any_low(g)) times_unit<true>(tile, step, count, g);
  }

 private:
  static constexpr int kZeros = kCodes + 1;
  struct Zeros {
    alignas(64) int8_t bytes[kCodeBytes];
    constexpr Zeros() {
      for (int8_t& byte : bytes) byte = -128;
    }
  };
  // Groups of a unit that are multiplied: all, or those in which a token of the block has a low plane.
  struct Unit {
    int count = 0;
    int at[kUnit + 1];
  };

  int unit_end(int g) const { return g + kUnit < groups ? g + kUnit : groups; }
  const int8_t* planes(int block, int g) const {
    return panel + (static_cast<size_t>(block) * groups + g) * kPanelBytes;
  }
  const ActivationInfo* infos(int block, int g) const {
    return reinterpret_cast<const ActivationInfo*>(planes(block, g) + 2 * kPlaneBytes);
  }
  bool any_low(int g) const {
    uint32_t any = 0;
    for (int block = 0; block < blocks; ++block)
      for (int i = g; i < unit_end(g); ++i) any |= infos(block, i)->wide;
    return any != 0;
  }

  template <bool Low>
  void times_unit(const uint8_t* tile, size_t step, int count, int g) {
    const int end = unit_end(g);
    for (int block = 0; block < blocks; ++block) {
      Unit unit;
      for (int at = g; at < end; ++at) {  // no branch: it could not be predicted
        unit.at[unit.count] = at - g;
        unit.count += !Low || infos(block, at)->wide != 0 ? 1 : 0;
      }
      if (unit.count == 0) continue;
      const int8_t* first = planes(block, g);
      const int8_t* next = block + 1 < blocks ? planes(block + 1, g) : planes(0, end % groups);
      for (int i = 0; i < count; ++i) {
        multiply<Low>(first, unit, tile + i * step + static_cast<size_t>(g) * kCodeBytes);
        if (!Low && i + 1 == count) fetch_planes(next);
        add<Low>(first, unit, !Low && g == 0, sums[block][i]);
      }
    }
  }

  // The first that a product would have to wait for.
  SLMQ_INLINE_MEMBER static void fetch_planes(const int8_t* planes) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g, planes += kPanelBytes) {
#pragma GCC unroll 8
      for (int line = 0; line < kPlaneBytes; line += 64) prefetch(planes + line);
    }
  }

  template <int Turn>
  SLMQ_INLINE_MEMBER void dot(const int8_t* planes, const uint8_t* of, int group) {
    constexpr int kPlane = kPlanes + Turn % 2;
    tiles.template load<kPlane>(planes + group * kPanelBytes, kGroup);
    tiles.template load<kCodes>(of + group * kCodeBytes, kLine);
    tiles.template zero<kSums + Turn>();
    tiles.template dot<kSums + Turn, kPlane, kZeros>();
    tiles.template dot_unsigned<kSums + Turn, kPlane, kCodes>();
  }
  template <int Turn>
  SLMQ_INLINE_MEMBER void keep(int i) {
    tiles.template store<kSums + Turn>(dots[i], kLine);
  }
  // A product takes long: others begin before it is stored.
  template <bool Low>
  [[gnu::noinline]] void multiply(const int8_t* first, const Unit& unit, const uint8_t* of) {
    const int8_t* planes = first + (Low ? kPlaneBytes : 0);
    int i = 0;
    for (; i + 4 <= unit.count; i += 4) {
      dot<0>(planes, of, unit.at[i]);
      dot<1>(planes, of, unit.at[i + 1]);
      dot<2>(planes, of, unit.at[i + 2]);
      dot<3>(planes, of, unit.at[i + 3]);
      keep<0>(i);
      keep<1>(i + 1);
      keep<2>(i + 2);
      keep<3>(i + 3);
    }
    for (; i < unit.count; ++i) {
      dot<0>(planes, of, unit.at[i]);
      keep<0>(i);
    }
  }

  // to += dots times the tokens' scales. A low plane that is not there is zero.
  template <bool Low>
  [[gnu::noinline]] void add(const int8_t* first, const Unit& unit, bool begins, float* to) const {
    f32x16 sum[kPanelRows];
#pragma GCC unroll 16
    for (int t = 0; t < kPanelRows; ++t) sum[t] = begins ? splat(0.0f) : load(to + t * kLanes);
#pragma GCC unroll 1
    for (int i = 0; i < unit.count; ++i) {
      const auto* info = reinterpret_cast<const ActivationInfo*>(first + 2 * kPlaneBytes +
                                                                 unit.at[i] * kPanelBytes);
#pragma GCC unroll 16
      for (int t = 0; t < kPanelRows; ++t)
        sum[t] = fma(to_f32(load_i32(dots[i] + t * kLanes)),
                     splat(Low ? info[t].scale : info[t].scale_high), sum[t]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kPanelRows; ++t) store(to + t * kLanes, sum[t]);
  }
};

template <class Tiles>
static void down_whole_blocks(const LowRankDownArgs& args, int begin, int end, float* y) {
  using Blocks = ThinBlocks<Tiles>;
  static constexpr TileConfig shapes = tile_shapes(1);
  const size_t codes = static_cast<size_t>(args.groups) * kGroup * kLanes;
  const size_t step = codes + kLanes * sizeof(float);
  Tiles tiles;
  tiles.configure(shapes);
  for (int row = begin; row < end; row += kUnitBlocks * kPanelRows) {
    const int left = (end - row) / kPanelRows, blocks = left < kUnitBlocks ? left : kUnitBlocks;
    Blocks of(tiles, args, row, blocks);
    for (int i = 0; i < args.tiles; i += Blocks::kTiles) {
      const uint8_t* tile = args.weight + i * step;
      const int count = args.tiles - i < Blocks::kTiles ? args.tiles - i : Blocks::kTiles;
      of.times_tiles(tile, step, count);
      for (int n = 0; n < count; ++n) {
        const f32x16 scale = load(reinterpret_cast<const float*>(tile + n * step + codes));
        float* to = y + static_cast<size_t>(row - begin) * args.y_stride + (i + n) * kLanes;
        for (int t = 0; t < blocks * kPanelRows; ++t, to += args.y_stride)
          store(to, mul(load(of.sums[t / kPanelRows][n] + t % kPanelRows * kLanes), scale));
      }
    }
  }
  tiles.release();
}

template <class Tiles, const Kernels& below>
static void low_rank_down_tiles(const LowRankDownArgs& args) {
  const auto up = [](int row) { return (row + kPanelRows - 1) / kPanelRows * kPanelRows; };
  const int begin = up(args.row_begin), end = args.row_end / kPanelRows * kPanelRows;
  if (begin >= end) return below.low_rank_down(args);
  const auto place = [&](int row) {
    return args.y + static_cast<size_t>(row - args.row_begin) * args.y_stride;
  };
  down_whole_blocks<Tiles>(args, begin, end, place(begin));
  LowRankDownArgs rest = args;
  if (args.row_begin < begin) {
    rest.row_end = begin;
    below.low_rank_down(rest);
  }
  if (end < args.row_end) {
    rest.row_begin = end;
    rest.row_end = args.row_end;
    rest.y = place(end);
    below.low_rank_down(rest);
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
