#include "kernels/dispatch.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "machine/amx.h"
#include "machine/cpu.h"
#include "kernels/trial.h"

namespace slmq {

extern const Kernels kKernelsScalar;
#if defined(SLMQ_X86)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvxVnni;
extern const Kernels kKernelsAvx512Vnni;
extern const Kernels kKernelsAmxInt8;
#elif defined(SLMQ_ARM64)
extern const Kernels kKernelsNeon;
extern const Kernels kKernelsNeonDotprod;
extern const Kernels kKernelsNeonI8mm;
#endif

namespace {

class IsaList {
 public:
  // A table that this CPU can run if it has what is `needed`.
  void put(const char* name, const Kernels* table, bool usable, std::string needed) {
    list_.push_back({name, usable ? table : nullptr, usable ? "" : std::move(needed)});
  }
  std::vector<Isa> take() { return std::move(list_); }

 private:
  std::vector<Isa> list_;
};

#if defined(SLMQ_X86)

// A table's own kernels, and those of the table below it where it has none.
[[maybe_unused]] Kernels over(const Kernels& below, const Kernels& own) {
  using Pointers =
      std::array<uintptr_t, sizeof(Kernels) / sizeof(uintptr_t)>;  // nothing else in it
  auto pointers = std::bit_cast<Pointers>(own);
  const auto others = std::bit_cast<Pointers>(below);
  for (size_t i = 0; i < pointers.size(); ++i)
    if (pointers[i] == 0) pointers[i] = others[i];
  return std::bit_cast<Kernels>(pointers);
}

#if defined(SLMQ_AMX)

const Kernels& amx_table() {
  static const Kernels table = over(kKernelsAvx512Vnni, kKernelsAmxInt8);
  return table;
}

// Empty if AMX really works here. It is not touched where the user asks for another table.
std::string missing_for_amx() {
  if (!usable_amx_int8(cpu_features()))
    return "needs AMX-INT8 in addition to AVX-512 VNNI, enabled by the operating system";
  const char* forced = std::getenv("SLMQ_ISA");
  if (forced != nullptr && *forced != '\0' && std::string_view(forced) != "amx_int8")
    return "needs a trial, which is skipped while SLMQ_ISA names another table";
  if (!permit_amx()) return "needs permission to use tile registers, which Linux refused";
  const auto trial = [] {
    const DefaultFpMode mode;
    return products_agree(amx_table(), kKernelsScalar);
  };
  if (!survives(trial)) return "needs working tile registers; here they fault or miscompute";
  return "";
}

#endif

void put_x86(IsaList* list) {
  const CpuFeatures& cpu = cpu_features();
  list->put("avx2", &kKernelsAvx2, usable_avx2(cpu),
            "needs AVX2, FMA and F16C, enabled by the operating system");
#if defined(SLMQ_AVXVNNI)
  static const Kernels avxvnni = over(kKernelsAvx2, kKernelsAvxVnni);
  list->put("avxvnni", &avxvnni, usable_avxvnni(cpu), "needs AVX-VNNI in addition to AVX2");
#else
  list->put("avxvnni", nullptr, false, "needs a build by a compiler that knows AVX-VNNI");
#endif
  list->put("avx512vnni", &kKernelsAvx512Vnni, usable_avx512vnni(cpu),
            "needs AVX-512 F, BW, DQ, VL and VNNI, enabled by the operating system");
#if defined(SLMQ_AMX)
  const std::string missing = missing_for_amx();
  list->put("amx_int8", &amx_table(), missing.empty(), missing);
#else
  list->put("amx_int8", nullptr, false, "needs Linux, and a build by a compiler that knows AMX");
#endif
}

#elif defined(SLMQ_ARM64)

void put_arm64(IsaList* list) {
  const CpuFeatures& cpu = cpu_features();
  list->put("neon", &kKernelsNeon, cpu.neon, "needs NEON");
  list->put("neon_dotprod", &kKernelsNeonDotprod, usable_neon_dotprod(cpu),
            "needs the dot products of ARMv8.2 (FEAT_DotProd)");
  list->put("neon_i8mm", &kKernelsNeonI8mm, usable_neon_i8mm(cpu),
            "needs the matrix products of ARMv8.6 (FEAT_I8MM)");
}

#endif

}  // namespace

const std::vector<Isa>& all_isas() {
  static const std::vector<Isa> isas = [] {
    IsaList list;
    list.put("scalar", &kKernelsScalar, true, "");
#if defined(SLMQ_X86)
    put_x86(&list);
#elif defined(SLMQ_ARM64)
    put_arm64(&list);
#endif
    return list.take();
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
