// What several Python threads may share: calls queue.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>

namespace slmq {

namespace py = pybind11;

// A plan has one frame, a recording one list of steps: calls from several Python threads queue, with
// or without a GIL. Whoever waits leaves the GIL; whoever runs a plan has left it, and needs it for
// nothing.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::unique_ptr<T> value) : value_(std::move(value)) {}

  // The value, until the end of the statement. Arguments that call Python come before it.
  class Held {
   public:
    Held(T& value, std::mutex& mutex) : value_(value), lock_(mutex, std::try_to_lock) {
      if (lock_.owns_lock()) return;
      const Released release;
      lock_.lock();
    }
    T* operator->() { return &value_; }

   private:
    T& value_;
    std::unique_lock<std::mutex> lock_;
  };
  Held operator->() { return {*value_, mutex_}; }
  const T& constants() const { return *value_; }  // what the constructor set for good

  // Calls work(value) without the GIL.
  template <class Work>
  auto run(const Work& work) {
    const Released release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return work(*value_);
  }

 private:
  const std::unique_ptr<T> value_;
  std::mutex mutex_;
};

}  // namespace slmq
