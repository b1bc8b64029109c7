// Norms and rope over rows, forward and back; the loss.
#include <algorithm>
#include <cmath>

#include "machine/math64.h"
#include "training/operators.h"

namespace slmq {
namespace {

// Heads that are no multiple of 32 columns are copied to where a kernel may touch what is behind.
class Heads {
 public:
  explicit Heads(const Norm& norm)
      : norm_(norm), padded_(static_cast<size_t>(round_up(norm.width, kGroup))) {}

  bool in_place() const { return norm_.heads == 1 || norm_.width % kGroup == 0; }
  size_t padded() const { return padded_; }
  void take(const float* from, float* to) const {
    std::copy_n(from, norm_.width, to);
    std::fill(to + norm_.width, to + padded_, 0.0f);
  }

 private:
  const Norm& norm_;
  const size_t padded_;
};

}  // namespace

void norm(Workers& workers, const Norm& norm, const Rows& x, const Rows& y) {
  const Kernels& kernels = workers.kernels;
  const Heads heads(norm);
  workers.reserve(2 * heads.padded());
  const auto one = [&](const float* from, float* to) {
    if (norm.layer) {
      kernels.layernorm(from, norm.weight, norm.bias, norm.width, norm.eps, to);
    } else {
      kernels.rmsnorm(from, norm.weight, norm.width, norm.eps, to);
    }
  };
  each_row(workers, x.m, [&](int row, int thread) {
    for (int head = 0; head < norm.heads; ++head) {
      const float* from = x.row(row) + static_cast<ptrdiff_t>(head) * norm.width;
      float* to = y.row(row) + static_cast<ptrdiff_t>(head) * norm.width;
      if (heads.in_place()) {
        one(from, to);
        continue;
      }
      float* copy = workers.own(thread);
      heads.take(from, copy);
      one(copy, copy + heads.padded());
      std::copy_n(copy + heads.padded(), norm.width, to);
    }
  });
}

void norm_back(Workers& workers, const Norm& norm, const Rows& x, const Rows& dy, const Rows& dx) {
  const Kernels& kernels = workers.kernels;
  const auto back = norm.layer ? kernels.layernorm_back : kernels.rmsnorm_back;
  const Heads heads(norm);
  workers.reserve(3 * heads.padded());
  each_row(workers, x.m, [&](int row, int thread) {
    for (int head = 0; head < norm.heads; ++head) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(head) * norm.width;
      const float *from = x.row(row) + at, *slopes = dy.row(row) + at;
      float* to = dx.row(row) + at;
      if (heads.in_place()) {
        back(from, norm.weight, norm.width, norm.eps, slopes, to);
        continue;
      }
      float* copy = workers.own(thread);
      float *copied_slopes = copy + heads.padded(), *sums = copied_slopes + heads.padded();
      heads.take(from, copy);
      heads.take(slopes, copied_slopes);
      heads.take(to, sums);
      back(copy, norm.weight, norm.width, norm.eps, copied_slopes, sums);
      std::copy_n(sums, norm.width, to);
    }
  });
}

void embed(Workers& workers, const Matrix& matrix, const int32_t* ids, float scale, const Rows& y) {
  const auto dequantize = workers.kernels.dequantize[static_cast<int>(matrix.format)];
  each_row(workers, y.m, [&](int row, int) {
    float* out = y.row(row);
    dequantize(matrix.data, matrix.groups(), matrix.k, ids[row], ids[row] + 1, out, y.stride);
    for (int c = 0; c < matrix.k; ++c) out[c] = out[c] * scale;
  });
}

void turn(Workers& workers, const Turn& turn, const Texts& texts, const Rows& x, const Rows& y) {
  const int half = turn.rotary / 2;
  const size_t angles = static_cast<size_t>(texts.longest()) * half;
  float* negative = workers.shared(angles);
  if (turn.back)
    for (size_t i = 0; i < angles; ++i) negative[i] = -turn.sines[i];
  const float* sines = turn.back ? negative : turn.sines;
  for (int text = 0; text < texts.count; ++text) {
    const int start = texts.starts[text];
    each_row(workers, texts.length(text), [&](int place, int) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(place) * half;
      float* to = y.row(start + place);
      if (y.data != x.data) std::copy_n(x.row(start + place), x.stride, to);
      for (int head = 0; head < turn.heads; ++head, to += turn.head_dim)
        workers.kernels.rope(to, turn.cosines + at, sines + at, turn.rotary);
    });
  }
}

void loss(Workers& workers, const Head& head, const Rows& x, const int32_t* targets, double* losses,
          const Rows* dx, const HeadSlope& slope) {
  constexpr int kRows = 128;  // whose logits exist at once
  const Kernels& kernels = workers.kernels;
  const int n = head.matrix->n, width = static_cast<int>(round_up(n, kGroup));
  // Rows that are a multiple of 4 KB apart would meet in a few sets of a cache.
  const int stride = width % 1024 == 0 ? width + kGroup : width;
  float* logits = workers.shared(static_cast<size_t>(std::min(kRows, x.m)) * stride);
  float* capped = head.softcap == 0.0f ? nullptr : logits;
  for (int begin = 0; begin < x.m; begin += kRows) {
    const int rows = std::min(kRows, x.m - begin);
    const Rows chunk{logits, rows, stride};
    const LinearUse use{head.matrix, head.bias, nullptr, chunk};
    const Rows read{x.row(begin), rows, x.stride};
    linear(workers, read, head.activations, {use}, nullptr);
    workers.reserve(capped == nullptr ? 0 : static_cast<size_t>(width));
    workers.each(rows, [&](int row, int thread) {
      float *values = chunk.row(row), parts[3];
      if (capped != nullptr) {
        kernels.softcap(values, width, head.softcap, values);
        std::copy_n(values, width, workers.own(thread));
      }
      kernels.cross_entropy(values, n, targets[begin + row], head.scale, parts);
      losses[begin + row] = exact_log(parts[1]) + parts[0] - static_cast<double>(parts[2]);
      if (!std::isfinite(parts[1])) losses[begin + row] = std::nan("");
      if (capped != nullptr)
        kernels.softcap_back(workers.own(thread), values, width, head.softcap, values);
      std::fill(values + n, values + width, 0.0f);
    });
    if (dx == nullptr) continue;
    if (slope.weight != nullptr)
      weight_back(workers, read, chunk, {slope.weight, n, head.matrix->k});
    if (slope.bias != nullptr) bias_back(workers, chunk, n, slope.bias);
    linear_back(workers, {use}, false, {dx->row(begin), rows, dx->stride});
  }
}

}  // namespace slmq
