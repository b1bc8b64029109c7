// How steps over weights cut their matrices into what a thread takes at a time.
#pragma once

#include <algorithm>
#include <cstddef>

namespace slmq {

inline constexpr size_t kMaxChunkBytes = 128 * 1024;
inline constexpr int kChunksPerThread = 8;  // enough that a slow core holds nobody back for long

inline size_t chunk_bytes_for(size_t total_bytes, int threads) {
  return std::min(kMaxChunkBytes, total_bytes / static_cast<size_t>(threads * kChunksPerThread));
}

// Pairs of rows of a chunk, of so many bytes each.
inline int chunk_pairs(size_t chunk_bytes, size_t pair_bytes) {
  return std::max(1, static_cast<int>(chunk_bytes / pair_bytes));
}

}  // namespace slmq
