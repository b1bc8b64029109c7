#include "kernels/trial.h"

#include <cstring>

namespace slmq {
namespace {

constexpr int kMostGroups = 8, kTokens = kPanelRows + 1, kStride = kMostGroups * kGroup;

// Bytes that are all different enough; the upper byte of a float16 makes it smaller than 2.
void fill(uint8_t* bytes, size_t n) {
  uint32_t state = 1;
  for (size_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    bytes[i] = static_cast<uint8_t>((state >> 24) & (i % 2 == 0 ? 0xff : 0xbf));
  }
}

struct Trial {
  alignas(64) uint8_t weight[kMostGroups * info(Format::q8g32a).run_bytes];
  alignas(64) uint8_t panel[kTokens * kMostGroups * kActivationBytes];
  alignas(64) float x[kTokens * kStride];
  alignas(64) float got[kTokens * kPairRows], expected[kTokens * kPairRows];

  bool agrees(Format format, const Kernels& table, const Kernels& reference) {
    LinearArgs args = {};
    args.weight = weight;
    args.groups = info(format).run > 2 ? info(format).run : 2;  // a run is the least
    args.m = kTokens;
    args.panel = panel;
    args.y_stride = kPairRows;
    quantizer(reference, format, Activations::a8o16)(x, kStride, args.groups, kTokens, 0, kTokens,
                                                     panel);
    args.y = got;
    table.linear[static_cast<int>(format)](args, 0, 1);
    args.y = expected;
    reference.linear[static_cast<int>(format)](args, 0, 1);
    return std::memcmp(got, expected, sizeof got) == 0;
  }
};

}  // namespace

bool products_agree(const Kernels& table, const Kernels& reference) {
  Trial trial;
  fill(trial.weight, sizeof trial.weight);
  uint32_t state = 7;
  for (float& x : trial.x) {  // some columns stand out: their groups get two planes
    state = state * 1664525u + 1013904223u;
    const auto value = static_cast<float>(static_cast<int32_t>(state) >> 8);
    x = (state >> 8) % 97 == 0 ? value * 16.0f : value;
  }
  for (int f = 0; f < kFormats; ++f) {
    const auto format = static_cast<Format>(f);
    if (info(format).quantized && !trial.agrees(format, table, reference)) return false;
  }
  return true;
}

}  // namespace slmq
