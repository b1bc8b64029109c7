// Products with turned weights by matrix registers: sixteen rows of bytes and sixteen columns of codes are
// one instruction. `Tiles` is AMX's (vec/amx_tiles.h), or a model of them.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

static constexpr int kDigits = 2;                  // bytes of a number of steps
static constexpr float kDigitStart = 12615808.0f;  // 3 * 2^22 + 0x8080: the digits less 128
static constexpr int kBlockRows = 64;              // of a weight, that are multiplied at once
static constexpr int kBlocks = kSlabRows / kBlockRows;

// [blocks of 64 rows][four rows][16 columns of a tile][the four]: fours as store_digits() has them.
struct FourLayout {
  SLMQ_INLINE_MEMBER static void put(const int8_t (&lines)[2][kLanes * kGroup], int pair,
                                     TurnedGroup* to) {
    for (int j = 0; j < 8; ++j) {
      for (int four = 0; four < 8; ++four) {
        const int8_t* from = lines[four / 4] + 64 * j + four % 4 * 16;  // [row][column]
        const int place = four % 4 * 4 + pair % 2 * 2 + four / 4;
        uint8_t* columns =
            to->codes[j / 4] + pair / 2 * kBlockRows * kLanes + place * 64 + j % 4 * 16;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) columns[i] = static_cast<uint8_t>(from[4 * (i % 4) + i / 4]);
      }
    }
  }
};

enum TurnedNames { kLowSums, kHighSums, kLowDigits, kHighDigits, kCodesOfBlock };

static constexpr TileConfig turned_shapes() {
  TileConfig config;
  for (int tile = 0; tile < kTileRegisters; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = 64;
  }
  return config;
}

struct RowDigits {
  alignas(64) int8_t digits[kBlocks][kDigits][kPanelRows][kBlockRows];
  float offsets[kPanelRows];
};

template <class Tiles>
struct TurnedTiles {
  Tiles& tiles;
  const TurnedArgs& args;
  const int blocks;
  RowDigits rows = {};
  alignas(64) int32_t sums[2][kDigits][kPanelRows][kLanes];

  TurnedTiles(Tiles& tiles, const TurnedArgs& args)
      : tiles(tiles), args(args), blocks((args.rows + kBlockRows - 1) / kBlockRows) {}

  void times_group(int group) {
    const TurnedGroup& w = args.w[group];
    for (int part = 0; part < args.parts; ++part) {
      const int begin = part, end = args.parts == 1 ? 2 : part + 1;
      step_all<4>(args, w, part, kSlabRows * kLanes, kDigitStart, rows.offsets,
                  [this](int t, int row, const f32x16(&values)[4]) {
                    store_digits(rows.digits[row / kBlockRows][0][t], kPanelRows * kBlockRows,
                                 values);
                  });
      multiply(w, begin, end);
      add_up(group, part, begin, end);
    }
  }

 private:
  [[gnu::noinline]] void multiply(const TurnedGroup& w, int tile, int end) {
    for (; tile < end; ++tile) {
      tiles.template zero<kLowSums>();
      tiles.template zero<kHighSums>();
      for (int block = 0; block < blocks; ++block) {
        tiles.template load<kCodesOfBlock>(w.codes[tile] + block * kBlockRows * kLanes, 64);
        tiles.template load<kLowDigits>(rows.digits[block][0], kBlockRows);
        tiles.template dot<kLowSums, kLowDigits, kCodesOfBlock>();
        tiles.template load<kHighDigits>(rows.digits[block][1], kBlockRows);
        tiles.template dot<kHighSums, kHighDigits, kCodesOfBlock>();
      }
      tiles.template store<kLowSums>(sums[tile][0], 4 * kLanes);
      tiles.template store<kHighSums>(sums[tile][1], 4 * kLanes);
    }
  }
  // Sums with digits are below 2^22, so a fused multiply-add rounds their total as it is converted.
  [[gnu::noinline]] void add_up(int group, int part, int begin, int end) const {
    for (int t = 0; t < args.m; ++t) {
      const float scale = args.x->scale[t];
      float* y = args.y + t * args.y_row + group * kGroup;
      for (int tile = begin; tile < end; ++tile) {
        const f32x16 low = to_f32(load_i32(sums[tile][0][t]));
        const f32x16 total = fma(to_f32(load_i32(sums[tile][1][t])), splat(256.0f), low);
        add_turned(total, scale * args.w[group].largest[part], scale * rows.offsets[t], !args.add,
                   y + tile * kLanes);
      }
    }
  }
};

template <class Tiles>
static void product_turned_tiles(const TurnedArgs& args) {
  static constexpr TileConfig shapes = turned_shapes();
  Tiles tiles;
  tiles.configure(shapes);
  TurnedTiles<Tiles> of(tiles, args);
  for (int group = 0; group < args.count; ++group) of.times_group(group);
  tiles.release();
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
