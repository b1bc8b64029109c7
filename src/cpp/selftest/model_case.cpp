// A tiny recorded model: all formats, both kinds of activations, both caches. How a
// prompt is cut, how many threads run and who shares the run must not matter.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "machine/math64.h"
#include "plan/recording.h"
#include "selftest/cases.h"
#include "selftest/inputs.h"

namespace slmq::selftest {
namespace {

constexpr int kVocabulary = 70, kHeadDim = 12;
constexpr int kMaxRows = 80;

struct Layer {
  Format attention, mlp;
  Activations activations;
  int window;
};
struct Spec {
  int hidden, heads, kv_heads, inner;  // hidden = heads * kHeadDim
  std::vector<Layer> layers;
};

std::shared_ptr<const Matrix> matrix(Inputs* inputs, Format format, int n, int k) {
  auto m = std::make_shared<Matrix>(Matrix{format, n, k, nullptr, nullptr});
  auto memory = std::make_shared<Memory>(m->bytes());
  m->data = memory->data();
  m->owner = memory;
  const std::vector<float> rows = inputs->values(static_cast<size_t>(n) * k, 0.125f);
  const PackArgs args{format,  Source::f32, reinterpret_cast<const uint8_t*>(rows.data()), n, k,
                      nullptr, m->data};
  if (pack_pairs(args, 0, m->pairs()) != PackStatus::ok)
    throw std::logic_error("a weight does not pack");
  return m;
}

// Records one plan; the same calls in the same order give the same weights.
class Recorder {
 public:
  Recorder(const Kernels& kernels, const PlanSizes& sizes, KvType type, const Spec& spec)
      : recording_(kernels, sizes, type), spec_(spec) {}

  std::unique_ptr<Plan> record() {
    const auto embedding = matrix(&inputs_, Format::q8g32s, kVocabulary, spec_.hidden);
    std::vector<float> frequencies;
    for (int i = 0; i < kHeadDim / 2; ++i)
      frequencies.push_back(static_cast<float>(exact_pow(10000.0, -2.0 * i / kHeadDim)));
    x_ = recording_.embed(embedding, 8.0f);
    rope_ = recording_.rope(frequencies, 1.0f);
    for (const Layer& layer : spec_.layers) {
      attention(layer);
      mlp(layer);
    }
    x_ = recording_.select({x_, 0, spec_.hidden});
    const int head = recording_.quantize({norm(), 0, spec_.hidden}, Activations::a16);
    return recording_.finish(recording_.linear(head, {{embedding, {}}}, {}));
  }

 private:
  int norm() {
    return recording_.rmsnorm({x_, 0, spec_.hidden}, inputs_.values(spec_.hidden), 1e-5f);
  }

  int input(int buffer, int width, Format format, Activations activations) {
    return info(format).quantized ? recording_.quantize({buffer, 0, width}, activations) : buffer;
  }
  Weight weight(Format format, int n, int k) {
    return {matrix(&inputs_, format, n, k), inputs_.values(n)};
  }

  void attention(const Layer& layer) {
    const int q = spec_.heads * kHeadDim, kv = spec_.kv_heads * kHeadDim;
    const int q_end = static_cast<int>(round_up(q, kPairRows)),
              kv_end = static_cast<int>(round_up(kv, kPairRows));
    std::vector<Weight> parts = {weight(layer.attention, q, spec_.hidden),
                                 weight(layer.attention, kv, spec_.hidden),
                                 weight(layer.attention, kv, spec_.hidden)};
    const int h = input(norm(), spec_.hidden, layer.attention, layer.activations);
    const int qkv = recording_.linear(h, std::move(parts), {});
    const AttentionConfig config{spec_.heads,  spec_.kv_heads, kHeadDim,    kHeadDim,
                                 layer.window, 0.25f,          KvType::f16, 0};
    const int a = recording_.attention({qkv, 0, q}, {qkv, q_end, kv}, {qkv, q_end + kv_end, kv},
                                       rope_, config);
    const int o = input(a, q, layer.attention, layer.activations);
    x_ = recording_.linear(o, {weight(layer.attention, spec_.hidden, q)}, {x_, 0, spec_.hidden});
  }

  void mlp(const Layer& layer) {
    const int h = input(norm(), spec_.hidden, layer.mlp, layer.activations);
    Weight gate = weight(layer.mlp, spec_.inner, spec_.hidden);
    const int y = recording_.gated(h, Gate::silu, std::move(gate),
                                   weight(layer.mlp, spec_.inner, spec_.hidden));
    const int d = input(y, spec_.inner, layer.mlp, layer.activations);
    x_ =
        recording_.linear(d, {weight(layer.mlp, spec_.hidden, spec_.inner)}, {x_, 0, spec_.hidden});
  }

