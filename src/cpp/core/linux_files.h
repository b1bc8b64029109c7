// What Linux tells in /proc and /sys about CPUs and their limits. Files that are missing or odd
// count as saying nothing: this is advice, and a container may hide or fake any of them.
#pragma once

#include <string>
#include <vector>

namespace slmq {

// Without surrounding blanks; empty if the file cannot be read.
std::string first_line(const std::string& path);

// "0-3,8" -> 0 1 2 3 8; empty for anything else.
std::vector<int> parse_cpu_list(const std::string& text);

// CPU time per time that the control groups of this process allow, e.g. 1.5; negative if unlimited.
// The roots stand for /proc and /sys.
double cgroup_cpu_quota(const std::string& proc_root, const std::string& sys_root);

}  // namespace slmq
