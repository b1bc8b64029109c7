#include "quantizer/feedback.h"

#include <cmath>
#include <vector>

namespace slmq {
namespace {

constexpr int kPanel = 32;  // rows of H that are eliminated together
constexpr int R = kFeedbackRows;

struct Trailing {
  double* h;
  int k, begin, end;  // columns of the panel
};

// Takes the panel's columns out of one row of the rest.
void trailing_row(void* opaque, int row) {
  const auto& t = *static_cast<Trailing*>(opaque);
  double* out = t.h + static_cast<size_t>(row) * t.k;
  for (int j = t.end - 1; j >= t.begin; --j) {
    const double* column = t.h + static_cast<size_t>(j) * t.k;
    const double factor = column[row] / column[j];
    for (int i = 0; i <= row; ++i) out[i] -= factor * column[i];
  }
}

// Sixteen rows at a time: lanes are rows.
class Block {
 public:
  Block(const FeedbackArgs& args, int block)
      : f_(args),
        a_(args.round),
        first_(block * R),
        rows_(a_.n - first_ < R ? a_.n - first_ : R),
        groups_(a_.groups()),
        target_(static_cast<size_t>(a_.k) * R),
        error_(static_cast<size_t>(a_.columns) * R),
        trial_(error_.size()),
        levels_(error_.size()),
        trial_levels_(error_.size()) {
    for (int r = 0; r < rows_; ++r)
      for (int j = 0; j < a_.k; ++j) target_[static_cast<size_t>(j) * R + r] = w(r, j);
  }

  bool run() {
    for (int g = 0; g < groups_; ++g) {
      begin_ = g * a_.columns;
      end_ = begin_ + a_.columns < a_.k ? begin_ + a_.columns : a_.k;
      if (!guess(g)) return false;
      choose(g);
      store(g);
      spread();
    }
    return true;
  }

 private:
  float w(int r, int j) const { return a_.w[static_cast<size_t>(first_ + r) * a_.k + j]; }

  // Scales of the group for the targets as they stand.
  bool guess(int g) {
    Group group;
    const int columns = end_ - begin_;
    group.count = (columns + 7) / 8 * 8;
    for (int c = 0; c < group.count; ++c)
      group.weight[c] = c < columns ? f_.weight[begin_ + c] : 0.0f;
    for (int r = 0; r < R; ++r) {
      guess_[r] = {0.0f, 0.0f, 0.0f};
      if (r >= rows_) continue;
      for (int c = 0; c < group.count; ++c)
        group.w[c] = c < columns ? target_[static_cast<size_t>(begin_ + c) * R + r] : 0.0f;
      guess_[r] = search_group(a_.grid, a_.scales_of(first_ + r, g), group);
      if (!std::isfinite(guess_[r].error)) return false;
    }
    return true;
  }

  // The best of a few scales around the guess, each tried with its feedback within the group.
  void choose(int g) {
    constexpr float kFactors[] = {1.0f, 0.97f, 1.03f, 0.94f, 0.9f, 1.06f};
    const float middle = 0.5f * static_cast<float>(a_.grid.low + a_.grid.high);
    for (int t = 0; t < static_cast<int>(sizeof(kFactors) / sizeof(kFactors[0])); ++t) {
      float scale[R], min[R], loss[R];
      for (int r = 0; r < R; ++r) {
        scale[r] = guess_[r].scale * kFactors[t];
        min[r] = a_.grid.has_min ? guess_[r].min + (guess_[r].scale - scale[r]) * middle : 0.0f;
        const int row = first_ + (r < rows_ ? r : 0);
        if (!store_scale(a_.scales_of(row, g), &scale[r], &min[r]))
          scale[r] = guess_[r].scale, min[r] = guess_[r].min;
      }
      attempt(scale, min, loss);
      for (int r = 0; r < R; ++r) {
        if (t > 0 && !(loss[r] < best_[r].error)) continue;
        best_[r] = {scale[r], min[r], loss[r]};
        for (int c = 0; c < end_ - begin_; ++c) {
          error_[static_cast<size_t>(c) * R + r] = trial_[static_cast<size_t>(c) * R + r];
          levels_[static_cast<size_t>(c) * R + r] = trial_levels_[static_cast<size_t>(c) * R + r];
        }
      }
    }
  }

