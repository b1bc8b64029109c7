// A rounded matrix improved against the errors of its outputs.

namespace slmq::SLMQ_ISA {
namespace {

// Sixteen rows at a time: lanes are rows. With gradient = H e, changing the rounded weights by c
// changes a row's error by -2 c . gradient + c H c.
class Refinement {
 public:
  Refinement(const RoundArgs& args, const float* h, int block, float* scratch)
      : a_(args),
        h_(h),
        first_(block * kLanes),
        rows_(args.n - first_ < kLanes ? args.n - first_ : kLanes),
        groups_(args.groups()),
        table_(args.grid.table.count != 0),
        level_(scratch),
        gradient_(level_ + static_cast<size_t>(args.k) * kLanes),
        change_(gradient_ + static_cast<size_t>(args.k) * kLanes) {
    float* error = change_ + static_cast<size_t>(args.columns) * kLanes;
    for (size_t i = 0; i < static_cast<size_t>(args.k) * kLanes; ++i)
      level_[i] = gradient_[i] = error[i] = 0.0f;
    for (int r = 0; r < rows_; ++r) {
      const size_t row = static_cast<size_t>(first_) + r;
      for (int j = 0; j < a_.k; ++j) {
        const size_t at = row * groups_ + j / a_.columns,
                     lane = static_cast<size_t>(j) * kLanes + r;
        level_[lane] = level_of(a_.grid, a_.codes[row * a_.k + j], a_.mins[at]);
        const float min = table_ ? 0.0f : a_.mins[at];
        error[lane] = a_.w[row * a_.k + j] - (a_.scales[at] * level_[lane] + min);
      }
    }
    add_products(0, a_.k, 0, a_.k, error, false);
  }

  void sweep() {
    for (int g = 0; g < groups_; ++g) {
      begin_ = g * a_.columns;
      count_ = a_.k - begin_ < a_.columns ? a_.k - begin_ : a_.columns;
      for (int r = 0; r < kLanes; ++r) {
        const size_t at = static_cast<size_t>(first_ + r) * groups_ + g;
        scale_[r] = r < rows_ ? a_.scales[at] : 0.0f;
        const float min = r < rows_ ? a_.mins[at] : 0.0f;
        min_[r] = table_ ? 0.0f : min;
        lift_[r] = table_ ? min : 0.0f;
      }
      for (int i = 0; i < a_.columns * kLanes; ++i) change_[i] = 0.0f;
      round_again();
      fit_again(g);
      round_again();
      spread();
      for (int r = 0; r < rows_; ++r) {
        const size_t at = static_cast<size_t>(first_ + r) * groups_ + g;
        a_.scales[at] = scale_[r];
        if (!table_) a_.mins[at] = min_[r];
      }
    }
  }

  void keep() const {
    for (int r = 0; r < rows_; ++r)
      for (int j = 0; j < a_.k; ++j)
        a_.codes[static_cast<size_t>(first_ + r) * a_.k + j] = static_cast<uint8_t>(
            code_of(a_.grid, level_[static_cast<size_t>(j) * kLanes + r],
                    a_.mins[static_cast<size_t>(first_ + r) * groups_ + j / a_.columns]));
  }

 private:
  // Of columns [j, end): gradient[j] +- the sum over i in begin..begin + count of H[j][i] * values[i].
  // Four columns share what they load of the values.
  void add_products(int j, int end, int begin, int count, const float* values, bool minus) {
    for (; j + 4 <= end; j += 4) add_products<4>(j, begin, count, values, minus);
    for (; j < end; ++j) add_products<1>(j, begin, count, values, minus);
  }

  template <int N>
  SLMQ_INLINE_MEMBER void add_products(int j, int begin, int count, const float* values,
                                       bool minus) {
    const float* h = h_ + static_cast<size_t>(j) * a_.k + begin;
    f32x16 sum[N];
    for (int n = 0; n < N; ++n) sum[n] = splat(0.0f);
    for (int i = 0; i < count; ++i) {
      const f32x16 value = load(values + static_cast<size_t>(i) * kLanes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n)
        sum[n] = add(sum[n], mul(splat(h[static_cast<size_t>(n) * a_.k + i]), value));
    }
    for (int n = 0; n < N; ++n) {
      float* gradient = gradient_ + static_cast<size_t>(j + n) * kLanes;
      store(gradient, minus ? sub(load(gradient), sum[n]) : add(load(gradient), sum[n]));
    }
  }

  // Notes that column c of the group changes, and what that does to gradients within the group.
  void apply(int c, const float* change) {
    const f32x16 more = load(change);
    float* sum = change_ + static_cast<size_t>(c) * kLanes;
    store(sum, add(load(sum), more));
    const float* h = h_ + static_cast<size_t>(begin_ + c) * a_.k + begin_;
    for (int i = 0; i < count_; ++i) {
      float* gradient = gradient_ + static_cast<size_t>(begin_ + i) * kLanes;
      store(gradient, sub(load(gradient), mul(splat(h[i]), more)));
    }
  }

