// Steps that read weights: linear layers (several at once) and the gated unit.
#pragma once

#include <optional>

#include "layout/matrix.h"
#include "plan/step.h"

namespace slmq {

// A range of pairs of one matrix: what a thread takes at a time.
struct Chunk {
  int part, pair_begin, pair_end;
};

struct LinearPart {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // padded to the pairs, or empty
  int offset;               // first column in the output buffer
  int x;                    // buffer that it reads
};

// out[:, offset of part] = x of part @ part.T (+ bias) (+ add), all parts in one phase; or f of it,
// which happens while the products are in cache. With a soft cap (> 0) y of that becomes
// softcap * tanh(y / softcap).
class LinearStep final : public Step {
 public:
  LinearStep(Domain domain, std::vector<LinearPart> parts, Slice add,
             std::optional<Unary> activation, float softcap, int out, int threads);
  int items(const Frame& frame, int phase) const override;
  void run_items(const Run& run, int phase, int first, int last, int thread) override;

 private:
  const Domain domain_;
  const std::vector<LinearPart> parts_;
  const Slice add_;
  const std::optional<Unary> activation_;
  const float softcap_;
  const int out_;
  std::vector<Chunk> chunks_;

  void multiply_pairs(const Run& run, const Chunk& chunk, int thread) const;
};

// out = f(x @ gate.T (+ bias)) * (x @ up.T (+ bias)): f happens while the products are in cache.
class GatedStep final : public Step {
 public:
  GatedStep(Domain domain, Gate activation, LinearPart gate, LinearPart up, int out, int threads);
  int items(const Frame& frame, int phase) const override;
  void run_items(const Run& run, int phase, int first, int last, int thread) override;
  size_t scratch_bytes() const override { return 2 * kTileFloats * sizeof(float); }

 private:
  static constexpr int kTileFloats = 64 * 64;  // rows x columns computed before the activation
  void tile(const Run& run, int thread, int pair_begin, int pair_end, int row, int rows);

  const Domain domain_;
  const Gate activation_;
  const LinearPart gate_, up_;
  const int out_;
  std::vector<Chunk> chunks_;
};

}  // namespace slmq
