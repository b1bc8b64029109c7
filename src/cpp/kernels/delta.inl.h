// The gated delta rule: a state that forgets, and is corrected by what it says of a key.

namespace slmq::SLMQ_ISA {

// Four sums keep enough multiplications under way.
static inline f32x16 joined(const f32x16* sums) {
  return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

static void delta_rule(const float* query, const float* key, const float* value, float decay,
                       float beta, int k, float* state, float* y) {
  f32x16 sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (int i = 0; i < k; i += 4)
    for (int j = 0; j < 4; ++j)
      sums[j] = fma(load(state + (i + j) * 16), splat(key[i + j]), sums[j]);
  const f32x16 kept = splat(decay);
  const f32x16 change = mul(splat(beta), sub(load(value), mul(kept, joined(sums))));
  for (f32x16& sum : sums) sum = splat(0.0f);
  for (int i = 0; i < k; i += 4) {
    for (int j = 0; j < 4; ++j) {
      const f32x16 row = fma(splat(key[i + j]), change, mul(kept, load(state + (i + j) * 16)));
      store(state + (i + j) * 16, row);
      sums[j] = fma(row, splat(query[i + j]), sums[j]);
    }
  }
  store(y, joined(sums));
}

}  // namespace slmq::SLMQ_ISA
