// Products of float32 matrices, for training: sums in order, whatever a block or a thread takes.

namespace slmq::SLMQ_ISA {

// Rows and tiles whose sums stay in registers.
static constexpr int kProductTiles = kFactorsStay ? 2 : 1;
static constexpr int kProductRows = kFactorsStay ? 12 : kSums;

template <int M, int N>
static inline void product_block(const ProductArgs& args, const float* x, const float* w,
                                 float* y) {
  f32x16 sums[N][M];
#pragma GCC unroll 2
  for (int tile = 0; tile < N; ++tile) {
#pragma GCC unroll 12
    for (int t = 0; t < M; ++t)
      sums[tile][t] = args.add ? load(y + t * args.y_row + tile * kLanes) : splat(0.0f);
  }
  for (int c = 0; c < args.k; ++c) {
    f32x16 columns[N];
#pragma GCC unroll 2
    for (int tile = 0; tile < N; ++tile) columns[tile] = load(w + tile * args.w_tile);
#pragma GCC unroll 12
    for (int t = 0; t < M; ++t) {
      const f32x16 factor = splat(x[t * args.x_row]);
#pragma GCC unroll 2
      for (int tile = 0; tile < N; ++tile)
        sums[tile][t] = fma(columns[tile], factor, sums[tile][t]);
    }
    x += args.x_step;
    w += args.w_step;
  }
#pragma GCC unroll 2
  for (int tile = 0; tile < N; ++tile) {
#pragma GCC unroll 12
    for (int t = 0; t < M; ++t) store(y + t * args.y_row + tile * kLanes, sums[tile][t]);
  }
}

// All rows of N tiles.
template <int N>
static inline void product_tiles(const ProductArgs& args, int tile) {
  const float* w = args.w + tile * args.w_tile;
  float* y = args.y + tile * kLanes;
  int row = 0;
  for (; row + kProductRows <= args.m; row += kProductRows)
    product_block<kProductRows, N>(args, args.x + row * args.x_row, w, y + row * args.y_row);
  for (; row + 8 <= args.m; row += 8)
    product_block<8, N>(args, args.x + row * args.x_row, w, y + row * args.y_row);
  for (; row + 4 <= args.m; row += 4)
    product_block<4, N>(args, args.x + row * args.x_row, w, y + row * args.y_row);
  for (; row < args.m; ++row)
    product_block<1, N>(args, args.x + row * args.x_row, w, y + row * args.y_row);
}

static void product(const ProductArgs& args) {
  const int tiles = args.n / kLanes;
  int tile = 0;
  for (; tile + kProductTiles <= tiles; tile += kProductTiles)
    product_tiles<kProductTiles>(args, tile);
  for (; tile < tiles; ++tile) product_tiles<1>(args, tile);
}

// The codes of a tile as bytes in the order of an int8 tile; of a table what they find, plus 128.
template <Format Name>
static inline void code_bytes(const uint8_t* tile, uint8_t* bytes) {
  constexpr int bits = info(Name).bits;
  if constexpr (info(Name).table) {
    static constexpr LookupTable table = lookup_table(info(Name).values);
    return unpack_lookup(tile, table.bytes, bytes);
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
static inline void widen_tile(const uint8_t* tile, const RowScales<Name>& scales, float* out,
                              int out_stride) {
  constexpr FormatInfo layout = info(Name);
  constexpr int signs = layout.bits == 8 || layout.table ? 128 : 0;  // read as signed bytes
  constexpr int zero = layout.table ? 128 : layout.zero;
  alignas(64) uint8_t lines[kLanes * kGroup], codes[kLanes * kGroup];
  code_bytes<Name>(tile, lines);
  for (int i = 0; i < kLanes * kGroup && signs != 0; ++i) lines[i] ^= signs;
  // All rows first: what is stored in fours cannot be loaded at once in sixteens.
  for (int row = 0; row < kLanes; ++row)
    for (int i = 0; i < 8; ++i)
      __builtin_memcpy(codes + kGroup * row + 4 * i, lines + 64 * i + 4 * row, 4);
  for (int row = 0; row < kLanes; ++row) {
    for (int half = 0; half < 2; ++half) {
      const auto* from = reinterpret_cast<const int8_t*>(codes + kGroup * row + 16 * half);
      const f32x16 offset = splat(scales.offset[half][row]);
      f32x16 q = add(to_f32(load_i8(from)), splat(float{signs - zero}));
      if constexpr (layout.offset == Offset::zero || layout.lift != 0) q = add(q, offset);
      f32x16 values = mul(splat(scales.scale[half][row]), q);
      if constexpr (layout.offset == Offset::min) values = add(values, offset);
      store(out + static_cast<size_t>(row) * out_stride + 16 * half, values);
    }
  }
}

template <Format Name>
static void widen(const uint8_t* weight, int groups, int pair, int group, float* out,
                  int out_stride) {
  constexpr FormatInfo layout = info(Name);
  const int in_run = run_groups(Name, groups);
  const uint8_t* run = weight + static_cast<size_t>(pair) * pair_bytes(Name, groups) +
                       static_cast<size_t>(group / in_run) * run_bytes(Name, groups);
  const PairGroup codes = pair_group<Name>(run, groups, group % in_run);
  const uint8_t* shared = run + in_run * layout.pair_group_bytes;
  if constexpr (!layout.quantized) {
    for (int row = 0; row < kPairRows; ++row)
      dequantize_group<Name>(codes, shared, row, kGroup,
                             out + static_cast<size_t>(row) * out_stride);
  } else {
    for (int tile = 0; tile < 2; ++tile) {
      const RowScales<Name> scales(codes.own, shared, tile);
      widen_tile<Name>(codes.tiles + tile * codes.tile_step, scales,
                       out + static_cast<size_t>(tile) * kLanes * out_stride, out_stride);
    }
  }
}

}  // namespace slmq::SLMQ_ISA
