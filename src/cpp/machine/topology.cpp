#include "machine/topology.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <thread>

#include "machine/linux_files.h"
#include "machine/windows_cores.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#endif

namespace slmq {
namespace {

std::string count(int n, const std::string& noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

std::string short_number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", x);
  return text;
}

std::string cpu_folder(const std::string& sys_root, int cpu) {
  return sys_root + "/devices/system/cpu/cpu" + std::to_string(cpu);
}

// From the facts to the number and the sentence.
ThreadChoice decide(ThreadChoice c, bool topology_known = true) {
  c.threads = std::clamp(c.performance_cores, 1, kMaxThreads);
  if (topology_known) {
    c.why = count(c.physical_cores, "physical core");
    if (c.performance_cores < c.physical_cores) {
      c.why = count(c.performance_cores, "performance core") + " of " + c.why;
    }
    if (c.affinity_cpus > c.physical_cores) c.why += " behind " + count(c.affinity_cpus, "CPU");
  } else {
    c.why = count(c.affinity_cpus, "CPU") + " (which of them share a core is unknown)";
  }
  if (c.quota_cpus >= 0) {
    const double allowed = std::ceil(c.quota_cpus - 1e-6);
    c.why += ", cgroup quota of " + short_number(c.quota_cpus) + " CPUs";
    if (allowed < c.threads) c.threads = std::max(1, static_cast<int>(allowed));
  }
  return c;
}

bool has(const std::vector<int>& list, int cpu) {
  return std::find(list.begin(), list.end(), cpu) != list.end();
}

// One CPU of every core: the lowest of its hardware threads that may be used.
struct Cores {
  std::vector<int> cpus;
  bool known = true;
};

Cores distinct_cores(const std::string& sys_root, const std::vector<int>& affinity) {
  Cores cores;
  std::set<std::string> seen;
  for (const int cpu : affinity) {
    const std::string folder = cpu_folder(sys_root, cpu) + "/topology/";
    // All threads of a core show the same list. Odd kernels lack it but number the cores.
    const std::string siblings = linux_files::first_line(folder + "thread_siblings_list");
    const std::vector<int> list = linux_files::parse_cpu_list(siblings);
    std::string core;
    if (has(list, cpu)) {
      core = siblings;
    } else if (const std::string id = linux_files::first_line(folder + "core_id"); !id.empty()) {
      core = linux_files::first_line(folder + "physical_package_id") + ":" +
             linux_files::first_line(folder + "die_id") + ":" + id;
    }
    if (core.empty()) {
      cores.known = false;
      core = "cpu" + std::to_string(cpu);
    }
    if (seen.insert(core).second) cores.cpus.push_back(cpu);
  }
  return cores;
}

// How fast each core is, in a unit of their own; empty unless all of them say. ARM has a capacity,
// 1024 for the fastest; other systems tell at least the highest frequency.
std::vector<long long> speeds(const std::string& sys_root, const std::vector<int>& cores) {
  for (const char* file : {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"}) {
    std::vector<long long> found;
    for (const int cpu : cores) {
      const std::string text = linux_files::first_line(cpu_folder(sys_root, cpu) + file);
      if (const long long speed = linux_files::parse_number(text); speed > 0)
        found.push_back(speed);
    }
    if (found.size() == cores.size()) return found;
  }
  return {};
}

// Hybrid x86 names its cores. Elsewhere those of less than half of the fastest one's speed are left
// out: they add less than the others lose by waiting for their last chunk.
int count_performance_cores(const std::string& sys_root, const std::vector<int>& cores) {
  const auto named = [&](const char* kind) {
    const std::string file = sys_root + "/devices/" + kind + "/cpus";
    const std::vector<int> list = linux_files::parse_cpu_list(linux_files::first_line(file));
    return static_cast<int>(
        std::count_if(cores.begin(), cores.end(), [&](int cpu) { return has(list, cpu); }));
  };
  const int all = static_cast<int>(cores.size());
  if (const int fast = named("cpu_core"); fast > 0) return fast;
  if (const int slow = named("cpu_atom"); slow > 0) return slow < all ? all - slow : all;
  const std::vector<long long> found = speeds(sys_root, cores);
  if (found.empty()) return all;
  const long long most = *std::max_element(found.begin(), found.end());
  return static_cast<int>(std::count_if(found.begin(), found.end(),
                                        [&](long long speed) { return 2 * speed >= most; }));
}

int hardware_threads() {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#if defined(__linux__)

std::vector<int> current_affinity() {
  std::vector<int> cpus;
  // The kernel refuses a mask that is smaller than its own, which may exceed cpu_set_t's 1024.
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
    const bool filled = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; filled && cpu < capacity; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (filled) break;
  }
  return cpus;
}

#elif defined(__APPLE__)

int sysctl_number(const char* name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 ? value : 0;
}

#elif defined(_WIN32)

// Records of the process's own processor group, within its affinity mask.
ThreadChoice choose_windows_threads() {
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::vector<uint8_t> records(bytes);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data());
  if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes))
    records.clear();
  DWORD_PTR allowed = 0, system = 0;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &system)) records.clear();
  PROCESSOR_NUMBER here;
  GetCurrentProcessorNumberEx(&here);
  return choose_threads_windows(records, here.Group, allowed);
}

