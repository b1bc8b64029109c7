// Settings of the kernels that no result shows: what suits one CPU costs another a third of its speed.
#pragma once

#include "kernels/kernels.h"

namespace slmq {

struct Tuning {
  // Products with 1, 2, 3 to 4, and 5 to 16 rows; more rows read weights from a cache.
  static constexpr int kRowClasses = 4;
  Ahead weights[kRowClasses];

  Ahead ahead(int rows) const {
    if (rows > kPanelRows) return {};
    return weights[rows <= 2 ? rows - 1 : rows <= 4 ? 2 : 3];
  }
};

// What is known to suit a table on CPUs of this vendor ("GenuineIntel", ...), by measurement.
Tuning default_tuning(const char* table, const char* vendor);

// The same for this machine.
Tuning default_tuning(const Kernels& table);

}  // namespace slmq
