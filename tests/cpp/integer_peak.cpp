// integer_peak ISA SECONDS: the int8 peak of one thread in 1e9 products a second, best pass. Each loop
// is assembly, so that no compiler can move a sum out of its register: what peak_dots must reach, too.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// clang-format off
#define EACH(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) \
                   step(8) step(9) step(10) step(11)
#define SUMS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
             "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define LOOP(step) \
  asm volatile("1:\n" EACH(step) "dec %0\n jnz 1b\n vzeroupper\n" : "+r"(rounds) : : SUMS, "cc")
// clang-format on

#define STEP_AVX512VNNI(n) "vpdpbusd %%zmm15, %%zmm15, %%zmm" #n "\n"
#define STEP_AVXVNNI(n) "%{vex%} vpdpbusd %%ymm15, %%ymm15, %%ymm" #n "\n"
#define STEP_AVX2(n) \
  "vpmaddubsw %%ymm15, %%ymm15, %%ymm14\n vpaddw %%ymm14, %%ymm" #n ", %%ymm" #n "\n"

constexpr int kChains = 12;

// Products of so many rounds.
long run(const char* isa, long rounds) {
  const long steps = rounds * kChains;
  if (std::strcmp(isa, "avx512vnni") == 0) {
    LOOP(STEP_AVX512VNNI);
    return steps * 64;
  }
  if (std::strcmp(isa, "avxvnni") == 0) {
    LOOP(STEP_AVXVNNI);
    return steps * 32;
  }
  if (std::strcmp(isa, "avx2") == 0) {
    LOOP(STEP_AVX2);
    return steps * 32;
  }
  std::fprintf(stderr, "no loop for %s\n", isa);
  std::exit(1);
}

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  double best = 0;
  for (const double end = now() + std::atof(argv[2]); now() < end;) {
    const double start = now();
    const double products = static_cast<double>(run(argv[1], 400000));
    const double rate = products / (now() - start) / 1e9;
    best = rate > best ? rate : best;
  }
  std::printf("%.3f\n", best);
  return 0;
}
