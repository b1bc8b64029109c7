// NEON with FEAT_DotProd; nothing but the table may leave this object.
#define SLMQ_ISA neon_dotprod
#include "vec/neon.h"

#include "vec/neon_dotprod.h"

#include "layout/half.h"

#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsNeonDotprod;
const Kernels kKernelsNeonDotprod = neon_dotprod::shared_table("neon_dotprod");
}  // namespace slmq
