// Operators: what slmq.engine.training runs, over rows of float32 that it owns.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "bind/operators.h"
#include "kernels/dispatch.h"
#include "layout/memory.h"
#include "plan/checks.h"
#include "training/operators.h"

namespace slmq {
namespace {

using MatrixPointer = std::shared_ptr<Matrix>;
using Floats = py::array_t<float>;
// A matrix, its bias, what is added, the result.
using UseTuple = std::tuple<MatrixPointer, py::object, py::object, py::object>;

// float32[m, at least `width` rounded up to 32 columns]
Rows rows_of(const py::handle& object, py::ssize_t m, int width, const char* what) {
  Floats array = checked_array<float>(object, {m, -1}, what);
  if (array.shape(1) < padded(width) || array.shape(1) % kGroup != 0 || array.shape(0) < 1) {
    throw py::value_error(std::string(what) + ": expected rows of at least " +
                          std::to_string(padded(width)) + " columns, a multiple of 32, got " +
                          describe_array(object));
  }
  return {array.mutable_data(), static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1))};
}

const float* floats_or_null(const py::object& object, py::ssize_t size, const char* what) {
  return object.is_none() ? nullptr : checked_array<float>(object, {size}, what).data();
}

// What is added to, or null.
float* sums_or_null(const py::object& object, py::ssize_t size, const char* what) {
  return object.is_none() ? nullptr : checked_array<float>(object, {size}, what).mutable_data();
}

// float32[as many as the format f32 has for a weight]
float* weight_slope(const py::object& object, int n, int k) {
  if (n < 1 || k < 1) throw py::value_error("expected a weight of at least one row and column");
  const auto floats = static_cast<py::ssize_t>(matrix_bytes(Format::f32, n, k) / sizeof(float));
  return sums_or_null(object, floats, "slope");
}

struct KeptTexts {
  Numbers starts;
  operator Texts() const { return {starts->data(), static_cast<int>(starts->size()) - 1}; }
};
KeptTexts texts_of(const py::object& object, int m) {
  const KeptTexts kept{checked_numbers(object, -1, "starts")};
  const Texts texts = kept;
  bool good = texts.count >= 1 && texts.starts[0] == 0 && texts.starts[texts.count] == m;
  for (int i = 0; i < texts.count; ++i) good = good && texts.length(i) >= 1;
  if (!good) throw py::value_error("starts: expected rising rows from 0 to all rows");
  return kept;
}

std::vector<LinearUse> uses_of(const std::vector<UseTuple>& tuples, int m) {
  if (tuples.empty()) throw py::value_error("expected at least one matrix");
  std::vector<LinearUse> uses;
  for (const auto& [matrix, bias, add, y] : tuples) {
    if (matrix == nullptr) throw py::type_error("expected a Matrix, got None");
    if (matrix->k != std::get<0>(tuples.front())->k)
      throw py::value_error("expected matrices of the same number of columns");
    LinearUse use{matrix.get(), floats_or_null(bias, padded(matrix->n), "bias"), nullptr,
                  rows_of(y, m, matrix->n, "y")};
    if (!add.is_none()) {
      const Rows added = rows_of(add, m, matrix->n, "add");
      if (added.stride != use.y.stride) throw py::value_error("add: expected rows like y");
      use.add = added.data;
    }
    uses.push_back(use);
  }
  return uses;
}

// A.T and t of all pairs, their rank and scale; by use: B.T, or None.
using PairsTuple = std::tuple<py::object, py::object, int, float, std::vector<py::object>>;

LowRankPairs pairs_of(const PairsTuple& tuple, const std::vector<LinearUse>& uses, int m) {
  const auto& [a, t, rank, scale, b] = tuple;
  const auto is_none = [](const py::object& o) { return o.is_none(); };
  const int k = uses.front().matrix->k;
  const auto count = static_cast<int>(b.size() - std::count_if(b.begin(), b.end(), is_none));
  if (rank < 1 || count < 1 || b.size() != uses.size())
    throw py::value_error("pairs: expected at least one rank and one pair, and a B or None by use");
  LowRankPairs pairs{
      rows_of(a, k, rank * count, "a"), rows_of(t, m, rank * count, "t"), k, rank, scale, {}};
  for (size_t i = 0; i < b.size(); ++i)
    pairs.b.push_back(b[i].is_none() ? Rows{} : rows_of(b[i], rank, uses[i].matrix->n, "b"));
  return pairs;
}

