#include "probes/ahead.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace slmq {
namespace {

constexpr int kGroups = 64;                      // of a row: 2048 columns, as models have
constexpr size_t kPieceBytes = size_t{4} << 20;  // of weights that a product reads
constexpr int kPlain = 0x3c;  // every byte: scales of 1.06, so that no product is subnormal

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

AheadTimer::AheadTimer(const Kernels& kernels, size_t bytes)
    : kernels_(kernels), weights_(std::max(bytes, 2 * kPieceBytes), true) {
  std::memset(weights_.data(), kPlain, weights_.size());
}

std::vector<double> AheadTimer::time(Format format, int rows,
                                     const std::vector<Ahead>& candidates) {
  const size_t bytes = pair_bytes(format, kGroups);
  const int pairs = static_cast<int>(kPieceBytes / bytes);
  const std::vector<float> x(static_cast<size_t>(rows) * kGroups * kGroup, 1.0f);
  std::vector<float> y(static_cast<size_t>(rows) * pairs * kPairRows);
  std::vector<uint8_t> panel(static_cast<size_t>(rows) * kGroups * kActivationBytes);
  if (info(format).quantized)
    quantizer(kernels_, format, Activations::a8)(x.data(), kGroups * kGroup, kGroups, rows, 0, rows,
                                                 panel.data());
  std::vector<double> seconds;
  for (const Ahead& ahead : candidates) {
    if (at_ + kPieceBytes > weights_.size()) at_ = 0;
    LinearArgs args{};
    args.weight = weights_.data() + at_;
    args.groups = kGroups;
    args.m = rows;
    args.panel = panel.data();
    args.x = x.data();
    args.x_stride = kGroups * kGroup;
    args.y = y.data();
    args.y_stride = pairs * kPairRows;
    args.ahead = ahead;
    at_ += kPieceBytes;
    const double start = now();
    kernels_.linear[static_cast<int>(format)](args, 0, pairs);
    seconds.push_back(now() - start);
  }
  return seconds;
}

}  // namespace slmq
