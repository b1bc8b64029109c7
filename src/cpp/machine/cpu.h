// What this CPU can do, with the operating system's consent, and the floating-point mode that the
// kernels run in.
#pragma once

#include <cstdint>

namespace slmq {

// The cpuid and xgetbv words that decide, as the CPU returned them (zero where a leaf is absent).
// Kept apart from the decision so that tests can feed the words of other machines.
struct CpuidWords {
  uint32_t leaf1_ecx = 0;
  uint32_t leaf7_ebx = 0;
  uint32_t leaf7_ecx = 0;
  uint32_t leaf7_edx = 0;
  uint32_t leaf7_1_eax = 0;  // leaf 7, subleaf 1
  uint64_t xcr0 = 0;         // register state that the operating system saves; 0 without OSXSAVE
};

// What 64-bit ARM Linux tells of the CPU (getauxval); other systems fill the same bits.
struct ArmWords {
  uint64_t hwcap = 0;
  uint64_t hwcap2 = 0;
};

// A feature is true only if its instructions can really run: the CPU has them *and* the operating
// system saves their registers. Those of other architectures are false.
struct CpuFeatures {
  bool sse4_2 = false;
  bool avx = false;
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avxvnni = false;  // VNNI in its VEX encoding (256-bit, without AVX-512)
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
  bool avx512vbmi = false;
  bool amx_tile = false;  // Linux also wants arch_prctl(ARCH_REQ_XCOMP_PERM) before the first use
  bool amx_int8 = false;
  bool amx_bf16 = false;
  bool os_avx = false;     // XCR0 saves xmm and ymm
  bool os_avx512 = false;  // ... and opmask and zmm
  bool os_amx = false;     // ... and tile configuration and data
  bool neon = false;       // 64-bit ARM
  bool dotprod = false;    // its int8 dot products (FEAT_DotProd)
  bool i8mm = false;       // ... and int8 matrix products (FEAT_I8MM)
  char vendor[16] = {};    // "GenuineIntel", "AuthenticAMD", ...; empty on other architectures
  char brand[64] = {};     // "AMD EPYC ..." or empty
};

CpuFeatures decode_cpu_features(const CpuidWords& words);
CpuFeatures decode_cpu_features(const ArmWords& words);

const CpuFeatures& cpu_features();  // of this machine, detected once

// Files of the "avx2" table are compiled with -mavx2 -mfma -mf16c; those of "avxvnni" with -mavxvnni
// and those of "avx512vnni" with -mavx512{f,bw,dq,vl,vnni} on top; those of "amx_int8" with
// -mamx-tile -mamx-int8 on top of these. They ask for exactly that; keep them together.
bool usable_avx2(const CpuFeatures& cpu);
bool usable_avxvnni(const CpuFeatures& cpu);
bool usable_avx512vnni(const CpuFeatures& cpu);
bool usable_amx_int8(const CpuFeatures& cpu);  // asks the CPU only; see machine/amx.h

// Files of "neon_dotprod" are compiled with +dotprod, those of "neon_i8mm" with +dotprod+i8mm.
bool usable_neon_dotprod(const CpuFeatures& cpu);
bool usable_neon_i8mm(const CpuFeatures& cpu);

// While it lives, this thread rounds to nearest, keeps subnormal numbers and traps nothing. Other
// libraries switch flush-to-zero on for the whole process; our answers must not depend on them.
class DefaultFpMode {
 public:
  DefaultFpMode();
  ~DefaultFpMode();
  DefaultFpMode(const DefaultFpMode&) = delete;
  DefaultFpMode& operator=(const DefaultFpMode&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace slmq
