// gemm with matrix registers, for blocks of sixteen tokens: `Tiles` is AMX's (vec/amx_tiles.h), or a
// model of them. Sixteen tokens x 32 columns times 32 columns x sixteen rows of a weight are one
// instruction; what is done to its sums is the same as elsewhere, in the same order.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// The registers: int32 sums of tokens x rows, for tiles A and B; the high plane of activations, tokens x
// 32 columns; codes of both tiles, eight lines as they are dotted.
enum TileNames { kSumsA = 0, kSumsB = 1, kPlane = 2, kCodesA = 3, kCodesB = 4 };

static constexpr TileConfig tile_shapes() {
  TileConfig config;
  for (int tile = kSumsA; tile <= kPlane; ++tile) config.rows[tile] = kPanelRows;
  for (int tile = kSumsA; tile <= kSumsB; ++tile) config.row_bytes[tile] = 4 * kLanes;
  config.row_bytes[kPlane] = kGroup;
  for (int tile = kCodesA; tile <= kCodesB; ++tile) {
    config.rows[tile] = kGroup / 4;
    config.row_bytes[tile] = 4 * kLanes;
  }
  return config;
}

// The groups must be one part, and the codes less the zero point signed bytes.
template <Format Name>
static constexpr bool fits_tiles =
    info(Name).quantized && info(Name).parts == 1 && !info(Name).row_panels &&
    (info(Name).bits < 8 || info(Name).zero == 128);

// What a table holds, as bytes that are read as signed ones.
struct SignedValues {
  alignas(16) uint8_t at[16];
};
template <class Weight>
static consteval SignedValues signed_values() {
  SignedValues bytes{};
  for (int i = 0; i < 16; ++i) bytes.at[i] = static_cast<uint8_t>(Weight::layout.values.at[i]);
  return bytes;
}

// The codes of a tile less the zero point, or what they stand for, in the order of an int8 tile.
template <class Weight>
static inline void signed_codes(const uint8_t* __restrict tile, int8_t* __restrict codes) {
  constexpr int zero = Weight::layout.zero;
  if constexpr (Weight::looks_up) {
    static constexpr SignedValues values = signed_values<Weight>();
    return unpack_lookup(tile, values.at, reinterpret_cast<uint8_t*>(codes));
  }
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
}

struct TileBuffers {
  alignas(64) int8_t codes[2][kGroup * kLanes];
  alignas(64) int32_t dots[2][kPanelRows * kLanes];
};

// Dots of both tiles with the high planes of a block of tokens.
template <class Weight, class Tiles>
static inline void dot_tiles(Tiles& tiles, const uint8_t* pair, const PanelTokens& a,
                             TileBuffers* buffers) {
  constexpr int64_t kLine = 4 * kLanes;
  const uint8_t* codes = Weight::tiles(pair);
  signed_codes<Weight>(codes, buffers->codes[0]);
  signed_codes<Weight>(codes + Weight::tile_bytes, buffers->codes[1]);
  tiles.template load<kCodesA>(buffers->codes[0], kLine);
  tiles.template load<kCodesB>(buffers->codes[1], kLine);
  tiles.template load<kPlane>(a.high, kGroup);
  tiles.template zero<kSumsA>();
  tiles.template zero<kSumsB>();
  tiles.template dot<kSumsA, kPlane, kCodesA>();
  tiles.template dot<kSumsB, kPlane, kCodesB>();
  tiles.template store<kSumsA>(buffers->dots[0], kLine);
  tiles.template store<kSumsB>(buffers->dots[1], kLine);
}

// sums[token][32 rows] += the dots, scaled
template <class Weight>
static inline void add_dots(const TileBuffers& buffers, const uint8_t* pair, const uint8_t* shared,
                            const ActivationInfo* info, float* sums) {
  for (int tile = 0; tile < 2; ++tile) {
    TileScales<Weight, 0> w(pair, shared, tile);
    if (Weight::lifted) w.min = add(w.min, splat(128.0f));  // the table's bytes are signed here
    for (int t = 0; t < kPanelRows; ++t) {
      float* to = sums + t * kPairRows + tile * kLanes;
      const i32x16 dot = load_i32(buffers.dots[tile] + t * kLanes);
      store(to, accumulate<Weight, 0, false>(load(to), dot, w.scale, w.min, info[t]));
    }
  }
}

template <class Weight, class Tiles>
static void pair_times_tiles(Tiles& tiles, const LinearArgs& args, const uint8_t* weight, int pair,
                             int row, const LowPlanes& low) {
  alignas(64) float sums[kPanelRows * kPairRows];
  const uint8_t* begin = weight;
  TileBuffers buffers;
  PanelTokens a(args, row);
  for (int i = 0; i < kPanelRows * kPairRows; i += kLanes) store(sums + i, splat(0.0f));
  const int in_run = Weight::run == kWholeRow ? args.groups : Weight::run;
  for (int g = 0; g < args.groups; g += in_run) {
    const uint8_t* shared = weight + in_run * Weight::pair_group_bytes;
    for (int i = 0; i < in_run; ++i) {
      dot_tiles<Weight>(tiles, weight, a, &buffers);
      add_dots<Weight>(buffers, weight, shared, a.info, sums);
      weight += Weight::pair_group_bytes;
      a.next_group();
    }
    weight += Weight::shared_bytes;
  }
  add_low_planes<Weight>(args, begin, row, low, sums);
  for (int t = 0; t < kPanelRows; ++t) {
    write_outputs(args, row + t, 2 * pair, load(sums + kPairRows * t));
    write_outputs(args, row + t, 2 * pair + 1, load(sums + kPairRows * t + kLanes));
  }
}

// Whole blocks of sixteen tokens; the rest is the `below` table's.
template <Format Name, class Tiles, const Kernels& below>
static void linear_tiles(const LinearArgs& args, int pair_begin, int pair_end) {
  const int blocks = args.m / kPanelRows, rows = blocks * kPanelRows;
  const size_t bytes = pair_bytes(Name, args.groups);
  if (blocks > 0) {
    static constexpr TileConfig shapes = tile_shapes();
    Tiles tiles;
    tiles.configure(shapes);
    for (int row = 0; row < rows; row += kPanelRows) {
      const LowPlanes low(args, row);
      for (int pair = pair_begin; pair < pair_end; ++pair)
        pair_times_tiles<Weight<Name>>(tiles, args, args.weight + pair * bytes, pair, row, low);
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

template <class Tiles, const Kernels& below, int... Names>
static constexpr void put_tiles(Kernels* table, std::integer_sequence<int, Names...>) {
  const auto put = [table]<int Name>() {
    constexpr auto format = static_cast<Format>(Name);
    if constexpr (info(format).row_panels) {
      table->linear[Name] = linear_row_tiles<Tiles, below>;
    } else if constexpr (fits_tiles<format>) {
      table->linear[Name] = linear_tiles<format, Tiles, below>;
    }
  };
  (put.template operator()<Names>(), ...);
}

// The products alone; all else comes from the table below.
template <class Tiles, const Kernels& below>
static constexpr Kernels tile_products(const char* name) {
  Kernels table = {};
  table.name = name;
  table.peak_dots = peak_tiles<Tiles>;
  put_tiles<Tiles, below>(&table, std::make_integer_sequence<int, kFormats>());
  return table;
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
