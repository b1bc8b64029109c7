// Products with the thin matrices of adapters, rounded in their place (see LowRankDownArgs).

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Codes of sixteen values; returns their sum.
static inline int32_t put_codes(f32x16 x, float inverse, int8_t* to) {
  const i32x16 q = round_to_i32(clamp(mul(x, splat(inverse)), splat(-127.0f), splat(127.0f)));
  store_i8(to, q);
  return reduce_add(q);
}

static inline void put_tail(float* y, int n, float scale, int32_t sum) {
  const int32_t start = -128 * sum;
  int8_t* tail = reinterpret_cast<int8_t*>(y + n) - kRoundedTail;
  __builtin_memcpy(tail, &scale, sizeof(scale));
  __builtin_memcpy(tail + sizeof(scale), &start, sizeof(start));
}

static void round_one(float* y, int n) {
  f32x16 largest = splat(0.0f), spoiled = largest;
  for (int c = 0; c < n; c += kLanes) {
    const f32x16 x = load(y + c);
    largest = max(abs(x), largest);  // in this order a NaN does not stay
    spoiled = fma(x, splat(0.0f), spoiled);
  }
  const float most = reduce_max(largest);
  const bool zero = most < kSmallest, finite = reduce_add(spoiled) == 0.0f;
  const float inverse = zero ? 0.0f : 127.0f / most;
  int32_t sum = 0;
  for (int c = 0; c < n; c += kLanes)  // codes of sixteen go where four of them have been
    sum += put_codes(load(y + c), inverse, reinterpret_cast<int8_t*>(y) + c);
  put_tail(y, n, !finite ? __builtin_nanf("") : zero ? 0.0f : most / 127.0f, sum);
}

// Sixteen rows of sixteen values, as round_one() does each of them. False if they are not all finite:
// then nothing was done.
static bool round_sixteen(float* y, size_t stride) {
  const f32x16 nothing = splat(0.0f);
  f32x16 magnitudes[kLanes], spoiled = nothing;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const f32x16 x = load(y + i * stride);
    magnitudes[i] = abs(x);
    spoiled = fma(x, nothing, spoiled);
  }
  if (!(reduce_add(spoiled) == 0.0f)) return false;
  alignas(64) float most[kLanes], inverses[kLanes], scales[kLanes];
  store_maxima(most, magnitudes);
  const f32x16 largest = load(most), smallest = splat(kSmallest), steps = splat(127.0f);
  store(inverses, select_lt(largest, smallest, nothing, div(steps, largest)));
  store(scales, select_lt(largest, smallest, nothing, div(largest, steps)));
  for (int i = 0; i < kLanes; ++i, y += stride)
    put_tail(y, kLanes, scales[i], put_codes(load(y), inverses[i], reinterpret_cast<int8_t*>(y)));
  return true;
}

static void low_rank_round(float* y, int stride, int rows, int n) {
  int row = 0;
  const auto step = static_cast<size_t>(stride);
  for (; n == kLanes && row + kLanes <= rows && round_sixteen(y, step); row += kLanes)
    y += kLanes * step;
  for (; row < rows; ++row, y += step) round_one(y, n);
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
