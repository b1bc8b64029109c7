// Activations whose rows have one scale, for weights whose rows have one (see formats.h).

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

// Above this a group stands out of its row.
template <Activations Kind>
static inline float row_cut(Largest& largest, int groups) {
  constexpr float kFew = 4.0f;  // times the median: what stands out costs a second product
  if (Kind == Activations::a16) return -1.0f;
  return outlier_cut(largest, groups, Kind == Activations::a8 ? kFew : kOutlierTimes);
}

#if !defined(SLMQ_WIDE_REGISTERS)
static inline void store_maxima(float* p, const f32x16 (&of)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) p[i] = reduce_max(of[i]);
}

// Stores groups of two neighbouring rows, and adds up each row's.
struct TwoGroups {
  i32x16 sums[2] = {splat_i32(0), splat_i32(0)};
  SLMQ_INLINE_MEMBER void put(int8_t* plane, const i32x16 (&q)[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      store_i8(plane + 16 * i, q[i]);
      sums[i / 2] = add(sums[i / 2], q[i]);
    }
  }
  int32_t sum(int row) const { return reduce_add(sums[row]); }
};
#endif

// The largest magnitudes of all groups, zeros up to a multiple of sixteen, and whether all values are
// finite.
static inline bool measure_groups(const float* values, int groups, Largest& largest) {
  const f32x16 nothing = splat(0.0f);
  // 0 * x is 0, but for an infinity or a NaN. Several, so that none waits for the one before.
  f32x16 spoiled[4] = {nothing, nothing, nothing, nothing};
  for (int first = 0; first < groups; first += kLanes) {
    f32x16 of_group[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      of_group[i] = nothing;
      if (first + i >= groups) continue;
      const float* group = values + (first + i) * kGroup;
      const f32x16 x = load(group), y = load(group + 16);
      spoiled[i % 4] = fma(y, nothing, fma(x, nothing, spoiled[i % 4]));
      of_group[i] = max(abs(x), abs(y));
    }
    store_maxima(largest.values + first, of_group);
  }
  return reduce_add(add(add(spoiled[0], spoiled[1]), add(spoiled[2], spoiled[3]))) == 0.0f;
}

// What a row is rounded by: its info but for the sums, and which of its groups stand out. Clears
// `*all_finite` if a value is not.
template <Activations Kind>
static float measure_row(const float* values, int groups, const RowPanel& to, int t,
                         bool* all_finite) {
  Largest largest;
  const bool finite = measure_groups(values, groups, largest);
  const float cut = row_cut<Kind>(largest, groups);
  const f32x16 edge = splat(cut);
  f32x16 all = splat(0.0f), below = all;
  for (int g = 0; g < groups; g += kLanes) {
    const f32x16 value = load(largest.values + g);
    all = max(value, all);  // in this order a NaN does not stay
    below = max(select_lt(edge, value, splat(0.0f), value), below);
  }
  const float most = reduce_max(all), most_fine = reduce_max(below);
  const bool zero = most < kSmallest;
  const float by_fine = most_fine / 127.0f, by_all = most / 32512.0f;
  const float unit = zero ? 0.0f : by_fine > by_all ? by_fine : by_all;
  RowInfo info = {unit, 0, 0, 0};
  uint8_t* flag = to.wide + t;
  for (int g = 0, rows = to.rows; g < groups; ++g, flag += rows) {
    const int wide = largest.values[g] > cut ? 1 : 0;
    *flag = static_cast<uint8_t>(wide);
    info.wide += wide;
  }
  if (!finite) {
    info.scale = __builtin_nanf("");  // such a row must surface
    *all_finite = false;
  }
  to.info[t] = info;
  return zero ? 0.0f : 1.0f / unit;
}

// Groups of M neighbouring rows, whose planes lie side by side.
template <int M>
struct RoundedRows {
  const float* values;
  int stride, t;
  const RowPanel& to;
  f32x16 inverse[M];
  TwoGroups narrow[(M + 1) / 2];
  i32x16 fine[M], coarse[M];  // sums of groups that stand out, or lie beside one that does

