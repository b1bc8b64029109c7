// Which parts of long contexts rows attend together, and which of them are one thread's.
#include <algorithm>
#include <functional>

#include "plan/attention.h"

namespace slmq {
namespace {

constexpr int kPartPages = kPartPositions / kPagePositions;

}  // namespace

// First parts whose pages two sequences have in common. The last part of neither: what a run appends
// is in a page of its own.
int AttentionStep::shared_parts(const Frame& frame, const Block& a, const Block& b) const {
  const Segment &left = frame.segments[a.segment], &right = frame.segments[b.segment];
  const int most = std::min(last_part(left, left.row), last_part(right, right.row));
  uint8_t *const *x = left.sequence->pages(), *const *y = right.sequence->pages();
  int parts = 0;
  while (parts < most &&
         std::equal(x + parts * kPartPages, x + (parts + 1) * kPartPages, y + parts * kPartPages))
    ++parts;
  return parts;
}

// Brings rows together that begin with the same pages, as many as a kernel takes at a time. Windows see
// little that is worth sharing.
void AttentionStep::find_shared(const Frame& frame) {
  shared_.assign(blocks_.size(), 0);
  if (config_.window > 0 || blocks_.size() < 2) return;
  const auto first_page = [&](const Block& block) {
    return frame.segments[block.segment].sequence->pages()[0];
  };
  std::stable_sort(blocks_.begin(), blocks_.end(), [&](const Block& a, const Block& b) {
    return std::less<>()(first_page(a), first_page(b));
  });
  const int most = kMaxQueries / group();
  for (size_t i = 1, together = 1; i < blocks_.size(); ++i) {
    const bool full = together == static_cast<size_t>(most);
    shared_[i] = full ? 0 : shared_parts(frame, blocks_[i - 1], blocks_[i]);
    together = shared_[i] > 0 ? together + 1 : 1;
  }
}

// A block's items are those parts that it does not share with the one before.
void AttentionStep::list_parts(const Frame& frame) {
  items_.clear();
  const int blocks = static_cast<int>(blocks_.size());
  for (int block = 0; block < blocks; ++block) {
    const Segment& segment = frame.segments[blocks_[block].segment];
    const int first = std::max(first_part(segment, segment.row), shared_[block]);
    for (int kv_head = 0; kv_head < config_.kv_heads; ++kv_head)
      for (int part = first; part <= last_part(segment, segment.row); ++part) {
        int end = block + 1;
        while (end < blocks && shared_[end] > part) ++end;
        items_.push_back({block, end - block, kv_head, part});
      }
  }
}

// Neighbouring items go to one thread, which then knows what it attends next and asks memory for it:
// twice a run of two thirds of its share, at last small ones, so that all threads end together. So few
// runs in all that the relay hands them out one by one.
void AttentionStep::cut_runs() {
  const int count = static_cast<int>(items_.size());
  runs_.assign(1, 0);
  const auto cut = [&](int runs) {  // of what is left, in equal shares
    const int begin = runs_.back(), left = count - begin;
    for (int i = 1; i <= runs; ++i) {
      const int end = begin + left * i / runs;
      if (end > runs_.back()) runs_.push_back(end);
    }
  };
  if (threads_ == 1) return cut(1);
  for (int round = 0; round < 2; ++round) {
    const int size = std::max(1, (count - runs_.back()) * 2 / (3 * threads_));
    for (int i = 0; i < threads_ && runs_.back() < count; ++i)
      runs_.push_back(std::min(count, runs_.back() + size));
  }
  cut(2 * threads_ - 1);
}

}  // namespace slmq
