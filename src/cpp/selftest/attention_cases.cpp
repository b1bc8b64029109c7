// The paged cache and attention over it: head sizes that fill registers or not, windows, one to 64
// queries at once, a second part.
#include <algorithm>
#include <memory>

#include "plan/attention.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"

namespace slmq::selftest {
namespace {

struct Case {
  int head_dim, kv_heads, positions;
  std::vector<int> queries;
  std::vector<int> windows;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {5, 1, 40, {1, 6, 64}, {0, 1}},          {16, 2, 530, {1, 3, 9, 25}, {0, 7, 600}},
      {64, 1, 130, {1, 2, 3, 4, 13}, {0, 64}}, {80, 1, 65, {5, 14}, {0, 17}},
      {128, 1, 64, {1, 2, 7, 20}, {0}},        {272, 1, 70, {2, 13}, {0}},
  };
  return list;
}

// One case in one cache type.
class AttentionCase {
 public:
  AttentionCase(const Kernels& kernels, const Case& c, KvType type, float softcap, Inputs* inputs)
      : kernels_(kernels),
        case_(c),
        type_(static_cast<int>(type)),
        shape_(attention_shape(config(c, type, softcap))),
        sequence_(std::make_shared<KvCache>(kv_layer_bytes(config(c, type, softcap)))) {
    sequence_.reserve(c.positions);
    for (int position = 0; position < c.positions; ++position)
      for (int head = 0; head < c.kv_heads; ++head) {
        std::vector<float> key = inputs->values(static_cast<size_t>(c.head_dim), 1.5f);
        const std::vector<float> value = inputs->values(static_cast<size_t>(c.head_dim));
        if (position % 11 == 3) key[0] = 9000.0f;  // exp of it is all or nothing
        keys_.insert(keys_.end(), key.begin(), key.end());
        values_.insert(values_.end(), value.begin(), value.end());
        kernels.kv_append[type_](shape_, sequence_.pages(), head, position, key.data(),
                                 value.data());
      }
  }

  void hash_pages(Hash* hash) const {
    for (int page = 0; page * kPagePositions < case_.positions; ++page)
      hash->bytes(sequence_.pages()[page], sequence_.cache()->page_bytes());
  }

  // n queries at mixed positions, all parts, then merged.
  void attend(int n, int window, Inputs* inputs, Hash* hash, Results* results) const {
    std::vector<float> queries(static_cast<size_t>(n) * shape_.value_stride, 0.0f);
    std::vector<Sight> sights(n);
    for (int i = 0; i < n; ++i) {
      for (int d = 0; d < case_.head_dim; ++d)
        queries[i * shape_.value_stride + d] = inputs->value();
      const int position = std::max(0, case_.positions - 1 - 3 * i * i);
      sights[i] = {window > 0 ? std::max(0, position - window + 1) : 0, position + 1, nullptr};
    }
    run_parts(queries, sights, hash, results);
  }

  // n queries in the middle of a text, with what each distance adds to a score.
  void attend_both_ways(int n, int window, Inputs* inputs, Hash* hash, Results* results) const {
    std::vector<float> queries(static_cast<size_t>(n) * shape_.value_stride, 0.0f);
    std::vector<Sight> sights(n);
    const std::vector<float> bias =
        inputs->values(static_cast<size_t>(2 * case_.positions + 30), 2.0f);
    for (int i = 0; i < n; ++i) {
      for (int d = 0; d < case_.head_dim; ++d)
        queries[i * shape_.value_stride + d] = inputs->value();
      const int position = std::max(0, case_.positions / 2 - 5 * i);
      sights[i] = {window > 0 ? std::max(0, position - window) : 0,
                   window > 0 ? std::min(case_.positions, position + window + 1) : case_.positions,
                   i % 3 == 2 ? nullptr : bias.data() + 15 + case_.positions - position};
    }
    run_parts(queries, sights, hash, results);
  }

 private:
  // All parts, then merged; each query also alone.
  void run_parts(const std::vector<float>& queries, const std::vector<Sight>& sights, Hash* hash,
                 Results* results) const {
    const int n = static_cast<int>(sights.size());
    int end = 0;
    for (const Sight& sight : sights) end = std::max(end, sight.end);
    const int head = case_.kv_heads - 1, state = kStateHeader + shape_.value_stride;
    std::vector<float> total, alone(state), scratch(attend_scratch_floats(shape_));
    std::vector<float> prepared(attend_query_floats(shape_));
    for (int part = 0; part <= (end - 1) / kPartPositions; ++part) {
      std::vector<float> states(static_cast<size_t>(n) * state, -1.0f);
      kernels_.prepare_queries[type_](shape_, queries.data(), n, prepared.data());
      kernels_.attend[type_](shape_, sequence_.pages(), head, prepared.data(), sights.data(), n,
                             part, {}, states.data(), scratch.data());
      hash->floats(states);
      if (case_.positions <= kPartPositions) expect_of_text(queries, sights, states, results);
      for (int i = 0; i < n; ++i) {
        kernels_.prepare_queries[type_](shape_, queries.data() + i * shape_.value_stride, 1,
                                        prepared.data());
        kernels_.attend[type_](shape_, sequence_.pages(), head, prepared.data(), &sights[i], 1,
                               part, {}, alone.data(), scratch.data());
        results->expect(
            hash_of(alone.data(), alone.size()) == hash_of(states.data() + i * state, state),
            "attend: a query depends on those beside it");
      }
      for (int i = 0; i < n && part > 0; ++i)
        kernels_.merge(shape_, states.data() + i * state, total.data() + i * state);
      if (part == 0) total = states;
    }
    hash->floats(total);
  }