void run_linear(Operators& o, const py::object& x, const std::vector<UseTuple>& tuples,
                const std::string& activations, const std::optional<PairsTuple>& added) {
  if (tuples.empty() || std::get<0>(tuples.front()) == nullptr)
    throw py::value_error("expected at least one matrix");
  const int k = std::get<0>(tuples.front())->k;
  check_quantized_width(k);
  const Rows rows = rows_of(x, -1, k, "x");
  const std::vector<LinearUse> uses = uses_of(tuples, rows.m);
  const Activations kind = activations_named(activations);
  std::optional<LowRankPairs> pairs;
  if (added) pairs = pairs_of(*added, uses, rows.m);
  o.run([=](Workers& workers) { linear(workers, rows, kind, uses, pairs ? &*pairs : nullptr); }, x,
        tuples, added);
}

void run_linear_back(Operators& o, const std::vector<UseTuple>& tuples, bool add,
                     const py::object& dx) {
  if (tuples.empty() || std::get<0>(tuples.front()) == nullptr)
    throw py::value_error("expected at least one matrix");
  const Rows to = rows_of(dx, -1, std::get<0>(tuples.front())->k, "dx");
  const std::vector<LinearUse> uses = uses_of(tuples, to.m);
  o.run([=](Workers& workers) { linear_back(workers, uses, add, to); }, tuples, dx);
}

void run_multiply(Operators& o, const py::object& x, const py::object& w, const py::object& y,
                  int n, int k, bool transposed, bool add) {
  const Rows to = rows_of(y, -1, n, "y");
  const Rows left = rows_of(x, transposed ? k : to.m, transposed ? 1 : k, "x");
  const Rows right = rows_of(w, -1, n, "w");
  if (n < 1 || n % kLanes != 0 || k < 1 || right.m < k || (transposed && left.stride < to.m))
    throw py::value_error("expected x [m, k], w [k, n] and y [m, n], n a multiple of 16");
  const Product product{left, right, to.m, n, k, transposed, add};
  o.run([=](Workers& workers) { multiply(workers, product, to); }, x, w, y);
}

// Gradients of a weight and of its bias, if that has one.
void run_weight_back(Operators& o, const py::object& x, const py::object& dy, int n, int k,
                     const py::object& slope, const py::object& bias) {
  const Rows from = rows_of(x, -1, k, "x"), slopes = rows_of(dy, from.m, n, "dy");
  const WeightSlope to{weight_slope(slope, n, k), n, k};
  if (to.data == nullptr) throw py::value_error("slope: expected an array, got None");
  float* added = sums_or_null(bias, n, "bias");
  o.run(
      [=](Workers& workers) {
        weight_back(workers, from, slopes, to);
        if (added != nullptr) bias_back(workers, slopes, n, added);
      },
      x, dy, slope, bias);
}

// What pairs of one input share: x, the products with every A, of `count` pairs.
TrainedInput low_rank_input(const py::object& x, const py::object& t, int k, int rank, float scale,
                            size_t count) {
  if (k < 1 || rank < 1 || count < 1)
    throw py::value_error("expected at least one column, one rank and one pair");
  const Rows rows = rows_of(x, -1, k, "x");
  return {rows, k, rows_of(t, rows.m, rank * static_cast<int>(count), "t"), rank, scale};
}

// The gradient of a result and its columns; A and B, and their gradients.
using LowRankTuple = std::tuple<py::object, int, py::object, py::object, py::object, py::object>;

void run_low_rank_back(Operators& o, const py::object& x, const py::object& t, int k, int rank,
                       float scale, const std::vector<LowRankTuple>& tuples, const py::object& dx) {
  const TrainedInput in = low_rank_input(x, t, k, rank, scale, tuples.size());
  std::vector<TrainedBack> uses;
  for (const auto& [dy, n, a, b, a_slope, b_slope] : tuples) {
    uses.push_back({rows_of(dy, in.x.m, n, "dy"), n, rows_of(a, rank, k, "a"),
                    rows_of(b, n, rank, "b"), rows_of(a_slope, rank, k, "a_slope"),
                    rows_of(b_slope, rank, n, "b_slope")});
  }
  const Rows to = rows_of(dx, in.x.m, k, "dx");
  o.run([=](Workers& workers) { low_rank_back(workers, in, uses, to); }, x, t, tuples, dx);
}

