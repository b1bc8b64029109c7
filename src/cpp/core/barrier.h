// A reusable barrier for a fixed set of threads that usually arrive within microseconds of each
// other.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace slmq {

// Waiting goes from cheap to patient: spin (the others are about to arrive), give the core away
// (one of the others may need it), sleep in the kernel (they take long). Only the constructor
// allocates.
class Barrier {
 public:
  explicit Barrier(int n);
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Returns when n threads have called it; what each did before is visible to all after.
  void wait();

  // Counts one arrival without waiting for the rest.
  void arrive();

  // While it lives, the calling thread is number `index` of the barriers that it waits in. Without
  // a seat wait() is as correct, but it cannot see whom a waiting thread keeps off its core.
  class Seat {
   public:
    explicit Seat(int index);
    ~Seat();
    Seat(const Seat&) = delete;
    Seat& operator=(const Seat&) = delete;

   private:
    const int before_;
  };

 private:
  bool arrive_in(uint32_t phase);
  void wait_for_end_of(uint32_t phase);
  bool ended(uint32_t phase) const;
  bool spin(uint32_t phase) const;
  bool keeps_another_off_this_core(uint32_t phase) const;

  // Separate lines (128: neighbouring 64-byte lines are fetched in pairs): arrivals must not take
  // the line away from those who spin on the phase.
  static constexpr int kLine = 128;
  struct alignas(kLine) LastArrival {
    std::atomic<uint64_t> phase_and_cpu{UINT32_MAX};  // phase << 32 | CPU number
  };

  const int n_;
  const std::unique_ptr<LastArrival[]> last_arrivals_;  // by seat
  alignas(kLine) std::atomic<int> arrived_{0};
  // Counts ended phases in steps of 2; bit 0 is set while somebody sleeps on it, so that the last
  // arrival learns from its own exchange whether it has to call the kernel.
  alignas(kLine) std::atomic<uint32_t> phase_{0};
};

}  // namespace slmq
