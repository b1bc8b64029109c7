#include "core/cpu.h"

#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define SLMQ_CPU_X86_64 1
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace slmq {
namespace {

#if defined(SLMQ_CPU_X86_64)

struct CpuidRegisters {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero when the CPU does not have the leaf.
CpuidRegisters cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidRegisters r;
#if defined(_MSC_VER)
  int words[4];
  __cpuid(words, static_cast<int>(leaf & 0x80000000u));
  if (static_cast<uint32_t>(words[0]) < leaf) return r;
  __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = static_cast<uint32_t>(words[0]);
  r.ebx = static_cast<uint32_t>(words[1]);
  r.ecx = static_cast<uint32_t>(words[2]);
  r.edx = static_cast<uint32_t>(words[3]);
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

uint64_t read_xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;  // the intrinsic would need -mxsave for this file
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

CpuidWords read_cpuid_words() {
  CpuidWords words;
  words.leaf1_ecx = cpuid(1, 0).ecx;
  const CpuidRegisters leaf7 = cpuid(7, 0);
  words.leaf7_ebx = leaf7.ebx;
  words.leaf7_ecx = leaf7.ecx;
  words.leaf7_edx = leaf7.edx;
  if (leaf7.eax >= 1) words.leaf7_1_eax = cpuid(7, 1).eax;
  const bool has_xgetbv = (words.leaf1_ecx >> 27) & 1;  // OSXSAVE
  if (has_xgetbv) words.xcr0 = read_xcr0();
  return words;
}

void read_brand(char (&brand)[64]) {
  char text[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const CpuidRegisters r = cpuid(0x80000002u + i, 0);
    const uint32_t words[4] = {r.eax, r.ebx, r.ecx, r.edx};
    std::memcpy(text + 16 * i, words, 16);
  }
  const char* start = text;  // some CPUs pad on the left
  while (*start == ' ') ++start;
  size_t length = std::strlen(start);
  while (length > 0 && start[length - 1] == ' ') --length;
  std::memcpy(brand, start, length);
  brand[length] = '\0';
}

#endif

CpuFeatures detect() {
#if defined(SLMQ_CPU_X86_64)
  CpuFeatures cpu = decode_cpu_features(read_cpuid_words());
  read_brand(cpu.brand);
  return cpu;
#else
  return CpuFeatures{};  // the place of NEON: dotprod and i8mm from getauxval / sysctl
#endif
}

}  // namespace

CpuFeatures decode_cpu_features(const CpuidWords& w) {
  const auto bit = [](uint32_t word, int index) { return ((word >> index) & 1) != 0; };
  const auto saves = [&](uint64_t mask) { return (w.xcr0 & mask) == mask; };
  CpuFeatures cpu;
  cpu.os_avx = saves(0x6);      // xmm, ymm
  cpu.os_avx512 = saves(0xe6);  // + opmask, upper halves of zmm0-15, zmm16-31
  cpu.os_amx = saves(0x60000);  // tile configuration, tile data
  cpu.sse4_2 = bit(w.leaf1_ecx, 20);
  cpu.avx = cpu.os_avx && bit(w.leaf1_ecx, 28);
  cpu.fma = cpu.avx && bit(w.leaf1_ecx, 12);
  cpu.f16c = cpu.avx && bit(w.leaf1_ecx, 29);
  cpu.avx2 = cpu.avx && bit(w.leaf7_ebx, 5);
  cpu.avxvnni = cpu.avx2 && bit(w.leaf7_1_eax, 4);
  cpu.avx512f = cpu.os_avx512 && bit(w.leaf7_ebx, 16);
  cpu.avx512dq = cpu.avx512f && bit(w.leaf7_ebx, 17);
  cpu.avx512bw = cpu.avx512f && bit(w.leaf7_ebx, 30);
  cpu.avx512vl = cpu.avx512f && bit(w.leaf7_ebx, 31);
  cpu.avx512vbmi = cpu.avx512f && bit(w.leaf7_ecx, 1);
  cpu.avx512vnni = cpu.avx512f && bit(w.leaf7_ecx, 11);
  cpu.avx512bf16 = cpu.avx512f && bit(w.leaf7_1_eax, 5);
  cpu.amx_tile = cpu.os_amx && bit(w.leaf7_edx, 24);
  cpu.amx_int8 = cpu.amx_tile && bit(w.leaf7_edx, 25);
  cpu.amx_bf16 = cpu.amx_tile && bit(w.leaf7_edx, 22);
  return cpu;
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool usable_avx2(const CpuFeatures& cpu) { return cpu.avx2 && cpu.fma && cpu.f16c && cpu.os_avx; }

bool usable_avx512vnni(const CpuFeatures& cpu) {
  return usable_avx2(cpu) && cpu.os_avx512 && cpu.avx512f && cpu.avx512bw && cpu.avx512dq &&
         cpu.avx512vl && cpu.avx512vnni;
}

#if defined(SLMQ_CPU_X86_64)
namespace {
constexpr unsigned kDefaultMxcsr = 0x1f80;  // nearest, all exceptions masked, no FTZ, no DAZ
}
DefaultFpMode::DefaultFpMode() : saved_(_mm_getcsr()) { _mm_setcsr(kDefaultMxcsr); }
DefaultFpMode::~DefaultFpMode() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
DefaultFpMode::DefaultFpMode() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
  __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));  // nearest, no traps, no FZ, no FZ16
}
DefaultFpMode::~DefaultFpMode() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
DefaultFpMode::DefaultFpMode() : saved_(0) {}
DefaultFpMode::~DefaultFpMode() { static_cast<void>(saved_); }
#endif

}  // namespace slmq