struct PyNorm;
using NormPointer = std::shared_ptr<PyNorm>;
struct PyNorm {
  std::vector<float> weight, bias;
  Norm norm;
};

NormPointer make_norm(const py::object& weight, const py::object& bias, int heads, float eps,
                      bool layer) {
  auto made = std::make_shared<PyNorm>();
  made->weight = checked_vector<float>(weight, -1, "weight");
  const int width = static_cast<int>(made->weight.size());
  if (width < 1 || heads < 1) throw py::value_error("expected at least one column and one head");
  if (!bias.is_none()) made->bias = checked_vector<float>(bias, width, "bias");
  made->weight.resize(static_cast<size_t>(padded(width)), 0.0f);
  if (!made->bias.empty()) made->bias.resize(static_cast<size_t>(padded(width)), 0.0f);
  made->norm = {made->weight.data(),
                made->bias.empty() ? nullptr : made->bias.data(),
                width,
                heads,
                eps,
                layer};
  return made;
}

// New values of a norm that was made with as many.
void set_norm(PyNorm& n, const py::object& weight, const py::object& bias) {
  const py::ssize_t width = n.norm.width;
  const float* values = checked_array<float>(weight, {width}, "weight").data();
  if (bias.is_none() != n.bias.empty())
    throw py::value_error("bias: expected one where there was one, and else None");
  const float* added = floats_or_null(bias, width, "bias");
  std::copy_n(values, width, n.weight.data());
  if (added != nullptr) std::copy_n(added, width, n.bias.data());
}

int width_of(const NormPointer& n) {
  if (n == nullptr) throw py::type_error("expected a Norm, got None");
  return n->norm.width * n->norm.heads;
}

void run_norm(Operators& o, const NormPointer& n, const py::object& x, const py::object& y) {
  const Rows from = rows_of(x, -1, width_of(n), "x"), to = rows_of(y, from.m, width_of(n), "y");
  o.run([=](Workers& workers) { norm(workers, n->norm, from, to); }, x, y);
}

void run_norm_back(Operators& o, const NormPointer& n, const py::object& x, const py::object& dy,
                   const py::object& dx) {
  const int width = width_of(n);
  const Rows from = rows_of(x, -1, width, "x"), slopes = rows_of(dy, from.m, width, "dy");
  const Rows to = rows_of(dx, from.m, width, "dx");
  o.run([=](Workers& workers) { norm_back(workers, n->norm, from, slopes, to); }, x, dy, dx);
}

void run_norm_weight_back(Operators& o, const NormPointer& n, const py::object& x,
                          const py::object& dy, float scale, const py::object& weight,
                          const py::object& bias) {
  const int width = width_of(n);
  const Rows from = rows_of(x, -1, width, "x"), slopes = rows_of(dy, from.m, width, "dy");
  const NormSlope to{scale, sums_or_null(weight, n->norm.width, "weight"),
                     sums_or_null(bias, n->norm.width, "bias")};
  if (to.weight == nullptr) throw py::value_error("weight: expected an array, got None");
  o.run([=](Workers& workers) { norm_weight_back(workers, n->norm, from, slopes, to); }, x, dy,
        weight, bias);
}

// Arrays of one size, as one row after the other.
std::vector<Rows> alike(const std::vector<py::object>& objects) {
  std::vector<Rows> rows{rows_of(objects.front(), -1, 1, "x")};
  for (size_t i = 1; i < objects.size(); ++i) {
    rows.push_back(rows_of(objects[i], rows[0].m, 1, "values"));
    if (rows[i].stride != rows[0].stride) throw py::value_error("expected arrays of one shape");
  }
  return rows;
}

// Calls kernel(row of each array..., columns) for all rows.
template <class Call>
void by_rows(Operators& o, const std::vector<py::object>& objects, const Call& call) {
  const std::vector<Rows> rows = alike(objects);
  o.run(
      [=](Workers& workers) {
        each_row(workers, rows[0].m, [&](int row, int) { call(workers.kernels, rows, row); });
      },
      objects);
}

void run_gated(Operators& o, const std::string& name, const py::object& gate, const py::object& up,
               const py::object& y) {
  const int kind = static_cast<int>(gate_named(name));
  by_rows(o, {gate, up, y}, [=](const Kernels& k, const std::vector<Rows>& r, int row) {
    k.gated[kind](r[0].row(row), r[1].row(row), r[0].stride, r[2].row(row));
  });
}

