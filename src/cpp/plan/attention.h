// Attention: rope, append to the cache, attend, in one recorded step.
#pragma once

#include <atomic>

#include "plan/step.h"

namespace slmq {

struct AttentionConfig {
  int heads, kv_heads, head_dim;
  int rotary;  // rotated channels of a head; 0: none
  int window;  // causal: the latest positions that count; else how far each side counts; 0: all
  float scale;
  KvType kv_type;
  size_t layer_offset;   // of this layer in a page
  float softcap = 0.0f;  // 0: none
  bool causal = true;    // a token sees none behind it
};

const char* kv_type_name(KvType type);

// Bytes of one layer in one page, and where things lie in it.
size_t kv_layer_bytes(const AttentionConfig& config);
AttentionShape attention_shape(const AttentionConfig& config);

class AttentionStep final : public Step {
 public:
  // bias: what distances add to scores, heads of 2 n - 1 values for the keys n - 1 before to n - 1
  // behind a query; empty: nothing. sinks: a score a head that takes its share of the weights, as a
  // key with a value of zeros would; empty: none. k and v of no buffer: another step has appended them.
  AttentionStep(const AttentionConfig& config, Slice q, Slice k, Slice v, int rope,
                const std::vector<float>& bias, const std::vector<float>& sinks, int out,
                int threads);
  void prepare(const Frame& frame) override;
  // Rows of one sequence see each other's keys: all are appended before any attends. Where no
  // sequence has two rows, whoever attends appends first, in the only phase. Whole texts that fit into
  // one part do without the cache.
  int phases(const Frame& frame) const override {
    return texts_ || !appends() || appends_itself(frame) ? 1 : 2;
  }
  int items(const Frame& frame, int phase) const override;
  void item(const Run& run, int phase, int item, int thread) override;
  size_t scratch_bytes() const override;

 private:
  // Rows of one sequence that are attended together.
  struct Block {
    int segment, row, count;
  };
  // A part of a KV head, for rows of neighbouring blocks that have the same pages there.
  struct PartItem {
    int block, blocks, kv_head, part;
  };
  struct Scratch;

  bool appending(const Frame& frame, int phase) const { return phase + 1 < phases(frame); }
  void append_block(const Run& run, int thread, const Block& block) const;
  void append_head(const Run& run, int thread, const Segment& segment, int kv_head) const;
  void append(const Run& run, int thread, const Segment& segment, int row, int kv_head,
              Scratch& scratch) const;
  void load_queries(const Run& run, int thread, const Block& block, int kv_head, int at,
                    Scratch& scratch) const;
  bool takes_texts(const Frame& frame) const;
  void attend_text(const Run& run, int thread, const Block& block, int kv_head) const;
  void fetch_next_head(const Run& run, int thread, int kv_head, int row, int end) const;
  const float* text_keys(const Run& run, int thread, const Segment& segment, int kv_head,
                         Scratch& scratch, int* stride) const;
  void attend_block(const Run& run, int thread, const Block& block, int kv_head) const;
  void find_shared(const Frame& frame);
  int shared_parts(const Frame& frame, const Block& a, const Block& b) const;
  void list_parts(const Frame& frame);
  void cut_runs();
  void attend_split(const Run& run, int thread, int item, bool first, bool last);
  void load_split(const Run& run, int thread, const PartItem& item, Scratch& scratch);
  void finish_part(const Run& run, int thread, int block, int kv_head);
  Following following(const Segment& segment, int row, int kv_head, int part) const;
  float* partial(int block, int kv_head, int part) {
    const size_t task = static_cast<size_t>(block) * config_.kv_heads + kv_head;
    return partial_.data() + (task * parts_ + part) * group() * state_floats();
  }
  void write_out(const Run& run, int thread, int row, int head, float* state) const;
  bool appends() const { return k_.buffer >= 0; }
  // Whether rows of a sequence share bytes, which one thread must write.
  bool by_heads() const { return config_.kv_type == KvType::int4; }
  bool appends_itself(const Frame& frame) const { return appends() && frame.one_row_each; }

  int block_rows(int rows) const;
  size_t text_scratch() const;                         // floats
  Sight sight(const Segment& segment, int row) const;  // without its bias
  int first_part(const Segment& segment, int row) const {
    return sight(segment, row).begin / kPartPositions;
  }
  int last_part(const Segment& segment, int row) const {
    return (sight(segment, row).end - 1) / kPartPositions;
  }
  int group() const { return config_.heads / config_.kv_heads; }
  int state_floats() const { return kStateHeader + shape_.value_stride; }

  const AttentionConfig config_;
  const AttentionShape shape_;
  const Slice q_, k_, v_;
  const int rope_, out_, threads_;
  int bias_positions_ = 0;    // n
  std::vector<float> bias_;   // [heads][15 + 2 n - 1 + 15], in units of log 2
  std::vector<float> sinks_;  // [heads][state], of what sees nothing but its sink

  // Of the frame that runs:
  bool texts_ = false;  // no step needs the cache
  std::vector<Block> blocks_;
  int parts_ = 1;  // parts of the longest sequence; more than one: threads share a sequence
  std::vector<int> shared_;      // [block]: first parts that are the block's before, too
  std::vector<PartItem> items_;  // where threads share a sequence
  std::vector<int> runs_;        // where items begin that one thread takes together, and their end
  // Whose prepared queries a thread has left for its next item.
  struct alignas(64) Place {
    int block = -1, blocks = 0, kv_head = -1;
  };
  std::vector<Place> places_;
  std::vector<float> partial_;                // [block][kv head][part][query of group][state]
  std::unique_ptr<std::atomic<int>[]> done_;  // [block][kv head]: parts finished
  size_t done_size_ = 0;
};

}  // namespace slmq
