// Rows of a table that stays in its file, at the run's token ids.
#include <limits>
#include <utility>

#include "layout/row_table.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

class LookupStep final : public RowStep {
 public:
  LookupStep(std::shared_ptr<const RowTable> table, float scale, int out)
      : RowStep(Domain::tokens, false), table_(std::move(table)), scale_(scale), out_(out) {}
  size_t scratch_bytes() const override { return table_->packed_bytes(); }

 private:
  void rows(const Run& run, int thread, int begin, int end) override;
  std::shared_ptr<const RowTable> table_;
  float scale_;
  int out_;
};

void LookupStep::rows(const Run& run, int thread, int begin, int end) {
  const Buffer& out = run.buffer(out_);
  const RowTable& t = *table_;
  uint8_t* packed = run.scratch_of(thread);
  for (int row = begin; row < end; ++row) {
    float* y = out.floats(run.frame->rows(domain_), thread) + static_cast<size_t>(row) * out.width;
    if (t.pack_row(run.frame->tokens[row], packed) != PackStatus::ok) {
      // Nobody has looked at the whole table; its answer must not look like one.
      for (int c = 0; c < t.k; ++c) y[c] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    run.kernels->dequantize[static_cast<int>(t.format)](packed, matrix_groups(t.k), t.k, 0, 1, y,
                                                        out.width);
    if (scale_ != 1.0f)
      for (int c = 0; c < t.k; ++c) y[c] = y[c] * scale_;
  }
}

}  // namespace

int Recording::lookup(std::shared_ptr<const RowTable> table, float scale) {
  if (table->n < made_.sizes.vocabulary) {
    fail("lookup: expected at least " + std::to_string(made_.sizes.vocabulary) + " rows, got " +
         std::to_string(table->n));
  }
  const int out = new_buffer(BufferType::f32, Domain::tokens, table->k, false);
  std::string format = info(table->format).name, shape = dims(table->n, table->k);
  return add_step(std::make_unique<LookupStep>(std::move(table), scale, out), out, {}, "lookup",
                  std::move(format), std::move(shape));
}

}  // namespace slmq
