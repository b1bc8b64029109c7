// The table of kernels that every ISA fills, and the contract of each.
//
// Conventions: m tokens, n outputs, k inputs; strides count elements; `groups` = k rounded up / 32.
// float32 rows are padded with zeros to a multiple of 32 columns, and kernels keep them so.
// A kernel takes a range of work, never allocates, never starts a thread, never throws.
// Rows of tokens never influence each other: the result of a row does not depend on m.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "layout/formats.h"
#include "quantizer/rounding.h"

namespace slmq {

// How far ahead of their use weights are fetched, and whether into the second-level cache only. No
// result shows it.
struct Ahead {
  int bytes = 0;  // 0: not at all
  bool second_level = false;
};

// What an adapter adds to products with weights: its own products with the inputs, rounded to k int8 codes
// a row (see LowRankDownArgs), times its matrix B.
struct LowRankUp {
  const uint8_t* weight = nullptr;  // [n / 16] of [k / 4 lines] and a scale a row; null: nothing
  int k = 0;                        // a multiple of 16
  const float* x = nullptr;         // `place` floats a row
  int place = 0, x_stride = 0;
};

// y[m, n] = x[m, k] @ w[n, k].T (+ bias[n]) (+ add[m, n]) (+ what `up` adds)
struct LinearArgs {
  const uint8_t* weight;  // packed pairs, 64-byte aligned
  int groups;             // of 32 columns
  int m;                  // tokens
  const void* panel;      // quantized formats: a panel, see formats.h
  const float* x;         // f16, f32: rows of groups * 32 floats
  int x_stride;
  float* y;  // rows; pair p writes columns 32p .. 32p+31
  int y_stride;
  const float* bias;  // padded to the pairs, or null
  const float* add;   // rows like y, may be y itself, or null
  int add_stride;
  Ahead ahead;
  // Null, or what else will be read once a pair was multiplied, so many bytes for each from the first
  // on: fetched with its weights.
  const uint8_t* beside = nullptr;
  int beside_bytes = 0;
  // Null, or what y becomes by unary(), while it is in cache; only where a row has one scale.
  void (*activate)(const float* x, int n, float* y) = nullptr;
  LowRankUp up = {};  // from column 0 on; only where a group of activations has a scale
};

// What an adapter's matrices are kept in.
enum class LowRankType : int { f16 = 0, f32 = 1, i8 = 2 };
inline constexpr int kLowRanks = 3, kFloatLowRanks = 2;
inline constexpr int kMaxRank = 256;
inline constexpr const char* kLowRankNames[kLowRanks] = {"f16", "f32", "i8"};

// y[m, n] += x[m, k] @ w[n, k].T, for adapters: one of n and k is their rank.
struct LowRankArgs {
  const void* weight;  // [n / 16][k][16]
  int m, n, k;         // n: a multiple of 16
  const float* x;
  int x_stride;
  float* y;
  int y_stride;
};

// The same where weights and what they meet are integers: tiles of sixteen rows are codes less 128 in
// lines [16 rows][4 columns], and behind them a scale a row. First y[row, 16 * tiles] = x @ w.T, rows
// [row_begin, row_end) of a panel of m.
struct LowRankDownArgs {
  const uint8_t* weight;  // [tiles] of [groups][8 lines]
  int tiles, groups;
  const void* panel;
  int m, row_begin, row_end;
  float* y;  // of row_begin
  int y_stride;
  Ahead ahead;
};

// Those products, rounded in their place: int8 codes first, in the last eight bytes a scale and -128
// times the codes' sum.
inline constexpr int kRoundedTail = 8;

// Then y[m, n] += x @ w.T.
struct LowRankUpArgs {
  LowRankUp up;
  int m, n;  // n: a multiple of 16
  float* y;
  int y_stride;
};

// y[i, j] (+)= the sum over c = 0..k-1, in order, of x[i, c] * w[c, j]: training's products. Steps
// count elements: x[i, c] is at x[i * x_row + c * x_step], and w[c, 16 t + l] at
// w[t * w_tile + c * w_step + l]. With `add` the sum starts at y, so that a sum over parts of k has
// the bits of one over all.
struct ProductArgs {
  const float* x;
  ptrdiff_t x_row, x_step;
  const float* w;
  ptrdiff_t w_tile, w_step;
  float* y;
  ptrdiff_t y_row;
  int m, n, k;  // n: a multiple of 16
  bool add;
};

// Training's way back through weights of integers (turned_rows.inl.h): up to 128 rows of 32 columns,
// which share the largest scale and, in a row of what they meet, the largest value. Where codes lie is the
// table's own affair.
inline constexpr int kSlabRows = 128, kSlabPairs = kSlabRows / kPairRows;
inline constexpr int kTurnedWhole = 64;  // rows are padded with zeros to a multiple of so many
// Whether rows add something to scale * (code - the middle of codes).
constexpr bool turned_offsets(Format name) { return info(name).has_offset || info(name).lift != 0; }
struct TurnedGroup {
  alignas(64) uint8_t codes[2][2 * kSlabRows * kLanes];
  float scales[2][kSlabRows], offsets[2][kSlabRows];  // by part; scales beside the largest
  float largest[2];
};
struct LeveledRows {
  alignas(64) float x[kPanelRows][kSlabRows];
  float scale[kPanelRows];
};
// y[m, 32 * count] (+)= x @ w of `rows` rows of weights.
struct TurnedArgs {
  const LeveledRows* x;
  const TurnedGroup* w;  // `count` of them
  int count, rows, parts;
  bool offsets;  // whether groups have some
  float* y;
  ptrdiff_t y_row;
  int m;  // at most sixteen
  bool add;
};

// One layer of the paged key/value cache. A page holds 64 positions of all layers; in a layer, for
// each KV head, keys and then values:
//
//   f16, f32   keys [4 tiles][head_dim][16 positions], values [64 positions][value_stride]
//   int8       keys [4 tiles][fours of channels][16 positions][4], scales float32[64];
//              values [value_stride / 16][16 fours of positions][16 channels][4], scales
//              float32[64]
//
// int8: key = scale * (code - 128) with scale = max |key| / 127 over the head's channels, rounded to
// nearest even; the scale of a key or value with an infinity or a NaN is NaN.
//
//   int4       tiles of q4g32s without scales: keys [4 tiles of positions][groups of channels][256
//              bytes], scales float16[4 tiles][groups][16]; values [value_stride / 16][2 groups of
//              positions][256 bytes], scales float32[64]
//
// int4: key and value turned by a Hadamard matrix (attention_int4.inl.h); scale * (code - 8), where
// the largest magnitude of 32 channels of a key, and of all of a value, has the code 0.
enum class KvType : int { f16 = 0, f32 = 1, int8 = 2, int4 = 3 };
inline constexpr int kKvTypes = 4;
inline constexpr const char* kKvTypeNames[kKvTypes] = {"f16", "f32", "int8", "int4"};
inline constexpr int kPagePositions = 64;
inline constexpr int kPartPositions = 512;  // attention splits here, whatever the thread count
inline constexpr int kMaxQueries = 64;      // of one attend() call
inline constexpr int kMaxInt8HeadDim =
    512;  // of int4, too: sums of 127 * 32767 stay within 32 bits

struct AttentionShape {
  int head_dim;
  int value_stride;     // head_dim rounded up to 16
  float scale;          // of q . k
  float softcap;        // scores s count as softcap * tanh(s / softcap); 0: as they are
  size_t layer_offset;  // bytes from the page's start to this layer
  size_t head_bytes;    // keys and values of one KV head in one page
  size_t value_offset;  // bytes from the head's keys to its values
};

// What one query sees: the keys at positions [begin, end). bias: null, or what is added to its scores,
// in units of log 2, bias[t] to that of the key at position t; 15 values on either side of the range
// are readable, too.
struct Sight {
  int32_t begin, end;
  const float* bias;
};

// Partial attention of one query: max of scores (in units of log 2), sum of powers, unnormalized
// values[value_stride].
inline constexpr int kStateHeader = 16;  // floats in front of the values: max, sum, padding

// Floats of scratch that attend() needs: scores, queries as they multiply, a page's keys or values
// converted. The rows of scores are staggered so that they do not meet in the same cache sets.
inline constexpr int kScoreStride = kPartPositions + 16;
inline constexpr int kConvertedFloats = kPagePositions * 64;
constexpr size_t attend_scratch_floats(const AttentionShape& shape) {
  const int keys = 16 * shape.value_stride;
  return static_cast<size_t>(kMaxQueries) * (kScoreStride + shape.value_stride) +
         (keys > kConvertedFloats ? keys : kConvertedFloats);
}

// Floats that hold the queries of an attend() call as they multiply, with their scales.
constexpr size_t attend_query_floats(const AttentionShape& shape) {
  return static_cast<size_t>(kMaxQueries) * (shape.value_stride + kMaxInt8HeadDim / 16);
}

// What attend() asks memory for while it computes: the same KV head or another in `count` pages, if any,
// from the first that whoever attends will read next. not_asked: nobody has asked for the part itself.
struct Following {
  uint8_t* const* pages = nullptr;
  int count = 0;
  size_t offset = 0;  // of the head in a page
  bool not_asked = true;
};

// Floats that hold the keys and values of one KV head of a text, n <= kPartPositions positions:
//
//   keys [n / 16 tiles][head_dim][16 positions], zeros behind the last; values [n][value_stride]
constexpr size_t text_floats(const AttentionShape& shape) {
  return static_cast<size_t>(kPartPositions) * (shape.head_dim + shape.value_stride);
}

// What a layer without a gate does to its values. gelu: x times the normal distribution up to x;
// gelu_tanh: its approximation (Hendrycks and Gimpel, 2016). relu2: the square of relu (So et al.,
// "Primer", 2021).
enum class Unary : int { gelu = 0, gelu_tanh = 1, relu = 2, silu = 3, tanh = 4, relu2 = 5 };
inline constexpr int kUnaries = 6;
inline constexpr const char* kUnaryNames[kUnaries] = {"gelu", "gelu_tanh", "relu",
                                                      "silu", "tanh",      "relu2"};

// What a gated unit does to its gate, and what the unit is then called (Shazeer, 2020).
enum class Gate : int { silu = 0, gelu_tanh = 1, gelu = 2, sigmoid = 3, relu2 = 4 };
inline constexpr int kGates = 5;
inline constexpr const char* kGateNames[kGates] = {"silu", "gelu_tanh", "gelu", "sigmoid", "relu2"};
inline constexpr const char* kUnitNames[kGates] = {"swiglu", "geglu", "geglu_erf", "glu", "reglu2"};

// One position of a causal convolution of n channels, each by itself.
struct ConvolutionRow {
  const float *x, *before, *behind, *bias;  // the last three may be null
  const float* weight;                      // [taps][weight_stride], the oldest input's first
  const float* const* past;                 // taps - 1 rows of inputs, the oldest first
  int weight_stride, taps, n;
  float *input, *y;  // before * x, a later position's past; the result
};

struct Kernels {
  const char* name;

