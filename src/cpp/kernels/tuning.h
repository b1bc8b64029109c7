// Settings of the kernels that no result shows: what suits one CPU costs another a third of its speed.
#pragma once

#include "kernels/kernels.h"

namespace slmq {

struct Tuning {
  // Products with 1, 2, 3 to 4, and 5 to 16 rows; more rows read weights from a cache.
  static constexpr int kRowClasses = 4;
  // Codes of up to six bits, which cost most to unpack; wider ones.
  static constexpr int kWeightClasses = 2;
  Ahead weights[kWeightClasses][kRowClasses];

  static constexpr int weight_class(Format format) { return info(format).bits <= 6 ? 0 : 1; }
  static constexpr int row_class(int rows) { return rows <= 2 ? rows - 1 : rows <= 4 ? 2 : 3; }

  Ahead ahead(Format format, int rows) const {
    if (rows > kPanelRows) return {};
    return weights[weight_class(format)][row_class(rows)];
  }
};

// What is known to suit a table on CPUs of this vendor ("GenuineIntel", ...), by measurement.
Tuning default_tuning(const char* table, const char* vendor);

// The same for this machine.
Tuning default_tuning(const Kernels& table);

}  // namespace slmq
