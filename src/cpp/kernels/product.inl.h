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

// The codes of a tile as bytes in the order of an int8 tile.
template <Format Name>
static inline void code_bytes(const uint8_t* tile, uint8_t* bytes) {
  constexpr int bits = info(Name).bits;
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

// Row `row` (0..31) of a pair-group from its codes, which a kernel has as bytes.
template <Format Name>
static inline void widen_row(const uint8_t* bytes, const uint8_t* own, const uint8_t* shared,
                             int row, float* out) {
  constexpr FormatInfo layout = info(Name);
  constexpr int signs = layout.bits == 8 ? 128 : 0;  // bytes that are read as signed ones
  const auto* halves = reinterpret_cast<const uint16_t*>(layout.shared_bytes == 0 ? own : shared);
  const auto* factors = reinterpret_cast<const int8_t*>(own) + row;
  alignas(16) int8_t codes[kGroup];
  for (int i = 0; i < 8; ++i) {
    uint32_t four;
    __builtin_memcpy(&four, bytes + 64 * i + 4 * (row % kLanes), 4);
    if constexpr (signs != 0) four ^= 0x80808080u;
    __builtin_memcpy(codes + 4 * i, &four, 4);
  }
  for (int half = 0; half < 2; ++half) {
    const int part = half * layout.parts / 2;
    float scale = half_to_float(halves[row]), min = 0.0f;
    if constexpr (layout.has_offset) min = half_to_float(halves[kPairRows + row]);
    if constexpr (layout.two_level) {
      scale *= static_cast<float>(factors[kPairRows * part]);
      min *= layout.has_offset ? factors[kPairRows * (layout.parts + part)] : 0;
    }
    f32x16 q = add(to_f32(load_i8(codes + 16 * half)), splat(float{signs - layout.zero}));
    if constexpr (layout.offset == Offset::zero) q = add(q, splat(min));
    f32x16 values = mul(splat(scale), q);
    if constexpr (layout.offset == Offset::min) values = add(values, splat(min));
    store(out + 16 * half, values);
  }
}

template <Format Name>
static void widen(const uint8_t* weight, int groups, int pair, int group, float* out,
                  int out_stride) {
  constexpr FormatInfo layout = info(Name);
  const int in_run = run_groups(Name, groups);
  const uint8_t* run = weight + static_cast<size_t>(pair) * pair_bytes(Name, groups) +
                       static_cast<size_t>(group / in_run) * run_bytes(Name, groups);
  const uint8_t* codes = run + group % in_run * layout.pair_group_bytes;
  const uint8_t* shared = run + in_run * layout.pair_group_bytes;
  if constexpr (!layout.quantized) {
    for (int row = 0; row < kPairRows; ++row)
      dequantize_group<Name>(codes, shared, row, kGroup,
                             out + static_cast<size_t>(row) * out_stride);
  } else {
    alignas(64) uint8_t bytes[kLanes * kGroup];
    for (int tile = 0; tile < 2; ++tile) {
      code_bytes<Name>(codes + tile * layout.tile_bytes, bytes);
      for (int r = 0; r < kLanes; ++r) {
        const int row = tile * kLanes + r;
        widen_row<Name>(bytes, codes + 2 * layout.tile_bytes, shared, row,
                        out + static_cast<size_t>(row) * out_stride);
      }
    }
  }
}

}  // namespace slmq::SLMQ_ISA