#endif

long long checked_threads(long long threads, const std::string& name, const std::string& got) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument(name + ": expected an integer in 1.." +
                                std::to_string(kMaxThreads) + ", got " + got);
  }
  return threads;
}

}  // namespace

ThreadChoice choose_threads(const std::string& proc_root, const std::string& sys_root,
                            const std::vector<int>& affinity) {
  ThreadChoice c;
  const Cores cores = distinct_cores(sys_root, affinity);
  c.affinity_cpus = static_cast<int>(affinity.size());
  c.physical_cores = static_cast<int>(cores.cpus.size());
  c.performance_cores = count_performance_cores(sys_root, cores.cpus);
  c.quota_cpus = linux_files::cgroup_cpu_quota(proc_root, sys_root);
  return decide(std::move(c), cores.known);
}

ThreadChoice choose_threads_macos(const Sysctl& number) {
  ThreadChoice c;
  const int physical = number("hw.physicalcpu"), performance = number("hw.perflevel0.physicalcpu");
  c.affinity_cpus = number("hw.logicalcpu");
  if (c.affinity_cpus < 1) c.affinity_cpus = hardware_threads();
  const bool known = physical >= 1 && physical <= c.affinity_cpus;
  c.physical_cores = known ? physical : c.affinity_cpus;
  const bool two_kinds = performance >= 1 && performance <= c.physical_cores;  // not on Intel
  c.performance_cores = two_kinds ? performance : c.physical_cores;
  return decide(std::move(c), known);
}

ThreadChoice choose_threads_windows(const std::vector<uint8_t>& records, uint16_t group,
                                    uint64_t mask) {
  const windows_cores::Count count = windows_cores::count(records, group, mask);
  ThreadChoice c;
  const bool known = count.cores > 0;
  c.affinity_cpus = known ? count.cpus : hardware_threads();
  c.physical_cores = known ? count.cores : c.affinity_cpus;
  c.performance_cores = known ? count.performance_cores : c.affinity_cpus;
  return decide(std::move(c), known);
}

ThreadChoice choose_threads() {
#if defined(__APPLE__)
  return choose_threads_macos(sysctl_number);
#elif defined(_WIN32)
  return choose_windows_threads();
#else
#if defined(__linux__)
  const std::vector<int> affinity = current_affinity();
  if (!affinity.empty()) return choose_threads("/proc", "/sys", affinity);
#endif
  ThreadChoice c;
  c.affinity_cpus = c.physical_cores = c.performance_cores = hardware_threads();
  return decide(std::move(c), false);
#endif
}

ThreadChoice resolve_threads(std::optional<long long> requested) {
  ThreadChoice c;
  if (requested) {
    const std::string number = std::to_string(*requested);
    c.threads = static_cast<int>(checked_threads(*requested, "n_threads", number));
    c.why = "n_threads=" + number;
    return c;
  }
  const char* variable = std::getenv("SLMQ_NUM_THREADS");
  const std::string text = variable != nullptr ? variable : "";
  if (text.empty()) return choose_threads();
  c.threads = static_cast<int>(checked_threads(linux_files::parse_number(text), "SLMQ_NUM_THREADS",
                                               "'" + text + "' (or unset it)"));
  c.why = "SLMQ_NUM_THREADS=" + text;
  return c;
}

}  // namespace slmq
