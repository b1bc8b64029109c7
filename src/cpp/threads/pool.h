// A pool of threads that stay: they share the items of steps, or enter a task together and meet at
// its barriers; in between they sleep.
#pragma once

#include <atomic>
#include <memory>

#include "threads/barrier.h"
#include "threads/relay.h"

namespace slmq {

class ThreadPool {
 public:
  using Task = void (*)(void* context, int thread);

  // The caller of run() is thread 0, so threads - 1 workers are started. Throws
  // std::invalid_argument unless threads is in 1..1024, std::system_error if they cannot start.
  explicit ThreadPool(int threads);
  ~ThreadPool();  // joins
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // The barrier of the task that runs now: all size() threads must call wait() equally often. Ask
  // for it inside of run(): after a fork the child has another one.
  Barrier& barrier();

  // Runs task(context, t) for t in 0..size()-1 at once and returns when all are done. Calls from
  // several threads queue. A task must not throw and must not call run() of its own pool. Every
  // thread computes in the default floating-point mode; the caller's is restored.
  void run(Task task, void* context);

  // Runs all items of all steps (relay.h). Beside a busy neighbour this keeps
  // more of its speed than a task with barriers, because nobody waits for a thread without work.
  // Otherwise as above: calls queue, nothing throws, the default floating-point mode holds.
  void run(Steps& steps);

 private:
  struct Crew;

  Crew* crew();

  const int threads_;
  std::atomic<Crew*> crew_;  // leaked in the child of a fork, where its threads do not exist
  std::atomic<unsigned> fork_count_;  // of the process that made crew_
};

// One pool per size per process, created on first use and kept until the process ends.
std::shared_ptr<ThreadPool> shared_pool(int threads);

}  // namespace slmq
