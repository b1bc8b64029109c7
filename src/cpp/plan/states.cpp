#include "plan/states.h"

#include <algorithm>

namespace slmq {

int StatePool::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) {
    Memory slot(bytes_, true);
    slots_.push_back(std::move(slot));
    references_.push_back(1);
    return static_cast<int>(slots_.size()) - 1;
  }
  const int slot = free_.back();
  if (slots_[slot].size() == 0) slots_[slot] = Memory(bytes_, true);
  free_.pop_back();
  references_[slot] = 1;
  return slot;
}

void StatePool::share(int slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++references_[slot];
}

void StatePool::drop(int slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--references_[slot] == 0) free_.push_back(slot);
}

bool StatePool::shared(int slot) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return references_[slot] > 1;
}

float* StatePool::data(int slot) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reinterpret_cast<float*>(slots_[slot].data());
}

int StatePool::in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(slots_.size() - free_.size());
}

size_t StatePool::allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = 0;
  for (const Memory& slot : slots_) bytes += slot.size();
  return bytes;
}

size_t StatePool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t released = 0;
  for (const int slot : free_) {
    released += slots_[slot].size();
    slots_[slot] = Memory();
  }
  return released;
}

int StateTrail::kept(int length) const {
  if (!used()) return length;
  for (size_t i = kept_.size(); i-- > 0;)
    if (kept_[i].length <= length) return kept_[i].length;
  return 0;
}

int StateTrail::slots_needed(int length, int count) const {
  if (!used()) return 0;
  const int64_t end = int64_t{length} + count;
  const auto multiples = static_cast<int>(end / interval_ - length / interval_);
  const int taken = multiples + (stays(static_cast<int>(end)) ? 0 : 1);
  const auto freed = std::count_if(kept_.begin(), kept_.end(), [&](const KeptState& state) {
    return passes(state, length) && !pool_->shared(state.slot);
  });
  return std::max(0, taken - static_cast<int>(freed + due_.size()));
}

void StateTrail::reserve(int length, int count) {
  if (!used()) return;
  for (const KeptState& state : due_) pool_->drop(state.slot);
  due_.clear();
  const auto replaced = [&](const KeptState& state) { return passes(state, length); };
  for (const KeptState& state : kept_)
    if (replaced(state)) pool_->drop(state.slot);
  kept_.erase(std::remove_if(kept_.begin(), kept_.end(), replaced), kept_.end());
  const int end = length + count;
  for (int at = length / interval_ * interval_ + interval_; at < end; at += interval_)
    due_.push_back({at, pool_->take()});
  due_.push_back({end, pool_->take()});
}

void StateTrail::advance() {
  kept_.insert(kept_.end(), due_.begin(), due_.end());
  due_.clear();
}

void StateTrail::truncate(int length) {
  for (const KeptState& state : due_) pool_->drop(state.slot);
  due_.clear();
  while (!kept_.empty() && kept_.back().length > length) {
    pool_->drop(kept_.back().slot);
    kept_.pop_back();
  }
}

void StateTrail::fork(int length, StateTrail* copy) const {
  for (const KeptState& state : kept_) {
    if (state.length > length) break;
    if (passes(state, length)) continue;
    pool_->share(state.slot);
    copy->kept_.push_back(state);
  }
}

const float* StateTrail::before(int length) const {
  if (length == 0) return nullptr;
  const auto at = std::find_if(kept_.begin(), kept_.end(),
                               [&](const KeptState& state) { return state.length == length; });
  return pool_->data(at->slot);
}

float* StateTrail::behind(int length) const {
  const auto at =
      std::lower_bound(due_.begin(), due_.end(), length,
                       [](const KeptState& state, int wanted) { return state.length < wanted; });
  return at == due_.end() || at->length != length ? nullptr : pool_->data(at->slot);
}

}  // namespace slmq
