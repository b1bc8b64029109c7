#include "plan/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"

namespace slmq {

int KvCache::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) {
    const int first = static_cast<int>(references_.size());
    slabs_.emplace_back(page_bytes_ * kSlabPages, true);
    references_.resize(references_.size() + kSlabPages, 0);
    for (int page = first + kSlabPages - 1; page >= first; --page) free_.push_back(page);
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
  return slabs_[page / kSlabPages].data() + static_cast<size_t>(page % kSlabPages) * page_bytes_;
}

size_t KvCache::allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return slabs_.size() * kSlabPages * page_bytes_;
}

int KvCache::pages_in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(references_.size() - free_.size());
}

void KvSequence::reserve(int count) {
  if (length_ % kPagePositions != 0 && cache_->shared(pages_.back())) {  // copy on write
    const int copy = cache_->take();
    std::memcpy(cache_->data(copy), page_data_.back(), cache_->page_bytes());
    cache_->drop(pages_.back());
    pages_.back() = copy;
    page_data_.back() = cache_->data(copy);
  }
  while (static_cast<int>(pages_.size()) * kPagePositions < length_ + count) {
    pages_.push_back(cache_->take());
    page_data_.push_back(cache_->data(pages_.back()));
  }
}

void KvSequence::truncate(int length) {
  length_ = std::min(length, this->length());
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
  copy->length_ = length;
  return copy;
}

}  // namespace slmq
