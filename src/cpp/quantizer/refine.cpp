#include <cmath>
#include <vector>

#include "quantizer/feedback.h"

namespace slmq {
namespace {

constexpr int R = kFeedbackRows;

// Sixteen rows at a time: lanes are rows. With gradient = H e, changing the rounded weights by c
// changes a row's error by -2 c . gradient + c H c.
class Refinement {
 public:
  Refinement(const RoundArgs& args, const float* h, int block)
      : a_(args),
        h_(h),
        first_(block * R),
        rows_(args.n - first_ < R ? args.n - first_ : R),
        groups_(args.groups()),
        level_(static_cast<size_t>(args.k) * R),
        gradient_(level_.size()),
        change_(static_cast<size_t>(args.columns) * R) {
    std::vector<float> error(level_.size());
    for (int r = 0; r < rows_; ++r) {
      const size_t row = static_cast<size_t>(first_) + r;
      for (int j = 0; j < a_.k; ++j) {
        const size_t at = row * groups_ + j / a_.columns, lane = static_cast<size_t>(j) * R + r;
        level_[lane] =
            static_cast<float>(static_cast<int>(a_.codes[row * a_.k + j]) - a_.grid.zero);
        error[lane] = a_.w[row * a_.k + j] - (a_.scales[at] * level_[lane] + a_.mins[at]);
      }
    }
    for (int j = 0; j < a_.k; ++j) add_products(j, 0, a_.k, error.data(), 1.0f);
  }

  void sweep() {
    for (int g = 0; g < groups_; ++g) {
      begin_ = g * a_.columns;
      count_ = a_.k - begin_ < a_.columns ? a_.k - begin_ : a_.columns;
      for (int r = 0; r < R; ++r) {
        const size_t at = static_cast<size_t>(first_ + r) * groups_ + g;
        scale_[r] = r < rows_ ? a_.scales[at] : 0.0f;
        min_[r] = r < rows_ ? a_.mins[at] : 0.0f;
      }
      for (float& c : change_) c = 0.0f;
      round_again();
      fit_again(g);
      round_again();
      spread();
      for (int r = 0; r < rows_; ++r) {
        const size_t at = static_cast<size_t>(first_ + r) * groups_ + g;
        a_.scales[at] = scale_[r];
        a_.mins[at] = min_[r];
      }
    }
  }

  void store() const {
    for (int r = 0; r < rows_; ++r)
      for (int j = 0; j < a_.k; ++j)
        a_.codes[static_cast<size_t>(first_ + r) * a_.k + j] = static_cast<uint8_t>(
            static_cast<int>(level_[static_cast<size_t>(j) * R + r]) + a_.grid.zero);
  }

 private:
  // gradient[j] += sign * sum over i in begin..begin + count of H[j][i] * values[i].
  void add_products(int j, int begin, int count, const float* values, float sign) {
    const float* h = h_ + static_cast<size_t>(j) * a_.k + begin;
    float sum[R] = {};
    for (int i = 0; i < count; ++i)
      for (int r = 0; r < R; ++r) sum[r] += h[i] * values[static_cast<size_t>(i) * R + r];
    float* gradient = gradient_.data() + static_cast<size_t>(j) * R;
    for (int r = 0; r < R; ++r) gradient[r] += sign * sum[r];
  }

  // Notes that column c of the group changes, and what that does to gradients within the group.
  void apply(int c, const float* change) {
    for (int r = 0; r < R; ++r) change_[static_cast<size_t>(c) * R + r] += change[r];
    const float* h = h_ + static_cast<size_t>(begin_ + c) * a_.k + begin_;
    for (int i = 0; i < count_; ++i) {
      float* gradient = gradient_.data() + static_cast<size_t>(begin_ + i) * R;
      for (int r = 0; r < R; ++r) gradient[r] -= h[i] * change[r];
    }
  }