  // Pairs [pair_begin, pair_end) of the weight. Accumulates in float32 over groups in order: one
  // exact integer dot per group with the high plane of the activations, then fma(dot, scale_w *
  // scale_a, sum), then the min's fma; behind all groups, again in order, dot and fma of the low planes.
  // With one scale a row: exact integer dots of all columns with both planes, fma(coarse, 256, fine) in
  // float32, times scale_w * scale_a.
  void (*linear[kFormats])(const LinearArgs&, int pair_begin, int pair_end);

  // Sums of even and of odd columns, each in order, are added to each other and then to y.
  void (*low_rank[kFloatLowRanks])(const LowRankArgs&);
  // Dots of the high planes and then of the low ones, scaled and added group by group, times the row's
  // scale.
  void (*low_rank_down)(const LowRankDownArgs&);
  // n products (a multiple of 16) of each row in their place; the largest becomes 127. If one is not
  // finite the row's scale is NaN.
  void (*low_rank_round)(float* y, int stride, int rows, int n);
  // fma(dot, scale of the row * scale of the products, y).
  void (*low_rank_up)(const LowRankUpArgs&);

  void (*product)(const ProductArgs&);

  // dy @ W for weights of integers: the largest scales that the 32 rows of a pair have; up to four pairs of a
  // group's columns, of n rows, with their scales beside those; as many columns of up to sixteen rows,
  // times those; and the product of both. Values times scales are rounded to sixteen bits beside the
  // largest of the slab, sums of products are exact, and slabs are added in order. A row with a value
  // that is not finite becomes NaN. Columns are read up to a multiple of 32.
  void (*largest_scales)(Format format, const uint8_t* weight, int groups, int pair, float* most);
  void (*turn)(Format format, const uint8_t* weight, int groups, int n, int pair, int group,
               const float* most, TurnedGroup* to);
  void (*level_rows)(const float* x, ptrdiff_t stride, int columns, int m, const float* most,
                     LeveledRows* to);
  void (*product_turned)(const TurnedArgs&);

