// What adapters add to a step over weights: products with A, the first of the items that its threads share
// out, and those with B beside the weights' own.
#pragma once

#include <atomic>
#include <utility>
#include <vector>

#include "plan/step.h"

namespace slmq {

class Adapter;
struct LowRank;

// Matrices that can be added to and multiply the same rows: their slots, the first of which names them,
// the buffer that they read, how many columns of it, and where their products begin.
struct LowRankInput {
  std::vector<int> slots;
  int x, k, column;
};

// Some of an input's slots, by their places.
struct SlotRange {
  int first, last;
};

// One of the matrices: its slot, or -1 if nothing can be added to it, and where the products of those that
// share its input begin.
struct LowRankUse {
  int slot, products_at;
};

// What is added to products with a weight, from its first column on; null: nothing, or the kernel has
// done it.
struct Behind {
  const float* bias = nullptr;
  const float* add = nullptr;  // of the first row
  int add_stride = 0;
};

class LowRankAdditions {
 public:
  // To no matrix without inputs. `products` is the buffer of A x.
  LowRankAdditions(Domain domain, std::vector<LowRankInput> inputs, int products);
  LowRankAdditions(LowRankAdditions&& other) noexcept
      : LowRankAdditions(other.domain_, other.inputs_, other.products_) {}
  size_t scratch_bytes() const;
  int products() const { return products_; }

  // Whether a row of the run may have an adapter that adds something here.
  bool in(const Frame& frame) const { return !inputs_.empty() && !frame.adapters.empty(); }
  // So many items of a run, the first ones, are products with A.
  int items(const Frame& frame) const;
  void prepare(const Frame& frame) { left_ = items(frame); }
  // Does what [first, last) has of them.
  void take(const Run& run, int first, int last, int thread);
  // Instead of items: what rows [begin, end) need, for a thread that takes them through many steps.
  void multiply(const Run& run, int begin, int end, int thread);

  // Leaves what comes behind a product with the weights to add(), if a row's adapter does more to it
  // than to add.
  void defer(const Run& run, const LowRankUse& use, int row, int rows, LinearArgs* args,
             Behind* behind) const;
  // y += B t for columns [column, column + count) of a matrix (multiples of 32), rows [row, row + rows)
  // of the run, y being the first of them. Waits for t: who makes it took it before.
  void add(const Run& run, const LowRankUse& use, const Behind& behind, int row, int rows,
           int column, int count, float* y, int y_stride) const;
  // Has the weights' kernel fetch what that reads of B, if the rows are so few that they would wait.
  void fetch(const Run& run, const LowRankUse& use, int row, LinearArgs* args) const;

 private:
  void products(const Run& run, const LowRankInput& input, SlotRange slots, int begin, int end,
                int thread) const;
  const float* floats(const Run& run, const Buffer& x, int thread, int begin, int end) const;
  int end_of_run(const Frame& frame, int row, int end) const;
  const LowRank* found(const Frame& frame, const LowRankUse& use, int row) const;
  void wait() const;

  const Domain domain_;
  const std::vector<LowRankInput> inputs_;
  const int products_;
  std::vector<std::pair<int, int>>
      slots_;                 // which input, and which of its slots: items of a block of rows
  std::atomic<int> left_{0};  // items that are not done
};

}  // namespace slmq
