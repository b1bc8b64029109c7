#include "probes/limits.h"

#include <atomic>
#include <chrono>
#include <vector>

#include "layout/memory.h"
#include "threads/pool.h"

namespace slmq {
namespace {

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

double memory_read_gb_per_s(const Kernels& kernels, int threads, size_t bytes, double seconds) {
  constexpr size_t kPiece = 256 * 1024;
  const Memory memory(static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kPiece)), true);
  for (size_t i = 0; i < memory.size(); i += 4096) memory.data()[i] = 1;  // real pages, not zeros
  struct Shared {
    const Kernels& kernels;
    const Memory& memory;
    std::atomic<size_t> next{0};
    std::atomic<uint32_t> total{0};
  } shared{kernels, memory};
  const auto task = [](void* opaque, int) {
    auto& s = *static_cast<Shared*>(opaque);
    uint32_t total = 0;
    for (size_t at; (at = s.next.fetch_add(kPiece)) < s.memory.size();)
      total += static_cast<uint32_t>(s.kernels.read_memory(s.memory.data() + at, kPiece));
    s.total += total;
  };
  const auto pool = shared_pool(threads);
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    shared.next = 0;
    const double start = now();
    pool->run(task, &shared);
    const double rate = static_cast<double>(memory.size()) / (now() - start) / 1e9;
    best = rate > best ? rate : best;
  }
  return best;
}

double integer_peak_gmac_per_s(const Kernels& kernels, int threads, double seconds) {
  struct Shared {
    const Kernels& kernels;
    std::atomic<int64_t> products{0};
  } shared{kernels};
  const auto task = [](void* opaque, int) {
    auto& s = *static_cast<Shared*>(opaque);
    int32_t sink[16];
    s.products += s.kernels.peak_dots(400000, sink);
  };
  const auto pool = shared_pool(threads);
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    shared.products = 0;
    const double start = now();
    pool->run(task, &shared);
    const double rate = static_cast<double>(shared.products) / (now() - start) / 1e9;
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace slmq
