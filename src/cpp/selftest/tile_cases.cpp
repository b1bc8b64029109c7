// The products with matrix registers, on a model of the registers: any CPU can run them.
#include "selftest/model_tiles.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "machine/amx.h"
#include "machine/inline.h"
#include "layout/matrix.h"
#include "layout/memory.h"
#include "kernels/dispatch.h"
#include "kernels/trial.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"
#include "selftest/thin.h"
#include "selftest/turned.h"

#include "vec/scalar.h"

#define SLMQ_ISA scalar
#include "kernels/math.inl.h"

#include "kernels/linear.inl.h"

#include "kernels/linear_block.inl.h"

#include "kernels/tile_products.inl.h"

namespace slmq {
extern const Kernels kKernelsScalar;
}

namespace slmq::selftest {
namespace {

constexpr Kernels kModel = scalar::tile_products<ModelTiles, kKernelsScalar>("tiles");

// Rows of outputs for m tokens, bias and add in place included.
std::vector<float> multiply(const Kernels& kernels, Format format, const uint8_t* weight,
                            int groups, int pairs, int m, const std::vector<float>& x,
                            const std::vector<float>& bias, const LowRankUp& up,
                            Activations activations) {
  Memory panel(static_cast<size_t>(m) * groups * kActivationBytes);
  quantizer(kKernelsScalar, format, activations)(x.data(), groups * kGroup, groups, m, 0, m,
                                                 panel.data());
  const int stride = pairs * kPairRows + 16;
  std::vector<float> y(static_cast<size_t>(m) * stride, 0.25f);
  LinearArgs args = {};
  args.weight = weight;
  args.groups = groups;
  args.m = m;
  args.panel = panel.data();
  args.y = y.data();
  args.y_stride = stride;
  args.bias = bias.data();
  args.add = y.data();
  args.add_stride = stride;
  args.up = up;
  kernels.linear[static_cast<int>(format)](args, 1, pairs);
  kernels.linear[static_cast<int>(format)](args, 0, 1);
  return y;
}

void compare_products(Format format, int groups, Results* results) {
  constexpr int kPairs = 2, kMost = 50;
  const int k = groups * kGroup;
  const std::string name =
      std::string("tiles ") + info(format).name + " " + std::to_string(groups) + " groups";
  Inputs inputs(301 + static_cast<uint64_t>(format));
  Memory weight(kPairs * pair_bytes(format, groups));
  for (size_t i = 0; i < kPairs * pair_bytes(format, groups); ++i)  // float16 below 2
    weight.data()[i] = static_cast<uint8_t>(inputs.bits() & (i % 2 == 0 ? 0xff : 0xbf));
  std::vector<float> x = inputs.values(static_cast<size_t>(kMost) * k);
  // What stands out has two planes: of the first token, of two windows, of one of them.
  const int places[][2] = {{0, 3}, {7, 40}, {11, 40}, {10, 70}, {13, 75}, {30, 75}};
  for (const auto& [row, column] : places)
    x[static_cast<size_t>(row) * k + static_cast<size_t>(column % k)] = 300.0f;
  const std::vector<float> bias = inputs.values(size_t{kPairs} * kPairRows);
  const ThinUp adapter(&inputs, kKernelsScalar, kPairs * kPairRows, 32, kMost);
  for (const int m : {1, 15, 16, 17, 32, 50})
    for (int a = 0; a < kActivations; ++a) {
      const bool adapted = a != 0 && !info(format).row_panels;
      const auto both = [&](const Kernels& kernels) {
        return multiply(kernels, format, weight.data(), groups, kPairs, m, x, bias,
                        adapted ? adapter.args() : LowRankUp{}, static_cast<Activations>(a));
      };
      const std::vector<float> got = both(kModel), expected = both(kKernelsScalar);
      results->expect(std::memcmp(got.data(), expected.data(), 4 * got.size()) == 0,
                      name + ": not the bits of scalar");
      const std::string mistake = ModelTiles::mistake();
      results->expect(mistake.empty(), name + ": " + mistake);
    }
}

// A of adapters: rows from the middle of a block on, more tiles than are multiplied at once, units that are
// not whole.
void compare_low_rank(int groups, int tiles, Results* results) {
  constexpr int kMost = 83;
  Inputs inputs(313);
  const int k = groups * kGroup, stride = tiles * kLanes + 16;
  const Memory a = thin_tiles(&inputs, tiles, k);
  std::vector<float> x = inputs.values(static_cast<size_t>(kMost) * k);
  for (const int row : {3, 20, 21, 40}) x[static_cast<size_t>(row) * k + row % k] = 300.0f;
  for (int kind = 0; kind < kActivations; ++kind) {
    Memory panel(static_cast<size_t>(kMost) * groups * kActivationBytes);
    kKernelsScalar.quantize[kind](x.data(), k, groups, kMost, 0, kMost, panel.data());
    for (const auto& [begin, end] : {std::pair{0, kMost}, {5, 70}, {16, 32}, {17, 30}}) {
      const auto both = [&, begin = begin, end = end](const Kernels& kernels) {
        std::vector<float> y(static_cast<size_t>(end - begin) * stride, 0.25f);
        kernels.low_rank_down(
            {a.data(), tiles, groups, panel.data(), kMost, begin, end, y.data(), stride, {}});
        return y;
      };
      const std::vector<float> got = both(kModel), expected = both(kKernelsScalar);
      results->expect(std::memcmp(got.data(), expected.data(), 4 * got.size()) == 0,
                      "low_rank tiles: not the bits of scalar");
      const std::string mistake = ModelTiles::mistake();
      results->expect(mistake.empty(), "low_rank tiles: " + mistake);
    }
  }
}

// The way back: slabs of a block, of two and more, with a last one that is not whole.
void compare_turned(Format format, Results* results) {
  constexpr int kGroups = 8, kMost = 19;
  Kernels model = kKernelsScalar;
  model.turn = kModel.turn;
  model.product_turned = kModel.product_turned;
  for (const int n : {40, 90, 300}) {
    Inputs inputs(351 + static_cast<uint64_t>(format));
    const size_t bytes = matrix_bytes(format, n, kGroups * kGroup);
    Memory weight(bytes);
    for (size_t i = 0; i < bytes; ++i)  // float16 below 2
      weight.data()[i] = static_cast<uint8_t>(inputs.bits() & (i % 2 == 0 ? 0xff : 0xbf));
    const int stride = static_cast<int>(round_up(n, kPairRows));
    std::vector<float> x(size_t{kMost} * stride, 0.0f);
    for (int row = 0; row < kMost; ++row)
      for (int c = 0; c < n; ++c) x[static_cast<size_t>(row) * stride + c] = inputs.value();
    const std::vector<float> before = inputs.values(size_t{kMost} * kGroups * kGroup);
    for (const int m : {1, 16, kMost}) {
      std::vector<float> got = before, expected = before;
      add_turned(model, format, weight.data(), kGroups, n, x, stride, m, &got);
      add_turned(kKernelsScalar, format, weight.data(), kGroups, n, x, stride, m, &expected);
      const std::string name = std::string("turned tiles ") + info(format).name;
      results->expect(std::memcmp(got.data(), expected.data(), 4 * got.size()) == 0,
                      name + ": not the bits of scalar");
      const std::string mistake = ModelTiles::mistake();
      results->expect(mistake.empty(), name + ": " + mistake);
    }
  }
}

void run_peak(Results* results) {
  int32_t sink[16];
  results->expect(kModel.peak_dots(3, sink) == 3 * 6 * 16 * 16 * 64, "tiles peak: products");
  for (const int32_t sum : sink) results->expect(sum == 3 * 64, "tiles peak: sums");
  const std::string mistake = ModelTiles::mistake();
  results->expect(mistake.empty(), "tiles peak: " + mistake);
}

// What `use` does wrong with three registers of right shapes, which `spoil` may change before.
template <class Spoil, class Use>
void expect_mistake(const char* expected, Results* results, const Spoil& spoil, const Use& use) {
  TileConfig config;
  for (const int t : {0, 1, 2}) config.rows[t] = config.row_bytes[t] = 16;
  config.rows[2] = 4;
  spoil(&config);
  {
    ModelTiles tiles;
    tiles.configure(config);
    use(tiles);
    tiles.release();
  }
  const std::string got = ModelTiles::mistake();
  results->expect(got == expected, std::string("the model of tiles: expected \"") + expected +
                                       "\", got \"" + got + "\"");
}

// A model that accepts everything would prove nothing.
void check_model(Results* results) {
  const auto right = [](TileConfig*) {};
  const auto product = [](ModelTiles& tiles) {
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.dot<0, 1, 2>();
  };
  expect_mistake("", results, right, product);
  const auto refuses = [&](const char* expected, auto spoil) {
    expect_mistake(expected, results, spoil, [](ModelTiles&) {});
  };
  refuses("a palette that is not 1", [](TileConfig* c) { c->palette = 2; });
  refuses("a start row", [](TileConfig* c) { c->start_row = 1; });
  refuses("reserved bytes", [](TileConfig* c) { c->reserved[13] = 1; });
  refuses("a register beyond the last", [](TileConfig* c) { c->rows[8] = 1; });
  refuses("too many rows", [](TileConfig* c) { c->rows[0] = 17; });
  refuses("too many bytes in a row", [](TileConfig* c) { c->row_bytes[0] = 68; });
  refuses("a row of odd bytes", [](TileConfig* c) { c->row_bytes[0] = 18; });
  refuses("rows without bytes or bytes without rows", [](TileConfig* c) { c->rows[1] = 0; });
  const auto differ = "shapes that do not multiply";
  expect_mistake(differ, results, [](TileConfig* c) { c->rows[0] = 15; }, product);
  expect_mistake(differ, results, [](TileConfig* c) { c->row_bytes[0] = 12; }, product);
  expect_mistake(differ, results, [](TileConfig* c) { c->row_bytes[1] = 12; }, product);
  expect_mistake("a register twice in one product", results, right,
                 [](ModelTiles& tiles) { tiles.dot<0, 1, 1>(); });
  expect_mistake("reads a register that nothing was written to", results, right,
                 [](ModelTiles& tiles) { tiles.dot<0, 1, 2>(); });
  expect_mistake("a register without a shape", results, right,
                 [](ModelTiles& tiles) { tiles.zero<3>(); });
  expect_mistake("not configured", results, right, [&](ModelTiles& tiles) {
    tiles.release();
    product(tiles);
  });
  {
    ModelTiles tiles;
    tiles.configure(TileConfig());
  }
  results->expect(ModelTiles::mistake() == "not released",
                  "the model of tiles: no release noticed");
}

// What keeps a machine whose AMX does not work alive.
void check_trial(Results* results) {
#if defined(__linux__) && defined(__x86_64__)
  results->expect(survives([] { return true; }), "survives: a good trial");
  results->expect(!survives([] { return false; }), "survives: a trial that fails");
  results->expect(!survives([]() -> bool {
    __asm__ volatile("ud2");
    return true;
  }),
                  "survives: an instruction that does not exist");
  results->expect(!survives([]() -> bool {
    __asm__ volatile("movl (%0), %%eax" : : "r"(uintptr_t{16}) : "eax", "memory");
    return true;
  }),
                  "survives: memory that does not exist");
#endif
  results->expect(products_agree(kKernelsScalar, kKernelsScalar), "trial: scalar with itself");
  Kernels wrong = kKernelsScalar;
  wrong.linear[static_cast<int>(Format::q5k)] = wrong.linear[static_cast<int>(Format::q4k)];
  results->expect(!products_agree(wrong, kKernelsScalar), "trial: a wrong product is not noticed");
}

}  // namespace

int run_tiles(Results* results) {
  int formats = 0;
  for (int f = 0; f < kFormats; ++f) {
    if (kModel.linear[f] == nullptr) continue;
    compare_products(static_cast<Format>(f), 16, results);
    compare_turned(static_cast<Format>(f), results);
    // A last group alone, one block at a time, parts of rows.
    if (info(static_cast<Format>(f)).row_panels)
      for (const int groups : {1, 5, 48, 97, 150})
        compare_products(static_cast<Format>(f), groups, results);
    ++formats;
  }
  for (const auto& [groups, tiles] : {std::pair{1, 1}, {9, 3}, {18, 6}})
    compare_low_rank(groups, tiles, results);
  run_peak(results);
  check_model(results);
  check_trial(results);
  return formats;
}

}  // namespace slmq::selftest
