// Kernels over rows: quantize, norms, rope, activations, soft cap, softmax; every length around a
// register's.
#include <algorithm>

#include "machine/math64.h"
#include "layout/half.h"
#include "layout/memory.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"
#include "selftest/thin.h"

namespace slmq::selftest {
namespace {

// Rows of k values, padded with zeros to whole groups. Kind 0: ordinary, 1: with large and tiny
// numbers, 2: with infinities and NaN, 3: zeros, 4: ties of a rounding.
std::vector<float> rows_of(Inputs* inputs, int m, int k, int kind) {
  const int width = static_cast<int>(round_up(k, kGroup));
  std::vector<float> x(static_cast<size_t>(m) * width, 0.0f);
  for (int row = 0; row < m && kind != 3; ++row) {
    std::vector<float> values = inputs->values(static_cast<size_t>(k));
    if (kind == 1) inputs->salt(&values, finite_extremes());
    if (kind == 2) inputs->salt(&values, all_extremes());
    if (kind == 4) {
      for (float& v : values) v = static_cast<float>(inputs->below(509) - 254) * 0.5f;
      values[0] = 127.0f;
    }
    std::copy(values.begin(), values.end(), x.begin() + static_cast<ptrdiff_t>(row) * width);
  }
  return x;
}

// Whether the second half of a panel's rows, widened, are `wanted`.
bool widens_to(decltype(Kernels::widen_activations) widen, Memory& panel, int groups, int m,
               const std::vector<float>& wanted) {
  const int stride = groups * kGroup + 16;
  std::vector<float> rows(static_cast<size_t>(m) * stride);
  widen(panel.data(), groups, m, m / 2, m, rows.data(), stride);
  for (int row = m / 2; row < m; ++row) {
    const auto width = static_cast<size_t>(groups) * kGroup;
    if (hash_of(rows.data() + static_cast<ptrdiff_t>(row - m / 2) * stride, width) !=
        hash_of(wanted.data() + static_cast<size_t>(row) * width, width))
      return false;
  }
  return true;
}

float widened(float scale, int upper, int lower) {
  return scale * static_cast<float>(256 * upper + lower);
}

void run_quantize(const Kernels& kernels, Activations activations, const char* name,
                  Results* results) {
  Inputs inputs(301);
  Hash hash;
  for (const int k : {32, 100, 576}) {
    for (int kind = 0; kind < 5; ++kind) {
      for (const int m : {1, 3, 16, 17, 33}) {
        const int groups = static_cast<int>(round_up(k, kGroup)) / kGroup;
        const std::vector<float> x = rows_of(&inputs, m, k, kind);
        Memory panel(static_cast<size_t>(m) * groups * kActivationBytes);
        const auto quantize = kernels.quantize[static_cast<int>(activations)];
        quantize(x.data(), groups * kGroup, groups, m, m / 2, m, panel.data());
        quantize(x.data(), groups * kGroup, groups, m, 0, m / 2, panel.data());
        std::vector<float> numbers;
        for (int i = 0; i < m * groups; ++i) {
          const ActivationGroup group =
              activation_group(panel.data(), groups, m, i / groups, i % groups);
          const ActivationInfo& a = *group.info;
          hash.bytes(group.high, kGroup);
          hash.bytes(group.low, kGroup);
          for (const float f : {a.scale, a.scale_high, a.scaled_sum}) hash.floats(&f, 1);
          const int t = i / groups % kPanelRows;
          const int32_t wide = has_low_plane(*(group.info - t), t) ? 1 : 0;
          for (const int32_t v :
               {a.sum, int32_t{a.sum_high}, wide, int32_t{a.first_high}, int32_t{a.first_low}})
            hash.bytes(&v, sizeof v);
          hash.bytes(a.eights_high, sizeof a.eights_high + sizeof a.eights_low);
          for (int c = 0; c < kGroup; ++c)
            numbers.push_back(widened(a.scale, group.high[c], group.low[c]));
        }
        results->expect(widens_to(kernels.widen_activations, panel, groups, m, numbers),
                        std::string("widen_activations: not what ") + name + " stands for");
      }
    }
  }
  results->add(name, hash);
}

void run_quantize_rows(const Kernels& kernels, Activations activations, Results* results) {
  Inputs inputs(314);
  Hash hash;
  const auto quantize = kernels.quantize_rows[static_cast<int>(activations)];
  for (const int k : {32, 100, 576}) {
    for (int kind = 0; kind < 5; ++kind) {
      for (const int m : {1, 3, 16, 17, 33}) {
        const int groups = static_cast<int>(round_up(k, kGroup)) / kGroup;
        const std::vector<float> x = rows_of(&inputs, m, k, kind);
        Memory panel(static_cast<size_t>(m) * groups * kActivationBytes);
        const int middle = m / 2 / kPanelWindow * kPanelWindow;
        quantize(x.data(), groups * kGroup, groups, m, middle, m, panel.data());
        quantize(x.data(), groups * kGroup, groups, m, 0, middle, panel.data());
        std::vector<float> numbers;
        for (int row = 0; row < m; ++row) {
          const RowPanel block = row_panel(panel.data(), groups, m, row);
          for (int c = 0; c < groups * kGroup; ++c) {
            const int at = c / kGroup * block.rows + row % kPanelRows;
            const int place = at * kGroup + c % kGroup;
            numbers.push_back(widened(block.info[row % kPanelRows].scale,
                                      block.wide[at] != 0 ? block.coarse[place] : 0,
                                      block.fine[place]));
          }
        }
        results->expect(widens_to(kernels.widen_row_activations, panel, groups, m, numbers),
                        "widen_row_activations: not what its panel stands for");
        for (int row = 0; row < m; row += kPanelRows) {
          const RowPanel block = row_panel(panel.data(), groups, m, row);
          const auto places = static_cast<size_t>(groups) * static_cast<size_t>(block.rows);
          hash.bytes(block.fine, places * kGroup);
          hash.bytes(block.coarse, places * kGroup);
          hash.bytes(block.wide, places);
          for (int t = 0; t < block.rows; ++t) {
            const RowInfo& a = block.info[t];
            hash.floats(&a.scale, 1);
            for (const int32_t v : {a.sum_fine, a.sum_coarse, a.wide}) hash.bytes(&v, sizeof v);
          }
        }
      }
    }
  }
  results->add(std::string("quantize.") + kRowActivationNames[static_cast<int>(activations)], hash);
}

void run_rmsnorm(const Kernels& kernels, Results* results) {
  Inputs inputs(302);
  Hash hash;
  for (const int k : {1, 15, 16, 17, 31, 32, 33, 100, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      const std::vector<float> x = rows_of(&inputs, 1, k, kind);
      const std::vector<float> weight = rows_of(&inputs, 1, k, 0);
      for (const float eps : {1e-5f, 0.0f}) {
        std::vector<float> y(x.size() + 16, -1.0f);
        kernels.rmsnorm(x.data(), weight.data(), k, eps, y.data());
        hash.floats(y);
      }
    }
  }
  results->add("rmsnorm", hash);
}

void run_layernorm(const Kernels& kernels, Results* results) {
  Inputs inputs(306);
  Hash hash;
  for (const int k : {1, 15, 16, 17, 31, 32, 33, 100, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      const std::vector<float> x = rows_of(&inputs, 1, k, kind);
      const std::vector<float> weight = rows_of(&inputs, 1, k, 0), bias = rows_of(&inputs, 1, k, 0);
      for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
        std::vector<float> y(x.size() + 16, -1.0f);
        kernels.layernorm(x.data(), weight.data(), b, k, 1e-5f, y.data());
        hash.floats(y);
      }
    }
  }
  results->add("layernorm", hash);
}

void run_unary(const Kernels& kernels, Unary f, Results* results) {
  Inputs inputs(307);
  Hash hash;
  const auto kernel = kernels.unary[static_cast<int>(f)];
  for (const int n : {16, 32, 48, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> x = rows_of(&inputs, 1, n, kind);
      for (size_t i = 0; i < x.size(); i += 3) x[i] = x[i] * 30.0f;  // to both ends of exp
      std::vector<float> y(x.size() + 16, -1.0f);
      kernel(x.data(), n, y.data());
      kernel(x.data(), n, x.data());  // in place
      hash.floats(y);
      hash.floats(x);
    }
  }
  results->add(kUnaryNames[static_cast<int>(f)], hash);
}

void run_rope(const Kernels& kernels, Results* results) {
  Inputs inputs(303);
  Hash hash;
  for (const int rotary : {2, 16, 30, 32, 34, 64, 80, 128}) {
    std::vector<float> head = inputs.values(static_cast<size_t>(rotary) + 5);
    std::vector<float> cosines, sines;
    for (int i = 0; i < rotary / 2; ++i) {
      double sine, cosine;
      exact_sincos(1234.5 * i, &sine, &cosine);
      cosines.push_back(static_cast<float>(cosine));
      sines.push_back(static_cast<float>(sine));
    }
    kernels.rope(head.data(), cosines.data(), sines.data(), rotary);
    hash.floats(cosines);
    hash.floats(sines);
    hash.floats(head);
  }
  results->add("rope", hash);
}

void run_gated(const Kernels& kernels, Gate f, Results* results) {
  Inputs inputs(304);
  Hash hash;
  const auto kernel = kernels.gated[static_cast<int>(f)];
  for (const int n : {16, 32, 48, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> gate = rows_of(&inputs, 1, n, kind), up = rows_of(&inputs, 1, n, kind);
      for (size_t i = 0; i < gate.size(); i += 3) gate[i] = gate[i] * 30.0f;  // to both ends of exp
      std::vector<float> y(gate.size() + 16, -1.0f);
      kernel(gate.data(), up.data(), n, y.data());
      kernel(gate.data(), up.data(), n, gate.data());  // in place
      hash.floats(y);
      hash.floats(gate);
    }
  }
  results->add(kUnitNames[static_cast<int>(f)], hash);
}

void run_softcap(const Kernels& kernels, Results* results) {
  Inputs inputs(306);
  Hash hash;
  for (const int n : {16, 32, 48, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      for (const float cap : {1.0f, 30.0f, 0.01f}) {
        std::vector<float> x = rows_of(&inputs, 1, n, kind);
        for (size_t i = 0; i < x.size(); i += 3) x[i] = x[i] * 30.0f;  // to both ends of tanh
        std::vector<float> y(x.size() + 16, -1.0f);
        kernels.softcap(x.data(), static_cast<int>(x.size()), cap, y.data());
        kernels.softcap(x.data(), static_cast<int>(x.size()), cap, x.data());  // in place
        hash.floats(y);
        hash.floats(x);
      }
    }
  }
  results->add("softcap", hash);
}

void run_xielu(const Kernels& kernels, Results* results) {
  Inputs inputs(308);
  Hash hash;
  for (const int n : {16, 32, 48, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> x = rows_of(&inputs, 1, n, kind);
      for (size_t i = 0; i < x.size(); i += 3) x[i] = x[i] * 30.0f;  // to the low end of exp
      std::vector<float> y(x.size() + 16, -1.0f);
      kernels.xielu(x.data(), n, 0.8f, 1.3f, 0.5f, y.data());
      kernels.xielu(x.data(), n, 0.8f, 1.3f, 0.5f, x.data());  // in place
      hash.floats(y);
      hash.floats(x);
    }
  }
  results->add("xielu", hash);
}

void run_low_rank(const Kernels& kernels, LowRankType type, Results* results) {
  Inputs inputs(308);
  Hash hash;
  for (const int k : {1, 2, 3, 16, 33, 100}) {
    for (const int n : {16, 48}) {
      for (const int m : {1, 2, 4, 7}) {
        const std::vector<float> w = inputs.values(static_cast<size_t>(n) * k);
        std::vector<uint16_t> halves(w.size());
        std::transform(w.begin(), w.end(), halves.begin(), float_to_half);
        const void* weights[kFloatLowRanks] = {halves.data(), w.data()};
        const std::vector<float> x = inputs.values(static_cast<size_t>(m) * k);
        std::vector<float> y = inputs.values(static_cast<size_t>(m) * (n + 16));
        LowRankArgs args{};
        args.weight = weights[static_cast<int>(type)];
        args.m = m;
        args.n = n;
        args.k = args.x_stride = k;
        args.x = x.data();
        args.y = y.data();
        args.y_stride = n + 16;  // the last sixteen stay as they are
        kernels.low_rank[static_cast<int>(type)](args);
        hash.floats(y);
      }
    }
  }
  results->add(std::string("low_rank.") + kLowRankNames[static_cast<int>(type)], hash);
}

// From activations to what is added, for rows [m / 3, m), in whose place other numbers were.
void run_low_rank_int8(const Kernels& kernels, Results* results) {
  constexpr int kColumns = 48, kStride = kColumns + 16;
  Inputs inputs(313);
  Hash hash;
  for (const int rank : {16, 32, 48, 112, 256}) {
    for (const int k : {32, 100, 416}) {
      const int groups = static_cast<int>(round_up(k, kGroup)) / kGroup;
      const Memory down = thin_tiles(&inputs, rank / kLanes, groups * kGroup);
      const Memory up = thin_tiles(&inputs, kColumns / kLanes, rank);
      for (int kind = 0; kind < 4; ++kind) {
        for (const int m : {1, 2, 5, 16, 33}) {
          const std::vector<float> x = rows_of(&inputs, m, k, kind);
          Memory panel(static_cast<size_t>(m) * groups * kActivationBytes);
          kernels.quantize[static_cast<int>(Activations::a8o16)](x.data(), groups * kGroup, groups,
                                                                 m, 0, m, panel.data());
          const int begin = m / 3, stride = rank + 16;
          std::vector<float> t = inputs.values(static_cast<size_t>(m) * stride);
          kernels.low_rank_down({down.data(),
                                 rank / kLanes,
                                 groups,
                                 panel.data(),
                                 m,
                                 begin,
                                 m,
                                 t.data() + static_cast<ptrdiff_t>(begin) * stride,
                                 stride,
                                 {}});
          hash.floats(t);
          kernels.low_rank_round(t.data() + static_cast<ptrdiff_t>(begin) * stride, stride,
                                 m - begin, rank);
          std::vector<float> y = inputs.values(static_cast<size_t>(m - begin) * kStride);
          const LowRankUp with = {up.data(), rank,
                                  t.data() + static_cast<ptrdiff_t>(begin) * stride, rank, stride};
          kernels.low_rank_up({with, m - begin, kColumns, y.data(), kStride});
          hash.floats(y);
        }
      }
    }
  }
  results->add("low_rank.int8", hash);
}

void run_softmax(const Kernels& kernels, Results* results) {
  Inputs inputs(305);
  Hash hash;
  for (const int n : {1, 2, 15, 16, 17, 31, 32, 33, 100, 1000}) {
    for (int kind = 0; kind < 4; ++kind) {
      for (const float scale : {1.0f, 0.125f, -40.0f}) {
        std::vector<float> x = rows_of(&inputs, 1, n, kind);
        std::vector<float> y(x.size() + 16, -1.0f);
        kernels.softmax(x.data(), n, scale, y.data());
        kernels.softmax(x.data(), n, scale, x.data());  // in place
        hash.floats(y);
        hash.floats(x);
      }
    }
  }
  results->add("softmax", hash);
}

void run_delta_rule(const Kernels& kernels, Results* results) {
  Inputs inputs(312);
  Hash hash;
  for (const int k : {4, 12, 64}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> state = rows_of(&inputs, k, 16, kind == 3 ? 3 : 0);
      for (int row = 0; row < k; ++row)  // without what fills rows up
        std::copy_n(state.begin() + row * kGroup, 16, state.begin() + row * 16);
      std::vector<float> y(32, -1.0f);
      for (const float decay : {1.0f, 0.75f, 0.0f}) {
        const std::vector<float> query = rows_of(&inputs, 1, k, kind),
                                 key = rows_of(&inputs, 1, k, kind),
                                 value = rows_of(&inputs, 1, 16, kind);
        kernels.delta_rule(query.data(), key.data(), value.data(), decay, 1.0f - 0.5f * decay, k,
                           state.data(), y.data());
        hash.floats(state);
        hash.floats(y);
      }
    }
  }
  results->add("delta_rule", hash);
}