  // Rows [row_begin, row_end) of x float32[m, groups * 32] into the panel of m rows. Those of one block
  // of the panel are one thread's.
  void (*quantize[kActivations])(const float* x, int x_stride, int groups, int m, int row_begin,
                                 int row_end, void* panel);
  // The same into a panel of rows, for weights whose rows have one scale (see quantizer()). Whole
  // windows, or those that the rows end with.
  void (*quantize_rows[kActivations])(const float* x, int x_stride, int groups, int m,
                                      int row_begin, int row_end, void* panel);

  // out[i, 0..groups * 32) = row row_begin + i of a panel of m rows as the numbers that it stands
  // for; of one whose rows have one scale.
  void (*widen_activations)(const void* panel, int groups, int m, int row_begin, int row_end,
                            float* out, int out_stride);
  void (*widen_row_activations)(const void* panel, int groups, int m, int row_begin, int row_end,
                                float* out, int out_stride);

  // out[i, 0..k) = row row_begin + i of the matrix, in float32.
  void (*dequantize[kFormats])(const uint8_t* weight, int groups, int k, int row_begin, int row_end,
                               float* out, int out_stride);

  // out[r, c] = row r, column c of a pair-group (32 rows of a pair, 32 columns of a group) of float16, of
  // float32.
  void (*widen[2])(const uint8_t* weight, int groups, int pair, int group, float* out,
                   int out_stride);

