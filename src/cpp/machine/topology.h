// How many threads a run uses when nobody says, and why.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace slmq {

struct ThreadChoice {
  int threads = 1;
  std::string why;            // one line for people
  int affinity_cpus = 0;      // CPUs that this process may use
  int physical_cores = 0;     // cores behind them: hardware threads of one core count once
  int performance_cores = 0;  // those of them that are not efficiency cores
  double quota_cpus = -1;     // CPU time per time that the cgroup allows; negative: no limit
};

inline constexpr int kMaxThreads = 1024;

// Performance cores within the affinity, but no more than the cgroup quota rounded up, at least 1.
// Hardware threads of a core share its vector units and a slow core holds up every step, so more
// threads than that rarely help and often hurt.
ThreadChoice choose_threads();

// The same decision from the files of a Linux system below other roots than /proc and /sys, and for
// a given list of CPU numbers.
ThreadChoice choose_threads(const std::string& proc_root, const std::string& sys_root,
                            const std::vector<int>& affinity);

// The same decision from what macOS says: `number` gives a value of sysctl, 0 if there is none.
using Sysctl = std::function<int(const char* name)>;
ThreadChoice choose_threads_macos(const Sysctl& number);

// ... and from what Windows says: records of GetLogicalProcessorInformationEx, the process's
// processor group and its affinity mask there (0: all groups).
ThreadChoice choose_threads_windows(const std::vector<uint8_t>& records, uint16_t group,
                                    uint64_t mask);

// Quality-of-service class of macOS that worker threads take, from that of the thread that makes them.
// Threads of a class below user-initiated may be put on efficiency cores; who chose such a class
// (background, utility) gets it, everybody else waits for the answer.
constexpr unsigned worker_quality(unsigned callers) {
  constexpr unsigned kUnspecified = 0, kDefault = 0x15, kUserInitiated = 0x19;
  return callers == kUnspecified || callers == kDefault ? kUserInitiated : callers;
}

// The number that the caller asks for, else SLMQ_NUM_THREADS, else choose_threads(). Only the last
// fills in the facts about the machine. Throws std::invalid_argument outside of 1..1024.
ThreadChoice resolve_threads(std::optional<long long> requested);

}  // namespace slmq