void run_convolution(const Kernels& kernels, Results* results) {
  Inputs inputs(313);
  Hash hash;
  for (const int n : {16, 48}) {
    for (const int taps : {2, 4, 8}) {
      for (int factors = 0; factors < 8; ++factors) {
        const std::vector<float> rows = inputs.values(static_cast<size_t>(n) * (2 * taps + 4));
        const float* past[8];
        for (int tap = 0; tap + 1 < taps; ++tap) past[tap] = rows.data() + tap * n;
        const float* rest = rows.data() + taps * n;
        std::vector<float> input(static_cast<size_t>(n)), y(input.size());
        const auto if_wanted = [&](int bit, int at) {
          return (factors >> bit & 1) != 0 ? rest + at * n : nullptr;
        };
        kernels.convolution({rest, if_wanted(0, 1), if_wanted(1, 2), if_wanted(2, 3), rest + 4 * n,
                             past, n, taps, n, input.data(), y.data()});
        hash.floats(input);
        hash.floats(y);
      }
    }
  }
  results->add("convolution", hash);
}

}  // namespace

void run_rows(const Kernels& kernels, Results* results) {
  for (int i = 0; i < kActivations; ++i)
    run_quantize(kernels, static_cast<Activations>(i),
                 (std::string("quantize.") + kActivationNames[i]).c_str(), results);
  for (int i = 0; i < kActivations; ++i)
    run_quantize_rows(kernels, static_cast<Activations>(i), results);
  run_rmsnorm(kernels, results);
  run_layernorm(kernels, results);
  run_rope(kernels, results);
  for (int i = 0; i < kGates; ++i) run_gated(kernels, static_cast<Gate>(i), results);
  for (int i = 0; i < kUnaries; ++i) run_unary(kernels, static_cast<Unary>(i), results);
  run_softcap(kernels, results);
  run_xielu(kernels, results);
  run_softmax(kernels, results);
  run_delta_rule(kernels, results);
  run_convolution(kernels, results);
  for (int i = 0; i < kFloatLowRanks; ++i)
    run_low_rank(kernels, static_cast<LowRankType>(i), results);
  run_low_rank_int8(kernels, results);
}

}  // namespace slmq::selftest