  RoundedRows(const float* values, int stride, const float* inverses, const RowPanel& to, int t)
      : values(values), stride(stride), t(t), to(to) {
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      inverse[i] = splat(inverses[i]);
      fine[i] = coarse[i] = splat_i32(0);
    }
  }

  SLMQ_INLINE_MEMBER f32x16 scaled(int row, int g, int c) const {
    return mul(load(values + row * stride + g * kGroup + c), inverse[row]);
  }
  SLMQ_INLINE_MEMBER static i32x16 rounded(f32x16 x) {
    return round_to_i32(clamp(x, splat(-127.0f), splat(127.0f)));
  }

  // One in which no row of the window stands out: nothing reads its coarse plane. Of finite rows it is
  // within 127 by itself.
  template <bool Finite>
  SLMQ_INLINE_MEMBER void put_narrow(int g) {
    int8_t* plane = to.fine + (g * to.rows + t) * kGroup;
#pragma GCC unroll 2
    for (int i = 0; i + 2 <= M; i += 2) {
      i32x16 q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const f32x16 x = scaled(i + j / 2, g, j % 2 * 16);
        q[j] = Finite ? round_to_i32(x) : rounded(x);
      }
      narrow[i / 2].put(plane + i * kGroup, q);
    }
    if constexpr (M == 1) {
      for (int c = 0; c < kGroup; c += 16) {
        const i32x16 q = rounded(scaled(0, g, c));
        store_i8(plane + c, q);
        fine[0] = add(fine[0], q);
      }
    }
  }

  void put_mixed(int g) {
    for (int i = 0; i < M; ++i) {
      const int at = g * to.rows + t + i;
      for (int c = 0; c < kGroup; c += 16) {
        const f32x16 x = scaled(i, g, c);
        Planes16 q = {splat_i32(0), splat_i32(0)};
        if (to.wide[at] != 0) {
          q = split(x);
        } else {
          q.low = rounded(x);
        }
        store_i8(to.fine + at * kGroup + c, q.low);
        store_i8(to.coarse + at * kGroup + c, q.high);
        fine[i] = add(fine[i], q.low);
        coarse[i] = add(coarse[i], q.high);
      }
    }
  }

  void put_sums() {
    for (int i = 0; i < M; ++i) {
      to.info[t + i].sum_fine = reduce_add(fine[i]) + narrow[i / 2].sum(i % 2);
      to.info[t + i].sum_coarse = reduce_add(coarse[i]);
    }
  }
};

template <int M, bool Finite>
static void put_rows(const float* values, int stride, int groups, const float* inverses,
                     const uint8_t* mixed, const RowPanel& to, int t) {
  RoundedRows<M> rows(values, stride, inverses, to, t);
  for (int g = 0; g < groups; ++g) {
    if (mixed[g] == 0) {
      rows.template put_narrow<Finite>(g);
    } else {
      rows.put_mixed(g);
    }
  }
  rows.put_sums();
}

// Rows [t, t + count) of a block, all of a window.
template <Activations Kind>
static void quantize_window(const float* values, int stride, int groups, const RowPanel& to, int t,
                            int count) {
  float inverses[kPanelWindow];
  bool finite = true;
  for (int i = 0; i < count; ++i)
    inverses[i] =
        measure_row<Kind>(values + static_cast<size_t>(i) * stride, groups, to, t + i, &finite);
  uint8_t mixed[kMaxGroups];
  const uint8_t* flags = to.wide + t;
  for (int g = 0, rows = to.rows; g < groups; ++g, flags += rows) {
    uint64_t any = 0;
    if (count == kPanelWindow) {
      __builtin_memcpy(&any, flags, kPanelWindow);
    } else {
      for (int i = 0; i < count; ++i) any |= flags[i];
    }
    mixed[g] = any != 0 ? 1 : 0;
  }
  const auto put_four = finite ? put_rows<4, true> : put_rows<4, false>;
  int i = 0;
  for (; i + 4 <= count; i += 4)
    put_four(values + static_cast<size_t>(i) * stride, stride, groups, inverses + i, mixed, to,
             t + i);
  for (; i < count; ++i)
    put_rows<1, false>(values + static_cast<size_t>(i) * stride, stride, groups, inverses + i,
                       mixed, to, t + i);
}

template <Activations Kind>
static void quantize_rows(const float* x, int x_stride, int groups, int m, int row_begin,
                          int row_end, void* panel) {
  for (int row = row_begin; row < row_end;) {
    const RowPanel to = row_panel(panel, groups, m, row);
    const int t = row % kPanelRows;
    const int count = smaller(kPanelWindow - t % kPanelWindow, row_end - row);
    quantize_window<Kind>(x + static_cast<size_t>(row) * x_stride, x_stride, groups, to, t, count);
    row += count;
  }
}

static void widen_row_activations(const void* panel, int groups, int m, int row_begin, int row_end,
                                  float* out, int out_stride) {
  constexpr int8_t nothing[kGroup] = {};
  for (int row = row_begin; row < row_end; ++row) {
    const RowPanel from = row_panel(const_cast<void*>(panel), groups, m, row);
    const int t = row % kPanelRows;
    float* to = out + static_cast<size_t>(row - row_begin) * out_stride;
    for (int g = 0; g < groups; ++g) {
      const int at = g * from.rows + t;
      const int8_t* coarse = from.wide[at] != 0 ? from.coarse + at * kGroup : nothing;
      widen_group(coarse, from.fine + at * kGroup, from.info[t].scale, to + g * kGroup);
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
