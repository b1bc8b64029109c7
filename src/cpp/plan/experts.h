// Which rows go to which expert: made from a run's routes, read by the steps of a mixture.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/step.h"

namespace slmq {

// A row and one of its experts are a slot. Slots are sorted by expert, and then by row, so an expert
// finds its rows in one piece.
struct ExpertSlots {
  std::vector<int32_t> expert;  // [touched], ascending
  std::vector<int32_t> begin;   // [touched + 1], the first slot of each
  std::vector<int32_t> row;     // [slots]
  std::vector<float> weight;    // [slots]
  std::vector<int32_t> counts;  // [experts], while it is filled
  int touched = 0;

  int rows_of(int i) const { return begin[i + 1] - begin[i]; }
};

// With few rows every thread sorts them for itself, as it computes row steps; else one for all.
class ExpertTable {
 public:
  ExpertTable(int experts, int top_k, int max_rows, int threads);

  int experts() const { return experts_; }
  int top_k() const { return top_k_; }
  // Most experts that so many rows can touch.
  int most(int rows) const;
  const ExpertSlots& slots(int rows, int thread) const;
  // Those of the last run, which clear() came before.
  const ExpertSlots& filled() const;
  void clear();
  // From rows of `routes`, a buffer that Recording::route() made.
  void fill(const Buffer& routes, int rows, int thread);

 private:
  int experts_, top_k_;
  ExpertSlots shared_;
  std::vector<std::unique_ptr<ExpertSlots>> own_;  // of threads
};

}  // namespace slmq
