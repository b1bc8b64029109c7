// Training's way back through weights of integers, dx = dy @ W: what all tables share. A weight is
// scale * code + offset, and scales differ from row to row, which is what is summed over here: so they
// go to the gradients, group by group of columns, and these are rounded to sixteen bits, as inputs are on
// the way forward. Sums of products with codes are exact, in whatever order.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// A gradient times a scale, beside the largest of both, is at most so many.
static constexpr float kMostSteps = 32639.0f;  // 0x7f7f: bytes of it, too, have signs
// This + a number of steps is a float32 whose last bit counts ones: its lower sixteen bits are the number.
static constexpr float kStepsStart = 12582912.0f;  // 3 * 2^22
static constexpr float kLeastLeveled = 1e-30f;

// The steps of M rows from the tth on: keep(row of these M, first of its rows of weights, values) takes
// `Vectors` vectors at a time. What offsets add goes to `offsets`.
template <int M, int Vectors, class Keep>
SLMQ_INLINE void step_rows(const TurnedArgs& args, const TurnedGroup& w, int part, int t,
                           float start, float* offsets, const Keep& keep) {
  const float *x = args.x->x[t], *scales = w.scales[part], *offset = w.offsets[part];
  f32x16 sums[M];
#pragma GCC unroll 2
  for (int i = 0; i < M; ++i) sums[i] = splat(0.0f);
  for (int row = 0; row < args.rows; row += kLanes * Vectors) {
    f32x16 values[M][Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const int at = row + kLanes * v;
      const f32x16 scale = load(scales + at);
#pragma GCC unroll 2
      for (int i = 0; i < M; ++i)
        values[i][v] = fma(load(x + i * kSlabRows + at), scale, splat(start));
      if (!args.offsets) continue;
      const f32x16 add = load(offset + at);
#pragma GCC unroll 2
      for (int i = 0; i < M; ++i) sums[i] = fma(load(x + i * kSlabRows + at), add, sums[i]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < M; ++i) keep(t + i, row, values[i]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < M; ++i) offsets[t + i] = args.offsets ? reduce_add(sums[i]) : 0.0f;
}

// The same of all rows: two share loads of scales, and the sum of one is waited for while the other's
// grows. Codes come from the second-level cache: some of them are asked for with every two rows.
template <int Vectors, class Keep>
SLMQ_INLINE void step_all(const TurnedArgs& args, const TurnedGroup& w, int part, int code_bytes,
                          float start, float* offsets, const Keep& keep) {
  int t = 0;
  for (; t + 2 <= args.m; t += 2) {
    for (const auto& codes : w.codes)
      for (int at = t * code_bytes / kPanelRows; at < (t + 2) * code_bytes / kPanelRows; at += 64)
        prefetch(codes + at);
    step_rows<2, Vectors>(args, w, part, t, start, offsets, keep);
  }
  if (t < args.m) step_rows<1, Vectors>(args, w, part, t, start, offsets, keep);
}

// y (+)= scale * total + offset, sixteen columns of a row.
SLMQ_INLINE void add_turned(f32x16 total, float scale, float offset, bool begins, float* y) {
  const f32x16 before = begins ? splat(0.0f) : load(y);
  store(y, fma(total, splat(scale), add(before, splat(offset))));
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
