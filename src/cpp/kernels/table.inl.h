// Every kernel of one ISA, from the sources that all ISAs share. Include after the vector header,
// with SLMQ_ISA set to its namespace.
#include "kernels/kernels.h"

#include "kernels/math.inl.h"

#include "kernels/linear.inl.h"

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
      {linear<WeightQ4S, A8Block>, linear<WeightQ4A, A8Block>, linear<WeightQ8S, A8Block>,
       linear_float<WeightF16>, linear_float<WeightF32>},
      {linear<WeightQ4S, A16Block>, linear<WeightQ4A, A16Block>, linear<WeightQ8S, A16Block>,
       linear_float<WeightF16>, linear_float<WeightF32>},
      {quantize_activations<A8Block>, quantize_activations<A16Block>},
      {dequantize<Format::q4g32s>, dequantize<Format::q4g32a>, dequantize<Format::q8g32s>,
       dequantize<Format::f16>, dequantize<Format::f32>},
      rmsnorm,
      rope,
      swiglu,
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
