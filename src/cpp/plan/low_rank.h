// What adapters add to a step over weights. Products with A are made by the step that rounds its input, row
// by row; or, of few rows and of other inputs, they are the first of the items that its threads share out.
// Those with B are made beside the weights' own.
#pragma once

#include <atomic>
#include <utility>
#include <vector>

#include "plan/step.h"
#include "threads/barrier.h"

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

// What is left to add to products with a weight, from its first column on; null: nothing, or the kernel
// has done it.
struct Behind {
  const float* bias = nullptr;
  const float* add = nullptr;  // of the first row
  int add_stride = 0;
  bool products = false;  // B t, too
};

class LowRankAdditions {
 public:
  // To no matrix without inputs. `products` is the buffer of A x.
  LowRankAdditions(Domain domain, std::vector<LowRankInput> inputs, int products);
  size_t scratch_bytes() const;
  // The step that makes the only input makes the products with A, too.
  void follow_input() { follows_ = true; }

  // Whether a row of the run may have an adapter that adds something here.
  bool in(const Frame& frame) const { return !inputs_.empty() && !frame.adapters.empty(); }
  // So many items of a run, the first ones, are products with A.
  int items(const Frame& frame) const;
  void prepare(const Frame& frame) { left_ = items(frame); }
  // Does what [first, last) has of them.
  void take(const Run& run, int first, int last, int thread);
  // Instead of items: what rows [begin, end) need, behind the step that makes them, or for a thread that
  // takes them through many steps.
  void follow(const Run& run, int begin, int end, int thread) const;
  void multiply(const Run& run, int begin, int end, int thread);

  // Whether the weights' kernel can do all of it for rows [row, row + rows) of the run: t is there by
  // now, and the rows have one adapter, which adds no more than B t, or none.
  bool at_once(const Run& run, const LowRankUse& use, int row, int rows) const;
  // Has it do so, or leaves what comes behind to add().
  Behind prepare(const Run& run, const LowRankUse& use, int row, int rows, LinearArgs* args) const;
  // What is left: y += B t for columns [column, column + count) of a matrix (multiples of 32), y being
  // the first of them. Waits for t: who makes it took it before.
  void add(const Run& run, const LowRankUse& use, const Behind& behind, int row, int rows,
           int column, int count, float* y, int y_stride) const;

 private:
  void products(const Run& run, const LowRankInput& input, SlotRange slots, int begin, int end,
                int thread) const;
  const float* floats(const Run& run, const Buffer& x, int thread, int begin, int end) const;
  int end_of_run(const Frame& frame, int row, int end) const;
  // Whether the products are there before the step begins.
  bool early(const Frame& frame) const { return follows_ && frame.rows(domain_) > kReplicaRows; }
  const LowRank* found(const Frame& frame, const LowRankUse& use, int row) const;
  LowRankUp up(const Run& run, const LowRankUse& use, const LowRank& low, int row) const;
  int product_stride(const Run& run, int row) const;
  bool there() const { return left_.load(std::memory_order_acquire) <= 0; }
  void wait() const;

  const Domain domain_;
  const std::vector<LowRankInput> inputs_;
  const int products_;
  bool follows_ = false;
  std::vector<std::pair<int, int>>
      slots_;  // which input, and which of its slots: items of a block of rows
  // Items that are not done. Threads write it while others read the rest.
  alignas(kLineBytes) std::atomic<int> left_{0};
};

}  // namespace slmq
