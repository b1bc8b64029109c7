// gemv and gemm for float weights: y += w[:, c] * x[c] over columns in order, lanes are rows.

namespace slmq::SLMQ_ISA {

struct WeightF16 {
  using Element = uint16_t;
  static inline f32x16 column(const Element* p) { return load_f16(p); }
};
struct WeightF32 {
  using Element = float;
  static inline f32x16 column(const Element* p) { return load(p); }
};

template <class Weight, int M>
static void linear_float_tokens(const LinearArgs& args, const typename Weight::Element* weight,
                                int pair, int row) {
  f32x16 sums[2][M];
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) sums[0][t] = sums[1][t] = splat(0.0f);
  const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
  for (int g = 0; g < args.groups; ++g) {
    fetch_ahead(weight, 2 * kGroup * kLanes * sizeof(*weight), args.ahead);
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {  // one behind the other, as they lie in memory
#pragma GCC unroll 8
      for (int c = 0; c < kGroup; ++c) {
        const f32x16 w = Weight::column(weight);
        weight += kLanes;
#pragma GCC unroll 4
        for (int t = 0; t < M; ++t) {
          const f32x16 activation = splat(x[static_cast<size_t>(t) * args.x_stride + c]);
          sums[tile][t] = fma(w, activation, sums[tile][t]);
        }
      }
    }
    x += kGroup;
  }
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) {
    write_outputs(args, row + t, 2 * pair, sums[0][t]);
    write_outputs(args, row + t, 2 * pair + 1, sums[1][t]);
  }
}

template <class Weight>
static void linear_float(const LinearArgs& args, int pair_begin, int pair_end) {
  const size_t pair_elements = static_cast<size_t>(args.groups) * 2 * kGroup * 16;
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    const auto* weight =
        reinterpret_cast<const typename Weight::Element*>(args.weight) + pair * pair_elements;
    fetch_beside(args, pair);
    for (int row = 0; row < args.m;) {
      switch (smaller(args.m - row, 4)) {
        case 4:
          linear_float_tokens<Weight, 4>(args, weight, pair, row);
          row += 4;
          break;
        case 3:
          linear_float_tokens<Weight, 3>(args, weight, pair, row);
          row += 3;
          break;
        case 2:
          linear_float_tokens<Weight, 2>(args, weight, pair, row);
          row += 2;
          break;
        default: linear_float_tokens<Weight, 1>(args, weight, pair, row); row += 1;
      }
    }
  }
}

}  // namespace slmq::SLMQ_ISA
