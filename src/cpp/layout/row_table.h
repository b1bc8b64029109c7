// A table whose rows stay in their file, mapped, and are decoded one at a time.
//
// A row has the values that it would have in a matrix packed from the whole table.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "layout/pack.h"
#include "layout/pack_blocks.h"

namespace slmq {

struct RowTable {
  Source source;                 // what rows are stored as, unless `blocks` says it
  std::optional<Blocks> blocks;  // a type of GGUF's that only moves integers
  Format format;                 // that packing gives them
  int n, k;
  const uint8_t* rows;                // n of row_bytes; any alignment
  std::shared_ptr<const void> owner;  // keeps them mapped

  size_t row_bytes() const;
  size_t packed_bytes() const { return matrix_bytes(format, 1, k); }
  // One row as a matrix of its own, in packed_bytes() that are cleared first.
  PackStatus pack_row(int row, uint8_t* out) const;
};

}  // namespace slmq
