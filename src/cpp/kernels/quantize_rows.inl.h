// Activations whose rows have one scale, for weights whose rows have one (see formats.h).

namespace slmq::SLMQ_ISA {

// Above this a group stands out of its row.
template <Activations Kind>
static inline float row_cut(Largest& largest, int groups) {
  constexpr float kFew = 4.0f;  // times the median: what stands out costs a second product
  if (Kind == Activations::a16) return -1.0f;
  return outlier_cut(largest, groups, Kind == Activations::a8 ? kFew : kOutlierTimes);
}

// The planes of a group; returns what they add to the sums.
static inline Planes16 put_group(const float* values, f32x16 inverse, bool wide, int8_t* fine,
                                 int8_t* coarse) {
  Planes16 sums = {splat_i32(0), splat_i32(0)};
  for (int c = 0; c < kGroup; c += 16) {
    const f32x16 x = mul(load(values + c), inverse);
    Planes16 q = {splat_i32(0), splat_i32(0)};
    if (wide) {
      q = split(x);
    } else {
      q.low = round_to_i32(clamp(x, splat(-127.0f), splat(127.0f)));
    }
    store_i8(fine + c, q.low);
    store_i8(coarse + c, q.high);
    sums = {add(sums.high, q.high), add(sums.low, q.low)};
  }
  return sums;
}

template <Activations Kind>
static void quantize_row(const float* values, int groups, const RowPanel& to, int t) {
  Largest largest;
  const f32x16 nothing = splat(0.0f);
  f32x16 spoiled = nothing;  // 0 * x is 0, but for an infinity or a NaN
  for (int g = 0; g < groups; ++g) {
    const f32x16 a = load(values + g * kGroup), b = load(values + g * kGroup + 16);
    spoiled = fma(b, nothing, fma(a, nothing, spoiled));
    largest.values[g] = reduce_max(max(abs(a), abs(b)));
  }
  const float cut = row_cut<Kind>(largest, groups);
  float most = 0.0f, most_fine = 0.0f;
  for (int g = 0; g < groups; ++g) {
    const float value = largest.values[g];
    most = value > most ? value : most;
    most_fine = value <= cut && value > most_fine ? value : most_fine;
  }
  const bool zero = most < kSmallest;
  const float by_fine = most_fine / 127.0f, by_all = most / 32512.0f;
  const float unit = zero ? 0.0f : by_fine > by_all ? by_fine : by_all;
  const f32x16 inverse = splat(zero ? 0.0f : 1.0f / unit);
  RowInfo info = {unit, 0, 0, 0};
  i32x16 fine = splat_i32(0), coarse = fine;
  for (int g = 0; g < groups; ++g) {
    const int at = g * to.rows + t;
    const bool wide = largest.values[g] > cut;
    const Planes16 sums = put_group(values + g * kGroup, inverse, wide, to.fine + at * kGroup,
                                    to.coarse + at * kGroup);
    fine = add(fine, sums.low);
    coarse = add(coarse, sums.high);
    to.wide[at] = wide ? 1 : 0;
    info.wide += wide ? 1 : 0;
  }
  info.sum_fine = reduce_add(fine);
  info.sum_coarse = reduce_add(coarse);
  if (reduce_add(spoiled) != 0.0f) info.scale = __builtin_nanf("");  // such a row must surface
  to.info[t] = info;
}

template <Activations Kind>
static void quantize_rows(const float* x, int x_stride, int groups, int m, int row_begin,
                          int row_end, void* panel) {
  for (int row = row_begin; row < row_end; ++row)
    quantize_row<Kind>(x + static_cast<size_t>(row) * x_stride, groups,
                       row_panel(panel, groups, m, row), row % kPanelRows);
}

}  // namespace slmq::SLMQ_ISA
