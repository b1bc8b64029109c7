// AMX's tile registers: eight matrices of up to 16 rows x 64 bytes, and products of them.
//
//   ldtilecfg      shapes of the registers, all zero after it
//   tdpbssd        c[i][j] += dot of row i of a with column j of b, four products s8 * s8 at a time:
//                  b has four columns of a weight in each 32-bit lane, as tiles of weights lie
//   tdpbsud        the same with s8 * u8
//   tilerelease    back to no state, which no context switch must save
//
// Written as assembly: GCC's intrinsics do not tell the compiler that they read and write memory.
#pragma once

#include <cstdint>

namespace slmq {

inline constexpr int kTileRegisters = 8, kTileRows = 16, kTileRowBytes = 64;

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace slmq

#if defined(__AMX_INT8__)

namespace slmq::SLMQ_ISA {
namespace {  // members, too, stay in this object

// This thread's registers. A thread must have released them before it returns to its caller.
struct AmxTiles {
  static inline void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  static inline void release() { asm volatile("tilerelease" : : : "memory"); }
  template <int Tile>
  static inline void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  // Row i lies at from + i * stride.
  template <int Tile>
  static inline void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  static inline void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Sum, int A, int B>
  static inline void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
  // The bytes of B are unsigned.
  template <int Sum, int A, int B>
  static inline void dot_unsigned() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
};

}  // namespace
}  // namespace slmq::SLMQ_ISA

#endif
