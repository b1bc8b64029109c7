#include "probes/tuned.h"

#include <map>
#include <mutex>
#include <string_view>

namespace slmq {
namespace {

struct Chosen {
  std::mutex mutex;
  std::map<std::string_view, Tuning> by_table;  // names live as long as the tables
};

Chosen& chosen() {
  static Chosen found;
  return found;
}

}  // namespace

Tuning active_tuning(const Kernels& table) {
  const std::lock_guard lock(chosen().mutex);
  const auto found = chosen().by_table.find(table.name);
  return found == chosen().by_table.end() ? default_tuning(table) : found->second;
}

void set_tuning(const Kernels& table, const Tuning& tuning) {
  const std::lock_guard lock(chosen().mutex);
  chosen().by_table[table.name] = tuning;
}

}  // namespace slmq