  // Every code of the group to where its row's error is least.
  void round_again() {
    const auto low = static_cast<float>(a_.grid.low), high = static_cast<float>(a_.grid.high);
    for (int c = 0; c < count_; ++c) {
      const size_t at = static_cast<size_t>(begin_ + c) * R;
      const float diagonal = h_[static_cast<size_t>(begin_ + c) * a_.k + begin_ + c];
      float change[R];
      for (int r = 0; r < R; ++r) {
        const float inverse = scale_[r] != 0.0f ? 1.0f / scale_[r] : 0.0f;
        const float gradient = gradient_[at + r];
        float x = level_[at + r] + gradient / diagonal * inverse;
        x = x > low ? x : low;
        x = x < high ? x : high;
        const float level = (x + 12582912.0f) - 12582912.0f;
        const float step = scale_[r] * (level - level_[at + r]);
        const bool better = step * (step * diagonal - 2.0f * gradient) < 0.0f;
        change[r] = better ? step : 0.0f;
        level_[at + r] = better ? level : level_[at + r];
      }
      apply(c, change);
    }
  }

  // Scale and min of the group by least squares, if what is stored of them is better.
  void fit_again(int g) {
    float lg[R] = {}, og[R] = {}, lhl[R] = {}, ohl[R] = {}, oho = 0.0f;
    for (int c = 0; c < count_; ++c) {
      const float* h = h_ + static_cast<size_t>(begin_ + c) * a_.k + begin_;
      float hl[R] = {}, ho = 0.0f;
      for (int i = 0; i < count_; ++i) {
        ho += h[i];
        const float* level = level_.data() + static_cast<size_t>(begin_ + i) * R;
        for (int r = 0; r < R; ++r) hl[r] += h[i] * level[r];
      }
      oho += ho;
      const size_t at = static_cast<size_t>(begin_ + c) * R;
      for (int r = 0; r < R; ++r) {
        lg[r] += level_[at + r] * gradient_[at + r];
        og[r] += gradient_[at + r];
        lhl[r] += level_[at + r] * hl[r];
        ohl[r] += hl[r];
      }
    }
    float more[R], above[R];  // of scale and of min
    for (int r = 0; r < R; ++r) {
      more[r] = above[r] = 0.0f;
      if (r >= rows_) continue;
      float scale = scale_[r] + lg[r] / lhl[r], min = min_[r];
      if (a_.grid.has_min) {
        const float determinant = lhl[r] * oho - ohl[r] * ohl[r];
        scale = scale_[r] + (lg[r] * oho - og[r] * ohl[r]) / determinant;
        min = min_[r] + (lhl[r] * og[r] - ohl[r] * lg[r]) / determinant;
      }
      if (!std::isfinite(scale) || !std::isfinite(min)) continue;
      if (!store_scale(a_.scales_of(first_ + r, g), &scale, &min)) continue;
      const float s = scale - scale_[r], m = min - min_[r];
      const float gain =
          s * (s * lhl[r] - 2.0f * lg[r]) + m * (m * oho - 2.0f * og[r]) + 2.0f * (s * m) * ohl[r];
      if (!(gain < 0.0f)) continue;
      more[r] = s, above[r] = m;
      scale_[r] = scale, min_[r] = min;
    }
    for (int c = 0; c < count_; ++c) {
      float change[R];
      for (int r = 0; r < R; ++r)
        change[r] = more[r] * level_[static_cast<size_t>(begin_ + c) * R + r] + above[r];
      apply(c, change);
    }
  }

  // What the group's changes do to the gradients of all other columns.
  void spread() {
    for (int j = 0; j < a_.k; ++j)
      if (j < begin_ || j >= begin_ + count_)
        add_products(j, begin_, count_, change_.data(), -1.0f);
  }

  const RoundArgs& a_;
  const float* h_;
  const int first_, rows_, groups_;
  int begin_ = 0, count_ = 0;                     // columns of the group
  float scale_[R] = {}, min_[R] = {};             // of the group
  std::vector<float> level_, gradient_, change_;  // [column][16 rows]
};

}  // namespace

void refine_block(const RoundArgs& args, const float* h, int sweeps, int block) {
  Refinement refinement(args, h, block);
  for (int i = 0; i < sweeps; ++i) refinement.sweep();
  refinement.store();
}

}  // namespace slmq
