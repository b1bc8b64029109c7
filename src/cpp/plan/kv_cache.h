// The paged key/value cache: fixed pages of 64 positions, shared by reference counts; and the states
// (states.h) of models that have some, which count against the same limit.
//
// Memory grows in slabs as sequences need pages, up to a limit; pages go back to a free list when the
// last sequence that holds them lets go, and slabs without a page in use go back to the system when
// trim() is called. Sequences of several Python threads may share a cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels/kernels.h"
#include "layout/memory.h"
#include "plan/states.h"

namespace slmq {

// More pages were asked for than the limit of a cache allows.
class CacheFullError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class KvCache {
 public:
  // state_bytes: of all layers; 0 for models without states. One is kept every state_interval
  // positions, a multiple of a page.
  explicit KvCache(size_t page_bytes, size_t state_bytes = 0, int state_interval = kPagePositions);

  int take();            // a page with one reference; throws CacheFullError or std::bad_alloc
  void share(int page);  // one more reference
  void drop(int page);   // one less
  bool shared(int page) const;
  uint8_t* data(int page) const;
  size_t page_bytes() const { return page_bytes_; }
  StatePool& states() { return states_; }
  int state_interval() const { return state_interval_; }
  int state_pages(int states) const;  // what so many count for, rounded up
  size_t allocated_bytes() const;
  int pages_in_use() const;    // with what states count for
  int limit() const;           // most pages in use at a time; kNoLimit by default
  void set_limit(int pages);   // at least 1; what is in use already stays
  void check_room(int pages);  // throws CacheFullError if so many more are over the limit
  size_t trim();               // gives slabs and states without use back; returns the bytes

  static constexpr int kNoLimit = 0x7fffffff;

 private:
  int in_use() const;  // pages and states; all three with the mutex held
  int taken() const;   // pages alone
  void check_room_held(int pages) const;

  const size_t page_bytes_;
  const int slab_pages_;  // so that a slab is neither tiny nor huge
  const int state_interval_;
  StatePool states_;
  mutable std::mutex mutex_;
  int limit_ = kNoLimit;
  int dead_ = 0;            // pages of slabs that were given back
  std::vector<int> given_;  // those slabs
  std::vector<Memory> slabs_;
  std::vector<int> references_;
  std::vector<int> free_;
};

// The pages of one sequence and how many positions they hold. Whoever calls what changes it, or runs
// with it, holds its guard: Python threads may share a sequence.
class KvSequence {
 public:
  explicit KvSequence(std::shared_ptr<KvCache> cache)
      : cache_(std::move(cache)), states_(&cache_->states(), cache_->state_interval()) {}
  ~KvSequence() { truncate(0); }  // nobody else has it any more
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  std::mutex& guard() { return guard_; }
  int length() const { return length_; }
  // Makes room for positions [length, length + count); throws as KvCache::take.
  void reserve(int count);
  int pages_needed(int count) const;  // that reserve(count) would take from the cache, with states
  int pages_held() const;             // with states
  void advance(int count) {
    states_.advance();
    length_ += count;
  }
  // The greatest length up to this one that a truncation or a fork may have: any, or with states
  // one of which a state is kept.
  int kept(int length) const { return states_.kept(length); }
  void truncate(int length);  // forgets positions behind `length`, which is kept
  // A new sequence with the first `length` positions, as many as are kept; pages are shared until
  // one side writes.
  std::shared_ptr<KvSequence> fork(int length);

  // Of a run that has reserved its positions: floats of the states of all layers.
  const float* state_before() const { return states_.before(length_); }     // null: zeros
  float* state_behind(int length) const { return states_.behind(length); }  // null: not kept

  uint8_t* const* pages() const { return page_data_.data(); }
  const std::shared_ptr<KvCache>& cache() const { return cache_; }

 private:
  size_t partial_page() const { return static_cast<size_t>(length_ / kPagePositions); }

  std::mutex guard_;
  std::shared_ptr<KvCache> cache_;
  StateTrail states_;
  std::vector<int> pages_;
  std::vector<uint8_t*> page_data_;
  std::atomic<int> length_{0};  // others may look at it at any time
};

}  // namespace slmq
