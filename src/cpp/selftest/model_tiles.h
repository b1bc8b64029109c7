// AMX's tile registers in plain C++, stricter than a CPU: what would fault there, or read what nobody
// wrote, is noted as a mistake, and the program goes on.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "vec/amx_tiles.h"

namespace slmq::selftest {

class ModelTiles {
 public:
  ~ModelTiles() {
    if (configured_) note("not released");
  }

  void configure(const TileConfig& config) {
    const char* wrong = refuse(config);
    if (wrong != nullptr) return note(wrong);
    for (int t = 0; t < kTileRegisters; ++t) {
      tiles_[t] = {};
      tiles_[t].rows = config.rows[t];
      tiles_[t].row_bytes = config.row_bytes[t];
    }
    configured_ = true;
  }
  void release() {
    for (Tile& tile : tiles_) tile = {};
    configured_ = false;
  }
  template <int T>
  void zero() {
    if (!usable(T)) return;
    std::memset(tiles_[T].bytes, 0, sizeof tiles_[T].bytes);
    tiles_[T].written = true;
  }
  template <int T>
  void load(const void* from, int64_t stride) {
    zero<T>();
    for (int row = 0; row < tiles_[T].rows; ++row)
      std::memcpy(tiles_[T].bytes[row], static_cast<const int8_t*>(from) + row * stride,
                  tiles_[T].row_bytes);
  }
  template <int T>
  void store(void* to, int64_t stride) {
    if (!readable(T)) return;
    for (int row = 0; row < tiles_[T].rows; ++row)
      std::memcpy(static_cast<int8_t*>(to) + row * stride, tiles_[T].bytes[row],
                  tiles_[T].row_bytes);
  }
  template <int Sum, int A, int B>
  void dot() {
    multiply<int8_t, Sum, A, B>();
  }
  template <int Sum, int A, int B>
  void dot_unsigned() {
    multiply<uint8_t, Sum, A, B>();
  }

  // The first mistake since the last call, or nothing.
  static std::string mistake() {
    const std::string text = mistake_;
    mistake_ = "";
    return text;
  }

 private:
  struct Tile {
    int rows, row_bytes;
    bool written;
    int8_t bytes[kTileRows][kTileRowBytes];
  };

  // ByteOfB: what the bytes of B are taken for.
  template <class ByteOfB, int Sum, int A, int B>
  void multiply() {
    if (Sum == A || Sum == B || A == B) return note("a register twice in one product");
    if (!readable(Sum) || !readable(A) || !readable(B)) return;
    Tile& sum = tiles_[Sum];
    const Tile &a = tiles_[A], &b = tiles_[B];
    if (sum.rows != a.rows || sum.row_bytes != b.row_bytes || a.row_bytes != 4 * b.rows)
      return note("shapes that do not multiply");
    for (int i = 0; i < sum.rows; ++i)
      for (int j = 0; j < sum.row_bytes / 4; ++j) {
        int32_t total;
        std::memcpy(&total, &sum.bytes[i][4 * j], 4);
        for (int k = 0; k < a.row_bytes; ++k)
          total += a.bytes[i][k] * static_cast<ByteOfB>(b.bytes[k / 4][4 * j + k % 4]);
        std::memcpy(&sum.bytes[i][4 * j], &total, 4);
      }
  }

  static void note(const char* what) {
    if (*mistake_ == '\0') mistake_ = what;
  }
  // Why ldtilecfg would not take it, or null.
  static const char* refuse(const TileConfig& config) {
    if (config.palette != 1) return "a palette that is not 1";
    if (config.start_row != 0) return "a start row";
    for (const uint8_t byte : config.reserved)
      if (byte != 0) return "reserved bytes";
    for (int t = 0; t < 16; ++t) {
      const int rows = config.rows[t], row_bytes = config.row_bytes[t];
      if (t >= kTileRegisters && (rows != 0 || row_bytes != 0)) return "a register beyond the last";
      if (rows > kTileRows) return "too many rows";
      if (row_bytes > kTileRowBytes) return "too many bytes in a row";
      if (row_bytes % 4 != 0) return "a row of odd bytes";
      if ((rows == 0) != (row_bytes == 0)) return "rows without bytes or bytes without rows";
    }
    return nullptr;
  }
  bool usable(int tile) const {
    if (!configured_) note("not configured");
    if (configured_ && tiles_[tile].rows == 0) note("a register without a shape");
    return configured_ && tiles_[tile].rows != 0;
  }
  bool readable(int tile) const {
    if (usable(tile) && !tiles_[tile].written) note("reads a register that nothing was written to");
    return usable(tile) && tiles_[tile].written;
  }

  bool configured_ = false;
  Tile tiles_[kTileRegisters] = {};
  static inline const char* mistake_ = "";
};

}  // namespace slmq::selftest
