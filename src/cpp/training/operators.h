// The operators of a model and their gradients, over rows of float32: what training runs layer by
// layer. Each gives the same bits on every CPU and for any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/matrix.h"
#include "training/workers.h"

namespace slmq {

// One matrix of several that read the same rows: y = x @ matrix.T (+ bias) (+ add).
struct LinearUse {
  const Matrix* matrix;
  const float* bias;  // padded to the pairs, or null
  const float* add;   // rows like y, or null
  Rows y;
};

// Pairs of low rank beside weights that read the same rows: scale * (x @ A.T) @ B.T is added to y.
struct LowRankPairs {
  Rows a;  // A.T of all pairs, behind each other [k, ranks]
  Rows t;  // becomes scale * x @ A.T, likewise
  int k, rank;
  float scale;
  std::vector<Rows> b;  // by use: B.T, [rank, n]; or data null, where there is no pair
};

// Forward: inputs of integer weights are rounded to `activations`, float weights take them as they are.
void linear(Workers& workers, const Rows& x, Activations activations,
            const std::vector<LinearUse>& uses, const LowRankPairs* pairs);

// What pairs do of it: t of rows [begin, end) of x; columns [first, first + columns) of y, whose rows begin
// at `row` of t, from `place` of t on.
void low_rank_down(const Kernels& kernels, const LowRankPairs& pairs, const Rows& x, int begin,
                   int end);
void low_rank_up(const Kernels& kernels, const LowRankPairs& pairs, int place, const Rows& b,
                 int first, int columns, const Rows& y, int row);

// dx (+)= the sum over uses, in order, of y @ matrix, y being a gradient, whose padding is zero. Beside
// weights of integers it is rounded to sixteen bits. Their rounding passes gradients through.
void linear_back(Workers& workers, const std::vector<LinearUse>& uses, bool add, const Rows& dx);

// y[i, :] (+)= sum over c, in order, of x[i, c] * w[c, :]; transposed: of x[c, i] * w[c, :].
struct Product {
  Rows x, w;
  int m, n, k;  // n: a multiple of 16
  bool transposed, add;
};
void multiply(Workers& workers, const Product& product, const Rows& y);

// Pairs on the way back: what they read, and what linear() made of it.
struct TrainedInput {
  Rows x;
  int k;
  Rows t;
  int rank;
  float scale;
};
struct TrainedBack {
  Rows dy;
  int n;
  Rows a, b;              // A: [rank, k]; B: [n, rank]
  Rows a_slope, b_slope;  // of A; of B.T
};
// Adds to dx, and to the gradients of A and B: sums over rows, in order.
void low_rank_back(Workers& workers, const TrainedInput& in, const std::vector<TrainedBack>& uses,
                   const Rows& dx);

// Heads of `width` columns are normed each by itself, with one weight (padded to 32).
struct Norm {
  const float* weight;
  const float* bias;  // of a layer norm, or null
  int width, heads;
  float eps;
  bool layer;  // a layer norm, else an RMS norm
};
void norm(Workers& workers, const Norm& norm, const Rows& x, const Rows& y);
void norm_back(Workers& workers, const Norm& norm, const Rows& x, const Rows& dy, const Rows& dx);

// Calls work(row, thread) for rows, on all threads.
template <class Work>
void each_row(Workers& workers, int rows, const Work& work) {
  constexpr int kRows = 16;
  workers.each((rows + kRows - 1) / kRows, [&](int item, int thread) {
    for (int row = item * kRows; row < rows && row < (item + 1) * kRows; ++row) work(row, thread);
  });
}

// y[i, :] = row ids[i] of the matrix, times scale.
void embed(Workers& workers, const Matrix& matrix, const int32_t* ids, float scale, const Rows& y);

// Texts that lie behind each other in the rows: text i has rows [starts[i], starts[i + 1]).
struct Texts {
  const int32_t* starts;
  int count;

  int length(int i) const { return starts[i + 1] - starts[i]; }
  int longest() const {
    int most = 0;
    for (int i = 0; i < count; ++i) most = length(i) > most ? length(i) : most;
    return most;
  }
};

// y = x with heads turned by the angles of their places in their texts: cosines and sines float32[
// longest text, rotary / 2]; back: by the negative angles. y may be x.
struct Turn {
  const float *cosines, *sines;
  int rotary, head_dim, heads;
  bool back;
};
void turn(Workers& workers, const Turn& turn, const Texts& texts, const Rows& x, const Rows& y);

// Causal attention within each text.
struct Attention {
  int heads, kv_heads, head_dim;
  float scale;
  int window;     // 0: all
  float softcap;  // 0: none
};
void attend(Workers& workers, const Attention& attention, const Texts& texts, const Rows& q,
            const Rows& k, const Rows& v, const Rows& out);
// What goes in: queries, keys, values and the gradient of the result; what comes out replaces the
// rows' values.
struct AttentionGradients {
  Rows dq, dk, dv;
};
void attend_back(Workers& workers, const Attention& attention, const Texts& texts, const Rows& q,
                 const Rows& k, const Rows& v, const Rows& d_out,
                 const AttentionGradients& gradients);

// Where the gradient of a weight [n, k] is summed up: as the format f32 lays out the weight.
struct WeightSlope {
  float* data;
  int n, k;
};

// The gradients of what is trained itself. Each is added to what is there: a sum over rows in their
// order, whatever pieces the rows come in.

// slope += dy.T @ x, of y = x @ weight.T
void weight_back(Workers& workers, const Rows& x, const Rows& dy, const WeightSlope& slope);
// slope[c] += dy[row, c], for n columns
void bias_back(Workers& workers, const Rows& dy, int n, float* slope);
// slope[ids[row], :] += scale * dy[row, :]
void embed_back(Workers& workers, const int32_t* ids, float scale, const Rows& dy,
                const WeightSlope& slope);
// Of a norm's weight, float32[width], times `scale`; and of its bias, unless that is null.
struct NormSlope {
  float scale;
  float *weight, *bias;
};
void norm_weight_back(Workers& workers, const Norm& norm, const Rows& x, const Rows& dy,
                      const NormSlope& slope);

// The head: losses[i] = -log softmax(x[i] @ matrix.T)[targets[i]], and scale times its gradient,
// which becomes dx, unless that is null. Logits exist for a few rows at a time. What is trained of the
// head has its gradient added, if there is a dx.
struct Head {
  const Matrix* matrix;
  const float* bias;
  Activations activations;
  float softcap;  // 0: none
  float scale;
};
struct HeadSlope {
  float *weight, *bias;  // null: not trained
};
void loss(Workers& workers, const Head& head, const Rows& x, const int32_t* targets, double* losses,
          const Rows* dx, const HeadSlope& slope);

// A step of AdamW for `count` values, operation by operation as PyTorch has it.
struct AdamStep {
  float kept;           // of a value, after its decay
  float first, second;  // the shares of what is new in the moments, and of what was in the second
  float second_kept;
  float step, root, eps;
};
struct Moments {
  float *mean, *square;
};
void adam(Workers& workers, const AdamStep& step, float* values, const float* slopes,
          const Moments& moments, size_t count);

// The sum of squares in float64, in order.
double sum_of_squares(const float* values, size_t count);

}  // namespace slmq
