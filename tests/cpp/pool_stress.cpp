// Stress of the barrier and the pool, for a plain build and for sanitizers (tools/sanitize_pool.sh).
// Usage: pool_stress [rounds]. Exits with 0 if every check holds; hangs are the caller's timeout.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "threads/barrier.h"
#include "machine/cpu.h"
#include "threads/pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <pthread.h>
#define HAS_FORK 1
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define HAS_MXCSR 1
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      std::_Exit(1);                                                                \
    }                                                                               \
  } while (false)

namespace {

using slmq::Barrier;
using slmq::ThreadPool;

// Each thread writes its own plain cell and reads its neighbour's after the barrier: a barrier that
// lets somebody through early gives a wrong sum, and a data race under TSan.
struct Ring {
  explicit Ring(int threads, int phases) : phases(phases), cells(threads), sums(threads) {}

  void turn(int thread, Barrier& barrier) {
    const size_t n = cells.size();
    for (int phase = 0; phase < phases; ++phase) {
      cells[thread] = phase + thread;
      barrier.wait();
      sums[thread] += cells[(thread + 1) % n];
      barrier.wait();
    }
  }

  void check() const {
    const int n = static_cast<int>(cells.size());
    const long base = static_cast<long>(phases) * (phases - 1) / 2;
    for (int t = 0; t < n; ++t) CHECK(sums[t] == base + static_cast<long>(phases) * ((t + 1) % n));
  }

  const int phases;
  std::vector<long> cells, sums;
};

void run_ring(ThreadPool& pool, int phases) {
  struct Context {
    ThreadPool& pool;
    Ring ring;
  } context{pool, Ring(pool.size(), phases)};
  pool.run(
      [](void* opaque, int thread) {
        auto& c = *static_cast<Context*>(opaque);
        c.ring.turn(thread, c.pool.barrier());
      },
      &context);
  context.ring.check();
}

// Item i of a step adds its two neighbours of the step before, all plain numbers: items that start
// too early or run twice give wrong sums, and data races under TSan. Steps differ in size, some have
// one item. Now and then a thread stops in the middle, as one that lost its core does.
struct Pascal : slmq::Steps {
  Pascal(int steps, int width, bool stops)
      : stops(stops), rows(2, std::vector<unsigned>(width, 1)) {
    for (int step = 0; step < steps; ++step) sizes.push_back(step % 3 == 2 ? 1 : width - step % 2);
  }

  void begin(int step) override { CHECK(step == begun++); }
  void items(int step, int first, int last, int thread) override {
    CHECK(thread >= 0 && thread < 8);
    CHECK(step == begun - 1);
    CHECK(0 <= first && first < last && last <= sizes[step]);
    const std::vector<unsigned>& from = rows[step % 2];
    for (int item = first; item < last; ++item) {
      rows[(step + 1) % 2][item] += from[item] + from[(item + 1) % from.size()];
      if (stops && (step + item + thread) % 37 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(70 * (1 + thread)));
    }
  }

