#include "plan/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace slmq {
namespace {

constexpr size_t kSlabBytes = size_t{32} << 20;
constexpr int kMostSlabPages = 16;

int slab_pages(size_t page_bytes) {
  return std::clamp(static_cast<int>(kSlabBytes / std::max<size_t>(page_bytes, 1)), 1,
                    kMostSlabPages);
}

}  // namespace

KvCache::KvCache(size_t page_bytes, size_t state_bytes, int state_interval)
    : page_bytes_(page_bytes),
      slab_pages_(slab_pages(page_bytes)),
      state_interval_(state_interval),
      states_(state_bytes) {}

int KvCache::state_pages(int states) const {
  if (page_bytes_ == 0) return states;  // without attention: nothing else counts
  const size_t bytes = static_cast<size_t>(states) * states_.bytes();
  return static_cast<int>((bytes + page_bytes_ - 1) / page_bytes_);
}

int KvCache::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_room_held(1);
  if (free_.empty()) {
    Memory slab(page_bytes_ * slab_pages_, true);
    int index = static_cast<int>(slabs_.size());
    if (!given_.empty()) {
      index = given_.back();
      given_.pop_back();
      slabs_[index] = std::move(slab);
      dead_ -= slab_pages_;
    } else {
      slabs_.push_back(std::move(slab));
      references_.resize(references_.size() + slab_pages_, 0);
    }
    const int first = index * slab_pages_;
    for (int page = first + slab_pages_ - 1; page >= first; --page) free_.push_back(page);
  }
  const int page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void KvCache::share(int page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++references_[page];
}

bool KvCache::shared(int page) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return references_[page] > 1;
}

void KvCache::drop(int page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--references_[page] == 0) free_.push_back(page);
}

uint8_t* KvCache::data(int page) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return slabs_[page / slab_pages_].data() + static_cast<size_t>(page % slab_pages_) * page_bytes_;
}

size_t KvCache::allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return (slabs_.size() - given_.size()) * slab_pages_ * page_bytes_ + states_.allocated_bytes();
}

int KvCache::pages_in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return in_use();
}

int KvCache::taken() const { return static_cast<int>(references_.size() - free_.size()) - dead_; }

int KvCache::in_use() const { return taken() + state_pages(states_.in_use()); }

int KvCache::limit() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return limit_;
}

void KvCache::set_limit(int pages) {
  const std::lock_guard<std::mutex> lock(mutex_);
  limit_ = pages;
}

void KvCache::check_room(int pages) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_room_held(pages);
}

void KvCache::check_room_held(int pages) const {
  if (pages <= limit_ - in_use()) return;
  throw CacheFullError("the cache may hold " + std::to_string(limit_) + " pages of 64 positions, " +
                       std::to_string(in_use()) + " are in use and " + std::to_string(pages) +
                       " more are needed");
}

size_t KvCache::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t released = states_.trim();
  for (size_t slab = 0; slab < slabs_.size(); ++slab) {
    const int first = static_cast<int>(slab) * slab_pages_, last = first + slab_pages_;
    const auto mine = [&](int page) { return page >= first && page < last; };
    if (slabs_[slab].size() == 0 || std::count_if(free_.begin(), free_.end(), mine) < slab_pages_)
      continue;
    free_.erase(std::remove_if(free_.begin(), free_.end(), mine), free_.end());
    slabs_[slab] = Memory();
    given_.push_back(static_cast<int>(slab));
    dead_ += slab_pages_;
    released += page_bytes_ * slab_pages_;
  }
  return released;
}

int KvSequence::pages_needed(int count) const {
  const bool copies = length_ % kPagePositions != 0 && cache_->shared(pages_[partial_page()]);
  const int held = static_cast<int>(pages_.size());
  const int64_t end = int64_t{length_} + count;
  const int all = static_cast<int>((end + kPagePositions - 1) / kPagePositions);
  const int states = cache_->state_pages(states_.slots_needed(length_, count));
  return std::max(all - held, 0) + (copies ? 1 : 0) + states;
}

int KvSequence::pages_held() const {
  return static_cast<int>(pages_.size()) + cache_->state_pages(states_.slots());
}

void KvSequence::reserve(int count) {
  // Pages behind the one that is partly filled may have been taken for a run that stopped early.
  const size_t at = partial_page();
  if (length_ % kPagePositions != 0 && cache_->shared(pages_[at])) {  // copy on write
    const int copy = cache_->take();
    std::memcpy(cache_->data(copy), page_data_[at], cache_->page_bytes());
    cache_->drop(pages_[at]);
    pages_[at] = copy;
    page_data_[at] = cache_->data(copy);
  }
  while (static_cast<int>(pages_.size()) * kPagePositions < length_ + count) {
    pages_.push_back(cache_->take());
    page_data_.push_back(cache_->data(pages_.back()));
  }
  states_.reserve(length_, count);
}

void KvSequence::truncate(int length) {
  length_ = std::min(length, this->length());
  states_.truncate(length_);
  const size_t keep = static_cast<size_t>((length_ + kPagePositions - 1) / kPagePositions);
  while (pages_.size() > keep) {
    cache_->drop(pages_.back());
    pages_.pop_back();
    page_data_.pop_back();
  }
}

std::shared_ptr<KvSequence> KvSequence::fork(int length) {
  auto copy = std::make_shared<KvSequence>(cache_);
  length = std::min(length, this->length());
  const int pages = (length + kPagePositions - 1) / kPagePositions;
  for (int i = 0; i < pages; ++i) {
    cache_->share(pages_[i]);
    copy->pages_.push_back(pages_[i]);
    copy->page_data_.push_back(page_data_[i]);
  }
  states_.fork(length, &copy->states_);
  copy->length_ = length;
  return copy;
}

}  // namespace slmq
