// The cores in what GetLogicalProcessorInformationEx(RelationProcessorCore) writes, read by their
// offsets: the same code on every system, so that it is tested on all of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

namespace slmq::windows_cores {

// SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of a core: Relationship, Size, then PROCESSOR_RELATIONSHIP
// with one GROUP_AFFINITY (a core lies in one group).
inline constexpr size_t kSizeAt = 4, kClassAt = 9, kMaskAt = 32, kGroupAt = 40, kCoreBytes = 48;
inline constexpr uint32_t kProcessorCore = 0;

struct Count {
  int cpus = 0;               // hardware threads that may be used
  int cores = 0;              // cores behind them
  int performance_cores = 0;  // those of the highest efficiency class: the fastest
};

template <class T>
T read(const std::vector<uint8_t>& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Cores of one processor group within an affinity mask; of all groups if the mask is 0, which is what
// Windows says of a process with threads in several groups. Stops at a record that cannot be.
inline Count count(const std::vector<uint8_t>& bytes, uint16_t group, uint64_t mask) {
  Count c;
  std::map<int, int> cores_by_class;
  for (size_t at = 0; at + 8 <= bytes.size();) {
    const auto kind = read<uint32_t>(bytes, at), size = read<uint32_t>(bytes, at + kSizeAt);
    if (size < 8 || size > bytes.size() - at) break;
    if (kind == kProcessorCore && size >= kCoreBytes) {
      uint64_t usable = read<uint64_t>(bytes, at + kMaskAt);
      if (mask != 0) usable = read<uint16_t>(bytes, at + kGroupAt) == group ? usable & mask : 0;
      if (usable != 0) {
        ++cores_by_class[bytes[at + kClassAt]];
        ++c.cores;
      }
      for (; usable != 0; usable &= usable - 1) ++c.cpus;
    }
    at += size;
  }
  if (!cores_by_class.empty()) c.performance_cores = cores_by_class.rbegin()->second;
  return c;
}

}  // namespace slmq::windows_cores