  const bool stops;
  int begun = 0;
  std::vector<std::vector<unsigned>> rows;
};

void run_relay(ThreadPool& pool, int steps) {
  Pascal alone(steps, 13, false), shared(steps, 13, steps % 4 == 1);
  for (int step = 0; step < steps; ++step) {
    alone.begin(step);
    alone.items(step, 0, alone.sizes[step], 0);
  }
  pool.run(shared);
  CHECK(shared.begun == steps + 1);
  CHECK(shared.rows == alone.rows);
}

// Threads that no pool knows.
void plain_barrier(int rounds) {
  for (const int n : {1, 2, 5}) {
    Barrier barrier(n);
    Ring ring(n, rounds);
    std::vector<std::thread> threads;
    for (int t = 0; t < n; ++t) threads.emplace_back([&, t] { ring.turn(t, barrier); });
    for (std::thread& thread : threads) thread.join();
    ring.check();
  }
}

void many_callers(int rounds) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([=] {
      for (int i = 0; i < rounds; ++i) {
        ThreadPool& pool = *slmq::shared_pool(1 + (caller + i) % 4);
        run_relay(pool, i % 20);
        if (i % 3 != 0) run_ring(pool, 3);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void come_and_go(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    ThreadPool pool(1 + i % 5);
    for (int run = 0; run < i % 3; ++run) run_ring(pool, 2);
    for (int run = 0; run < i % 4; ++run) run_relay(pool, 10);
  }
  CHECK(slmq::shared_pool(2) == slmq::shared_pool(2));
  CHECK(slmq::shared_pool(2) != slmq::shared_pool(3));
}

// A task may use another pool.
void nested_pools(int rounds) {
  ThreadPool outer(2);
  for (int i = 0; i < rounds; ++i) {
    outer.run([](void*, int) { run_ring(*slmq::shared_pool(3), 2); }, nullptr);
    outer.run([](void*, int) { run_relay(*slmq::shared_pool(3), 9); }, nullptr);
  }
}

void wrong_sizes() {
  for (const int threads : {0, -1, 1025}) {
    bool refused = false;
    try {
      ThreadPool pool(threads);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

#if defined(HAS_MXCSR)
void fp_mode() {
  constexpr unsigned kFlushAndRoundUp = 0x1f80 | 0x8040 | 0x4000;
  _mm_setcsr(kFlushAndRoundUp);  // before the workers start, so that they inherit it
  {
    ThreadPool pool(3);
    std::vector<unsigned> modes(3);
    pool.run(
        [](void* opaque, int thread) {
          (*static_cast<std::vector<unsigned>*>(opaque))[thread] = _mm_getcsr();
        },
        &modes);
    for (const unsigned mode : modes) CHECK((mode & ~0x3fu) == 0x1f80);
  }
  CHECK((_mm_getcsr() & ~0x3fu) == kFlushAndRoundUp);
  _mm_setcsr(0x1f80);
}
#endif

#if defined(HAS_FORK)
void expect_success(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// fork(), and in the child under TSan: other stacks for new threads than those of the parent's
// threads, which TSan still believes to be in use.
pid_t fork_process() {
  const pid_t child = fork();
#if defined(__SANITIZE_THREAD__) && defined(__linux__)
  if (child == 0) {
    pthread_attr_t attributes;
    size_t bytes = 0;
    CHECK(pthread_getattr_default_np(&attributes) == 0);
    CHECK(pthread_attr_getstacksize(&attributes, &bytes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, 2 * bytes) == 0);
    CHECK(pthread_setattr_default_np(&attributes) == 0);
  }
#endif
  return child;
}

// The child remakes the pool that it inherited, even while another thread of the parent was in the
// middle of a run, and its own child does so again.
void fork_and_run(int rounds) {
  const std::shared_ptr<ThreadPool> pool = slmq::shared_pool(3);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) {
      run_ring(*pool, 5);
      run_relay(*pool, 20);
    }
  });
  for (int i = 0; i < rounds; ++i) {
    const pid_t child = fork_process();
    if (child == 0) {
      run_relay(*pool, 20);
      run_ring(*pool, 5);
      CHECK(slmq::shared_pool(3) == pool);
      run_ring(*slmq::shared_pool(2), 5);
      const pid_t grandchild = fork_process();
      if (grandchild == 0) {
        run_ring(*pool, 5);
        std::_Exit(0);
      }
      expect_success(grandchild);
      {
        ThreadPool own(2);
        run_ring(own, 2);
      }
      std::_Exit(0);
    }
    expect_success(child);
  }
  stop = true;
  busy.join();

  auto* inherited = new ThreadPool(3);
  run_ring(*inherited, 2);
  const pid_t child = fork();
  if (child == 0) {
    delete inherited;  // must not wait for threads that the child does not have
    std::_Exit(0);
  }
  expect_success(child);
  delete inherited;
}

#if !defined(SANITIZED)  // they reserve more address space than any limit allows
// Threads that cannot start are an error, and those that did start go away.
void too_many_threads() {
  const pid_t child = fork();
  if (child == 0) {
    rlimit limit{};
    limit.rlim_cur = limit.rlim_max = rlim_t{512} << 20;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    bool refused = false;
    try {
      ThreadPool pool(1024);
    } catch (const std::system_error&) {
      refused = true;
    }
    CHECK(refused);
    ThreadPool pool(4);
    run_ring(pool, 5);
    std::_Exit(0);
  }
  expect_success(child);
}
#endif
#endif

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  plain_barrier(rounds);
  come_and_go(rounds);
  many_callers(rounds);
  nested_pools(rounds);
  wrong_sizes();
#if defined(HAS_MXCSR)
  fp_mode();
#endif
#if defined(HAS_FORK)
  fork_and_run(1 + rounds / 20);
#if !defined(SANITIZED)
  too_many_threads();
#endif
#endif
  std::puts("pool_stress: all checks hold");
  return 0;
}