  // Every code of the group to where its row's error is least.
  void round_again() {
    const auto low = static_cast<float>(a_.grid.low), high = static_cast<float>(a_.grid.high);
    for (int c = 0; c < count_; ++c) {
      const size_t at = static_cast<size_t>(begin_ + c) * kLanes;
      const float diagonal = h_[static_cast<size_t>(begin_ + c) * a_.k + begin_ + c];
      float change[kLanes], x[kLanes], level[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        const float inverse = scale_[r] != 0.0f ? 1.0f / scale_[r] : 0.0f;
        x[r] = level_[at + r] + gradient_[at + r] / diagonal * inverse;
      }
      if (table_) {
        store(level, table_levels(a_.grid.table, load(x), load(lift_)));
      } else {
        for (int r = 0; r < kLanes; ++r) {
          const float most = x[r] > low ? x[r] : low;
          level[r] = ((most < high ? most : high) + 12582912.0f) - 12582912.0f;
        }
      }
      for (int r = 0; r < kLanes; ++r) {
        const float gradient = gradient_[at + r];
        const float step = scale_[r] * (level[r] - level_[at + r]);
        const bool better = step * (step * diagonal - 2.0f * gradient) < 0.0f;
        change[r] = better ? step : 0.0f;
        level_[at + r] = better ? level[r] : level_[at + r];
      }
      apply(c, change);
    }
  }

  // Scale and min of the group by least squares, if what is stored of them is better.
  void fit_again(int g) {
    float lg[kLanes] = {}, og[kLanes] = {}, lhl[kLanes] = {}, ohl[kLanes] = {}, oho = 0.0f;
    for (int c = 0; c < count_; ++c) {
      const float* h = h_ + static_cast<size_t>(begin_ + c) * a_.k + begin_;
      float hl[kLanes], ho = 0.0f;
      for (int i = 0; i < count_; ++i) ho += h[i];
      const float* levels = level_ + static_cast<size_t>(begin_) * kLanes;
      store(hl, plus_products(splat(0.0f), levels, h, count_));
      oho += ho;
      const size_t at = static_cast<size_t>(begin_ + c) * kLanes;
      for (int r = 0; r < kLanes; ++r) {
        lg[r] += level_[at + r] * gradient_[at + r];
        og[r] += gradient_[at + r];
        lhl[r] += level_[at + r] * hl[r];
        ohl[r] += hl[r];
      }
    }
    float more[kLanes], above[kLanes];  // of scale and of min
    for (int r = 0; r < kLanes; ++r) {
      more[r] = above[r] = 0.0f;
      if (r >= rows_) continue;
      float scale = scale_[r] + lg[r] / lhl[r], min = min_[r];
      if (a_.grid.has_min) {
        const float determinant = lhl[r] * oho - ohl[r] * ohl[r];
        scale = scale_[r] + (lg[r] * oho - og[r] * ohl[r]) / determinant;
        min = min_[r] + (lhl[r] * og[r] - ohl[r] * lg[r]) / determinant;
      }
      if (!finite(scale) || !finite(min)) continue;
      if (!store_scale(a_.scales_of(first_ + r, g), &scale, &min)) continue;
      const float s = scale - scale_[r], m = min - min_[r];
      const float gain =
          s * (s * lhl[r] - 2.0f * lg[r]) + m * (m * oho - 2.0f * og[r]) + 2.0f * (s * m) * ohl[r];
      if (!(gain < 0.0f)) continue;
      more[r] = s, above[r] = m;
      scale_[r] = scale, min_[r] = min;
    }
    for (int c = 0; c < count_; ++c) {
      float change[kLanes];
      for (int r = 0; r < kLanes; ++r)
        change[r] = more[r] * level_[static_cast<size_t>(begin_ + c) * kLanes + r] + above[r];
      apply(c, change);
    }
  }

  // What the group's changes do to the gradients of all other columns.
  void spread() {
    add_products(0, begin_, begin_, count_, change_, true);
    add_products(begin_ + count_, a_.k, begin_, count_, change_, true);
  }

  const RoundArgs& a_;
  const float* h_;
  const int first_, rows_, groups_;
  const bool table_;
  int begin_ = 0, count_ = 0;                    // columns of the group
  float scale_[kLanes] = {}, min_[kLanes] = {};  // of the group
  float lift_[kLanes] = {};
  float *level_, *gradient_, *change_;  // [column][16 rows]
};

}  // namespace

// Improves a rounded matrix, 16 rows at a time: group by group, codes and then scale and min take
// the values that lower the output error e H e^T, all else as it stands. H [k][k] is symmetric.
static void refine_block(const RoundArgs& args, const float* h, int sweeps, int block,
                         float* scratch) {
  Refinement refinement(args, h, block, scratch);
  for (int i = 0; i < sweeps; ++i) refinement.sweep();
  refinement.keep();
}

}  // namespace slmq::SLMQ_ISA
