#include "machine/cpu.h"

#include <cstdio>
#include <cstring>
#include <string>

#if defined(__x86_64__) || defined(_M_X64)
#define SLMQ_CPU_X86_64 1
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SLMQ_CPU_ARM64 1
#if defined(__linux__)
#include <sys/auxv.h>

#include "machine/arm_names.h"
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif
#endif

namespace slmq {
namespace {

// Bits of Linux' AT_HWCAP and AT_HWCAP2, fixed by its interface.
constexpr uint64_t kHwcapAsimd = 1u << 1, kHwcapAsimdDp = 1u << 20, kHwcap2I8mm = 1u << 13;

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

void read_vendor(char (&vendor)[16]) {
  const CpuidRegisters r = cpuid(0, 0);
  const uint32_t words[3] = {r.ebx, r.edx, r.ecx};
  std::memcpy(vendor, words, sizeof words);
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

#elif defined(SLMQ_CPU_ARM64)

#if defined(__APPLE__)
bool sysctl_says(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

// NEON itself is part of every 64-bit ARM that these systems run on.
ArmWords read_arm_words() {
  ArmWords words;
#if defined(__linux__)
  words.hwcap = getauxval(AT_HWCAP);
  words.hwcap2 = getauxval(AT_HWCAP2);
#elif defined(__APPLE__)
  words.hwcap = kHwcapAsimd;
  if (sysctl_says("hw.optional.arm.FEAT_DotProd")) words.hwcap |= kHwcapAsimdDp;
  if (sysctl_says("hw.optional.arm.FEAT_I8MM")) words.hwcap2 |= kHwcap2I8mm;
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  words.hwcap = kHwcapAsimd;
  if (IsProcessorFeaturePresent(kDotProduct)) words.hwcap |= kHwcapAsimdDp;
#endif
  return words;
}

void read_brand(char (&brand)[64]) {
#if defined(__APPLE__)
  size_t size = sizeof brand - 1;
  if (sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) != 0) brand[0] = '\0';
#elif defined(__linux__)
  std::string name = arm_names::cpu_name("/proc", "/sys");
  constexpr uint64_t kHwcapCpuid = 1u << 11;  // the kernel lets programs read the register
  if (name.empty() && (getauxval(AT_HWCAP) & kHwcapCpuid) != 0) {
    uint64_t midr;
    __asm__("mrs %0, midr_el1" : "=r"(midr));
    name = arm_names::name_of_midr(midr);
  }
  std::snprintf(brand, sizeof brand, "%s", name.c_str());
#else
  brand[0] = '\0';
#endif
}

#endif

CpuFeatures detect() {
#if defined(SLMQ_CPU_X86_64)
  CpuFeatures cpu = decode_cpu_features(read_cpuid_words());
  read_vendor(cpu.vendor);
  read_brand(cpu.brand);
  return cpu;
#elif defined(SLMQ_CPU_ARM64)
  CpuFeatures cpu = decode_cpu_features(read_arm_words());
  read_brand(cpu.brand);
  return cpu;
#else
  return CpuFeatures{};
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

CpuFeatures decode_cpu_features(const ArmWords& w) {
  CpuFeatures cpu;
  cpu.neon = (w.hwcap & kHwcapAsimd) != 0;
  cpu.dotprod = cpu.neon && (w.hwcap & kHwcapAsimdDp) != 0;
  cpu.i8mm = cpu.neon && (w.hwcap2 & kHwcap2I8mm) != 0;
  return cpu;
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool usable_avx2(const CpuFeatures& cpu) { return cpu.avx2 && cpu.fma && cpu.f16c && cpu.os_avx; }

bool usable_avxvnni(const CpuFeatures& cpu) { return usable_avx2(cpu) && cpu.avxvnni; }

bool usable_avx512vnni(const CpuFeatures& cpu) {
  return usable_avx2(cpu) && cpu.os_avx512 && cpu.avx512f && cpu.avx512bw && cpu.avx512dq &&
         cpu.avx512vl && cpu.avx512vnni;
}

bool usable_amx_int8(const CpuFeatures& cpu) {
  return usable_avx512vnni(cpu) && cpu.os_amx && cpu.amx_tile && cpu.amx_int8;
}

bool usable_neon_dotprod(const CpuFeatures& cpu) { return cpu.neon && cpu.dotprod; }

bool usable_neon_i8mm(const CpuFeatures& cpu) { return usable_neon_dotprod(cpu) && cpu.i8mm; }

#if defined(SLMQ_CPU_X86_64)
namespace {
constexpr unsigned kDefaultMxcsr = 0x1f80;  // nearest, all exceptions masked, no FTZ, no DAZ
}
DefaultFpMode::DefaultFpMode() : saved_(_mm_getcsr()) { _mm_setcsr(kDefaultMxcsr); }
DefaultFpMode::~DefaultFpMode() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(SLMQ_CPU_ARM64) && defined(_MSC_VER) && !defined(__clang__)
DefaultFpMode::DefaultFpMode() : saved_(static_cast<uint64_t>(_ReadStatusReg(ARM64_FPCR))) {
  _WriteStatusReg(ARM64_FPCR, 0);
}
DefaultFpMode::~DefaultFpMode() { _WriteStatusReg(ARM64_FPCR, static_cast<__int64>(saved_)); }
#elif defined(SLMQ_CPU_ARM64)
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
