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

// `Float` is of 16 or 32 bits.
template <Format Float>
static void widen(const uint8_t* weight, int groups, int pair, int group, float* out,
                  int out_stride) {
  const uint8_t* run = weight + static_cast<size_t>(pair) * pair_bytes(Float, groups) +
                       static_cast<size_t>(group) * run_bytes(Float, groups);
  const PairGroup of = pair_group<Float>(run, groups, 0);
  for (int row = 0; row < kPairRows; ++row)
    dequantize_group<Float>(of, nullptr, row, kGroup, out + static_cast<size_t>(row) * out_stride);
}

}  // namespace slmq::SLMQ_ISA
