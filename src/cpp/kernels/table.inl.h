// Every kernel of one ISA, from the sources that all ISAs share. Include after the vector header,
// with SLMQ_ISA set to its namespace.
#include <utility>

#include "machine/inline.h"
#include "kernels/kernels.h"

#include "kernels/math.inl.h"

#include "kernels/linear.inl.h"

#if defined(SLMQ_WIDE_REGISTERS)
#include "kernels/linear_wide.inl.h"
#else
#include "kernels/linear_block.inl.h"
#endif

#include "kernels/linear_rows.inl.h"

#include "kernels/linear_float.inl.h"

#include "kernels/low_rank.inl.h"

#include "kernels/low_rank_int8.inl.h"

#include "kernels/rows.inl.h"

#include "kernels/convolution.inl.h"

#include "kernels/delta.inl.h"

#include "kernels/quantize_rows.inl.h"

#include "kernels/low_rank_round.inl.h"

#include "kernels/dequantize.inl.h"

#include "kernels/product.inl.h"

#include "kernels/turned_rows.inl.h"

#include "kernels/turned.inl.h"

#include "kernels/turned_pairs.inl.h"

#include "kernels/gradients.inl.h"

#include "kernels/round_search.inl.h"

#include "kernels/round_feedback.inl.h"

#include "kernels/round_refine.inl.h"

#include "kernels/attention_ahead.inl.h"

#include "kernels/attention.inl.h"

#include "kernels/attention_float.inl.h"

#include "kernels/attention_text.inl.h"

#if defined(SLMQ_WIDE_REGISTERS)
#include "kernels/attention_planes.inl.h"
#else
#include "kernels/attention_words.inl.h"
#endif

#include "kernels/attention_int8.inl.h"

#include "kernels/attention_int4.inl.h"

namespace slmq::SLMQ_ISA {

// The product and the dequantizer of a format, which stand at its place in the table.
template <Format Name>
static constexpr void put_format(Kernels* table) {
  if constexpr (Name == Format::f16) {
    table->linear[static_cast<int>(Name)] = linear_float<WeightF16>;
  } else if constexpr (Name == Format::f32) {
    table->linear[static_cast<int>(Name)] = linear_float<WeightF32>;
  } else if constexpr (info(Name).row_panels) {
    table->linear[static_cast<int>(Name)] = linear_rows<Name>;
  } else {
    table->linear[static_cast<int>(Name)] = linear<Weight<Name>>;
  }
  table->dequantize[static_cast<int>(Name)] = dequantize<Name>;
}
template <int... Names>
static constexpr void put_formats(Kernels* table, std::integer_sequence<int, Names...>) {
  (put_format<static_cast<Format>(Names)>(table), ...);
}

static constexpr Kernels shared_table(const char* name) {
  Kernels table = {
      .name = name,
      .linear = {},  // by put_formats()
      .low_rank = {low_rank<WeightF16>, low_rank<WeightF32>},
      .low_rank_down = low_rank_down,
      .low_rank_round = low_rank_round,
      .low_rank_up = low_rank_up,
      .product = product,
      .largest_scales = largest_scales,
      .turn = turn<PairLayout>,
      .level_rows = level_rows,
      .product_turned = product_turned,
      .quantize = {quantize_activations<Activations::a8>, quantize_activations<Activations::a16>,
                   quantize_activations<Activations::a8o16>},
      .quantize_rows = {quantize_rows<Activations::a8>, quantize_rows<Activations::a16>,
                        quantize_rows<Activations::a8o16>},
      .widen_activations = widen_activations,
      .widen_row_activations = widen_row_activations,
      .dequantize = {},  // by put_formats()
      .widen = {widen<Format::f16>, widen<Format::f32>},
      .rmsnorm = rmsnorm,
      .layernorm = layernorm,
      .rope = rope,
      .gated = {gated<silu>, gated<gelu_tanh>, gated<gelu>, gated<sigmoid>, gated<relu2>},
      .unary = {unary<gelu>, unary<gelu_tanh>, unary<relu>, unary<silu>, unary<tanh>, unary<relu2>},
      .softcap = softcap,
      .xielu = xielu,
      .softmax = softmax,
      .delta_rule = delta_rule,
      .convolution = convolution,
      .rmsnorm_back = rmsnorm_back,
      .layernorm_back = layernorm_back,
      .gated_back = {gated_back<silu, silu_slope>, gated_back<gelu_tanh, gelu_tanh_slope>,
                     gated_back<gelu, gelu_slope>, gated_back<sigmoid, sigmoid_slope>,
                     gated_back<relu2, relu2_slope>},
      .unary_back = {unary_back<gelu_slope>, unary_back<gelu_tanh_slope>, unary_back<relu_slope>,
                     unary_back<silu_slope>, unary_back<tanh_slope>, unary_back<relu2_slope>},
      .softcap_back = softcap_back,
      .softmax_back = softmax_back,
      .cross_entropy = cross_entropy,
      .kv_append = {kv_append<KvF16>, kv_append<KvF32>, kv_append_int8, kv_append_int4},
      .prepare_queries = {prepare_queries<KvF16>, prepare_queries<KvF32>, prepare_int8,
                          prepare_int4},
      .attend = {attend<KvF16>, attend<KvF32>, attend_int8, attend_int4},
      .pack_text = pack_text,
      .attend_text = attend_text,
      .merge = merge,
      .attend_finish = attend_finish,
      .search_rows = search_rows,
      .feedback_block = feedback_block,
      .refine_block = refine_block,
      .peak_dots = peak_dots,
      .read_memory = read_memory,
  };
  put_formats(&table, std::make_integer_sequence<int, kFormats>());
  return table;
}

#ifndef __SANITIZE_ADDRESS__  // under sanitizers GCC takes no address of a template for a constant
static constexpr bool whole(const Kernels& table) {
  bool every = true;
  for_each_kernel(table, [&every](const auto& kernel) { every = every && kernel != nullptr; });
  return every;
}
static_assert(whole(shared_table("")), "an entry of the table has no kernel");
#endif

}  // namespace slmq::SLMQ_ISA
