// Error feedback across columns: what a column loses to rounding, later columns make up for.
//
// With H = X^T X of the inputs, a row's output error is e H e^T, e = w - rounded(w). Written as
// H = (U + 1) D (U + 1)^T, U strictly upper triangular, it is the sum over the columns j of
// D[j] * (target[j] - rounded[j])^2 with target[j] = w[j] + sum over i < j of e[i] * U[i][j]: each
// column is rounded towards its target. That is GPTQ (Frantar et al., 2023) in the form of LDLQ
// (Chee et al., 2023), which needs no inverse of H.
namespace slmq::SLMQ_ISA {

static_assert(kLanes == kRoundedRows);

// sum + values[0] * by[0] + values[1] * by[1] ..., in order, rounded after every product and sum.
SLMQ_INLINE f32x16 plus_products(f32x16 sum, const float* values, const float* by, int count) {
  for (int i = 0; i < count; ++i)
    sum = add(sum, mul(load(values + static_cast<size_t>(i) * kLanes), splat(by[i])));
  return sum;
}

namespace {

// Sixteen rows at a time: lanes are rows.
class FeedbackBlock {
 public:
  FeedbackBlock(const FeedbackArgs& args, int block, float* scratch)
      : f_(args),
        a_(args.round),
        first_(block * kLanes),
        rows_(a_.n - first_ < kLanes ? a_.n - first_ : kLanes),
        groups_(a_.groups()),
        target_(scratch),
        error_(target_ + static_cast<size_t>(a_.k) * kLanes),
        trial_(error_ + static_cast<size_t>(a_.columns) * kLanes),
        levels_(trial_ + static_cast<size_t>(a_.columns) * kLanes),
        trial_levels_(levels_ + static_cast<size_t>(a_.columns) * kLanes) {
    for (size_t i = 0; i < static_cast<size_t>(a_.k) * kLanes; ++i) target_[i] = 0.0f;
    for (int r = 0; r < rows_; ++r)
      for (int j = 0; j < a_.k; ++j) target_[static_cast<size_t>(j) * kLanes + r] = w(r, j);
  }

  bool run() {
    for (int g = 0; g < groups_; ++g) {
      begin_ = g * a_.columns;
      end_ = begin_ + a_.columns < a_.k ? begin_ + a_.columns : a_.k;
      if (!guess(g)) return false;
      choose(g);
      keep(g);
      spread();
    }
    return true;
  }

 private:
  float w(int r, int j) const { return a_.w[static_cast<size_t>(first_ + r) * a_.k + j]; }

  // Scales of the group for the targets as they stand.
  bool guess(int g) {
    Group group{};
    const int columns = end_ - begin_;
    group.count = (columns + 7) / 8 * 8;
    for (int c = 0; c < group.count; ++c)
      group.weight[c] = c < columns ? f_.weight[begin_ + c] : 0.0f;
    for (int r = 0; r < kLanes; ++r) {
      guess_[r] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (r >= rows_) continue;
      for (int c = 0; c < group.count; ++c)
        group.w[c] = c < columns ? target_[static_cast<size_t>(begin_ + c) * kLanes + r] : 0.0f;
      guess_[r] = search_group(a_.grid, a_.scales_of(first_ + r, g), group);
      if (!finite(guess_[r].error)) return false;
    }
    return true;
  }

