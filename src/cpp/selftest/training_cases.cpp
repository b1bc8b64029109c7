// What training adds to the kernels: products in blocks of every size, and the ways back.
#include <algorithm>

#include "layout/memory.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"

namespace slmq::selftest {
namespace {

void run_product(const Kernels& kernels, Results* results) {
  Inputs inputs(501);
  Hash hash;
  for (const int k : {1, 2, 7, 33}) {
    for (const int n : {16, 32, 48, 80}) {
      for (const int m : {1, 3, 4, 6, 12, 13, 29}) {
        const std::vector<float> x = inputs.values(static_cast<size_t>(m) * k);
        const std::vector<float> w = inputs.values(static_cast<size_t>(n) * k);
        const std::vector<float> before = inputs.values(static_cast<size_t>(m) * (n + 16));
        ProductArgs args{};
        args.x = x.data();
        args.x_row = k;
        args.x_step = 1;
        args.w = w.data();
        args.w_tile = kLanes;
        args.w_step = n;
        args.y_row = n + 16;  // the last sixteen stay as they are
        args.m = m;
        args.n = n;
        args.k = k;
        std::vector<float> y[2] = {before, before};
        for (const bool add : {false, true}) {
          args.add = add;
          args.y = y[add ? 1 : 0].data();
          kernels.product(args);
          hash.floats(y[add ? 1 : 0]);
        }
        // The same sum in two parts; and x as its transpose.
        std::vector<float> parts = before, turned(x.size()), across = before;
        for (int row = 0; row < m; ++row)
          for (int c = 0; c < k; ++c) turned[c * m + row] = x[row * k + c];
        args.y = parts.data();
        args.k = k / 2;
        kernels.product(args);
        args.x += k / 2;
        args.w += static_cast<ptrdiff_t>(k / 2) * n;
        args.k = k - k / 2;
        kernels.product(args);
        results->expect(parts == y[1], "product: a sum in parts");
        args.x = turned.data();
        args.x_row = 1;
        args.x_step = m;
        args.w = w.data();
        args.k = k;
        args.y = across.data();
        kernels.product(args);
        results->expect(across == y[1], "product: of a transpose");
      }
    }
  }
  results->add("product", hash);
}

std::vector<float> row_of(Inputs* inputs, int k, int kind) {
  std::vector<float> x(static_cast<size_t>(round_up(k, kGroup)), 0.0f);
  std::vector<float> values = inputs->values(static_cast<size_t>(k), kind == 1 ? 6.0f : 1.0f);
  if (kind == 2) inputs->salt(&values, finite_extremes());
  if (kind == 3) inputs->salt(&values, all_extremes());
  std::copy(values.begin(), values.end(), x.begin());
  return x;
}

// Calls run(x, dy, n) for rows of every length and kind.
template <class Run>
void over_rows(const char* name, uint64_t seed, Results* results, const Run& run) {
  Inputs inputs(seed);
  Hash hash;
  for (const int n : {1, 15, 16, 17, 32, 33, 100, 576}) {
    for (int kind = 0; kind < 4; ++kind) {
      const std::vector<float> x = row_of(&inputs, n, kind), dy = row_of(&inputs, n, 0);
      run(&inputs, &hash, x, dy, n);
    }
  }
  results->add(name, hash);
}

using Row = std::vector<float>;

void run_norms_back(const Kernels& kernels, Results* results) {
  const auto back = [&](decltype(kernels.rmsnorm_back) kernel) {
    return [kernel](Inputs* inputs, Hash* hash, const Row& x, const Row& dy, int n) {
      const Row weight = row_of(inputs, n, 0);
      Row dx = row_of(inputs, n, 0);
      kernel(x.data(), weight.data(), n, 1e-5f, dy.data(), dx.data());
      hash->floats(dx);
    };
  };
  over_rows("rmsnorm_back", 502, results, back(kernels.rmsnorm_back));
  over_rows("layernorm_back", 503, results, back(kernels.layernorm_back));
}

void run_activations_back(const Kernels& kernels, Results* results) {
  for (int i = 0; i < kGates; ++i) {
    const auto kernel = kernels.gated_back[i];
    over_rows((std::string("gated_back.") + kGateNames[i]).c_str(), 504, results,
              [kernel](Inputs* inputs, Hash* hash, const Row& x, const Row& dy, int n) {
                const Row up = row_of(inputs, n, 0);
                Row d_gate(x.size()), d_up(x.size());
                kernel(x.data(), up.data(), dy.data(), static_cast<int>(x.size()), d_gate.data(),
                       d_up.data());
                hash->floats(d_gate);
                hash->floats(d_up);
              });
  }
  for (int i = 0; i < kUnaries; ++i) {
    const auto kernel = kernels.unary_back[i];
    over_rows((std::string("unary_back.") + kUnaryNames[i]).c_str(), 505, results,
              [kernel](Inputs*, Hash* hash, const Row& x, const Row& dy, int) {
                Row dx(x.size());
                kernel(x.data(), dy.data(), static_cast<int>(x.size()), dx.data());
                hash->floats(dx);
              });
  }
  over_rows(
      "softcap_back", 506, results, [&](Inputs*, Hash* hash, const Row& x, const Row& dy, int) {
        Row y(x.size()), dx(x.size());
        kernels.softcap(x.data(), static_cast<int>(x.size()), 5.0f, y.data());
        kernels.softcap_back(y.data(), dy.data(), static_cast<int>(x.size()), 5.0f, dx.data());
        hash->floats(dx);
      });
}

void run_softmax_back(const Kernels& kernels, Results* results) {
  over_rows("softmax_back", 507, results,
            [&](Inputs*, Hash* hash, const Row& x, const Row& dy, int n) {
              Row y(x.size()), dx(x.size(), -1.0f);
              kernels.softmax(x.data(), n, 0.5f, y.data());
              kernels.softmax_back(y.data(), dy.data(), n, 0.5f, dx.data());
              hash->floats(dx);
            });
  over_rows("cross_entropy", 508, results,
            [&](Inputs* inputs, Hash* hash, const Row& x, const Row&, int n) {
              Row row = x;
              float loss[3];
              kernels.cross_entropy(row.data(), n, inputs->below(n), 0.25f, loss);
              hash->floats(row);
              hash->floats(loss, 3);
            });
}

}  // namespace

void run_training(const Kernels& kernels, Results* results) {
  run_product(kernels, results);
  run_norms_back(kernels, results);
  run_activations_back(kernels, results);
  run_softmax_back(kernels, results);
}

}  // namespace slmq::selftest
