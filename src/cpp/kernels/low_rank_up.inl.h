// Rounded products of adapters times tiles of B, added to what stands in registers: behind a product with
// weights, or to what is in memory.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

static constexpr size_t kThinScaleBytes = kLanes * sizeof(float);

// sums[tile][token] += dots of M tokens with columns of N tiles so far from each other, sixteen columns at
// a time: by the ISA's registers, in linear_block.inl.h or linear_wide.inl.h.
template <int N, int M>
SLMQ_INLINE void add_halves(const uint8_t* tiles, size_t tile_step, const int8_t* x,
                            ptrdiff_t x_stride, int halves, i32x16 (&sums)[N][M]);

static inline size_t thin_tile_bytes(const LowRankUp& up) {
  return static_cast<size_t>(up.k) * kLanes + kThinScaleBytes;
}

// values[tile][token] += B t for N neighbouring tiles and M tokens from `row` on. `halves`: of k.
template <int N, int M>
SLMQ_INLINE void add_up(const LowRankUp& up, const uint8_t* tiles, int halves, int row,
                        f32x16 (&values)[N][M]) {
  const auto stride = static_cast<ptrdiff_t>(up.x_stride) * static_cast<ptrdiff_t>(sizeof(float));
  const auto* x = reinterpret_cast<const int8_t*>(up.x) + row * stride;
  const int8_t* tail = x + static_cast<size_t>(up.place) * sizeof(float) - kRoundedTail;
  const size_t bytes = static_cast<size_t>(halves) * 16 * kLanes + kThinScaleBytes;
  i32x16 dots[N][M];
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    int32_t start;
    __builtin_memcpy(&start, tail + t * stride + sizeof(float), sizeof(start));
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) dots[i][t] = splat_i32(start);
  }
  add_halves<N, M>(tiles, bytes, x, stride, halves, dots);
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    float own;
    __builtin_memcpy(&own, tail + t * stride, sizeof(own));
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) {
      const f32x16 scale =
          load(reinterpret_cast<const float*>(tiles + (i + 1) * bytes - kThinScaleBytes));
      values[i][t] = fma(to_f32(dots[i][t]), mul(scale, splat(own)), values[i][t]);
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