  // y = x / sqrt(mean(x^2) + eps) * weight; k columns count, k rounded up to 32 are touched.
  void (*rmsnorm)(const float* x, const float* weight, int k, float eps, float* y);

  // y = (x - mean) / sqrt(variance + eps) * weight (+ bias, which may be null); the variance is the
  // mean of (x - mean)^2. k columns count, k rounded up to 32 are touched.
  void (*layernorm)(const float* x, const float* weight, const float* bias, int k, float eps,
                    float* y);

  // Rotates pairs (i, i + rotary / 2) of one head in place; cosines and sines of rotary / 2 angles.
  void (*rope)(float* head, const float* cosines, const float* sines, int rotary);

  // y[i] = f(gate[i]) * up[i] for n (multiple of 16) values; y may be gate. f(0) * 0 = 0.
  void (*gated[kGates])(const float* gate, const float* up, int n, float* y);

  // y[i] = f(x[i]) for n (multiple of 16) values; y may be x. f(0) = 0.
  void (*unary[kUnaries])(const float* x, int n, float* y);

  // y = cap * tanh(x / cap) of n (multiple of 16) values, cap > 0; y may be x.
  void (*softcap)(const float* x, int n, float cap, float* y);

  // y[i] = up x^2 + mid x where x > 0, else down (exp(x) - 1 - x) + mid x (xIELU: Huang, "Deriving
  // Activation Functions Using Integration", 2024), for n (multiple of 16) values; y may be x.
  // f(0) = 0.
  void (*xielu)(const float* x, int n, float up, float down, float mid, float* y);

  // y = softmax(x * scale) of n values, any n >= 1; y may be x.
  void (*softmax)(const float* x, int n, float scale, float* y);

  // One token of the gated delta rule (Yang et al., "Gated Delta Networks", 2024) for 16 columns of a
  // head's state float32[k][16], k a multiple of 4: change = beta * (value - decay * key @ state);
  // state = decay * state + key x change; y = query @ state. Products of a column are added in four
  // sums, those of rows 4i + j in order, then (0 + 1) + (2 + 3).
  void (*delta_rule)(const float* query, const float* key, const float* value, float decay,
                     float beta, int k, float* state, float* y);

  // y = behind * (bias + the sum over taps of weight * input), the oldest input first, for n (a
  // multiple of 16) channels; every product and sum is rounded by itself.
  void (*convolution)(const ConvolutionRow&);

  // Backwards: from dy, the gradient of what the kernel above gives, that of what it takes. Those of
  // norms are added to dx, of k columns, and k rounded up to 32 are touched; the others' outputs may
  // be dy. n is a multiple of 16.
  void (*rmsnorm_back)(const float* x, const float* weight, int k, float eps, const float* dy,
                       float* dx);
  void (*layernorm_back)(const float* x, const float* weight, int k, float eps, const float* dy,
                         float* dx);
  void (*gated_back[kGates])(const float* gate, const float* up, const float* dy, int n,
                             float* d_gate, float* d_up);
  void (*unary_back[kUnaries])(const float* x, const float* dy, int n, float* dx);
  void (*softcap_back)(const float* y, const float* dy, int n, float cap, float* dx);  // y = capped
  // dx = scale * y * (dy - sum of y * dy) with y = softmax(x * scale) of n values, any n >= 1.
  void (*softmax_back)(const float* y, const float* dy, int n, float scale, float* dx);

  // The loss of one row of n >= 1 logits, in three: the largest, the sum of exp(x - largest), the
  // target's. The row becomes scale * (softmax(row) - 1 at the target); NaN if a logit is not finite.
  void (*cross_entropy)(float* row, int n, int target, float scale, float loss[3]);

  // Writes the key and value of one KV head at a position. `pages`: the sequence's page pointers.
  void (*kv_append[kKvTypes])(const AttentionShape&, uint8_t* const* pages, int kv_head,
                              int position, const float* key, const float* value);