  Recording recording_;
  const Spec& spec_;
  Inputs inputs_{501};
  int x_ = -1, rope_ = -1;
};

std::unique_ptr<Plan> plan_for(const Kernels& kernels, const Spec& spec, int threads, KvType type) {
  return Recorder(kernels, {threads, kMaxRows, kMaxRows, kVocabulary}, type, spec).record();
}

std::vector<int32_t> prompt(int n) {
  Inputs inputs(502);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = inputs.below(kVocabulary);
  return tokens;
}

using Sequences = std::vector<std::shared_ptr<KvSequence>>;

// Appends tokens [begin, end) to every sequence in one run; logits of all rows of the first.
std::vector<float> feed(Plan* plan, const Sequences& sequences, const std::vector<int32_t>& tokens,
                        int begin, int end) {
  RunRequest request;
  for (const auto& sequence : sequences) {
    request.tokens.insert(request.tokens.end(), tokens.begin() + begin, tokens.begin() + end);
    request.segments.push_back({sequence, end - begin});
  }
  for (int row = 0; row < end - begin; ++row) request.outputs.push_back(row);
  plan->run(request);
  std::vector<float> logits(static_cast<size_t>(end - begin) * kVocabulary);
  plan->read_buffer(plan->logits_buffer(), logits.data());
  return logits;
}

// The prompt in pieces, by `threads` threads, in `copies` sequences at once.
struct Way {
  int threads, copies;
  std::vector<int> pieces;
};

std::vector<float> all_logits(const Kernels& kernels, const Spec& spec, KvType type,
                              const Way& way) {
  const auto plan = plan_for(kernels, spec, way.threads, type);
  const auto cache = plan->make_cache();
  Sequences sequences;
  int length = 0;
  for (int i = 0; i < way.copies; ++i) sequences.push_back(std::make_shared<KvSequence>(cache));
  for (const int piece : way.pieces) length += piece;
  const std::vector<int32_t> tokens = prompt(length);
  std::vector<float> logits;
  int begin = 0;
  for (const int piece : way.pieces) {
    const std::vector<float> rows = feed(plan.get(), sequences, tokens, begin, begin + piece);
    logits.insert(logits.end(), rows.begin(), rows.end());
    begin += piece;
  }
  return logits;
}

void run_ways(const Kernels& kernels, int max_threads, KvType type, const std::string& name,
              Results* results) {
  const Spec spec{36,
                  3,
                  1,
                  80,
                  {{Format::q4g32a, Format::q4g32s, Activations::a8o16, 0},
                   {Format::q8g32s, Format::f16, Activations::a8, 20},
                   {Format::f32, Format::q8g32s, Activations::a16, 0}}};
  const Way ways[] = {{1, 1, {66}},
                      {std::min(2, max_threads), 1, {1, 17, 16, 32}},
                      {std::min(3, max_threads), 1, {30, 2, 1, 33}},
                      {std::min(3, max_threads), 2, {31, 1, 1, 1, 30, 1, 1}}};
  std::vector<float> first;
  for (const Way& way : ways) {
    const std::vector<float> logits = all_logits(kernels, spec, type, way);
    if (first.empty()) first = logits;
    results->expect(hash_of(logits.data(), logits.size()) == hash_of(first.data(), first.size()),
                    name + ": chunks, threads or neighbours change the logits");
  }
  Hash hash;
  hash.floats(first);
  results->add(name, hash);
}

// Behind position 512 threads share a sequence; forks share its pages.
void run_split(const Kernels& kernels, int max_threads, KvType type, const std::string& name,
               Results* results) {
  const Spec spec{24, 2, 1, 32, {{Format::q4g32s, Format::q4g32a, Activations::a8, 0}}};
  constexpr int kLength = 521, kDecoded = 3;
  const std::vector<int32_t> tokens = prompt(kLength);
  const auto plan = plan_for(kernels, spec, 1, type);
  const Sequences whole{std::make_shared<KvSequence>(plan->make_cache())};
  std::vector<float> last;
  for (int begin = 0; begin < kLength; begin += kMaxRows)
    last = feed(plan.get(), whole, tokens, begin, std::min(begin + kMaxRows, kLength));
  const std::vector<float> expected(last.end() - ptrdiff_t{kDecoded} * kVocabulary, last.end());
  for (int threads = 1; threads <= max_threads; ++threads) {
    const auto decoder = plan_for(kernels, spec, threads, type);
    const Sequences fork{whole[0]->fork(kLength - kDecoded)};
    std::vector<float> logits;
    for (int position = kLength - kDecoded; position < kLength; ++position) {
      const std::vector<float> row = feed(decoder.get(), fork, tokens, position, position + 1);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    results->expect(
        hash_of(logits.data(), logits.size()) == hash_of(expected.data(), expected.size()),
        name + ": a decode differs from the prompt's row");
  }
  Hash hash;
  hash.floats(expected);
  results->add(name, hash);
}

}  // namespace

void run_model(const Kernels& kernels, int max_threads, Results* results) {
  run_ways(kernels, max_threads, KvType::f16, "model.f16", results);
  run_ways(kernels, max_threads, KvType::f32, "model.f32", results);
  run_ways(kernels, max_threads, KvType::int8, "model.int8", results);
  run_ways(kernels, max_threads, KvType::int4, "model.int4", results);
  run_split(kernels, max_threads, KvType::f16, "model.split", results);
  run_split(kernels, max_threads, KvType::int8, "model.split.int8", results);
  run_split(kernels, max_threads, KvType::int4, "model.split.int4", results);
}

}  // namespace slmq::selftest