void run_gated_back(Operators& o, const std::string& name, const py::object& gate,
                    const py::object& up, const py::object& dy, const py::object& d_gate,
                    const py::object& d_up) {
  const int kind = static_cast<int>(gate_named(name));
  by_rows(o, {gate, up, dy, d_gate, d_up},
          [=](const Kernels& k, const std::vector<Rows>& r, int row) {
            k.gated_back[kind](r[0].row(row), r[1].row(row), r[2].row(row), r[0].stride,
                               r[3].row(row), r[4].row(row));
          });
}

void run_unary(Operators& o, const std::string& name, const py::object& x, const py::object& y) {
  const int kind = static_cast<int>(unary_named(name));
  by_rows(o, {x, y}, [=](const Kernels& k, const std::vector<Rows>& r, int row) {
    k.unary[kind](r[0].row(row), r[0].stride, r[1].row(row));
  });
}

void run_unary_back(Operators& o, const std::string& name, const py::object& x,
                    const py::object& dy, const py::object& dx) {
  const int kind = static_cast<int>(unary_named(name));
  by_rows(o, {x, dy, dx}, [=](const Kernels& k, const std::vector<Rows>& r, int row) {
    k.unary_back[kind](r[0].row(row), r[1].row(row), r[0].stride, r[2].row(row));
  });
}

void run_turn(Operators& o, const py::object& x, const py::object& y, const py::object& starts,
              const std::pair<py::object, py::object>& angles, int heads, int head_dim, bool back) {
  const auto c = checked_array<float>(angles.first, {-1, -1}, "cosines");
  const auto s = checked_array<float>(angles.second, {c.shape(0), c.shape(1)}, "sines");
  const int rotary = 2 * static_cast<int>(c.shape(1));
  if (heads < 1 || rotary < 2 || rotary > head_dim)
    throw py::value_error("expected angles of at most half of a head");
  const Rows from = rows_of(x, -1, heads * head_dim, "x");
  const Rows to = rows_of(y, from.m, heads * head_dim, "y");
  if (from.stride != to.stride) throw py::value_error("y: expected rows like x");
  const KeptTexts texts = texts_of(starts, from.m);
  if (Texts(texts).longest() > c.shape(0)) throw py::value_error("expected angles for every place");
  const Turn how{c.data(), s.data(), rotary, head_dim, heads, back};
  o.run([=](Workers& workers) { turn(workers, how, texts, from, to); }, x, y, angles);
}

Attention attention_of(int heads, int kv_heads, int head_dim, float scale, int window,
                       float softcap) {
  check_softcap(softcap, "attention");
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 1 || window < 0)
    throw py::value_error("expected heads that share KV heads evenly");
  return {heads, kv_heads, head_dim, scale, window, softcap};
}

struct AttentionRows {
  Rows q, k, v, out;
};
AttentionRows attention_rows(const Attention& a, const py::object& q, const py::object& k,
                             const py::object& v, const py::object& out) {
  const Rows queries = rows_of(q, -1, a.heads * a.head_dim, "q");
  return {queries, rows_of(k, queries.m, a.kv_heads * a.head_dim, "k"),
          rows_of(v, queries.m, a.kv_heads * a.head_dim, "v"),
          rows_of(out, queries.m, a.heads * a.head_dim, "out")};
}

void run_attend(Operators& o, const Attention& a, const py::object& starts, const py::object& q,
                const py::object& k, const py::object& v, const py::object& out) {
  const AttentionRows rows = attention_rows(a, q, k, v, out);
  const KeptTexts texts = texts_of(starts, rows.q.m);
  o.run([=](Workers& workers) { attend(workers, a, texts, rows.q, rows.k, rows.v, rows.out); }, q,
        k, v, out);
}

