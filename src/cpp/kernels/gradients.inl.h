// Backwards through the row kernels: norms, activations, soft cap, softmax; the loss.

namespace slmq::SLMQ_ISA {

static void rmsnorm_back(const float* x, const float* weight, int k, float eps, const float* dy,
                         float* dx) {
  const f32x16 nothing = splat(0.0f);
  f32x16 squares = nothing, products = nothing;
  const int padded = (k + kGroup - 1) / kGroup * kGroup;
  for (int c = 0; c < k; c += 16) {
    const f32x16 v = load(x + c);
    squares = fma(v, v, squares);
  }
  for (int c = 0; c < padded; c += 16)
    products = fma(mul(load(dy + c), load(weight + c)), load(x + c), products);
  const float columns = static_cast<float>(k);
  const float inverse = 1.0f / __builtin_sqrtf(reduce_add(squares) / columns + eps);
  const f32x16 scale = splat(inverse);
  const f32x16 share = splat(inverse * inverse * inverse * (reduce_add(products) / columns));
  for (int c = 0; c < padded; c += 16) {
    const f32x16 through = mul(mul(load(dy + c), load(weight + c)), scale);
    store(dx + c, add(load(dx + c), fma(negate(load(x + c)), share, through)));
  }
}

static void layernorm_back(const float* x, const float* weight, int k, float eps, const float* dy,
                           float* dx) {
  const f32x16 nothing = splat(0.0f);
  const float columns = static_cast<float>(k);
  f32x16 sums = nothing, squares = nothing, slopes = nothing, products = nothing;
  for (int c = 0; c < k; c += 16) sums = add(sums, load(x + c));
  const f32x16 mean = splat(reduce_add(sums) / columns);
  for (int c = 0; c < k; c += 16) {
    const f32x16 d = keep_range(sub(load(x + c), mean), 0, smaller(k - c, 16), 0.0f);
    const f32x16 g = mul(load(dy + c), load(weight + c));
    squares = fma(d, d, squares);
    slopes = add(slopes, g);
    products = fma(g, d, products);
  }
  const float inverse = 1.0f / __builtin_sqrtf(reduce_add(squares) / columns + eps);
  const f32x16 scale = splat(inverse), slope = splat(reduce_add(slopes) / columns);
  const f32x16 share = splat(inverse * inverse * (reduce_add(products) / columns));
  for (int c = 0; c < k; c += 16) {
    const f32x16 d = sub(load(x + c), mean);
    const f32x16 g = sub(mul(load(dy + c), load(weight + c)), slope);
    const f32x16 change = mul(fma(negate(d), share, g), scale);
    store(dx + c, add(load(dx + c), keep_range(change, 0, smaller(k - c, 16), 0.0f)));
  }
}

// ------------------------------------------------------------------ slopes of activations

static inline f32x16 sigmoid_slope(f32x16 x) {
  const f32x16 s = sigmoid(x);
  return mul(s, sub(splat(1.0f), s));
}

static inline f32x16 silu_slope(f32x16 x) {
  const f32x16 kept = max(splat(-80.0f), x), s = sigmoid(kept), one = splat(1.0f);
  return mul(s, fma(kept, sub(one, s), one));
}

static inline f32x16 gelu_tanh_slope(f32x16 x) {
  const f32x16 one = splat(1.0f), kept = min(splat(10.0f), max(splat(-10.0f), x));
  const f32x16 square = mul(kept, kept), base = splat(1.59576912f);
  const f32x16 s = sigmoid(mul(kept, fma(square, splat(0.0713548163f), base)));
  const f32x16 steep = mul(kept, fma(square, splat(0.2140644489f), base));
  return mul(s, fma(steep, sub(one, s), one));
}

// Phi(x) + x times the density: as gelu() has Phi, with the density's power computed beside it.
static inline f32x16 gelu_slope(f32x16 x) {
  const f32x16 kept = min(splat(14.0f), max(splat(-14.0f), x));
  const f32x16 away = add(kept, select_lt(abs(kept), splat(1e-20f), splat(1e-20f), splat(0.0f)));
  const f32x16 below = div(gelu(away), away);
  const f32x16 power = exp(mul(mul(kept, kept), splat(-0.5f)));
  return fma(mul(kept, splat(0.398942280f)), power, below);
}

static inline f32x16 relu_slope(f32x16 x) {
  return select_lt(splat(0.0f), x, splat(1.0f), mul(x, splat(0.0f)));  // a NaN stays
}
static inline f32x16 relu2_slope(f32x16 x) {
  const f32x16 kept = relu(x);
  return add(kept, kept);
}
static inline f32x16 tanh_slope(f32x16 x) {
  const f32x16 t = tanh(x);
  return fma(negate(t), t, splat(1.0f));
}

template <f32x16 (*f)(f32x16), f32x16 (*slope)(f32x16)>
static void gated_back(const float* gate, const float* up, const float* dy, int n, float* d_gate,
                       float* d_up) {
  for (int i = 0; i < n; i += 16) {
    const f32x16 g = load(gate + i), u = load(up + i), d = load(dy + i);
    store(d_gate + i, mul(mul(d, u), slope(g)));
    store(d_up + i, mul(d, f(g)));
  }
}

template <f32x16 (*slope)(f32x16)>
static void unary_back(const float* x, const float* dy, int n, float* dx) {
  for (int i = 0; i < n; i += 16) store(dx + i, mul(load(dy + i), slope(load(x + i))));
}

static void softcap_back(const float* y, const float* dy, int n, float cap, float* dx) {
  const f32x16 inverse = splat(1.0f / cap), one = splat(1.0f);
  for (int i = 0; i < n; i += 16) {
    const f32x16 t = mul(load(y + i), inverse);
    store(dx + i, mul(load(dy + i), fma(negate(t), t, one)));
  }
}

// ------------------------------------------------------------------ softmax and the loss

static void softmax_back(const float* y, const float* dy, int n, float scale, float* dx) {
  const int whole = n / 16 * 16, tail = n - whole;
  f32x16 sums = splat(0.0f);
  for (int i = 0; i < whole; i += 16) sums = fma(load(y + i), load(dy + i), sums);
  if (tail != 0)
    sums = fma(load_tail(y + whole, tail, 0.0f), load_tail(dy + whole, tail, 0.0f), sums);
  const f32x16 mean = splat(reduce_add(sums)), factor = splat(scale);
  for (int i = 0; i < whole; i += 16)
    store(dx + i, mul(mul(load(y + i), factor), sub(load(dy + i), mean)));
  if (tail == 0) return;
  const f32x16 last = sub(load_tail(dy + whole, tail, 0.0f), mean);
  store_tail(dx + whole, tail, mul(mul(load_tail(y + whole, tail, 0.0f), factor), last));
}

static void cross_entropy(float* row, int n, int target, float scale, float loss[3]) {
  const float lowest = -__builtin_inff();
  const int whole = n / 16 * 16, tail = n - whole;
  const f32x16 nothing = splat(0.0f);
  f32x16 largest = splat(lowest), spoiled = nothing;  // 0 * x is 0, but for an infinity or a NaN
  for (int i = 0; i < whole; i += 16) {
    const f32x16 v = load(row + i);
    largest = max(v, largest);
    spoiled = fma(v, nothing, spoiled);
  }
  if (tail != 0) {
    largest = max(load_tail(row + whole, tail, lowest), largest);
    spoiled = fma(load_tail(row + whole, tail, 0.0f), nothing, spoiled);
  }
  loss[0] = reduce_max(largest);
  loss[2] = row[target];
  const f32x16 offset = splat(loss[0]);
  f32x16 sums = splat(0.0f);
  for (int i = 0; i < whole; i += 16) {
    const f32x16 e = exp(sub(load(row + i), offset));
    sums = add(sums, e);
    store(row + i, e);
  }
  if (tail != 0) {
    const f32x16 e = exp(sub(load_tail(row + whole, tail, lowest), offset));
    sums = add(sums, e);
    store_tail(row + whole, tail, e);
  }
  loss[1] = reduce_add(sums) + reduce_add(spoiled);
  const float factor = scale / loss[1];
  for (int i = 0; i < whole; i += 16) store(row + i, mul(load(row + i), splat(factor)));
  for (int i = whole; i < n; ++i) row[i] = row[i] * factor;
  row[target] = row[target] - scale;
}

}  // namespace slmq::SLMQ_ISA
