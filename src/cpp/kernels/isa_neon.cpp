// NEON of ARMv8.0, which every 64-bit ARM has; nothing but the table may leave this object.
#define SLMQ_ISA neon
#include "vec/neon.h"

#include "vec/neon_plain.h"

#include "layout/half.h"

#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsNeon;
const Kernels kKernelsNeon = neon::shared_table("neon");
}  // namespace slmq
