// Inputs made from integers alone: the same on every machine, with every compiler.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace slmq::selftest {

class Inputs {
 public:
  explicit Inputs(uint64_t seed) : state_(seed) {}

  uint32_t bits() {  // SplitMix64 of Steele, Lea and Flood
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }
  int below(int n) { return static_cast<int>(bits() % static_cast<uint32_t>(n)); }

  // About normal, deviation 1.15; exact in float32.
  float value() {
    int sum = -131070;
    for (int i = 0; i < 4; ++i) sum += static_cast<int>(bits() >> 16);
    return static_cast<float>(sum) * (1.0f / 32768.0f);
  }
  std::vector<float> values(size_t n, float scale = 1.0f) {
    std::vector<float> v(n);
    for (float& x : v) x = value() * scale;
    return v;
  }

  // A finite float16: subnormal, zero and the largest among them if `extreme`.
  uint16_t half(bool extreme) {
    constexpr uint16_t kExtremes[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0xfbff};
    if (extreme && below(2) == 0) return kExtremes[below(7)];
    const uint32_t exponent = 6 + bits() % 6;
    return static_cast<uint16_t>((bits() & 0x83ffu) | exponent << 10);
  }

  // Puts numbers that break careless code here and there into x.
  void salt(std::vector<float>* x, const std::vector<float>& extremes) {
    for (size_t i = 0; i < x->size(); ++i)
      if (below(5) == 0)
        (*x)[i] = extremes[static_cast<size_t>(below(static_cast<int>(extremes.size())))];
  }

 private:
  uint64_t state_;
};

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Zeros, the smallest and largest numbers, powers of two between.
inline std::vector<float> finite_extremes() {
  return {0.0f,
          -0.0f,
          float_of(1),
          float_of(0x807fffff),
          float_of(0x00800000),
          9.9e-31f,
          -1.1e-30f,
          1e-10f,
          127.5f,
          -1e4f,
          65504.0f,
          1e6f,
          1.8e19f,
          -3e38f,
          float_of(0x7f7fffff)};
}
// The same, infinities and NaN.
inline std::vector<float> all_extremes() {
  std::vector<float> v = finite_extremes();
  for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u}) v.push_back(float_of(bits));
  return v;
}

}  // namespace slmq::selftest
