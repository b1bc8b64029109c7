// Row kernels: activation quantization, norms, rope, activations, soft cap, softmax.

namespace slmq::SLMQ_ISA {

static inline f32x16 clamp(f32x16 x, f32x16 low, f32x16 high) { return min(max(x, low), high); }

// q = 256 * high + low of sixteen values that are within +-32512 (a NaN becomes -32512). Rounding
// q / 256 to even can leave low = 128, which is no int8: it is carried.
struct Planes16 {
  i32x16 high, low;
};
static inline Planes16 split(f32x16 x) {
  const f32x16 q = to_f32(round_to_i32(clamp(x, splat(-32512.0f), splat(32512.0f))));
  f32x16 h = to_f32(round_to_i32(mul(q, splat(1.0f / 256.0f))));
  f32x16 l = fma(h, splat(-256.0f), q);
  const f32x16 carry = select_lt(splat(127.5f), l, splat(1.0f), splat(0.0f));
  h = add(h, carry);
  l = fma(carry, splat(-256.0f), l);
  return {round_to_i32(h), round_to_i32(l)};
}
static inline void split_half(f32x16 x, int8_t* high, int8_t* low) {
  const Planes16 planes = split(x);
  store_i8(high, planes.high);
  store_i8(low, planes.low);
}

// Scales of less could underflow where they meet a weight's.
static constexpr float kSmallest = 1e-20f;

// One group: 32 values whose largest magnitude is known. Fills planes and scales but for the NaNs.
static inline void quantize_group(const float* values, float largest, bool wide,
                                  const ActivationGroup& to) {
  const bool zero = largest < kSmallest;
  const float steps = wide ? 32512.0f : 127.0f;
  const f32x16 inverse = splat(zero ? 0.0f : steps / largest);
  const f32x16 first = mul(load(values), inverse), second = mul(load(values + 16), inverse);
  if (wide) {
    split_half(first, to.high, to.low);
    split_half(second, to.high + 16, to.low + 16);
  } else {
    const f32x16 low = splat(-127.0f), high = splat(127.0f);
    store_i8(to.high, round_to_i32(clamp(first, low, high)));
    store_i8(to.high + 16, round_to_i32(clamp(second, low, high)));
    store_i8(to.low, splat_i32(0));
    store_i8(to.low + 16, splat_i32(0));
  }
  const float unit = zero ? 0.0f : largest / steps;
  to.info->scale = wide ? unit : unit * (1.0f / 256.0f);
  to.info->scale_high = wide ? unit * 256.0f : unit;
}

// What pays for zero points and mins: sums over columns of a plane.
struct PlaneSums {
  int32_t first, all;
  int16_t eights[2];
  SLMQ_INLINE_MEMBER explicit PlaneSums(const int8_t* plane) {
    int32_t pairs[2][2];  // of both halves
    sum_pairs(plane, pairs);
    const int32_t even = pairs[0][0] + pairs[1][0], odd = pairs[0][1] + pairs[1][1];
    first = pairs[0][0] + pairs[0][1];
    all = even + odd;
    eights[0] = static_cast<int16_t>(-8 * even);
    eights[1] = static_cast<int16_t>(-8 * odd);
  }
};

static inline void sum_group(const ActivationGroup& a, bool wide) {
  ActivationInfo* info = a.info;
  const PlaneSums high(a.high);
  int32_t sum = 256 * high.all;
  info->sum_high = static_cast<int16_t>(high.all);
  info->first_high = static_cast<int16_t>(high.first);
  for (int i = 0; i < 2; ++i) info->eights_high[i] = high.eights[i];
  if (wide) {
    const PlaneSums low(a.low);
    sum += low.all;
    info->first_low = static_cast<int16_t>(low.first);
    for (int i = 0; i < 2; ++i) info->eights_low[i] = low.eights[i];
  } else {
    info->first_low = info->eights_low[0] = info->eights_low[1] = 0;
  }
  info->sum = sum;
  info->scaled_sum = info->scale * static_cast<float>(sum);
}

// The largest magnitudes of a row's groups, and the upper 16 bits of each, which order as they do.
struct Largest {
  float values[kMaxGroups];
  alignas(64) int16_t keys[kMaxGroups];
};

static constexpr int kKeyStep = 32;  // keys that are counted at once
// keys[0] becomes the least of twice Half: halves meet, which vectors do at once.
template <int Half>
SLMQ_INLINE void take_least(int16_t* keys) {
  for (int i = 0; i < Half; ++i) keys[i] = keys[i + Half] < keys[i] ? keys[i + Half] : keys[i];
  if constexpr (Half > 1) take_least<Half / 2>(keys);
}
// The least key that more than half of the groups are within; the keys are padded to kKeyStep.
// Of few groups by the rank of each: no step waits for the one before.
template <int Padded>
static inline int32_t median_by_rank(const int16_t* keys, int groups) {
  int16_t within[Padded] = {};
  for (int other = 0; other < groups; ++other)
    for (int g = 0; g < Padded; ++g)
      within[g] = static_cast<int16_t>(within[g] + (keys[other] <= keys[g] ? 1 : 0));
  alignas(64) int16_t candidates[Padded];
  const auto half = static_cast<int16_t>(groups / 2);
  for (int g = 0; g < Padded; ++g) candidates[g] = within[g] > half ? keys[g] : int16_t{0x7fff};
  take_least<Padded / 2>(candidates);
  return candidates[0];
}
// Of many by bisection.
static inline int32_t median_by_halves(const int16_t* keys, int groups, int padded) {
  int32_t below = 0x7fff, median = 0;
  for (int g = 0; g < groups; ++g) {
    below = keys[g] < below ? keys[g] : below;
    median = keys[g] > median ? keys[g] : median;
  }
  while (below < median) {
    const int32_t middle = (below + median) / 2;  // less than any padding
    int16_t count = 0;
    for (int g = 0; g < padded; g += kKeyStep)
      for (int i = 0; i < kKeyStep; ++i)
        count = static_cast<int16_t>(count + (keys[g + i] <= static_cast<int16_t>(middle) ? 1 : 0));
    const bool enough = 2 * count > groups;  // no branch: it could not be predicted
    median = enough ? middle : median;
    below = enough ? below : middle + 1;
  }
  return median;
}

// A group stands out if its largest magnitude is more than so many times the row's median (of the
// groups' largest, cut to their upper 16 bits).
static constexpr float kOutlierTimes = 1.875f;
static inline float outlier_cut(Largest& largest, int groups, float times) {
  int16_t* keys = largest.keys;
  for (int first = 0; first < groups; first += kLanes) {
    uint32_t bits[kLanes];
    __builtin_memcpy(bits, largest.values + first, sizeof bits);
    for (int i = 0; i < kLanes; ++i) keys[first + i] = static_cast<int16_t>(bits[i] >> 16);
  }
  const int padded = (groups + kKeyStep - 1) / kKeyStep * kKeyStep;
  for (int g = groups; g < padded; ++g) keys[g] = 0x7fff;
  const int32_t median = padded == kKeyStep       ? median_by_rank<kKeyStep>(keys, groups)
                         : padded == 2 * kKeyStep ? median_by_rank<2 * kKeyStep>(keys, groups)
                                                  : median_by_halves(keys, groups, padded);
  const uint32_t bits = static_cast<uint32_t>(median) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return times * value;
}

// The first group of a row, which is its block's token t; the next one is `stride` further.
template <Activations Kind>
static void quantize_row(const float* values, int groups, const ActivationGroup& first,
                         size_t stride, int t) {
  const auto at = [&](int g) {
    const size_t bytes = static_cast<size_t>(g) * stride;
    return ActivationGroup{
        first.high + bytes, first.low + bytes,
        reinterpret_cast<ActivationInfo*>(reinterpret_cast<int8_t*>(first.info) + bytes)};
  };
  Largest largest;
  const f32x16 nothing = splat(0.0f);
  f32x16 spoiled = nothing;  // 0 * x is 0, but for an infinity or a NaN
  for (int g = 0; g < groups; ++g) {
    const f32x16 a = load(values + g * kGroup), b = load(values + g * kGroup + 16);
    spoiled = fma(b, nothing, fma(a, nothing, spoiled));
    largest.values[g] = reduce_max(max(abs(a), abs(b)));
  }
  const float cut = Kind == Activations::a8o16 ? outlier_cut(largest, groups, kOutlierTimes) : 0.0f;
  for (int g = 0; g < groups; ++g) {
    const ActivationGroup to = at(g);
    const float most = largest.values[g];
    const bool wide = Kind == Activations::a16 || (Kind == Activations::a8o16 && most > cut);
    quantize_group(values + g * kGroup, most, wide, to);
    sum_group(to, wide);
    set_low_plane(to.info - t, t, wide);
  }
  if (reduce_add(spoiled) == 0.0f) return;
  for (int g = 0; g < groups; ++g) {  // such a row must surface, all of it
    ActivationInfo* info = at(g).info;
    info->scale = info->scale_high = info->scaled_sum = __builtin_nanf("");
  }
}

template <Activations Kind>
static void quantize_activations(const float* x, int x_stride, int groups, int m, int row_begin,
                                 int row_end, void* panel) {
  for (int row = row_begin; row < row_end; ++row) {
    quantize_row<Kind>(
        x + static_cast<size_t>(row) * x_stride, groups, activation_group(panel, groups, m, row, 0),
        static_cast<size_t>(panel_rows(m, row)) * kActivationBytes, row % kPanelRows);
  }
}

// scale * (256 * upper + lower) of a group's planes
static inline void widen_group(const int8_t* upper, const int8_t* lower, float scale, float* out) {
  for (int c = 0; c < kGroup; c += 16) {
    const f32x16 high = to_f32(load_i8(upper + c)), low = to_f32(load_i8(lower + c));
    store(out + c, mul(splat(scale), fma(high, splat(256.0f), low)));  // the sum is exact
  }
}

static void widen_activations(const void* panel, int groups, int m, int row_begin, int row_end,
                              float* out, int out_stride) {
  for (int row = row_begin; row < row_end; ++row) {
    ActivationGroup a = activation_group(const_cast<void*>(panel), groups, m, row, 0);
    const auto stride = static_cast<size_t>(panel_rows(m, row)) * kActivationBytes;
    float* to = out + static_cast<size_t>(row - row_begin) * out_stride;
    for (int g = 0; g < groups; ++g) {
      const size_t at = static_cast<size_t>(g) * stride;
      const auto* info =
          reinterpret_cast<const ActivationInfo*>(reinterpret_cast<const int8_t*>(a.info) + at);
      widen_group(a.high + at, a.low + at, info->scale, to + g * kGroup);
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

static void layernorm(const float* x, const float* weight, const float* bias, int k, float eps,
                      float* y) {
  const f32x16 nothing = splat(0.0f);
  f32x16 sums = nothing;
  for (int c = 0; c < k; c += 16) sums = add(sums, load(x + c));
  const f32x16 mean = splat(reduce_add(sums) / static_cast<float>(k));
  f32x16 squares = nothing;
  const int whole = k / 16 * 16;
  for (int c = 0; c < whole; c += 16) {
    const f32x16 d = sub(load(x + c), mean);
    squares = fma(d, d, squares);
  }
  if (whole < k) {
    const f32x16 d = keep_range(sub(load(x + whole), mean), 0, k - whole, 0.0f);
    squares = fma(d, d, squares);
  }
  const float variance = reduce_add(squares) / static_cast<float>(k);
  const f32x16 inverse = splat(1.0f / __builtin_sqrtf(variance + eps));
  const int padded = (k + kGroup - 1) / kGroup * kGroup;
  for (int c = 0; c < padded; c += 16) {
    const f32x16 d = mul(sub(load(x + c), mean), inverse);
    store(y + c,
          bias == nullptr ? mul(d, load(weight + c)) : fma(d, load(weight + c), load(bias + c)));
  }
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

template <f32x16 (*f)(f32x16)>
static void gated(const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, mul(f(load(gate + i)), load(up + i)));
}

template <f32x16 (*f)(f32x16)>
static void unary(const float* x, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, f(load(x + i)));
}

static void softcap(const float* x, int n, float cap, float* y) {
  const f32x16 top = splat(cap), inverse = splat(1.0f / cap);
  for (int i = 0; i < n; i += 16) store(y + i, mul(tanh(mul(load(x + i), inverse)), top));
}

static void xielu(const float* x, int n, float up, float down, float mid, float* y) {
  const f32x16 nothing = splat(0.0f);
  for (int i = 0; i < n; i += 16) {
    const f32x16 v = load(x + i), line = mul(v, splat(mid));
    const f32x16 above = fma(mul(v, v), splat(up), line);
    const f32x16 below = fma(exp_beyond_line(min(nothing, v)), splat(down), line);
    store(y + i, select_lt(nothing, v, above, below));  // a NaN is not above, and stays
  }
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
