// Products with the thin matrices of adapters, which are added to what is there.

namespace slmq::SLMQ_ISA {

// Rows that share a weight's conversion: two sums each stay in registers. Of fewer rows several tiles
// grow side by side: a sum waits four cycles for its next step.
static constexpr int kLowRankRows = kSums / 2;
static constexpr int kLowRankTiles = kFactorsStay ? 4 : 2;

template <class Weight, int M, int N>
SLMQ_INLINE void low_rank_block(const LowRankArgs& args, const typename Weight::Element* weight,
                                const float* x, float* y) {
  const size_t tile = static_cast<size_t>(args.k) * kLanes;
  const auto x_stride = static_cast<size_t>(args.x_stride);
  f32x16 even[N][M], odd[N][M];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) even[i][t] = odd[i][t] = splat(0.0f);
  }
  int c = 0;
  for (; c + 1 < args.k; c += 2) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const auto* columns = weight + i * tile;
      const f32x16 first = Weight::column(columns), second = Weight::column(columns + kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        even[i][t] = fma(first, splat(x[t * x_stride + c]), even[i][t]);
        odd[i][t] = fma(second, splat(x[t * x_stride + c + 1]), odd[i][t]);
      }
    }
    weight += 2 * kLanes;
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    if (c < args.k) {
      const f32x16 last = Weight::column(weight + i * tile);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) even[i][t] = fma(last, splat(x[t * x_stride + c]), even[i][t]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      float* to = y + static_cast<size_t>(t) * args.y_stride + i * kLanes;
      store(to, add(load(to), add(even[i][t], odd[i][t])));
    }
  }
}

// M rows of all tiles from `tile` on, N tiles at once; those that are left fewer at once.
template <class Weight, int M, int N>
[[gnu::noinline]] static void low_rank_tiles(const LowRankArgs& args, int row, int tile = 0) {
  const auto* weight = static_cast<const typename Weight::Element*>(args.weight);
  const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
  float* y = args.y + static_cast<size_t>(row) * args.y_stride;
  for (; (tile + N) * kLanes <= args.n; tile += N)
    low_rank_block<Weight, M, N>(args, weight + static_cast<size_t>(tile) * args.k * kLanes, x,
                                 y + tile * kLanes);
  if constexpr (N > 1) low_rank_tiles<Weight, M, N / 2>(args, row, tile);
}

template <class Weight>
static void low_rank(const LowRankArgs& args) {
  constexpr int kFew = kLowRankRows / 2;
  int row = 0;
  for (; row + kLowRankRows <= args.m; row += kLowRankRows)
    low_rank_tiles<Weight, kLowRankRows, 1>(args, row);
  for (; row + kFew <= args.m && kFew > 1; row += kFew)
    low_rank_tiles<Weight, kFew, kLowRankTiles / 2>(args, row);
  for (; row < args.m; ++row) low_rank_tiles<Weight, 1, kLowRankTiles>(args, row);
}

}  // namespace slmq::SLMQ_ISA
