// NEON with FEAT_I8MM, for prompts the matrix instruction; nothing but the table may leave this object.
#define SLMQ_ISA neon_i8mm
#include "vec/neon.h"

#include "vec/neon_i8mm.h"

#include "layout/half.h"

#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsNeonI8mm;
const Kernels kKernelsNeonI8mm = neon_i8mm::shared_table("neon_i8mm");
}  // namespace slmq
