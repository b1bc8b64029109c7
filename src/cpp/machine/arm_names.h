// What 64-bit ARM cores are called. They have no name of their own, only numbers for who designed them
// and which design it is (register MIDR_EL1), which Linux shows in /proc and /sys.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "machine/linux_files.h"

namespace slmq::arm_names {

struct Core {
  uint32_t implementer, part;
  const char* name;
};

// Cores that run 64-bit Linux.
inline constexpr Core kCores[] = {
    {0x41, 0xd03, "Arm Cortex-A53"},
    {0x41, 0xd04, "Arm Cortex-A35"},
    {0x41, 0xd05, "Arm Cortex-A55"},
    {0x41, 0xd06, "Arm Cortex-A65"},
    {0x41, 0xd07, "Arm Cortex-A57"},
    {0x41, 0xd08, "Arm Cortex-A72"},
    {0x41, 0xd09, "Arm Cortex-A73"},
    {0x41, 0xd0a, "Arm Cortex-A75"},
    {0x41, 0xd0b, "Arm Cortex-A76"},
    {0x41, 0xd0c, "Arm Neoverse-N1"},
    {0x41, 0xd0d, "Arm Cortex-A77"},
    {0x41, 0xd40, "Arm Neoverse-V1"},
    {0x41, 0xd41, "Arm Cortex-A78"},
    {0x41, 0xd42, "Arm Cortex-A78AE"},
    {0x41, 0xd44, "Arm Cortex-X1"},
    {0x41, 0xd46, "Arm Cortex-A510"},
    {0x41, 0xd47, "Arm Cortex-A710"},
    {0x41, 0xd48, "Arm Cortex-X2"},
    {0x41, 0xd49, "Arm Neoverse-N2"},
    {0x41, 0xd4a, "Arm Neoverse-E1"},
    {0x41, 0xd4b, "Arm Cortex-A78C"},
    {0x41, 0xd4d, "Arm Cortex-A715"},
    {0x41, 0xd4e, "Arm Cortex-X3"},
    {0x41, 0xd4f, "Arm Neoverse-V2"},
    {0x41, 0xd80, "Arm Cortex-A520"},
    {0x41, 0xd81, "Arm Cortex-A720"},
    {0x41, 0xd82, "Arm Cortex-X4"},
    {0x41, 0xd84, "Arm Neoverse-V3"},
    {0x41, 0xd85, "Arm Cortex-X925"},
    {0x41, 0xd87, "Arm Cortex-A725"},
    {0x41, 0xd8e, "Arm Neoverse-N3"},
    {0x43, 0x0a1, "Cavium ThunderX"},
    {0x43, 0x0af, "Cavium ThunderX2"},
    {0x46, 0x001, "Fujitsu A64FX"},
    {0x48, 0xd01, "HiSilicon Kunpeng-920"},
    {0x4e, 0x003, "NVIDIA Denver 2"},
    {0x4e, 0x004, "NVIDIA Carmel"},
    {0x51, 0x001, "Qualcomm Oryon"},
    {0x51, 0x802, "Qualcomm Kryo 3xx Gold"},
    {0x51, 0x803, "Qualcomm Kryo 3xx Silver"},
    {0x51, 0x804, "Qualcomm Kryo 4xx Gold"},
    {0x51, 0x805, "Qualcomm Kryo 4xx Silver"},
    {0x61, 0x022, "Apple M1 Icestorm"},
    {0x61, 0x023, "Apple M1 Firestorm"},
    {0x61, 0x024, "Apple M1 Pro Icestorm"},
    {0x61, 0x025, "Apple M1 Pro Firestorm"},
    {0x61, 0x028, "Apple M1 Max Icestorm"},
    {0x61, 0x029, "Apple M1 Max Firestorm"},
    {0x61, 0x032, "Apple M2 Blizzard"},
    {0x61, 0x033, "Apple M2 Avalanche"},
    {0xc0, 0xac3, "Ampere-1"},
    {0xc0, 0xac4, "Ampere-1a"},
};

inline std::string hex(uint32_t value) {
  std::string text;
  for (; text.empty() || value != 0; value >>= 4)
    text.insert(text.begin(), "0123456789abcdef"[value & 15]);
  return "0x" + text;
}

inline std::string name_of(uint32_t implementer, uint32_t part) {
  for (const Core& core : kCores)
    if (core.implementer == implementer && core.part == part) return core.name;
  return "ARM core " + hex(implementer) + ":" + hex(part);
}

inline std::string name_of_midr(uint64_t midr) {
  return name_of((midr >> 24) & 0xff, (midr >> 4) & 0xfff);
}

// A number as Linux writes it, "0x41"; false for anything else.
inline bool parse_hex(const std::string& text, uint64_t& value) {
  if (text.size() < 3 || text.size() > 18 || text.compare(0, 2, "0x") != 0) return false;
  if (text.find_first_not_of("0123456789abcdefABCDEF", 2) != text.npos) return false;
  value = std::strtoull(text.c_str(), nullptr, 16);
  return true;
}

// Names of all CPUs, from /proc/cpuinfo, else from each one's MIDR_EL1 in /sys.
inline std::vector<std::string> all_names(const std::string& proc_root,
                                          const std::string& sys_root) {
  std::vector<std::string> names;
  std::ifstream file(proc_root + "/cpuinfo");
  uint64_t implementer = 0, part = 0;
  bool known = false;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    const size_t value = line.find_first_not_of(" \t", colon == line.npos ? colon : colon + 1);
    if (value == line.npos) continue;
    const std::string text = line.substr(value);
    if (line.compare(0, 15, "CPU implementer") == 0) known = parse_hex(text, implementer);
    if (line.compare(0, 8, "CPU part") == 0 && known && parse_hex(text, part))
      names.push_back(name_of(static_cast<uint32_t>(implementer), static_cast<uint32_t>(part)));
  }
  uint64_t midr = 0;
  for (int cpu = 0; names.size() == static_cast<size_t>(cpu) && cpu < linux_files::kMaxCpu; ++cpu) {
    const std::string path = sys_root + "/devices/system/cpu/cpu" + std::to_string(cpu) +
                             "/regs/identification/midr_el1";
    if (parse_hex(linux_files::first_line(path), midr)) names.push_back(name_of_midr(midr));
  }
  return names;
}

// "Arm Neoverse-N1"; "4 x Arm Cortex-A76, 4 x Arm Cortex-A55" where cores differ, the last one (the
// fastest, by custom) first; empty if Linux does not tell.
inline std::string cpu_name(const std::string& proc_root, const std::string& sys_root) {
  std::vector<std::pair<std::string, int>> kinds;
  const std::vector<std::string> names = all_names(proc_root, sys_root);
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    size_t i = 0;
    while (i < kinds.size() && kinds[i].first != *name) ++i;
    if (i == kinds.size()) kinds.push_back({*name, 0});
    ++kinds[i].second;
  }
  if (kinds.size() == 1) return kinds[0].first;
  std::string text;
  for (const auto& [name, count] : kinds)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " x " + name;
  return text;
}

}  // namespace slmq::arm_names
