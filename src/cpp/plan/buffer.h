// The static buffers that steps write and read.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/formats.h"
#include "layout/memory.h"

namespace slmq {

// f32: rows of `width` floats (a multiple of 32, padding is zero). panel: integer activations of
// width / 32 groups, each with a scale; row_panel: with one scale a row.
enum class BufferType : int { f32, panel, row_panel };

// Which rows a buffer holds: the tokens of the chunk, or those whose logits are asked for.
enum class Domain : int { tokens, outputs };

// With few rows, cheap row steps are computed by every thread for itself, into its own replica:
// that costs less than handing them out would.
inline constexpr int kReplicaRows = 2;

struct Buffer {
  BufferType type;
  Domain domain;
  int width;         // padded to 32
  int logical;       // columns that steps write; those behind stay zero
  bool replicated;   // written by a row step: threads have replicas
  Memory shared;     // all rows
  Memory replicas;   // [threads][kReplicaRows]
  size_t row_bytes;  // panels: of all groups of one row

  uint8_t* bytes(int rows, int thread) const {
    if (replicated && rows <= kReplicaRows)
      return replicas.data() + static_cast<size_t>(thread) * replica_bytes();
    return shared.data();
  }
  // Of one thread; whole pairs of cache lines, which no two threads write.
  size_t replica_bytes() const {
    return static_cast<size_t>(round_up(static_cast<int64_t>(row_bytes * kReplicaRows), 128));
  }
  float* floats(int rows, int thread) const {
    return reinterpret_cast<float*>(bytes(rows, thread));
  }
  void* panel(int rows, int thread) const { return bytes(rows, thread); }
};

inline size_t buffer_row_bytes(BufferType type, int width) {
  if (type == BufferType::f32) return static_cast<size_t>(width) * sizeof(float);
  return static_cast<size_t>(width / kGroup) * kActivationBytes;
}

}  // namespace slmq
