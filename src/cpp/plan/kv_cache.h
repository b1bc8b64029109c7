// The paged key/value cache: fixed pages of 64 positions, shared by reference counts.
//
// Memory grows in slabs as sequences need pages; pages go back to a free list when the last
// sequence that holds them lets go. Sequences of several Python threads may share a cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "layout/memory.h"

namespace slmq {

class KvCache {
 public:
  explicit KvCache(size_t page_bytes) : page_bytes_(page_bytes) {}

  int take();            // a page with one reference; throws std::bad_alloc
  void share(int page);  // one more reference
  void drop(int page);   // one less
  bool shared(int page) const;
  uint8_t* data(int page) const;
  size_t page_bytes() const { return page_bytes_; }
  size_t allocated_bytes() const;
  int pages_in_use() const;

 private:
  static constexpr int kSlabPages = 16;

  const size_t page_bytes_;
  mutable std::mutex mutex_;
  std::vector<Memory> slabs_;
  std::vector<int> references_;
  std::vector<int> free_;
};

// The pages of one sequence and how many positions they hold. Whoever calls what changes it, or runs
// with it, holds its guard: Python threads may share a sequence.
class KvSequence {
 public:
  explicit KvSequence(std::shared_ptr<KvCache> cache) : cache_(std::move(cache)) {}
  ~KvSequence() { truncate(0); }  // nobody else has it any more
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  std::mutex& guard() { return guard_; }
  int length() const { return length_; }
  // Makes room for positions [length, length + count); throws std::bad_alloc.
  void reserve(int count);
  void advance(int count) { length_ += count; }
  void truncate(int length);  // forgets positions behind `length`
  // A new sequence with the first `length` positions; pages are shared until one side writes.
  std::shared_ptr<KvSequence> fork(int length);

  uint8_t* const* pages() const { return page_data_.data(); }
  const std::shared_ptr<KvCache>& cache() const { return cache_; }

 private:
  std::mutex guard_;
  std::shared_ptr<KvCache> cache_;
  std::vector<int> pages_;
  std::vector<uint8_t*> page_data_;
  std::atomic<int> length_{0};  // others may look at it at any time
};

}  // namespace slmq
