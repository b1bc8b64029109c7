// Every kernel of one ISA, from the sources that all ISAs share. Include after the vector header,
// with SLMQ_ISA set to its namespace.
#include "kernels/kernels.h"

#include "kernels/math.inl.h"

#include "kernels/linear.inl.h"

#if defined(SLMQ_WIDE_REGISTERS)
#include "kernels/linear_wide.inl.h"
#else
#include "kernels/linear_block.inl.h"
#endif

#include "kernels/linear_float.inl.h"

#include "kernels/rows.inl.h"

#include "kernels/dequantize.inl.h"

#include "kernels/attention.inl.h"

#include "kernels/attention_float.inl.h"

#include "kernels/attention_int8.inl.h"

namespace slmq::SLMQ_ISA {

static constexpr Kernels shared_table(const char* name) {
  return {
      name,
      {linear<WeightQ4S>, linear<WeightQ4A>, linear<WeightQ8S>, linear_float<WeightF16>,
       linear_float<WeightF32>},
      {quantize_activations<Activations::a8>, quantize_activations<Activations::a16>,
       quantize_activations<Activations::a8o16>},
      {dequantize<Format::q4g32s>, dequantize<Format::q4g32a>, dequantize<Format::q8g32s>,
       dequantize<Format::f16>, dequantize<Format::f32>},
      rmsnorm,
      layernorm,
      rope,
      swiglu,
      geglu,
      {unary<gelu>, unary<gelu_tanh>, unary<relu>, unary<silu>},
      softcap,
      softmax,
      {kv_append<KvF16>, kv_append<KvF32>, kv_append_int8},
      {attend<KvF16>, attend<KvF32>, attend_int8},
      merge,
      attend_finish,
      peak_dots,
      read_memory,
  };
}

}  // namespace slmq::SLMQ_ISA
