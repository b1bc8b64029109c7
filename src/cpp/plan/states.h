// States of sequences: what layers carry along beside the cache of keys and values, of any kind and a
// fixed size, whatever the length of a text.
//
// A state is one slot of floats for all layers. It is written once, by the run that leads to it, and
// never again: sequences share slots by reference counts, and a run that is cancelled or stopped has
// harmed nothing.
#pragma once

#include <mutex>
#include <vector>

#include "layout/memory.h"

namespace slmq {

class StatePool {
 public:
  explicit StatePool(size_t bytes) : bytes_(bytes) {}  // of a slot; 0: there are no states

  int take();            // a slot with one reference; throws std::bad_alloc
  void share(int slot);  // one more reference
  void drop(int slot);   // one less
  bool shared(int slot) const;
  float* data(int slot) const;
  size_t bytes() const { return bytes_; }
  int in_use() const;
  size_t allocated_bytes() const;
  size_t trim();  // gives slots that nobody uses back; returns the bytes

 private:
  const size_t bytes_;
  mutable std::mutex mutex_;
  std::vector<Memory> slots_;  // empty: given back
  std::vector<int> references_;
  std::vector<int> free_;
};

// A state of a sequence, and behind how many positions it stands.
struct KeptState {
  int length, slot;
};

// The states that a sequence keeps: those at whole multiples of an interval, the one at its end, and
// the one before its last run, for whoever takes the run back. Whoever calls what changes it holds the
// sequence's guard.
class StateTrail {
 public:
  StateTrail(StatePool* pool, int interval) : pool_(pool), interval_(interval) {}
  ~StateTrail() { truncate(0); }
  StateTrail(const StateTrail&) = delete;
  StateTrail& operator=(const StateTrail&) = delete;

  bool used() const { return pool_->bytes() > 0; }
  int kept(int length) const;  // the greatest length up to this one that has a state; 0 has none
  // Slots for the states that a run of `count` positions behind `length` leaves; throws as
  // StatePool::take, and then keeps what it has.
  void reserve(int length, int count);
  int slots_needed(int length, int count) const;  // that this would add to what the pool holds
  void advance();                                 // what was reserved is there
  void truncate(int length);                      // a length that is kept; drops what was reserved
  void fork(int length, StateTrail* copy) const;

  const float* before(int length) const;  // the state that a run begins with; null: zeros
  float* behind(int length) const;        // where the state of that length is due; null: nowhere
  int slots() const { return static_cast<int>(kept_.size() + due_.size()); }

 private:
  bool stays(int length) const { return length % interval_ == 0; }
  // Whether a run from `length` on replaces this one: between multiples, and not at the end.
  bool passes(const KeptState& state, int length) const {
    return state.length != length && !stays(state.length);
  }

  StatePool* pool_;
  const int interval_;
  std::vector<KeptState> kept_, due_;  // by length
};

}  // namespace slmq
