// The hashes of one ISA, and what it contradicts itself in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace slmq::selftest {

class Hash {  // FNV-1a, 64 bits
 public:
  void bytes(const void* data, size_t n) {
    for (size_t i = 0; i < n; ++i)
      state_ = (state_ ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  }
  // Which of its payloads and signs a NaN gets is the CPU's affair; that it is one is ours.
  void floats(const float* x, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      uint32_t bits = 0x7fc00000u;
      if (!std::isnan(x[i])) std::memcpy(&bits, x + i, 4);
      bytes(&bits, 4);
    }
  }
  void floats(const std::vector<float>& x) { floats(x.data(), x.size()); }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

inline uint64_t hash_of(const float* x, size_t n) {
  Hash hash;
  hash.floats(x, n);
  return hash.value();
}

struct Line {
  std::string kernel;
  uint64_t hash;
};

class Results {
 public:
  void add(std::string kernel, const Hash& hash) {
    lines_.push_back({std::move(kernel), hash.value()});
  }
  // What must not matter (tokens beside it, threads, chunks) did.
  void expect(bool same, const std::string& what) {
    if (!same && (faults_.empty() || faults_.back() != what)) faults_.push_back(what);
  }
  const std::vector<Line>& lines() const { return lines_; }
  const std::vector<std::string>& faults() const { return faults_; }

 private:
  std::vector<Line> lines_;
  std::vector<std::string> faults_;
};

// Lines of a kernel and its hash; empty ones and those that begin with # do not count. Throws
// std::invalid_argument for others.
std::vector<Line> parse_hashes(const std::string& text);

// What is wrong with the results, where `expected` is right. `whose` says who expects it.
std::vector<std::string> complaints(const Results& results, const std::vector<Line>& expected,
                                    const std::string& whose);

}  // namespace slmq::selftest
