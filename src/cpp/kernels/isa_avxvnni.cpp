// Compiled with -mavx2 -mfma -mf16c -mavxvnni; nothing but the table may leave this object.
#define SLMQ_ISA avxvnni
#include "vec/avx2.h"

#include "vec/avxvnni.h"

#include "layout/half.h"

#include "kernels/products.inl.h"

namespace slmq {
extern const Kernels kKernelsAvxVnni;
const Kernels kKernelsAvxVnni = avxvnni::own_products("avxvnni");
}  // namespace slmq
