#include "threads/pool.h"

#include <cstdio>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "machine/cpu.h"
#include "threads/relay.h"
#include "machine/topology.h"

#if defined(__unix__) || defined(__APPLE__)
#define SLMQ_HAS_FORK 1
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

namespace slmq {
namespace {

// Guards the map of shared pools and the remaking of a pool after fork. Never destroyed: threads
// may still use it while the process exits.
std::mutex& registry_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

std::atomic<unsigned> fork_count{0};  // how many forks lie between this process and the first

void watch_forks() {
#if defined(SLMQ_HAS_FORK)
  // The lock is held across the fork, so that the child never inherits it from another thread.
  static const int registered =
      pthread_atfork([] { registry_mutex().lock(); }, [] { registry_mutex().unlock(); },
                     [] {
                       fork_count.fetch_add(1);
                       registry_mutex().unlock();
                     });
  static_cast<void>(registered);
#endif
}

// New threads inherit the signal mask. With all signals blocked, Ctrl-C and timers interrupt the
// program's own threads, as they would without us. Faults must reach the thread that made them.
class BlockedSignals {
 public:
#if defined(SLMQ_HAS_FORK)
  BlockedSignals() {
    sigset_t signals;
    sigfillset(&signals);
    for (int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT}) {
      sigdelset(&signals, fault);
    }
    pthread_sigmask(SIG_BLOCK, &signals, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#else
  BlockedSignals() {}
#endif
};

void name_this_thread(int thread) {
  char name[16];  // the limit of Linux
  std::snprintf(name, sizeof name, "slmq-%d", thread);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), name);
#elif defined(__APPLE__)
  pthread_setname_np(name);
#endif
}

// The class of service of macOS that a pool's workers get: known when they are made.
unsigned quality_for_workers() {
#if defined(__APPLE__)
  return worker_quality(static_cast<unsigned>(qos_class_self()));
#else
  return 0;
#endif
}

void take_quality([[maybe_unused]] unsigned quality) {
#if defined(__APPLE__)
  pthread_set_qos_class_self_np(static_cast<qos_class_t>(quality), 0);
#endif
}

int checked_threads(int threads) {
  if (threads < 1 || threads > 1024) {
    throw std::invalid_argument("expected a number of threads in 1..1024, got " +
                                std::to_string(threads));
  }
  return threads;
}

}  // namespace

// The workers and what they share with the caller. They wait for the relay's next phase: items of a
// run, or a task that all enter together.
struct ThreadPool::Crew {
  explicit Crew(int threads);
  ~Crew();
  void run(Task next, void* next_context);
  void run(Steps& steps);
  void work(int thread);
  void dismiss();
  void enter(int thread) noexcept { task(context, thread); }  // a throwing task ends the process

  static constexpr uint32_t kTask = 1, kDismissed = 2;  // marks

  Relay relay;
  Barrier barrier;   // of tasks
  std::mutex queue;  // one task or run at a time
  Task task = nullptr;
  void* context = nullptr;
  const unsigned quality = quality_for_workers();
  std::vector<std::thread> workers;
};

ThreadPool::Crew::Crew(int threads) : relay(threads), barrier(threads) {
  const BlockedSignals blocked;
  try {
    for (int t = 1; t < threads; ++t) workers.emplace_back(&Crew::work, this, t);
  } catch (...) {
    dismiss();
    throw;
  }
}

ThreadPool::Crew::~Crew() { dismiss(); }

void ThreadPool::Crew::dismiss() {
  relay.announce(kDismissed);
  for (std::thread& worker : workers) worker.join();
}

void ThreadPool::Crew::work(int thread) {
  name_this_thread(thread);
  take_quality(quality);
  const Barrier::Seat seat(thread);
  const DefaultFpMode fp_mode;
  Relay::Look entered = 0;
  for (;;) {
    const Relay::Look look = relay.help(thread, relay.look());
    const uint32_t mark = Relay::mark_of(look);
    if (mark == kDismissed) return;
    if (mark == kTask && Relay::phase_of(look) != Relay::phase_of(entered)) {
      entered = look;
      enter(thread);
      barrier.wait();
    } else {
      relay.wait(look);
    }
  }
}

void ThreadPool::Crew::run(Task next, void* next_context) {
  const std::lock_guard<std::mutex> turn(queue);
  const Barrier::Seat seat(0);
  const DefaultFpMode fp_mode;
  task = next;
  context = next_context;
  relay.announce(kTask);
  enter(0);
  barrier.wait();
}

void ThreadPool::Crew::run(Steps& steps) {
  const std::lock_guard<std::mutex> turn(queue);
  const DefaultFpMode fp_mode;
  if (!workers.empty()) return relay.run(0, steps);
  const int n = static_cast<int>(steps.sizes.size());
  for (int step = 0; step < n; ++step) {
    steps.begin(step);
    steps.items(step, 0, steps.sizes[static_cast<size_t>(step)], 0);
  }
  steps.begin(n);
}

ThreadPool::ThreadPool(int threads) : threads_(checked_threads(threads)) {
  watch_forks();
  fork_count_ = fork_count.load();
  crew_ = new Crew(threads_);
}

ThreadPool::~ThreadPool() {
  if (fork_count_ == fork_count.load()) delete crew_.load();
}

ThreadPool::Crew* ThreadPool::crew() {
  if (fork_count_ != fork_count.load()) {
    const std::lock_guard<std::mutex> lock(registry_mutex());
    if (fork_count_ != fork_count.load()) {
      crew_ = new Crew(threads_);
      fork_count_ = fork_count.load();
    }
  }
  return crew_;
}

Barrier& ThreadPool::barrier() { return crew()->barrier; }

void ThreadPool::run(Task task, void* context) { crew()->run(task, context); }

void ThreadPool::run(Steps& steps) { crew()->run(steps); }

std::shared_ptr<ThreadPool> shared_pool(int threads) {
  checked_threads(threads);
  watch_forks();
  const std::lock_guard<std::mutex> lock(registry_mutex());
  static auto* pools = new std::map<int, std::shared_ptr<ThreadPool>>;
  std::shared_ptr<ThreadPool>& pool = (*pools)[threads];
  if (!pool) pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

}  // namespace slmq
