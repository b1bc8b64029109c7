#include "quantizer/factor.h"

#include <cmath>
#include <cstddef>

namespace slmq {
namespace {

constexpr int kPanel = 32;  // rows of H that are eliminated together

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

}  // namespace slmq