void run_attend_back(Operators& o, const Attention& a, const py::object& starts,
                     const std::vector<py::object>& qkv, const py::object& d_out,
                     const std::vector<py::object>& slopes) {
  if (qkv.size() != 3 || slopes.size() != 3)
    throw py::value_error("expected queries, keys and values, and as many gradients");
  const AttentionRows rows = attention_rows(a, qkv[0], qkv[1], qkv[2], d_out);
  const AttentionRows to = attention_rows(a, slopes[0], slopes[1], slopes[2], slopes[0]);
  if (to.q.m != rows.q.m) throw py::value_error("expected as many rows of gradients");
  const KeptTexts texts = texts_of(starts, rows.q.m);
  o.run(
      [=](Workers& workers) {
        attend_back(workers, a, texts, rows.q, rows.k, rows.v, rows.out, {to.q, to.k, to.v});
      },
      qkv, d_out, slopes);
}

struct PyHead;
using HeadPointer = std::shared_ptr<PyHead>;
struct PyHead {
  MatrixPointer matrix;
  std::vector<float> bias;
  Activations activations;
  float softcap;
};

HeadPointer make_head(const MatrixPointer& matrix, const py::object& bias,
                      const std::string& activations, float softcap) {
  if (matrix == nullptr) throw py::type_error("expected a Matrix, got None");
  check_softcap(softcap, "head");
  auto made = std::make_shared<PyHead>(PyHead{matrix, {}, activations_named(activations), softcap});
  if (!bias.is_none()) {
    made->bias = checked_vector<float>(bias, matrix->n, "bias");
    made->bias.resize(static_cast<size_t>(padded(matrix->n)), 0.0f);
  }
  return made;
}

void set_bias(PyHead& h, const py::object& bias) {
  const float* values = checked_array<float>(bias, {h.matrix->n}, "bias").data();
  if (h.bias.empty()) throw py::value_error("bias: expected a head that was made with one");
  std::copy_n(values, h.matrix->n, h.bias.data());
}

Numbers tokens_of(const py::object& object, py::ssize_t count, int n, const char* what) {
  Numbers tokens = checked_numbers(object, count, what);
  for (const int32_t token : *tokens)
    if (token < 0 || token >= n)
      throw py::value_error(std::string(what) + ": expected tokens below " + std::to_string(n));
  return tokens;
}

py::array_t<double> run_loss(Operators& o, const HeadPointer& h, const py::object& x,
                             const py::object& targets, float scale, const py::object& dx,
                             const py::object& slope, const py::object& bias_slope) {
  if (h == nullptr) throw py::type_error("expected a Head, got None");
  o.refuse_while_held("loss");
  const Rows rows = rows_of(x, -1, h->matrix->k, "x");
  const Numbers wanted = tokens_of(targets, rows.m, h->matrix->n, "targets");
  Rows slopes{};
  if (!dx.is_none()) slopes = rows_of(dx, rows.m, h->matrix->k, "dx");
  py::array_t<double> losses(rows.m);
  double* to = losses.mutable_data();
  const Head head{h->matrix.get(), h->bias.empty() ? nullptr : h->bias.data(), h->activations,
                  h->softcap, scale};
  const HeadSlope sums{weight_slope(slope, h->matrix->n, h->matrix->k),
                       sums_or_null(bias_slope, h->matrix->n, "bias_slope")};
  o.run(
      [=](Workers& workers) {
        loss(workers, head, rows, wanted->data(), to, slopes.data == nullptr ? nullptr : &slopes,
             sums);
      },
      h, x, dx, slope, bias_slope, losses);
  return losses;
}

void run_embed(Operators& o, const MatrixPointer& m, const py::object& ids, float scale,
               const py::object& y) {
  if (m == nullptr) throw py::type_error("expected a Matrix, got None");
  const Numbers tokens = tokens_of(ids, -1, m->n, "ids");
  const Rows to = rows_of(y, static_cast<py::ssize_t>(tokens->size()), m->k, "y");
  o.run([=](Workers& workers) { embed(workers, *m, tokens->data(), scale, to); }, y);
}

void run_embed_back(Operators& o, const py::object& ids, float scale, const py::object& dy, int n,
                    int k, const py::object& slope) {
  const Rows slopes = rows_of(dy, -1, k, "dy");
  const Numbers tokens = tokens_of(ids, slopes.m, n, "ids");
  const WeightSlope to{weight_slope(slope, n, k), n, k};
  if (to.data == nullptr) throw py::value_error("slope: expected an array, got None");
  o.run([=](Workers& workers) { embed_back(workers, tokens->data(), scale, slopes, to); }, dy,
        slope);
}

// kept, first, second, second_kept, step, root, eps: see AdamStep.
using AdamNumbers = std::tuple<float, float, float, float, float, float, float>;

