// The settings that are in use: the built-in ones until others are set, as a measurement found them.
#pragma once

#include "kernels/tuning.h"

namespace slmq {

// What plans that are made from now on use.
Tuning active_tuning(const Kernels& table);
void set_tuning(const Kernels& table, const Tuning& tuning);

}  // namespace slmq
