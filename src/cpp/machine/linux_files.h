// What Linux tells in /proc and /sys about CPUs and their limits. Files that are missing or odd
// count as saying nothing: this is advice, and a container may hide or fake any of them.
#pragma once

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace slmq::linux_files {

// Without surrounding blanks; empty if the file cannot be read.
inline std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return "";
  return line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1);
}

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

inline bool contains(const std::string& comma_list, const std::string& word) {
  return ("," + comma_list + ",").find("," + word + ",") != std::string::npos;
}

// 0 for what is not a plain decimal number below 10^15.
inline long long parse_number(const std::string& text) {
  const bool digits = !text.empty() && text.size() <= 15 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::strtoll(text.c_str(), nullptr, 10) : 0;
}

// mountinfo writes blanks in paths as \040 and the like.
inline std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string code = text.substr(i, 4);
    if (code.size() == 4 && code[0] == '\\' && code.find_first_not_of("01234567", 1) == code.npos) {
      out += static_cast<char>(std::strtol(code.c_str() + 1, nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Where one hierarchy of control groups is mounted: group `root` of it appears at `point`.
struct Mount {
  std::string root, point;
};

// A line of mountinfo: id parent major:minor root point options [tags...] - type source options
inline bool parse_mount(const std::string& line, bool v2, Mount& mount) {
  const size_t dash = line.find(" - ");
  if (dash == std::string::npos) return false;
  const std::vector<std::string> head = split(line.substr(0, dash), ' ');
  const std::vector<std::string> tail = split(line.substr(dash + 3), ' ');
  if (head.size() < 6 || tail.size() < 3) return false;
  if (v2 ? tail[0] != "cgroup2" : tail[0] != "cgroup" || !contains(tail[2], "cpu")) return false;
  mount = {unescape(head[3]), unescape(head[4])};
  return true;
}

// The group of this process in the v2 hierarchy ("0::/path"), or in that of v1's cpu controller
// ("4:cpu,cpuacct:/path"). Empty if there is none.
inline std::string own_group(const std::string& proc_root, bool v2) {
  std::ifstream file(proc_root + "/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool wanted = v2 ? line.compare(0, 3, "0::") == 0 : contains(controllers, "cpu");
    if (wanted) return line.substr(second + 1);
  }
  return "";
}

// Both in microseconds. "max" and v1's -1, "no limit", are no numbers.
inline double quota_of(const std::string& quota, const std::string& period) {
  const long long q = parse_number(quota), p = parse_number(period);
  return q > 0 && p > 0 ? static_cast<double>(q) / static_cast<double>(p) : -1;
}

inline double folder_quota(const std::string& folder, bool v2) {
  if (!v2) {
    return quota_of(first_line(folder + "/cpu.cfs_quota_us"),
                    first_line(folder + "/cpu.cfs_period_us"));
  }
  const std::vector<std::string> words = split(first_line(folder + "/cpu.max"), ' ');
  return words.size() == 2 ? quota_of(words[0], words[1]) : -1;
}

inline double tighter(double a, double b) {
  if (a < 0) return b;
  return b >= 0 && b < a ? b : a;
}

// The tightest quota from the group of this process up to the mount.
inline double walk_up(const Mount& mount, const std::string& group, bool v2) {
  // The part of the path below the mount. A container may see a path of the host, which its mount
  // does not contain: then the mount itself is its group.
  std::string below;
  const std::string root = mount.root == "/" ? "" : mount.root;
  const bool inside = group.compare(0, root.size(), root) == 0 &&
                      (group.size() == root.size() || group[root.size()] == '/');
  if (inside && group.find("/..") == std::string::npos) below = group.substr(root.size());
  if (!below.empty() && below.front() != '/') below.clear();
  while (!below.empty() && below.back() == '/') below.pop_back();

  double quota = folder_quota(mount.point + below, v2);
  while (!below.empty()) {
    below.erase(below.rfind('/'));
    quota = tighter(quota, folder_quota(mount.point + below, v2));
  }
  return quota;
}

inline constexpr long kMaxCpu = 1 << 16;

// "0-3,8" -> 0 1 2 3 8; empty for anything else.
inline std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  for (const std::string& part : split(text, ',')) {
    if (part.empty() || part.find_first_not_of("0123456789-") != std::string::npos) return {};
    const size_t dash = part.find('-');
    const long first = std::strtol(part.c_str(), nullptr, 10);
    const long last =
        dash == std::string::npos ? first : std::strtol(part.c_str() + dash + 1, nullptr, 10);
    if (first < 0 || last < first || last > kMaxCpu) return {};
    for (long cpu = first; cpu <= last; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  return cpus;
}

// CPU time per time that the control groups of this process allow, e.g. 1.5; negative if unlimited.
// The roots stand for /proc and /sys.
inline double cgroup_cpu_quota(const std::string& proc_root, const std::string& sys_root) {
  double quota = -1;
  for (const bool v2 : {true, false}) {  // a mixed system limits in either
    const std::string group = own_group(proc_root, v2);
    if (group.empty()) continue;
    std::ifstream mounts(proc_root + "/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
      Mount mount;
      if (!parse_mount(line, v2, mount)) continue;
      if (mount.point.compare(0, 5, "/sys/") == 0) mount.point = sys_root + mount.point.substr(4);
      quota = tighter(quota, walk_up(mount, group, v2));
    }
  }
  return quota;
}

}  // namespace slmq::linux_files