void run_adam(Operators& o, const py::object& values, const py::object& slopes,
              const py::object& mean, const py::object& square, const AdamNumbers& numbers) {
  auto to = checked_array<float>(values, {-1}, "values");
  const py::ssize_t count = to.size();
  const float* from = checked_array<float>(slopes, {count}, "slopes").data();
  const Moments moments{checked_array<float>(mean, {count}, "mean").mutable_data(),
                        checked_array<float>(square, {count}, "square").mutable_data()};
  const auto& [kept, first, second, second_kept, rate, root, eps] = numbers;
  const AdamStep step{kept, first, second, second_kept, rate, root, eps};
  float* data = to.mutable_data();
  o.run(
      [=](Workers& workers) {
        adam(workers, step, data, from, moments, static_cast<size_t>(count));
      },
      values, slopes, mean, square);
}

void run_add(Operators& o, const py::object& x, const py::object& y) {
  by_rows(o, {x, y}, [](const Kernels&, const std::vector<Rows>& r, int row) {
    const float* from = r[0].row(row);
    float* to = r[1].row(row);
    for (int c = 0; c < r[0].stride; ++c) to[c] = to[c] + from[c];
  });
}

void run_zero(Operators& o, const py::object& x) {
  by_rows(o, {x}, [](const Kernels&, const std::vector<Rows>& r, int row) {
    std::fill_n(r[0].row(row), r[0].stride, 0.0f);
  });
}

// Some rows of x, whose numbers rise: no two threads add to one.
struct Selection {
  Rows all, some;
  Numbers rows;
};
Selection selection_of(const py::object& all, const py::object& rows, const py::object& some) {
  const Numbers numbers = checked_numbers(rows, -1, "rows");
  const auto count = static_cast<py::ssize_t>(numbers->size());
  const Selection s{rows_of(all, -1, 1, "all"), rows_of(some, count, 1, "some"), numbers};
  int64_t before = -1;
  for (const int32_t row : *numbers) {
    if (row <= before || row >= s.all.m)
      throw py::value_error("rows: expected rising numbers below " + std::to_string(s.all.m));
    before = row;
  }
  if (s.some.stride != s.all.stride) throw py::value_error("expected rows of one width");
  return s;
}

void run_select(Operators& o, const py::object& x, const py::object& rows, const py::object& y) {
  const Selection s = selection_of(x, rows, y);
  o.run(
      [=](Workers& workers) {
        each_row(workers, s.some.m, [&](int row, int) {
          std::copy_n(s.all.row((*s.rows)[static_cast<size_t>(row)]), s.all.stride,
                      s.some.row(row));
        });
      },
      x, y);
}

void run_select_back(Operators& o, const py::object& dy, const py::object& rows,
                     const py::object& dx) {
  const Selection s = selection_of(dx, rows, dy);
  o.run(
      [=](Workers& workers) {
        each_row(workers, s.some.m, [&](int row, int) {
          const float* from = s.some.row(row);
          float* to = s.all.row((*s.rows)[static_cast<size_t>(row)]);
          for (int c = 0; c < s.all.stride; ++c) to[c] = to[c] + from[c];
        });
      },
      dy, dx);
}

// Zeroed rows whose memory begins on a cache line.
Floats zero_rows(py::ssize_t m, py::ssize_t width) {
  if (m < 1 || width < 1 || m > (1 << 28) || width > (1 << 28))
    throw py::value_error("expected 1..2^28 rows and columns");
  const py::ssize_t columns = padded(static_cast<int>(width));
  const auto bytes = static_cast<size_t>(m * columns) * sizeof(float);
  auto* memory = new Memory(bytes, bytes >= (size_t{4} << 20));
  const py::capsule owner(memory, [](void* held) { delete static_cast<Memory*>(held); });
  return Floats({m, columns}, memory->as<float>(), owner);
}

std::unique_ptr<Operators> make_operators(int threads, const std::optional<std::string>& isa) {
  const Kernels& kernels = isa ? kernels_named(*isa) : active_kernels();
  return std::make_unique<Operators>(std::make_unique<Workers>(kernels, threads));
}

double squares(const py::object& values) {
  const auto array = checked_array<float>(values, {-1}, "values");
  const Released release;
  return sum_of_squares(array.data(), static_cast<size_t>(array.size()));
}

}  // namespace

