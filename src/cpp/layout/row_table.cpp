#include "layout/row_table.h"

#include <cstring>

namespace slmq {

size_t RowTable::row_bytes() const {
  if (!blocks) return source_row_bytes(source, k);
  return static_cast<size_t>(k / info(*blocks).columns) * static_cast<size_t>(info(*blocks).bytes);
}

PackStatus RowTable::pack_row(int row, uint8_t* out) const {
  std::memset(out, 0, packed_bytes());
  const uint8_t* from = rows + static_cast<size_t>(row) * row_bytes();
  if (blocks) return pack_blocks({*blocks, format, from, 1, k, nullptr, out}, 0, 1);
  return pack_pairs({format, source, from, 1, k, nullptr, out}, 0, 1);
}

}  // namespace slmq
