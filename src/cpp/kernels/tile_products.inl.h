// The table of what is done with matrix registers (see amx_tiles.h), or a model of them.

#include "kernels/linear_row_tiles.inl.h"

#include "kernels/linear_tiles.inl.h"

#include "kernels/low_rank_tiles.inl.h"

#include "kernels/dequantize.inl.h"

#include "kernels/turned_rows.inl.h"

#include "kernels/turned.inl.h"

#include "kernels/turned_tiles.inl.h"

namespace slmq::SLMQ_ISA {
namespace {

template <class Tiles, const Kernels& below, int... Names>
static constexpr void put_tiles(Kernels* table, std::integer_sequence<int, Names...>) {
  const auto put = [table]<int Name>() {
    constexpr auto format = static_cast<Format>(Name);
    if constexpr (info(format).row_panels) {
      table->linear[Name] = linear_row_tiles<Tiles, below>;
    } else if constexpr (info(format).quantized) {
      table->linear[Name] = linear_tiles<format, Tiles, below>;
    }
  };
  (put.template operator()<Names>(), ...);
}

// The products alone; all else comes from the table below.
template <class Tiles, const Kernels& below>
static constexpr Kernels tile_products(const char* name) {
  Kernels table = {};
  table.name = name;
  table.low_rank_down = low_rank_down_tiles<Tiles, below>;
  table.turn = turn<FourLayout>;
  table.product_turned = product_turned_tiles<Tiles>;
  table.peak_dots = peak_tiles<Tiles>;
  put_tiles<Tiles, below>(&table, std::make_integer_sequence<int, kFormats>());
  return table;
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
