// Row kernels: activation quantization, rmsnorm, rope, swiglu, softmax.

namespace slmq::SLMQ_ISA {

static inline f32x16 clamp(f32x16 x, f32x16 low, f32x16 high) { return min(max(x, low), high); }

// One block of 32 values; a NaN becomes -127 so that all ISAs agree.
static inline void write_block(f32x16 first, f32x16 second, A8Block* block) {
  const f32x16 low = splat(-127.0f), high = splat(127.0f);
  const i32x16 q_first = round_to_i32(clamp(first, low, high));
  const i32x16 q_second = round_to_i32(clamp(second, low, high));
  store_i8(block->high, q_first);
  store_i8(block->high + 16, q_second);
  block->sum = reduce_add(add(q_first, q_second));
}

// q = 256 * high + low. Rounding q / 256 to even can leave low = 128, which is no int8: it is carried.
static inline int32_t split_half(f32x16 x, int8_t* high, int8_t* low) {
  const f32x16 q = to_f32(round_to_i32(clamp(x, splat(-32512.0f), splat(32512.0f))));
  f32x16 h = to_f32(round_to_i32(mul(q, splat(1.0f / 256.0f))));
  f32x16 l = fma(h, splat(-256.0f), q);
  const f32x16 carry = select_lt(splat(127.5f), l, splat(1.0f), splat(0.0f));
  h = add(h, carry);
  l = fma(carry, splat(-256.0f), l);
  store_i8(high, round_to_i32(h));
  store_i8(low, round_to_i32(l));
  return reduce_add(round_to_i32(q));
}
static inline void write_block(f32x16 first, f32x16 second, A16Block* block) {
  const int32_t sum = split_half(first, block->high, block->low);
  block->sum = sum + split_half(second, block->high + 16, block->low + 16);
}
static constexpr float largest_q(const A8Block*) { return 127.0f; }
static constexpr float largest_q(const A16Block*) { return 32512.0f; }

template <class Block>
static void quantize_activations(const float* x, int x_stride, int groups, int m, int row_begin,
                                 int row_end, void* panel) {
  constexpr float kSmallest = 1e-30f;
  constexpr float kSteps = largest_q(static_cast<const Block*>(nullptr));
  const f32x16 nothing = splat(0.0f);
  for (int row = row_begin; row < row_end; ++row) {
    const float* values = x + static_cast<size_t>(row) * x_stride;
    Block* block = static_cast<Block*>(panel) + panel_offset(groups, m, row, 0);
    const int step = panel_rows(m, row);
    f32x16 spoiled = nothing;  // 0 * x is 0, but for an infinity or a NaN
    for (int g = 0; g < groups; ++g, values += kGroup, block += step) {
      const f32x16 first = load(values), second = load(values + 16);
      spoiled = fma(second, nothing, fma(first, nothing, spoiled));
      const float largest = reduce_max(max(abs(first), abs(second)));
      const bool zero = largest < kSmallest;  // steps / largest would overflow
      const f32x16 inverse = splat(zero ? 0.0f : kSteps / largest);
      write_block(mul(first, inverse), mul(second, inverse), block);
      block->scale = zero ? 0.0f : largest / kSteps;
      block->scaled_sum = block->scale * static_cast<float>(block->sum);
      block->unused = 0;
    }
    if (reduce_add(spoiled) == 0.0f) continue;
    for (int g = 0; g < groups; ++g) {  // such a row must surface, all of it
      block -= step;
      block->scale = block->scaled_sum = __builtin_nanf("");
    }
  }
}

static void rmsnorm(const float* x, const float* weight, int k, float eps, float* y) {
  f32x16 squares = splat(0.0f);
  for (int c = 0; c < k; c += 16) {
    const f32x16 v = load(x + c);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(k);
  const f32x16 inverse = splat(1.0f / __builtin_sqrtf(mean + eps));
  const int padded = (k + kGroup - 1) / kGroup * kGroup;
  for (int c = 0; c < padded; c += 16)
    store(y + c, mul(mul(load(x + c), inverse), load(weight + c)));
}

static void rope(float* head, const float* cosines, const float* sines, int rotary) {
  const int half = rotary / 2;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const f32x16 x = load(head + i), y = load(head + half + i);
    const f32x16 c = load(cosines + i), s = load(sines + i);
    store(head + i, fma(negate(y), s, mul(x, c)));
    store(head + half + i, fma(x, s, mul(y, c)));
  }
  for (; i < half; ++i) {
    const float x = head[i], y = head[half + i];
    head[i] = __builtin_fmaf(-y, sines[i], x * cosines[i]);
    head[half + i] = __builtin_fmaf(x, sines[i], y * cosines[i]);
  }
}

static void swiglu(const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, mul(silu(load(gate + i)), load(up + i)));
}

// n values at p as sixteen lanes; the lanes behind the end become `other`
static inline f32x16 load_tail(const float* p, int n, float other) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = i < n ? p[i] : other;
  return load(lanes);
}
static inline void store_tail(float* p, int n, f32x16 v) {
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

static void softmax(const float* x, int n, float scale, float* y) {
  const float lowest = -__builtin_inff();
  const f32x16 factor = splat(scale);
  const int whole = n / 16 * 16, tail = n - whole;
  f32x16 largest = splat(lowest);
  for (int i = 0; i < whole; i += 16) largest = max(largest, mul(load(x + i), factor));
  if (tail != 0) {
    const f32x16 last = mul(load_tail(x + whole, tail, 0.0f), factor);
    largest = max(largest, keep_range(last, 0, tail, lowest));
  }
  const f32x16 offset = splat(reduce_max(largest));
  f32x16 sums = splat(0.0f);
  for (int i = 0; i < whole; i += 16) {
    const f32x16 e = exp(sub(mul(load(x + i), factor), offset));
    sums = add(sums, e);
    store(y + i, e);
  }
  if (tail != 0) {
    const f32x16 last = exp(sub(mul(load_tail(x + whole, tail, 0.0f), factor), offset));
    const f32x16 e = keep_range(last, 0, tail, 0.0f);
    sums = add(sums, e);
    store_tail(y + whole, tail, e);
  }
  const float total = reduce_add(sums);
  for (int i = 0; i < whole; i += 16) store(y + i, div(load(y + i), splat(total)));
  for (int i = whole; i < n; ++i) y[i] = y[i] / total;
}

static int32_t read_memory(const uint8_t* p, size_t bytes) {
  i32x16 sums[4] = {splat_i32(0), splat_i32(0), splat_i32(0), splat_i32(0)};
  for (size_t i = 0; i < bytes; i += 256)
    for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], load_i32(p + i + 64 * j));
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

}  // namespace slmq::SLMQ_ISA
