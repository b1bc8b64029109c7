#include "machine/amx.h"

#if defined(__linux__) && defined(__x86_64__)

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <iterator>
#include <mutex>

namespace slmq {
namespace {

constexpr int kFaults[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

// Of the one trial that runs. Not of its thread's own: a signal handler must not make thread-local
// memory.
struct Guard {
  pthread_t thread;
  sigjmp_buf start;
  struct sigaction before[std::size(kFaults)];
};
Guard guard;

void on_fault(int signal, siginfo_t* facts, void* context) {
  if (pthread_equal(pthread_self(), guard.thread)) siglongjmp(guard.start, 1);
  for (size_t i = 0; i < std::size(kFaults); ++i) {
    if (kFaults[i] != signal) continue;
    const struct sigaction& before = guard.before[i];
    if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
      sigaction(signal, &before, nullptr);  // and the instruction faults once more
    } else if ((before.sa_flags & SA_SIGINFO) != 0) {
      before.sa_sigaction(signal, facts, context);
    } else {
      before.sa_handler(signal);
    }
  }
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_fault;
}

}  // namespace

bool permit_amx() {
  constexpr long kGetPermission = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return false;
  uint64_t permitted = 0;
  return syscall(SYS_arch_prctl, kGetPermission, &permitted) == 0 &&
         ((permitted >> kTileData) & 1) != 0;
}

bool survives(bool (*trial)()) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  guard.thread = pthread_self();
  sigset_t faults, blocked;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigemptyset(&faults);
  for (const int signal : kFaults) sigaddset(&faults, signal);
  for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &action, &guard.before[i]);
  pthread_sigmask(SIG_UNBLOCK, &faults, &blocked);  // a blocked fault ends the process
  volatile bool passed = false;
  if (sigsetjmp(guard.start, 1) == 0) passed = trial();
  pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  for (size_t i = 0; i < std::size(kFaults); ++i) {
    struct sigaction now = {};
    sigaction(kFaults[i], nullptr, &now);
    if (is_ours(now)) sigaction(kFaults[i], &guard.before[i], nullptr);  // else a newer one's
  }
  return passed;
}

}  // namespace slmq

#else

namespace slmq {

bool permit_amx() { return false; }
bool survives(bool (*)()) { return false; }

}  // namespace slmq

#endif
