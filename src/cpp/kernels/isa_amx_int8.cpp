// Compiled with the flags of avx512vnni and -mamx-tile -mamx-int8; nothing but the table may leave
// this object.
#include "vec/avx512vnni.h"

#define SLMQ_ISA avx512vnni
#define SLMQ_WIDE_REGISTERS
#include "vec/amx_tiles.h"

#include "layout/half.h"

#include <utility>

#include "machine/inline.h"
#include "kernels/kernels.h"

#include "kernels/math.inl.h"

#include "kernels/linear.inl.h"

#include "kernels/linear_wide.inl.h"

#include "kernels/tile_products.inl.h"

namespace slmq {
extern const Kernels kKernelsAvx512Vnni, kKernelsAmxInt8;
const Kernels kKernelsAmxInt8 =
    avx512vnni::tile_products<avx512vnni::AmxTiles, kKernelsAvx512Vnni>("amx_int8");
}  // namespace slmq
