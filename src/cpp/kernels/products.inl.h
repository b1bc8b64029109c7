// A table that has products of integer weights of its own, and takes all else from the table below it
// (over() in dispatch.cpp). Include after the vector header, with SLMQ_ISA set to its namespace.
#include <utility>

#include "machine/inline.h"
#include "kernels/kernels.h"

#include "kernels/linear.inl.h"

#include "kernels/linear_block.inl.h"

#include "kernels/linear_rows.inl.h"

#include "kernels/low_rank_int8.inl.h"

namespace slmq::SLMQ_ISA {

template <int... Names>
static constexpr void put_products(Kernels* table, std::integer_sequence<int, Names...>) {
  const auto put = [table]<int Name>() {
    constexpr auto format = static_cast<Format>(Name);
    if constexpr (info(format).row_panels) {
      table->linear[Name] = linear_rows<format>;
    } else if constexpr (info(format).quantized) {
      table->linear[Name] = linear<Weight<format>>;
    }
  };
  (put.template operator()<Names>(), ...);
}

static constexpr Kernels own_products(const char* name) {
  Kernels table = {};
  table.name = name;
  table.peak_dots = peak_dots;
  table.low_rank_down = low_rank_down;
  table.low_rank_up = low_rank_up;
  put_products(&table, std::make_integer_sequence<int, kFormats>());
  return table;
}

}  // namespace slmq::SLMQ_ISA
