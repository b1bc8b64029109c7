// A reusable barrier for a fixed set of threads that usually arrive within microseconds of each
// other.
#pragma once

#include <atomic>
#include <cstdint>

namespace slmq {

// Waiting goes from cheap to patient: spin (the others are about to arrive), give the core away
// (one of the others may need it), sleep in the kernel (they will be long). Nothing here allocates.
class Barrier {
 public:
  explicit Barrier(int n);
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Returns when n threads have called it; what each did before is visible to all after.
  void wait();

  // Counts one arrival without waiting for the rest.
  void arrive();

 private:
  bool arrive_in(uint32_t phase);
  void wait_for_end_of(uint32_t phase);

  // One line each (128: neighbouring 64-byte lines are prefetched in pairs): arrivals must not
  // take the line away from those who spin on the phase.
  static constexpr int kLine = 128;
  alignas(kLine) const int n_;
  alignas(kLine) std::atomic<int> arrived_{0};
  // Counts completed phases in steps of 2; bit 0 is set while somebody sleeps on it, so that the
  // last arriver knows from the exchange itself whether it has to call the kernel.
  alignas(kLine) std::atomic<uint32_t> phase_{0};
};

}  // namespace slmq