  // Rounds the columns of the group one after another.
  void attempt(const float* scale, const float* min, float* loss) {
    const auto low = static_cast<float>(a_.grid.low), high = static_cast<float>(a_.grid.high);
    float inverse[R];
    for (int r = 0; r < R; ++r) {
      inverse[r] = scale[r] != 0.0f ? 1.0f / scale[r] : 0.0f;
      loss[r] = 0.0f;
    }
    for (int j = begin_; j < end_; ++j) {
      const float* u = f_.feedback + static_cast<size_t>(j) * a_.k + begin_;
      float t[R];
      for (int r = 0; r < R; ++r) t[r] = target_[static_cast<size_t>(j) * R + r];
      for (int i = 0; i < j - begin_; ++i)
        for (int r = 0; r < R; ++r) t[r] += trial_[static_cast<size_t>(i) * R + r] * u[i];
      const size_t at = static_cast<size_t>(j - begin_) * R;
      for (int r = 0; r < R; ++r) {
        float x = (t[r] - min[r]) * inverse[r];
        x = x > low ? x : low;
        x = x < high ? x : high;
        const float level = (x + 12582912.0f) - 12582912.0f;
        const float rounded = scale[r] * level + min[r];
        const float miss = t[r] - rounded;
        loss[r] += f_.weight[j] * (miss * miss);
        trial_levels_[at + r] = level;
        trial_[at + r] = (r < rows_ ? w(r, j) : 0.0f) - rounded;
      }
    }
  }

  void store(int g) {
    for (int r = 0; r < rows_; ++r) {
      const size_t row = static_cast<size_t>(first_) + r;
      a_.scales[row * groups_ + g] = best_[r].scale;
      a_.mins[row * groups_ + g] = best_[r].min;
      uint8_t* codes = a_.codes + row * a_.k + begin_;
      for (int c = 0; c < end_ - begin_; ++c)
        codes[c] = static_cast<uint8_t>(static_cast<int>(levels_[static_cast<size_t>(c) * R + r]) +
                                        a_.grid.zero);
    }
  }

  // Adds the group's errors to the targets of all later columns.
  void spread() {
    for (int j = end_; j < a_.k; ++j) {
      const float* u = f_.feedback + static_cast<size_t>(j) * a_.k + begin_;
      float t[R];
      for (int r = 0; r < R; ++r) t[r] = target_[static_cast<size_t>(j) * R + r];
      for (int i = 0; i < end_ - begin_; ++i)
        for (int r = 0; r < R; ++r) t[r] += error_[static_cast<size_t>(i) * R + r] * u[i];
      for (int r = 0; r < R; ++r) target_[static_cast<size_t>(j) * R + r] = t[r];
    }
  }

  const FeedbackArgs& f_;
  const RoundArgs& a_;
  const int first_, rows_, groups_;
  int begin_ = 0, end_ = 0;                                            // columns of the group
  std::vector<float> target_, error_, trial_, levels_, trial_levels_;  // [column][16 rows]
  Fit guess_[R], best_[R];
};

}  // namespace

bool factor(double* h, int k, EachRow each, void* opaque) {
  for (int end = k; end > 0; end -= kPanel) {
    const int begin = end > kPanel ? end - kPanel : 0;
    for (int j = end - 1; j >= begin; --j) {
      const double* column = h + static_cast<size_t>(j) * k;
      if (!(column[j] > 0.0) || !std::isfinite(column[j])) return false;
      for (int row = begin; row < j; ++row) {
        double* out = h + static_cast<size_t>(row) * k;
        const double factor = column[row] / column[j];
        for (int i = 0; i <= row; ++i) out[i] -= factor * column[i];
      }
    }
    Trailing trailing{h, k, begin, end};
    each(opaque, begin, trailing_row, &trailing);
  }
  for (int j = 0; j < k; ++j) {
    double* column = h + static_cast<size_t>(j) * k;
    for (int i = 0; i < j; ++i) column[i] /= column[j];
  }
  return true;
}

bool feedback_block(const FeedbackArgs& args, int block) { return Block(args, block).run(); }

}  // namespace slmq