void bind_training(py::module_& m) {
  using py::arg;
  py::class_<PyNorm, std::shared_ptr<PyNorm>>(m, "Norm")
      .def(py::init(&make_norm), arg("weight"), arg("bias"), arg("heads"), arg("eps"), arg("layer"))
      .def("set", &set_norm, arg("weight"), arg("bias"));
  py::class_<PyHead, std::shared_ptr<PyHead>>(m, "Head")
      .def(py::init(&make_head), arg("matrix"), arg("bias"), arg("activations"), arg("softcap"))
      .def("set_bias", &set_bias, arg("bias"));
  py::class_<Attention>(m, "Attention")
      .def(py::init(&attention_of), arg("heads"), arg("kv_heads"), arg("head_dim"), arg("scale"),
           arg("window"), arg("softcap"));
  py::class_<Operators>(m, "Operators")
      .def(py::init(&make_operators), arg("threads"), arg("isa") = py::none())
      .def("linear", &run_linear, arg("x"), arg("uses"), arg("activations"),
           arg("pairs") = py::none())
      .def("linear_back", &run_linear_back, arg("uses"), arg("add"), arg("dx"))
      .def("multiply", &run_multiply, arg("x"), arg("w"), arg("y"), arg("n"), arg("k"),
           arg("transposed") = false, arg("add") = false)
      .def("weight_back", &run_weight_back, arg("x"), arg("dy"), arg("n"), arg("k"), arg("slope"),
           arg("bias"))
      .def("low_rank_back", &run_low_rank_back, arg("x"), arg("t"), arg("k"), arg("rank"),
           arg("scale"), arg("uses"), arg("dx"))
      .def("norm", &run_norm, arg("norm"), arg("x"), arg("y"))
      .def("norm_back", &run_norm_back, arg("norm"), arg("x"), arg("dy"), arg("dx"))
      .def("norm_weight_back", &run_norm_weight_back, arg("norm"), arg("x"), arg("dy"),
           arg("scale"), arg("weight"), arg("bias"))
      .def("gated", &run_gated, arg("name"), arg("gate"), arg("up"), arg("y"))
      .def("gated_back", &run_gated_back, arg("name"), arg("gate"), arg("up"), arg("dy"),
           arg("d_gate"), arg("d_up"))
      .def("unary", &run_unary, arg("name"), arg("x"), arg("y"))
      .def("unary_back", &run_unary_back, arg("name"), arg("x"), arg("dy"), arg("dx"))
      .def("turn", &run_turn, arg("x"), arg("y"), arg("starts"), arg("angles"), arg("heads"),
           arg("head_dim"), arg("back"))
      .def("attend", &run_attend, arg("attention"), arg("starts"), arg("q"), arg("k"), arg("v"),
           arg("out"))
      .def("attend_back", &run_attend_back, arg("attention"), arg("starts"), arg("qkv"),
           arg("d_out"), arg("slopes"))
      .def("loss", &run_loss, arg("head"), arg("x"), arg("targets"), arg("scale"), arg("dx"),
           arg("slope") = py::none(), arg("bias_slope") = py::none())
      .def("embed", &run_embed, arg("matrix"), arg("ids"), arg("scale"), arg("y"))
      .def("embed_back", &run_embed_back, arg("ids"), arg("scale"), arg("dy"), arg("n"), arg("k"),
           arg("slope"))
      .def("add", &run_add, arg("x"), arg("y"))
      .def("zero", &run_zero, arg("x"))
      .def("select", &run_select, arg("x"), arg("rows"), arg("y"))
      .def("select_back", &run_select_back, arg("dy"), arg("rows"), arg("dx"))
      .def("hold", &Operators::hold)
      .def("run_held", &Operators::run_held)
      .def("drop_held", &Operators::drop_held)
      .def("adam", &run_adam, arg("values"), arg("slopes"), arg("mean"), arg("square"),
           arg("numbers"))
      .def_property_readonly(
          "isa", [](const Operators& o) { return std::string(o.constants().kernels.name); })
      .def_property_readonly("scratch_bytes",
                             [](const Operators& o) { return o.constants().bytes(); });
  m.def("zero_rows", &zero_rows, arg("m"), arg("width"));
  m.def("sum_of_squares", &squares, arg("values"));
}

}  // namespace slmq
