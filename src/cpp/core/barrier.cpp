#include "core/barrier.h"

#include <chrono>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace slmq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kSomebodySleeps = 1;
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kYields = 4;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // the yield instruction does nothing on most cores
#endif
}

// Linux: the futex itself, because std::atomic::wait of libstdc++ 12 spins and yields on its own
// account before it sleeps.
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

Barrier::Barrier(int n) : n_(n) {}

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed) & ~kSomebodySleeps;
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

void Barrier::wait_for_end_of(uint32_t phase) {
  const auto ended = [&] {
    return (phase_.load(std::memory_order_acquire) & ~kSomebodySleeps) != phase;
  };
  // The bound is time, not a count: one pause takes 10 to 140 cycles depending on the CPU.
  const auto start = Clock::now();
  do {
    for (int i = 0; i < 16; ++i) {
      if (ended()) return;
      relax();
    }
  } while (Clock::now() - start < kSpin);
  for (int i = 0; i < kYields; ++i) {
    std::this_thread::yield();
    if (ended()) return;
  }
  while (!ended()) {
    uint32_t word = phase;
    const bool marked = phase_.compare_exchange_strong(word, phase | kSomebodySleeps);
    if (marked || word == (phase | kSomebodySleeps)) {
      sleep_while_equal(phase_, phase | kSomebodySleeps);
    }
  }
}

}  // namespace slmq
