// Products with the thin matrices of adapters, which are added to what is there.

namespace slmq::SLMQ_ISA {

template <class Weight, int M>
static inline void low_rank_rows(const typename Weight::Element* weight, int k, const float* x,
                                 int x_stride, float* y, int y_stride) {
  f32x16 even[M], odd[M];
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) even[t] = odd[t] = splat(0.0f);
  int c = 0;
  for (; c + 1 < k; c += 2) {
    const f32x16 first = Weight::column(weight + static_cast<size_t>(c) * kLanes);
    const f32x16 second = Weight::column(weight + static_cast<size_t>(c + 1) * kLanes);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      const float* row = x + static_cast<size_t>(t) * x_stride;
      even[t] = fma(first, splat(row[c]), even[t]);
      odd[t] = fma(second, splat(row[c + 1]), odd[t]);
    }
  }
  if (c < k) {
    const f32x16 last = Weight::column(weight + static_cast<size_t>(c) * kLanes);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t)
      even[t] = fma(last, splat(x[static_cast<size_t>(t) * x_stride + c]), even[t]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) {
    float* to = y + static_cast<size_t>(t) * y_stride;
    store(to, add(load(to), add(even[t], odd[t])));
  }
}

template <class Weight>
static void low_rank(const LowRankArgs& args) {
  constexpr int kRows = 4;
  const auto* weight = static_cast<const typename Weight::Element*>(args.weight);
  for (int i = 0; i < args.n; i += kLanes) {
    const float* x = args.x;
    float* y = args.y + i;
    int left = args.m;
    for (; left >= kRows; left -= kRows) {
      low_rank_rows<Weight, kRows>(weight, args.k, x, args.x_stride, y, args.y_stride);
      x += static_cast<size_t>(kRows) * args.x_stride;
      y += static_cast<size_t>(kRows) * args.y_stride;
    }
    for (; left > 0; --left) {
      low_rank_rows<Weight, 1>(weight, args.k, x, args.x_stride, y, args.y_stride);
      x += args.x_stride;
      y += args.y_stride;
    }
    weight += static_cast<size_t>(args.k) * kLanes;
  }
}

}  // namespace slmq::SLMQ_ISA
