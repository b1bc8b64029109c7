// A causal convolution of every channel by itself, one position at a time.

namespace slmq::SLMQ_ISA {

static void convolution(const ConvolutionRow& row) {
  const int last = row.taps - 1;
  for (int i = 0; i < row.n; i += 16) {
    f32x16 input = load(row.x + i);
    if (row.before != nullptr) input = mul(load(row.before + i), input);
    store(row.input + i, input);
    f32x16 sum = row.bias != nullptr ? load(row.bias + i) : splat(0.0f);
    const float* weight = row.weight + i;
    for (int tap = 0; tap < last; ++tap, weight += row.weight_stride)
      sum = add(sum, mul(load(weight), load(row.past[tap] + i)));
    sum = add(sum, mul(load(weight), input));
    if (row.behind != nullptr) sum = mul(load(row.behind + i), sum);
    store(row.y + i, sum);
  }
}

}  // namespace slmq::SLMQ_ISA
