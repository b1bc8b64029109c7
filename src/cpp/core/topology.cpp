#include "core/topology.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>

#include "core/linux_files.h"

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

// 0 for what is not a plain decimal number.
long long parse_number(const std::string& text) {
  const bool digits = !text.empty() && text.size() <= 9 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::atoll(text.c_str()) : 0;
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
    std::string core = linux_files::first_line(folder + "thread_siblings_list");
    if (core.empty()) {
      const std::string id = linux_files::first_line(folder + "core_id");
      if (!id.empty()) core = linux_files::first_line(folder + "physical_package_id") + ":" + id;
    }
    if (core.empty()) {
      cores.known = false;
      core = "cpu" + std::to_string(cpu);
    }
    if (seen.insert(core).second) cores.cpus.push_back(cpu);
  }
  return cores;
}

// Hybrid x86 names its performance cores. Elsewhere (ARM) every CPU has a capacity, 1024 for the
// fastest; one below half of that adds less than the others lose by waiting for its last chunk.
int count_performance_cores(const std::string& sys_root, const std::vector<int>& cores) {
  const std::vector<int> named =
      linux_files::parse_cpu_list(linux_files::first_line(sys_root + "/devices/cpu_core/cpus"));
  const int fast = static_cast<int>(std::count_if(cores.begin(), cores.end(), [&](int cpu) {
    return std::find(named.begin(), named.end(), cpu) != named.end();
  }));
  if (fast > 0) return fast;

  std::vector<int> capacities;
  for (const int cpu : cores) {
    const std::string text = linux_files::first_line(cpu_folder(sys_root, cpu) + "/cpu_capacity");
    capacities.push_back(static_cast<int>(parse_number(text)));
  }
  const int most = capacities.empty() ? 0 : *std::max_element(capacities.begin(), capacities.end());
  return static_cast<int>(std::count_if(capacities.begin(), capacities.end(),
                                        [&](int capacity) { return 2 * capacity >= most; }));
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

// Cores of the process's own processor group, within its affinity mask. Sets the physical and the
// performance cores; leaves them 0 if the system does not tell.
void count_windows_cores(ThreadChoice& c) {
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::vector<unsigned char> buffer(bytes);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data());
  if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes)) return;
  DWORD_PTR allowed = 0, system = 0;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &system) || allowed == 0) return;
  PROCESSOR_NUMBER here;
  GetCurrentProcessorNumberEx(&here);
  std::map<int, int> cores_by_class;  // a higher class is a faster core
  for (DWORD at = 0; at < bytes;) {
    const auto& core =
        *reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data() + at);
    const GROUP_AFFINITY& mask = core.Processor.GroupMask[0];
    if (mask.Group == here.Group && (mask.Mask & allowed) != 0) {
      ++cores_by_class[core.Processor.EfficiencyClass];
      ++c.physical_cores;
    }
    at += core.Size;
  }
  if (!cores_by_class.empty()) c.performance_cores = cores_by_class.rbegin()->second;
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

ThreadChoice choose_threads() {
#if defined(__linux__)
  const std::vector<int> affinity = current_affinity();
  if (!affinity.empty()) return choose_threads("/proc", "/sys", affinity);
#endif
  ThreadChoice c;
  c.affinity_cpus = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__APPLE__)
  c.physical_cores = sysctl_number("hw.physicalcpu");
  c.performance_cores = sysctl_number("hw.perflevel0.physicalcpu");  // absent on Intel
#elif defined(_WIN32)
  count_windows_cores(c);
#endif
  const bool known = c.physical_cores > 0;
  if (!known) c.physical_cores = c.affinity_cpus;
  if (c.performance_cores == 0) c.performance_cores = c.physical_cores;
  return decide(std::move(c), known);
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
  c.threads = static_cast<int>(
      checked_threads(parse_number(text), "SLMQ_NUM_THREADS", "'" + text + "' (or unset it)"));
  c.why = "SLMQ_NUM_THREADS=" + text;
  return c;
}

}  // namespace slmq
