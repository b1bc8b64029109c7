// linear and linear16 in all formats: sizes that do not fill tiles, panels and registers, the largest
// and smallest values, ranges of pairs, bias and add.
#include <algorithm>
#include <cstring>

#include "core/memory.h"
#include "core/pack.h"
#include "kernels/dispatch.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"

namespace slmq::selftest {
namespace {

struct Shape {
  int n, k;
  bool extreme;
  std::vector<int> tokens;  // the most first: fewer must give the same rows
};

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {{32, 32, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {49, 100, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {40, 416, false, {17, 5, 4, 1}},
                                          {64, 64, true, {17, 5, 3, 1}}};
  return list;
}

Memory packed_weight(Inputs* inputs, Format format, const Shape& shape) {
  Memory memory(matrix_bytes(format, shape.n, shape.k));
  const int groups = matrix_groups(shape.k), pairs = matrix_pairs(shape.n);
  const int tiles = 2 * info(format).tile_bytes, bytes = info(format).pair_group_bytes;
  uint8_t* p = memory.data();
  for (int i = 0; i < pairs * groups; ++i, p += bytes) {
    auto* halves = reinterpret_cast<uint16_t*>(p);
    auto* floats = reinterpret_cast<float*>(p);
    if (format == Format::f32) {
      std::vector<float> values = inputs->values(static_cast<size_t>(bytes) / 4);
      if (shape.extreme) inputs->salt(&values, finite_extremes());
      std::copy(values.begin(), values.end(), floats);
      continue;
    }
    const int first_half = format == Format::f16 ? 0 : tiles / 2;
    for (int b = 0; b < 2 * first_half; ++b)
      p[b] = static_cast<uint8_t>(!shape.extreme ? inputs->bits() : i % 2 == 0 ? 0x00 : 0xff);
    for (int h = first_half; h < bytes / 2; ++h) halves[h] = inputs->half(shape.extreme);
  }
  return memory;
}

// Rows of activations, and the panel of the first m of them.
template <class Block>
class Panels {
 public:
  Panels(const Shape& shape, const std::vector<float>& x)
      : groups_(matrix_groups(shape.k)), blocks_(x.size() / kGroup) {
    const int rows = static_cast<int>(blocks_.size()) / groups_;
    constexpr bool kWide = sizeof(Block) == sizeof(A16Block);
    for (int row = 0; row < rows; ++row) {
      Block* block = blocks_.data() + static_cast<ptrdiff_t>(row) * groups_;
      kernels_named("scalar").quantize[kWide ? 1 : 0](
          x.data() + static_cast<ptrdiff_t>(row) * groups_ * kGroup, groups_ * kGroup, groups_, 1,
          0, 1, block);
      for (int g = 0; shape.extreme && g < groups_; ++g) fill(row % 3, block + g);
    }
  }
  std::vector<Block> first(int m) const {
    std::vector<Block> panel(static_cast<size_t>(m) * groups_);
    for (int row = 0; row < m; ++row)
      for (int g = 0; g < groups_; ++g)
        panel[panel_offset(groups_, m, row, g)] = blocks_[static_cast<size_t>(row) * groups_ + g];
    return panel;
  }

 private:
  static void fill(int kind, A8Block* block) {
    const int q = kind == 0 ? 127 : -127;
    for (int8_t& value : block->high) value = static_cast<int8_t>(q);
    block->sum = kGroup * q;
  }
  static void fill(int kind, A16Block* block) {
    const int high = kind == 0 ? 127 : -127, low = kind == 0 ? 0 : kind == 1 ? 127 : -128;
    for (int8_t& value : block->high) value = static_cast<int8_t>(high);
    for (int8_t& value : block->low) value = static_cast<int8_t>(low);
    block->sum = kGroup * (256 * high + low);
  }

  const int groups_;
  std::vector<Block> blocks_;
};

using Kernel = void (*)(const LinearArgs&, int, int);

class LinearCase {
 public:
  LinearCase(Kernel kernel, std::string name, const Shape& shape, Inputs* inputs)
      : kernel_(kernel),
        name_(std::move(name)),
        shape_(shape),
        groups_(matrix_groups(shape.k)),
        columns_(matrix_pairs(shape.n) * kPairRows),
        stride_(columns_ + 16),
        x_(static_cast<size_t>(shape.tokens[0]) * groups_ * kGroup),
        bias_(inputs->values(static_cast<size_t>(columns_))),
        add_(inputs->values(static_cast<size_t>(shape.tokens[0]) * stride_)) {
    for (int row = 0; row < shape.tokens[0]; ++row)
      for (int c = 0; c < shape.k; ++c)
        x_[static_cast<size_t>(row) * groups_ * kGroup + c] = inputs->value();
    x_[0] = 300.0f;  // an outlier
  }
  const std::vector<float>& x() const { return x_; }

  // `panel(m)`: null for float formats
  template <class PanelOf>
  void run(const Memory& weight, const PanelOf& panel_of, Hash* hash, Results* results) const {
    for (const bool extras : {false, true}) {
      std::vector<float> most;
      for (const int m : shape_.tokens) {
        const auto panel = panel_of(m);
        std::vector<float> y(add_.begin(), add_.begin() + static_cast<ptrdiff_t>(m) * stride_);
        multiply(weight, panel.empty() ? nullptr : panel.data(), m, extras, y.data());
        hash->floats(y);
        if (most.empty()) most = y;
        results->expect(hash_of(y.data(), y.size()) == hash_of(most.data(), y.size()),
                        name_ + ": a row depends on how many there are");
      }
    }
  }

 private:
  void multiply(const Memory& weight, const void* panel, int m, bool extras, float* y) const {
    LinearArgs args{};
    args.weight = weight.data();
    args.groups = groups_;
    args.m = m;
    args.panel = panel;
    args.x = x_.data();
    args.x_stride = groups_ * kGroup;
    args.y = y;
    args.y_stride = stride_;
    if (extras) {
      args.bias = bias_.data();
      args.add = y;  // in place
      args.add_stride = stride_;
    }
    const int pairs = columns_ / kPairRows;
    kernel_(args, pairs / 2, pairs);
    kernel_(args, 0, pairs / 2);
  }

  const Kernel kernel_;
  const std::string name_;
  const Shape& shape_;
  const int groups_, columns_, stride_;
  std::vector<float> x_, bias_, add_;
};

template <class Block>
void run_format(Kernel kernel, const std::string& name, Format format, Results* results) {
  Inputs inputs(101 + static_cast<uint64_t>(format));
  Hash hash;
  for (const Shape& shape : shapes()) {
    const Memory weight = packed_weight(&inputs, format, shape);
    const LinearCase test(kernel, name, shape, &inputs);
    if (info(format).quantized) {
      const Panels<Block> panels(shape, test.x());
      test.run(weight, [&panels](int m) { return panels.first(m); }, &hash, results);
    } else {
      test.run(weight, [](int) { return std::vector<Block>(); }, &hash, results);
    }
  }
  results->add(name, hash);
}

}  // namespace

void run_linear(const Kernels& kernels, Results* results) {
  for (int f = 0; f < kFormats; ++f) {
    const std::string name = kFormatInfo[f].name;
    run_format<A8Block>(kernels.linear[f], "linear." + name, static_cast<Format>(f), results);
    run_format<A16Block>(kernels.linear16[f], "linear16." + name, static_cast<Format>(f), results);
  }
  for (int f = 0; f < kFormats; ++f) {
    Inputs inputs(201 + static_cast<uint64_t>(f));
    Hash hash;
    for (const Shape& shape : shapes()) {
      const Memory weight = packed_weight(&inputs, static_cast<Format>(f), shape);
      const int stride = shape.k + 3;
      std::vector<float> out(static_cast<size_t>(shape.n) * stride, -1.0f);
      const int first = shape.n / 3;
      kernels.dequantize[f](weight.data(), matrix_groups(shape.k), shape.k, first, shape.n,
                            out.data() + static_cast<ptrdiff_t>(first) * stride, stride);
      kernels.dequantize[f](weight.data(), matrix_groups(shape.k), shape.k, 0, first, out.data(),
                            stride);
      hash.floats(out);
    }
    results->add(std::string("dequantize.") + kFormatInfo[f].name, hash);
  }
}

}  // namespace slmq::selftest
