// Compiled with AVX-512 F, BW, DQ, VL and VNNI; nothing but the table may leave this object.
#include "vec/avx512vnni.h"

#include "layout/half.h"

#define SLMQ_ISA avx512vnni
#define SLMQ_WIDE_REGISTERS
#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsAvx512Vnni;
const Kernels kKernelsAvx512Vnni = avx512vnni::shared_table("avx512vnni");
}  // namespace slmq
