// How threads wait for each other when they usually meet within microseconds: the word that they
// wait on, and a reusable barrier over it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace slmq {

// What a thread does between looks at a word that others write.
void relax();

// Things that different threads write lie this far apart: neighbouring 64-byte lines are fetched in
// pairs.
inline constexpr int kLineBytes = 128;

// A number of the current phase to wait on, with 32 bits of payload that belong to the phase.
// Waiting goes from cheap to patient: spin (the others are about to come), give the core away (one
// of the others may need it), sleep in the kernel (they take long). Ending a phase calls the kernel
// only if somebody sleeps.
class alignas(kLineBytes) PhaseWord {
 public:
  static constexpr uint32_t kPhases = UINT32_MAX >> 1;  // then they begin anew

  static uint32_t phase_of(uint64_t word) { return static_cast<uint32_t>(word >> 33); }
  static uint32_t payload_of(uint64_t word) { return static_cast<uint32_t>(word); }

  uint64_t load() const { return word_.load(std::memory_order_acquire); }
  uint32_t phase() const { return phase_of(load()); }
  bool ended(uint32_t phase) const { return this->phase() != phase; }

  // payload - n, if the word is still as it was seen; else `seen` becomes what it is.
  bool try_subtract(uint64_t& seen, uint32_t n) {
    return word_.compare_exchange_weak(seen, seen - n, std::memory_order_acq_rel,
                                       std::memory_order_acquire);
  }

  // Begins the next phase. Only the thread that ends the current one may call it.
  void next(uint32_t payload);

  // Waits about as long as threads differ that had equal work. True if the phase has ended.
  bool glance(uint32_t phase) const;

  // Returns when the phase has ended. `crowded` says that a thread that could end it was last seen
  // on this very core: it needs the core more than this one.
  void wait(uint32_t phase, bool crowded);

 private:
  bool spin(uint32_t phase) const;
  void sleep(uint32_t phase);

  std::atomic<uint64_t> word_{0};  // phase:31 somebody_sleeps:1 payload:32
};

// Where threads were last seen, and in which phase.
class Whereabouts {
 public:
  explicit Whereabouts(int threads);
  void note(int thread, uint32_t phase);
  void forget(int thread);
  // Whether a thread was last seen on this core, in that phase or in another one.
  bool here_in(uint32_t phase) const { return here(phase, true); }
  bool here_but_not_in(uint32_t phase) const { return here(phase, false); }
  int size() const { return n_; }

 private:
  static constexpr uint64_t kNowhere = UINT64_MAX;
  struct alignas(kLineBytes) Place {
    std::atomic<uint64_t> phase_and_cpu{kNowhere};
  };
  bool here(uint32_t phase, bool in_phase) const;

  const int n_;
  const std::unique_ptr<Place[]> places_;
};

class Barrier {
 public:
  explicit Barrier(int n);
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Returns when n threads have called it; what each did before is visible to all after.
  void wait();

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
  Whereabouts last_arrivals_;  // by seat
  alignas(kLineBytes) std::atomic<int> arrived_{0};
  PhaseWord phases_;
};

}  // namespace slmq