  // Whole texts have their own kernels, which give what the cache gives.
  void expect_of_text(const std::vector<float>& queries, const std::vector<Sight>& sights,
                      const std::vector<float>& states, Results* results) const {
    if (type_ != static_cast<int>(KvType::f32)) return;
    const int width = case_.kv_heads * case_.head_dim, last = width - case_.head_dim;
    std::vector<float> text(text_floats(shape_), -1.0f), found(states.size(), -1.0f);
    std::vector<float> scratch(attend_scratch_floats(shape_));
    kernels_.pack_text(shape_, case_.positions, keys_.data() + last, width, values_.data() + last,
                       width, text.data());
    kernels_.attend_text(shape_, case_.positions, text.data(), queries.data(), sights.data(),
                         static_cast<int>(sights.size()), found.data(), scratch.data());
    results->expect(hash_of(found.data(), found.size()) == hash_of(states.data(), states.size()),
                    "attend_text: it differs from attend");
  }

  static AttentionConfig config(const Case& c, KvType type, float softcap) {
    return {c.kv_heads, c.kv_heads, c.head_dim, 0, 0, 0.125f, type, 0, softcap};
  }

  const Kernels& kernels_;
  const Case& case_;
  const int type_;
  const AttentionShape shape_;
  KvSequence sequence_;
  std::vector<float> keys_, values_;  // [positions][heads][head_dim]
};

void run_cache(const Kernels& kernels, KvType type, const std::string& name, Results* results) {
  Inputs inputs(401);
  Hash pages, states, capped;
  for (const Case& c : cases()) {
    for (const float softcap : {0.0f, 20.0f}) {
      const AttentionCase test(kernels, c, type, softcap, &inputs);
      Hash* hash = softcap == 0.0f ? &states : &capped;
      if (softcap == 0.0f) test.hash_pages(&pages);
      for (const int n : c.queries)
        for (const int window : c.windows) test.attend(n, window, &inputs, hash, results);
    }
  }
  Inputs others(404);
  Hash both_ways;
  for (const Case& c : cases()) {
    const AttentionCase test(kernels, c, type, 0.0f, &others);
    for (const int n : c.queries)
      for (const int window : c.windows)
        test.attend_both_ways(n, window, &others, &both_ways, results);
  }
  results->add("kv_append." + name, pages);
  results->add("attend." + name, states);
  results->add("attend_softcap." + name, capped);
  results->add("attend_both_ways." + name, both_ways);
}

// Values that overflow or vanish in float16.
void run_append_extremes(const Kernels& kernels, const std::vector<KvType>& types,
                         const std::string& name, Results* results) {
  Inputs inputs(402);
  Hash hash;
  for (const KvType type : types) {
    const AttentionConfig config{1, 1, 50, 0, 0, 1.0f, type, 0};
    KvSequence sequence(std::make_shared<KvCache>(kv_layer_bytes(config)));
    sequence.reserve(3);
    for (int position = 0; position < 3; ++position) {
      std::vector<float> key = inputs.values(50, 1e-4f), value = inputs.values(50, 1e-6f);
      inputs.salt(&key, all_extremes());
      inputs.salt(&value, all_extremes());
      kernels.kv_append[static_cast<int>(type)](attention_shape(config), sequence.pages(), 0,
                                                position, key.data(), value.data());
    }
    hash.bytes(sequence.pages()[0], sequence.cache()->page_bytes());
  }
  results->add(name, hash);
}

void run_states(const Kernels& kernels, Results* results) {
  Inputs inputs(403);
  Hash merged, finished;
  for (const int head_dim : {1, 15, 16, 20, 64, 128}) {
    const AttentionConfig config{1, 1, head_dim, 0, 0, 1.0f, KvType::f32, 0};
    const AttentionShape shape = attention_shape(config);
    const size_t floats = static_cast<size_t>(kStateHeader + shape.value_stride);
    std::vector<float> total = inputs.values(floats);
    total[0] = float_of(0xff800000);  // nothing seen so far
    for (size_t i = 1; i < floats; ++i) total[i] = 0.0f;
    for (const float largest : {1.5f, -100.0f, 1.25f, 200.0f, 3e4f}) {
      std::vector<float> part = inputs.values(floats);
      part[0] = largest;
      part[1] = 1.0f + static_cast<float>(inputs.below(1000)) / 64.0f;
      kernels.merge(shape, part.data(), total.data());
      part[1] = 0.0f;  // an empty part changes nothing
      kernels.merge(shape, part.data(), total.data());
      merged.floats(total);
      std::vector<float> out(static_cast<size_t>(head_dim) + 3, -1.0f);
      kernels.attend_finish(shape, total.data(), out.data());
      finished.floats(out);
    }
  }
  results->add("merge", merged);
  results->add("attend_finish", finished);
}

}  // namespace

void run_attention(const Kernels& kernels, Results* results) {
  run_cache(kernels, KvType::f16, "f16", results);
  run_cache(kernels, KvType::f32, "f32", results);
  run_cache(kernels, KvType::int8, "int8", results);
  run_cache(kernels, KvType::int4, "int4", results);
  run_append_extremes(kernels, {KvType::f16, KvType::f32, KvType::int8}, "kv_append.extremes",
                      results);
  run_append_extremes(kernels, {KvType::int4}, "kv_append.extremes.int4", results);
  run_states(kernels, results);
}

}  // namespace slmq::selftest
