// What training's operators run on: kernels, threads, and scratch memory that stays.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "layout/memory.h"
#include "threads/pool.h"

namespace slmq {

// Rows of float32, padded with zeros to a multiple of 32 columns.
struct Rows {
  float* data;
  int m, stride;

  float* row(int i) const { return data + static_cast<size_t>(i) * stride; }
};

class Workers {
 public:
  Workers(const Kernels& kernels, int threads)
      : kernels(kernels), pool_(shared_pool(threads)), own_(static_cast<size_t>(threads)) {}

  const Kernels& kernels;

  // Calls body(item, thread) for items 0..count-1, handed out by a counter. An item never adds to what
  // another one adds to: threads share work, never a sum.
  template <class Body>
  void each(int count, Body body) {
    struct Shared {
      Body& body;
      int count;
      std::atomic<int> next{0};
    } shared{body, count};
    const auto task = [](void* opaque, int thread) {
      auto& s = *static_cast<Shared*>(opaque);
      for (int item; (item = s.next.fetch_add(1)) < s.count;) s.body(item, thread);
    };
    pool_->run(task, &shared);
  }

  int threads() const { return pool_->size(); }

  // At least so many floats, aligned to 64 bytes, with whatever is in them: of a thread, or of all.
  // Asked for before each(), not inside: the kernels' threads never allocate.
  void reserve(size_t floats) {
    for (Memory& memory : own_) grow(&memory, floats);
  }
  float* own(int thread) const { return own_[static_cast<size_t>(thread)].as<float>(); }
  float* shared(size_t floats) { return grow(&shared_, floats); }
  uint8_t* panel(size_t bytes) {
    return reinterpret_cast<uint8_t*>(grow(&panel_, bytes / sizeof(float) + 1));
  }

  size_t bytes() const {
    size_t sum = shared_.size() + panel_.size();
    for (const Memory& memory : own_) sum += memory.size();
    return sum;
  }

 private:
  static float* grow(Memory* memory, size_t floats) {
    const size_t bytes = floats * sizeof(float);
    if (memory->size() < bytes) *memory = Memory(bytes, bytes >= (size_t{4} << 20));
    return memory->as<float>();
  }

  const std::shared_ptr<ThreadPool> pool_;
  std::vector<Memory> own_;
  Memory shared_, panel_;
};

}  // namespace slmq
