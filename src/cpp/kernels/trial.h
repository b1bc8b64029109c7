// Whether a table that the CPU promises to run gives the bits of scalar, before it is used.
#pragma once

#include "kernels/kernels.h"

namespace slmq {

// Products of all formats on fixed inputs: the same bits from both tables? Of rows as many as the
// matrix registers take, and one more.
bool products_agree(const Kernels& table, const Kernels& reference);

}  // namespace slmq
