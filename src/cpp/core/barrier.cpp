#include "core/barrier.h"

#include <chrono>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace slmq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kSomebodySleeps = 1;
constexpr uint32_t kUnknownCpu = UINT32_MAX;

// Longer than a sleep and a wake cost together, shorter than anybody would notice.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kYield = std::chrono::microseconds(200);
constexpr int kFirstLooks = 32;  // about the microsecond that an even share of work differs by
constexpr int kLooksPerClock = 16;
constexpr int kLastYields = 4;

thread_local int this_seat = -1;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  __asm__ volatile("isb");  // the yield instruction does nothing on most cores
#endif
}

uint32_t current_cpu() {
#if defined(__linux__)
  return static_cast<uint32_t>(sched_getcpu());
#elif defined(_WIN32)
  return GetCurrentProcessorNumber();
#else
  return kUnknownCpu;
#endif
}

// On Linux the futex itself, because std::atomic::wait of libstdc++ spins and yields on its own
// account before it sleeps, and keeps a table of waiters that does not survive a fork.
void sleep_while_equal(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  word.wait(value, std::memory_order_relaxed);
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

}  // namespace

Barrier::Seat::Seat(int index) : before_(this_seat) { this_seat = index; }
Barrier::Seat::~Seat() { this_seat = before_; }

Barrier::Barrier(int n) : n_(n), last_arrivals_(std::make_unique<LastArrival[]>(n)) {}

void Barrier::wait() {
  // It cannot change before this thread arrives; everybody's last wait() left it there.
  const uint32_t phase = phase_.load(std::memory_order_relaxed) & ~kSomebodySleeps;
  if (this_seat >= 0 && this_seat < n_) {
    last_arrivals_[this_seat].phase_and_cpu.store(uint64_t{phase} << 32 | current_cpu(),
                                                  std::memory_order_relaxed);
  }
  if (!arrive_in(phase)) wait_for_end_of(phase);
}

void Barrier::arrive() { arrive_in(phase_.load(std::memory_order_relaxed) & ~kSomebodySleeps); }

// True if this was the last arrival: the phase has ended.
bool Barrier::arrive_in(uint32_t phase) {
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < n_) return false;
  arrived_.store(0, std::memory_order_relaxed);  // before the exchange publishes it
  const uint32_t before = phase_.exchange(phase + 2, std::memory_order_acq_rel);
  if (before & kSomebodySleeps) wake_all(phase_);
  return true;
}

bool Barrier::ended(uint32_t phase) const {
  return (phase_.load(std::memory_order_acquire) & ~kSomebodySleeps) != phase;
}

void Barrier::wait_for_end_of(uint32_t phase) {
  for (int i = 0; i < kFirstLooks; ++i) {
    if (ended(phase)) return;
    relax();
  }
  if (keeps_another_off_this_core(phase)) {
    const auto start = Clock::now();
    do {
      std::this_thread::yield();
      if (ended(phase)) return;
    } while (Clock::now() - start < kYield);
  } else {
    if (spin(phase)) return;
    for (int i = 0; i < kLastYields; ++i) {
      std::this_thread::yield();
      if (ended(phase)) return;
    }
  }
  while (!ended(phase)) {
    uint32_t word = phase;
    const bool marked = phase_.compare_exchange_strong(word, phase | kSomebodySleeps);
    if (marked || word == (phase | kSomebodySleeps)) {
      sleep_while_equal(phase_, phase | kSomebodySleeps);
    }
  }
}

// The bound is time, not a count: a pause takes 10 to 140 cycles depending on the CPU.
bool Barrier::spin(uint32_t phase) const {
  const auto start = Clock::now();
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (ended(phase)) return true;
      relax();
    }
  } while (Clock::now() - start < kSpin);
  return false;
}

// With a busy neighbour the system puts two of our threads on one core. Spinning then burns the
// very time that the other needs; so a thread that was last seen here, and is missing, gets the
// core at once. Beside one busy process on 2 cores, phases of 10 us keep 0.5 of their quiet speed
// with this look and 0.15-0.3 without it; spinning alone is at 0.1-0.3.
bool Barrier::keeps_another_off_this_core(uint32_t phase) const {
  const uint32_t here = current_cpu();
  if (here == kUnknownCpu) return false;
  for (int i = 0; i < n_; ++i) {
    const uint64_t last = last_arrivals_[i].phase_and_cpu.load(std::memory_order_relaxed);
    if (static_cast<uint32_t>(last) == here && last >> 32 != phase) return true;
  }
  return false;
}

}  // namespace slmq
