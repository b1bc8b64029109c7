// The kernels in plain C++: the floor for running at all, and the bits that every ISA must give.
#include "vec/scalar.h"

#define SLMQ_ISA scalar
#include "kernels/table.inl.h"

namespace slmq {
extern const Kernels kKernelsScalar;
const Kernels kKernelsScalar = scalar::shared_table("scalar");
}  // namespace slmq
