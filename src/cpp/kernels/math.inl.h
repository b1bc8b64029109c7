// Elementary functions over the vector layer: the same polynomial on every ISA.

namespace slmq::SLMQ_ISA {

// exp(x), about 1 ulp; 0 below -87.33, saturating near 2^127 above 88.37.
// Cody-Waite reduction and the minimax polynomial of Moshier's Cephes library (expf).
static inline f32x16 exp(f32x16 x) {
  const f32x16 lowest = splat(-87.33f);
  const f32x16 clamped = min(max(x, lowest), splat(88.37f));
  const i32x16 n = round_to_i32(mul(clamped, splat(1.44269504088896341f)));
  const f32x16 n_float = to_f32(n);
  f32x16 r = fma(n_float, splat(-0.693359375f), clamped);
  r = fma(n_float, splat(2.12194440e-4f), r);
  f32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  const f32x16 one = splat(1.0f);
  const f32x16 value = mul(add(fma(p, mul(r, r), r), one), pow2(n));
  return select_lt(x, lowest, splat(0.0f), value);
}

static inline float exp1(float x) {
  float lanes[16];
  store(lanes, exp(splat(x)));
  return lanes[0];
}

static inline f32x16 negate(f32x16 x) { return sub(splat(-0.0f), x); }

// x / (1 + exp(-x)). Below -104 it is 0 to float32; exp saturates there, so x must not grow on.
static inline f32x16 silu(f32x16 x) {
  const f32x16 kept = max(splat(-104.0f), x);  // in this order a NaN stays
  return div(kept, add(splat(1.0f), exp(negate(kept))));
}

// 1 / (1 + exp(-x)), which is 0 or 1 to float32 beyond 104. exp loses a NaN; the numerator keeps it.
static inline f32x16 sigmoid(f32x16 x) {
  const f32x16 kept = min(splat(104.0f), max(splat(-104.0f), x));  // in this order a NaN stays
  const f32x16 one = fma(kept, splat(0.0f), splat(1.0f));
  return div(one, add(splat(1.0f), exp(negate(kept))));
}

// x / (1 + exp(-u)), u = 2 sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh(u / 2)) / 2. Below
// -10 it is less than 1e-36.
static inline f32x16 gelu_tanh(f32x16 x) {
  const f32x16 kept = max(splat(-10.0f), x);  // in this order a NaN stays
  const f32x16 slope = fma(mul(kept, kept), splat(0.0713548163f), splat(1.59576912f));
  return div(kept, add(splat(1.0f), exp(negate(mul(kept, slope)))));
}

static inline f32x16 relu(f32x16 x) { return max(splat(0.0f), x); }  // in this order a NaN stays

// x Phi(x), Phi the normal distribution. With a = |x| it is max(x, 0) - a Phi(-a), and Phi(-a) is
// (5.75 - a)^6 times a polynomial, fitted over a = 0..5.75 (off by 6e-7 at most, a Phi(-a) by 1.4e-7);
// beyond, Phi(-a) is below 5e-9 and counts as 0. Without a division or a power: MLPs of encoders spend
// a good part of their time here.
static inline f32x16 gelu(f32x16 x) {
  const f32x16 edge = splat(5.75f), a = min(edge, abs(x)), w = sub(edge, a);
  f32x16 p = splat(9.12061919e-12f);
  p = fma(p, a, splat(-3.55835084e-10f));
  p = fma(p, a, splat(4.92537122e-09f));
  p = fma(p, a, splat(-3.27802461e-08f));
  p = fma(p, a, splat(1.07503759e-07f));
  p = fma(p, a, splat(-1.30506706e-07f));
  p = fma(p, a, splat(-3.4850828e-08f));
  p = fma(p, a, splat(-3.44598533e-07f));
  p = fma(p, a, splat(1.12169153e-06f));
  p = fma(p, a, splat(2.7279923e-06f));
  p = fma(p, a, splat(-3.39771668e-06f));
  p = fma(p, a, splat(-1.38344676e-05f));
  const f32x16 w2 = mul(w, w), w6 = mul(mul(w2, w2), w2);
  return fma(a, mul(p, w6), relu(x));
}

static inline f32x16 relu2(f32x16 x) {
  const f32x16 kept = relu(x);
  return mul(kept, kept);
}

// exp(x) - 1 - x for x <= 0. From -1/2 on by its series, cut behind the eighth power, where the
// difference would cancel.
static inline f32x16 exp_beyond_line(f32x16 x) {
  f32x16 p = splat(1.0f / 40320.0f);
  p = fma(p, x, splat(1.0f / 5040.0f));
  p = fma(p, x, splat(1.0f / 720.0f));
  p = fma(p, x, splat(1.0f / 120.0f));
  p = fma(p, x, splat(1.0f / 24.0f));
  p = fma(p, x, splat(1.0f / 6.0f));
  p = fma(p, x, splat(0.5f));
  const f32x16 near = mul(p, mul(x, x));
  const f32x16 far = sub(sub(exp(x), splat(1.0f)), x);
  return select_lt(x, splat(-0.5f), far, near);
}

// tanh(x), 2 ulp; exactly 1 from 9.1 on, and NaN stays. A minimax polynomial in x^2 below 0.625, and
// 1 - 2 t / (1 + t) with t = exp(-2 |x|) above.
static inline f32x16 tanh(f32x16 x) {
  const f32x16 z = mul(x, x);
  f32x16 p = splat(-0x1.75e1cep-8f);
  p = fma(p, z, splat(0x1.52269cp-6f));
  p = fma(p, z, splat(-0x1.b83c5ap-5f));
  p = fma(p, z, splat(0x1.110726p-3f));
  p = fma(p, z, splat(-0x1.555532p-2f));
  const f32x16 small = fma(mul(x, z), p, x);
  const f32x16 one = splat(1.0f), t = exp(mul(abs(x), splat(-2.0f)));
  const f32x16 large = sub(one, div(add(t, t), add(one, t)));
  const f32x16 edge = splat(0.625f);
  const f32x16 above = select_lt(edge, x, large, small);  // a NaN is not above
  return select_lt(x, negate(edge), negate(large), above);
}

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }
static inline int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace slmq::SLMQ_ISA
