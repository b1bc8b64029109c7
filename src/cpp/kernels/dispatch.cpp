#include "kernels/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "core/cpu.h"

namespace slmq {

extern const Kernels kKernelsScalar;
#if defined(SLMQ_X86)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512Vnni;
#elif defined(SLMQ_ARM64)
extern const Kernels kKernelsNeon;
extern const Kernels kKernelsNeonDotprod;
extern const Kernels kKernelsNeonI8mm;
#endif

const std::vector<Isa>& all_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> list{{"scalar", &kKernelsScalar, ""}};
#if defined(SLMQ_X86)
    const CpuFeatures& cpu = cpu_features();
    const bool avx2 = usable_avx2(cpu), vnni = usable_avx512vnni(cpu);
    list.push_back({"avx2", avx2 ? &kKernelsAvx2 : nullptr,
                    avx2 ? "" : "needs AVX2, FMA and F16C, enabled by the operating system"});
    list.push_back(
        {"avx512vnni", vnni ? &kKernelsAvx512Vnni : nullptr,
         vnni ? "" : "needs AVX-512 F, BW, DQ, VL and VNNI, enabled by the operating system"});
#elif defined(SLMQ_ARM64)
    const CpuFeatures& cpu = cpu_features();
    const bool neon = cpu.neon, dots = usable_neon_dotprod(cpu), matrices = usable_neon_i8mm(cpu);
    list.push_back({"neon", neon ? &kKernelsNeon : nullptr, neon ? "" : "needs NEON"});
    list.push_back({"neon_dotprod", dots ? &kKernelsNeonDotprod : nullptr,
                    dots ? "" : "needs the dot products of ARMv8.2 (FEAT_DotProd)"});
    list.push_back({"neon_i8mm", matrices ? &kKernelsNeonI8mm : nullptr,
                    matrices ? "" : "needs the matrix products of ARMv8.6 (FEAT_I8MM)"});
#endif
    return list;
  }();
  return isas;
}

const Kernels& kernels_named(const std::string& name) {
  std::string usable;
  for (const Isa& isa : all_isas()) {
    if (isa.kernels != nullptr) {
      if (name == isa.name) return *isa.kernels;
      usable += (usable.empty() ? "" : ", ") + std::string(isa.name);
    } else if (name == isa.name) {
      throw std::invalid_argument("ISA '" + name + "' cannot run on this CPU: it " + isa.missing);
    }
  }
  throw std::invalid_argument("unknown ISA '" + name + "'; this CPU runs: " + usable);
}

const Kernels& active_kernels() {
  const char* forced = std::getenv("SLMQ_ISA");
  if (forced != nullptr && *forced != '\0') return kernels_named(forced);
  const Kernels* best = nullptr;
  for (const Isa& isa : all_isas())
    if (isa.kernels != nullptr) best = isa.kernels;
  return *best;
}

}  // namespace slmq
