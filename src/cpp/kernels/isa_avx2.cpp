// Compiled with -mavx2 -mfma -mf16c; nothing but the table may leave this object.
#define SLMQ_ISA avx2
#include "vec/avx2.h"

#include "vec/avx2_plain.h"

#include "layout/half.h"

#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsAvx2;
const Kernels kKernelsAvx2 = avx2::shared_table("avx2");
}  // namespace slmq