  // queries float32[n_queries, value_stride] (zero-padded), n_queries <= 64, to what attend() takes:
  // attend_query_floats() of them.
  void (*prepare_queries[kKvTypes])(const AttentionShape&, const float* queries, int n_queries,
                                    float* prepared);

  // All queries that were prepared together against those keys of part [part * 512, part * 512 + 512)
  // that each of them sees; no bias beside a soft cap. states float32[n_queries, 16 + value_stride];
  // scratch holds attend_scratch_floats(). A score that is not finite makes its query NaN.
  void (*attend[kKvTypes])(const AttentionShape&, uint8_t* const* pages, int kv_head,
                           const float* prepared, const Sight* sights, int n_queries, int part,
                           const Following& following, float* states, float* scratch);

  // Keys and values of one KV head, rows of a text, into text_floats().
  void (*pack_text)(const AttentionShape&, int n, const float* key, int key_stride,
                    const float* value, int value_stride, float* text);

  // As attend() of the first part over float32, of such a text of n positions.
  void (*attend_text)(const AttentionShape&, int n, const float* text, const float* queries,
                      const Sight* sights, int n_queries, float* states, float* scratch);

  // total <- merge of total and part (in this order); one query.
  void (*merge)(const AttentionShape&, const float* part, float* total);

  // out[0..head_dim) = values / sum of one query's state.
  void (*attend_finish)(const AttentionShape&, const float* state, float* out);

  // Quantizing. Rows [row_begin, row_end) with scales by search; a block of 16 rows with feedback;
  // the same improved. False if some scale does not fit. `scratch` has rounding_scratch() floats.
  bool (*search_rows)(const RoundArgs&, int row_begin, int row_end);
  bool (*feedback_block)(const FeedbackArgs&, int block, float* scratch);
  void (*refine_block)(const RoundArgs&, const float* h, int sweeps, int block, float* scratch);

  // Runs nothing but integer dots, to find the machine's peak: returns how many products. sink
  // holds 16 values.
  int64_t (*peak_dots)(int rounds, int32_t* sink);

  // Reads bytes (a multiple of 256) and does next to nothing with them, to find the memory's speed;
  // returns their 32-bit sum so that nobody may leave it out.
  int32_t (*read_memory)(const uint8_t* p, size_t bytes);
};

// What rounds the activations that weights of a format meet.
inline auto quantizer(const Kernels& kernels, Format format, Activations activations) {
  const int kind = static_cast<int>(activations);
  return info(format).row_panels ? kernels.quantize_rows[kind] : kernels.quantize[kind];
}

// Calls each(pointer) for all pointers of these members, which are pointers or arrays of them.
template <class Each, class... Members>
constexpr void for_each_pointer(const Each& each, Members&... members) {
  const auto one = [&each](auto& member) {
    if constexpr (std::is_array_v<std::remove_reference_t<decltype(member)>>) {
      for (auto& pointer : member) each(pointer);
    } else {
      each(member);
    }
  };
  (one(members), ...);
}

// Calls each(kernel) for every kernel of a table. As many names as members, or this does not
// compile: no kernel is forgotten.
template <class Table, class Each>
constexpr void for_each_kernel(Table& table, const Each& each) {
  auto& [name, linear, low_rank, low_rank_down, low_rank_round, low_rank_up, product,
         largest_scales, turn, level_rows, product_turned, quantize, quantize_rows,
         widen_activations, widen_row_activations, dequantize, widen, rmsnorm, layernorm, rope,
         gated, unary, softcap, xielu, softmax, delta_rule, convolution, rmsnorm_back,
         layernorm_back, gated_back, unary_back, softcap_back, softmax_back, cross_entropy,
         kv_append, prepare_queries, attend, pack_text, attend_text, merge, attend_finish,
         search_rows, feedback_block, refine_block, peak_dots, read_memory] = table;
  for_each_pointer(each, linear, low_rank, low_rank_down, low_rank_round, low_rank_up, product,
                   largest_scales, turn, level_rows, product_turned, quantize, quantize_rows,
                   widen_activations, widen_row_activations, dequantize, widen, rmsnorm, layernorm,
                   rope, gated, unary, softcap, xielu, softmax, delta_rule, convolution,
                   rmsnorm_back, layernorm_back, gated_back, unary_back, softcap_back, softmax_back,
                   cross_entropy, kv_append, prepare_queries, attend, pack_text, attend_text, merge,
                   attend_finish, search_rows, feedback_block, refine_block, peak_dots,
                   read_memory);
}

}  // namespace slmq