  // The best of a few scales around the guess, each tried with its feedback within the group, and of the
  // other table.
  void choose(int g) {
    constexpr float kFactors[] = {1.0f, 0.97f, 1.03f, 0.94f, 0.9f, 1.06f};
    constexpr int kCount = sizeof(kFactors) / sizeof(kFactors[0]);
    const float other = a_.grid.table.lift;
    const float middle = 0.5f * static_cast<float>(a_.grid.low + a_.grid.high);
    for (int t = 0; t < kCount + (other != 0.0f ? 1 : 0); ++t) {
      float scale[kLanes], min[kLanes], lift[kLanes], loss[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        scale[r] = guess_[r].scale * kFactors[t < kCount ? t : 0];
        lift[r] = t < kCount ? guess_[r].lift : other - guess_[r].lift;
        min[r] = a_.grid.has_min ? guess_[r].min + (guess_[r].scale - scale[r]) * middle : 0.0f;
        const int row = first_ + (r < rows_ ? r : 0);
        if (!store_scale(a_.scales_of(row, g), &scale[r], &min[r]))
          scale[r] = guess_[r].scale, min[r] = guess_[r].min;
      }
      attempt(scale, min, lift, loss);
      for (int r = 0; r < kLanes; ++r) {
        if (t > 0 && !(loss[r] < best_[r].error)) continue;
        best_[r] = {scale[r], min[r], loss[r], lift[r]};
        for (int c = 0; c < end_ - begin_; ++c) {
          error_[static_cast<size_t>(c) * kLanes + r] = trial_[static_cast<size_t>(c) * kLanes + r];
          levels_[static_cast<size_t>(c) * kLanes + r] =
              trial_levels_[static_cast<size_t>(c) * kLanes + r];
        }
      }
    }
  }

  // Rounds the columns of the group one after another.
  void attempt(const float* scale, const float* min, const float* lift, float* loss) {
    const auto low = static_cast<float>(a_.grid.low), high = static_cast<float>(a_.grid.high);
    float inverse[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      inverse[r] = scale[r] != 0.0f ? 1.0f / scale[r] : 0.0f;
      loss[r] = 0.0f;
    }
    for (int j = begin_; j < end_; ++j) {
      const float* u = f_.feedback + static_cast<size_t>(j) * a_.k + begin_;
      float t[kLanes];
      store(t,
            plus_products(load(target_ + static_cast<size_t>(j) * kLanes), trial_, u, j - begin_));
      const size_t at = static_cast<size_t>(j - begin_) * kLanes;
      float* levels = trial_levels_ + at;
      if (a_.grid.table.count != 0) {
        store(levels, table_levels(a_.grid.table, mul(load(t), load(inverse)), load(lift)));
      } else {
        for (int r = 0; r < kLanes; ++r) {
          float x = (t[r] - min[r]) * inverse[r];
          x = x > low ? x : low;
          x = x < high ? x : high;
          levels[r] = (x + 12582912.0f) - 12582912.0f;
        }
      }
      for (int r = 0; r < kLanes; ++r) {
        const float rounded = scale[r] * levels[r] + min[r];
        const float miss = t[r] - rounded;
        loss[r] += f_.weight[j] * (miss * miss);
        trial_[at + r] = (r < rows_ ? w(r, j) : 0.0f) - rounded;
      }
    }
  }

  void keep(int g) {
    for (int r = 0; r < rows_; ++r) {
      const size_t row = static_cast<size_t>(first_) + r;
      a_.scales[row * groups_ + g] = best_[r].scale;
      const float lift = best_[r].lift;
      a_.mins[row * groups_ + g] = a_.grid.table.count != 0 ? lift : best_[r].min;
      uint8_t* codes = a_.codes + row * a_.k + begin_;
      for (int c = 0; c < end_ - begin_; ++c)
        codes[c] = static_cast<uint8_t>(
            code_of(a_.grid, levels_[static_cast<size_t>(c) * kLanes + r], lift));
    }
  }

  // Adds the group's errors to the targets of all later columns.
  void spread() {
    for (int j = end_; j < a_.k; ++j) {
      const float* u = f_.feedback + static_cast<size_t>(j) * a_.k + begin_;
      float* target = target_ + static_cast<size_t>(j) * kLanes;
      store(target, plus_products(load(target), error_, u, end_ - begin_));
    }
  }

  const FeedbackArgs& f_;
  const RoundArgs& a_;
  const int first_, rows_, groups_;
  int begin_ = 0, end_ = 0;                                    // columns of the group
  float *target_, *error_, *trial_, *levels_, *trial_levels_;  // [column][16 rows]
  Fit guess_[kLanes], best_[kLanes];
};

}  // namespace

// Rows of block `block` (16 rows). False if some scale does not fit.
static bool feedback_block(const FeedbackArgs& args, int block, float* scratch) {
  return FeedbackBlock(args, block, scratch).run();
}

}  // namespace slmq::SLMQ_ISA
