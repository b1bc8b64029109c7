// What Python sees of training's operators: calls that run at once, or are held and run in one go.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/guarded.h"
#include "training/workers.h"

namespace slmq {

// Between hold() and run_held() calls are checked and noted only. Then they run one behind the other:
// an interpreter that runs in between finds its own code gone from the caches every time, and meanwhile
// the threads fall asleep. Only the thread that holds is held up.
class Operators {
 public:
  explicit Operators(std::unique_ptr<Workers> workers) : workers_(std::move(workers)) {}

  const Workers& constants() const { return workers_.constants(); }

  // Calls call(workers), now or later. `kept`: Python objects whose memory it points into.
  template <class Call, class... Kept>
  void run(Call call, const Kept&... kept) {
    {
      const std::lock_guard<std::mutex> lock(notes_);
      if (holds()) {
        held_.emplace_back([call = std::move(call), objects = std::tuple<Kept...>(kept...)](
                               Workers& workers) { call(workers); });
        return;
      }
    }
    workers_.run(call);
  }

  // What a pass left that was broken off is forgotten.
  void hold() {
    const Calls left = take();
    const std::lock_guard<std::mutex> lock(notes_);
    holder_ = std::this_thread::get_id();
  }
  // Python looks for a Ctrl-C a few times a second.
  void run_held() {
    constexpr std::chrono::milliseconds kUnheard(200);
    const Calls calls = take();
    for (size_t next = 0; next < calls.size();) {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      workers_.run([&](Workers& workers) {
        const auto until = std::chrono::steady_clock::now() + kUnheard;
        do calls[next++](workers);
        while (next < calls.size() && std::chrono::steady_clock::now() < until);
      });
    }
  }
  void drop_held() { take(); }
  // Of a call whose result Python reads at once.
  void refuse_while_held(const char* name) {
    const std::lock_guard<std::mutex> lock(notes_);
    if (holds()) throw std::runtime_error(std::string(name) + ": call run_held() first");
  }

 private:
  using Calls = std::vector<std::function<void(Workers&)>>;

  bool holds() const { return holder_ == std::this_thread::get_id(); }
  Calls take() {
    const std::lock_guard<std::mutex> lock(notes_);
    const bool others = holder_ != std::thread::id() && !holds();
    if (others) throw std::runtime_error("another thread holds these operators");
    holder_ = std::thread::id();
    return std::exchange(held_, {});
  }

  Guarded<Workers> workers_;
  std::mutex notes_;        // what follows; nobody calls Python while it is held
  std::thread::id holder_;  // of none: nothing is held
  Calls held_;
};

}  // namespace slmq
