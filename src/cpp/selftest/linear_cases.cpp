// linear in all formats and with all activations: sizes that do not fill tiles, panels and registers, the largest
// and smallest values, ranges of pairs, bias and add.
#include <algorithm>
#include <cstring>

#include "layout/memory.h"
#include "layout/pack.h"
#include "kernels/dispatch.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"
#include "selftest/thin.h"
#include "selftest/turned.h"

namespace slmq::selftest {
namespace {

struct Shape {
  int n, k;
  bool extreme;
  std::vector<int> tokens;  // the most first: fewer must give the same rows
};

// Of formats with runs of groups: whole ones.
const std::vector<Shape>& run_shapes() {
  static const std::vector<Shape> list = {{49, 512, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {64, 256, true, {17, 6, 5, 3, 1}}};
  return list;
}

// Of formats with whole lines of factors.
const std::vector<Shape>& line_shapes() {
  static const std::vector<Shape> list = {{49, 320, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {40, 64, false, {17, 5, 4, 1}},
                                          {64, 128, true, {17, 6, 5, 3, 1}}};
  return list;
}

const std::vector<Shape>& shapes(Format format) {
  if (info(format).run > 1) return run_shapes();
  if (info(format).columns > 1) return line_shapes();
  static const std::vector<Shape> list = {{32, 32, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {49, 100, false, {33, 17, 16, 5, 4, 3, 2, 1}},
                                          {40, 416, false, {17, 5, 4, 1}},
                                          {64, 64, true, {17, 5, 3, 1}}};
  return list;
}

// Tiles A and B in turn become all tiles A and then all tiles B.
void part_tiles(uint8_t* tiles, int groups, int bytes) {
  const std::vector<uint8_t> in_turn(tiles, tiles + ptrdiff_t{2} * groups * bytes);
  for (int i = 0; i < 2 * groups; ++i)
    std::memcpy(tiles + (i / 2 + i % 2 * groups) * bytes, in_turn.data() + i * bytes, bytes);
}

// Bytes at random, or of ones and zeros in turn; float16 where the layout has it.
Memory packed_weight(Inputs* inputs, Format format, const Shape& shape) {
  const FormatInfo& layout = info(format);
  Memory memory(matrix_bytes(format, shape.n, shape.k));
  uint8_t* const end = memory.data() + matrix_bytes(format, shape.n, shape.k);
  int piece = 0;
  const auto put_bytes = [&](uint8_t* p, int bytes) {
    ++piece;
    for (int b = 0; b < bytes; ++b)
      p[b] = static_cast<uint8_t>(!shape.extreme ? inputs->bits() : piece % 2 == 1 ? 0x00 : 0xff);
    return p + bytes;
  };
  const auto put_halves = [&](uint8_t* p, int bytes) {
    for (int h = 0; h < bytes / 2; ++h)
      reinterpret_cast<uint16_t*>(p)[h] = inputs->half(shape.extreme);
    return p + bytes;
  };
  for (uint8_t* p = memory.data(); p < end;) {
    if (format == Format::f32) {
      std::vector<float> values = inputs->values(static_cast<size_t>(layout.pair_group_bytes) / 4);
      if (shape.extreme) inputs->salt(&values, finite_extremes());
      std::memcpy(p, values.data(), 4 * values.size());
      p += 4 * values.size();
      continue;
    }
    if (format == Format::f16) {
      p = put_halves(p, layout.pair_group_bytes);
      continue;
    }
    const int run = run_groups(format, matrix_groups(shape.k));
    uint8_t* const tiles = p;
    for (int i = 0; i < run; ++i) {
      p = put_bytes(p, 2 * layout.tile_bytes);
      const int own = layout.pair_group_bytes - 2 * layout.tile_bytes;
      p = layout.two_level ? put_bytes(p, own) : put_halves(p, own);
    }
    if (layout.row_panels) part_tiles(tiles, run, layout.tile_bytes);
    p = put_halves(p, layout.shared_bytes);
  }
  return memory;
}

// Rows of activations, and the panel of the first m of them.
class Panels {
 public:
  Panels(const Shape& shape, Format format, Activations activations, const std::vector<float>& x)
      : shape_(shape), format_(format), activations_(activations), x_(x) {}
  Memory first(int m) const {
    const int groups = matrix_groups(shape_.k);
    Memory panel(static_cast<size_t>(m) * groups * kActivationBytes);
    quantizer(kernels_named("scalar"), format_, activations_)(x_.data(), groups * kGroup, groups, m,
                                                              0, m, panel.data());
    return panel;
  }

 private:
  const Shape& shape_;
  const Format format_;
  const Activations activations_;
  const std::vector<float>& x_;
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
        x_[static_cast<size_t>(row) * groups_ * kGroup + c] = value(inputs, row, c);
    x_[0] = 300.0f;  // an outlier
  }
  const std::vector<float>& x() const { return x_; }

  // `panel_of(m)`: empty for float formats
  template <class PanelOf>
  void run(const Memory& weight, const PanelOf& panel_of, Hash* hash, Results* results) const {
    for (const bool extras : {false, true}) {
      std::vector<float> most;
      for (const int m : shape_.tokens) {
        const Memory panel = panel_of(m);
        std::vector<float> y(add_.begin(), add_.begin() + static_cast<ptrdiff_t>(m) * stride_);
        multiply(weight, panel.data(), m, extras, {}, y.data());
        hash->floats(y);
        if (most.empty()) most = y;
        results->expect(hash_of(y.data(), y.size()) == hash_of(most.data(), y.size()),
                        name_ + ": a row depends on how many there are");
      }
    }
  }

  // Beside an adapter: the bits of what adds its products behind.
  void run_adapted(const Kernels& kernels, const Memory& weight, const Panels& panels,
                   Inputs* inputs, Results* results) const {
    for (const int rank : {16, 48}) {
      const ThinUp up(inputs, kernels, columns_, rank, shape_.tokens[0]);
      for (const bool extras : {false, true}) {
        for (const int m : shape_.tokens) {
          const Memory panel = panels.first(m);
          std::vector<float> got(add_.begin(), add_.begin() + static_cast<ptrdiff_t>(m) * stride_);
          std::vector<float> expected = got;
          multiply(weight, panel.data(), m, extras, up.args(), got.data());
          multiply(weight, panel.data(), m, extras, {}, expected.data());
          kernels.low_rank_up({up.args(), m, columns_, expected.data(), stride_});
          results->expect(hash_of(got.data(), got.size()) == hash_of(expected.data(), got.size()),
                          name_ + ": an adapter beside it adds something else");
        }
      }
    }
  }

 private:
  // Extreme shapes: rows of the largest and the smallest codes, and of both in turn.
  float value(Inputs* inputs, int row, int column) const {
    if (!shape_.extreme) return inputs->value();
    const bool up = row % 3 == 0 || (row % 3 == 2 && column % 2 == 0);
    return up ? 127.0f : -127.0f;
  }

  void multiply(const Memory& weight, const void* panel, int m, bool extras, const LowRankUp& up,
                float* y) const {
    LinearArgs args{};
    args.up = up;
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

void run_format(Kernel kernel, const std::string& name, Format format, Activations activations,
                Results* results) {
  Inputs inputs(101 + static_cast<uint64_t>(format));
  Hash hash;
  for (const Shape& shape : shapes(format)) {
    const Memory weight = packed_weight(&inputs, format, shape);
    const LinearCase test(kernel, name, shape, &inputs);
    if (info(format).quantized) {
      const Panels panels(shape, format, activations, test.x());
      test.run(weight, [&panels](int m) { return panels.first(m); }, &hash, results);
    } else {
      test.run(weight, [](int) { return Memory(); }, &hash, results);
    }
  }
  results->add(name, hash);
}

void run_adapted(const Kernels& kernels, Format format, Results* results) {
  Inputs inputs(501 + static_cast<uint64_t>(format));
  const Shape& shape = shapes(format)[1];
  const Memory weight = packed_weight(&inputs, format, shape);
  const LinearCase test(kernels.linear[static_cast<int>(format)],
                        std::string("linear.") + info(format).name, shape, &inputs);
  const Panels panels(shape, format, Activations::a8o16, test.x());
  test.run_adapted(kernels, weight, panels, &inputs, results);
}

// Whether the pair-groups of a matrix are those rows that dequantize gave.
bool widens_alike(const Kernels& kernels, Format format, const Memory& weight, const Shape& shape,
                  const std::vector<float>& rows, int stride) {
  const int groups = matrix_groups(shape.k);
  std::vector<float> block(kPairRows * kGroup);
  for (int pair = 0; pair < matrix_pairs(shape.n); ++pair) {
    for (int group = 0; group < groups; ++group) {
      kernels.widen[format == Format::f32 ? 1 : 0](weight.data(), groups, pair, group, block.data(),
                                                   kGroup);
      for (int r = 0; r < std::min(kPairRows, shape.n - pair * kPairRows); ++r) {
        const size_t row = static_cast<size_t>(pair) * kPairRows + static_cast<size_t>(r);
        const int columns = std::min(kGroup, shape.k - group * kGroup);
        const float* wanted = rows.data() + row * static_cast<size_t>(stride) + group * kGroup;
        if (hash_of(block.data() + r * kGroup, static_cast<size_t>(columns)) !=
            hash_of(wanted, static_cast<size_t>(columns)))
          return false;
      }
    }
  }
  return true;
}

void run_dequantize(const Kernels& kernels, Format format, Results* results) {
  const int f = static_cast<int>(format);
  Inputs inputs(201 + static_cast<uint64_t>(f));
  Hash hash;
  for (const Shape& shape : shapes(format)) {
    const Memory weight = packed_weight(&inputs, format, shape);
    const int stride = shape.k + 3;
    std::vector<float> out(static_cast<size_t>(shape.n) * stride, -1.0f);
    const int first = shape.n / 3;
    kernels.dequantize[f](weight.data(), matrix_groups(shape.k), shape.k, first, shape.n,
                          out.data() + static_cast<ptrdiff_t>(first) * stride, stride);
    kernels.dequantize[f](weight.data(), matrix_groups(shape.k), shape.k, 0, first, out.data(),
                          stride);
    hash.floats(out);
    if (!info(format).quantized)
      results->expect(widens_alike(kernels, format, weight, shape, out, stride),
                      std::string("widen.") + info(format).name + ": not what dequantize gives");
  }
  results->add(std::string("dequantize.") + info(format).name, hash);
}

// Rows of gradients, padded with zeros: of zeros, too, and of numbers that break careless code.
std::vector<float> gradients(Inputs* inputs, int n, int stride, int m) {
  std::vector<float> rows(static_cast<size_t>(m) * stride, 0.0f);
  for (int row = 0; row < m; ++row) {
    std::vector<float> values = inputs->values(static_cast<size_t>(n), row % 5 == 1 ? 0.0f : 1.0f);
    if (row % 5 == 2) inputs->salt(&values, finite_extremes());
    if (row % 5 == 3) inputs->salt(&values, all_extremes());
    std::copy(values.begin(), values.end(), rows.begin() + static_cast<ptrdiff_t>(row) * stride);
  }
  return rows;
}

void run_turned(const Kernels& kernels, Format format, Results* results) {
  Inputs inputs(401 + static_cast<uint64_t>(format));
  Hash hash;
  std::vector<Shape> list = shapes(format);
  list.push_back({300, list.front().k, false, {}});  // more than a slab
  for (const Shape& shape : list) {
    const Memory weight = packed_weight(&inputs, format, shape);
    const int groups = matrix_groups(shape.k);
    const int stride = static_cast<int>(round_up(shape.n, kPairRows)) + kLanes;
    for (const int m : {1, 3, 21}) {
      const std::vector<float> x = gradients(&inputs, shape.n, stride, m);
      std::vector<float> y = inputs.values(static_cast<size_t>(m) * groups * kGroup);
      add_turned(kernels, format, weight.data(), groups, shape.n, x, stride, m, &y);
      hash.floats(y);
    }
  }
  results->add(std::string("turned.") + info(format).name, hash);
}

}  // namespace

void run_linear(const Kernels& kernels, Results* results) {
  for (int f = 0; f < kFormats; ++f) {
    const auto format = static_cast<Format>(f);
    const std::string name = std::string("linear.") + info(format).name;
    if (!info(format).quantized) {
      run_format(kernels.linear[f], name, format, Activations::a8, results);
      continue;
    }
    const auto& names = info(format).row_panels ? kRowActivationNames : kActivationNames;
    for (int i = 0; i < kActivations; ++i)
      run_format(kernels.linear[f], name + "." + names[i], format, static_cast<Activations>(i),
                 results);
    if (!info(format).row_panels) run_adapted(kernels, format, results);
    run_turned(kernels, format, results);
  }
  for (int f = 0; f < kFormats; ++f) run_dequantize(kernels, static_cast<Format>(f), results);
}

}  // namespace slmq::selftest
