// A table whose kernels do nothing: what is left of a run's time is what the plan itself costs.
#include "kernels/dispatch.h"

namespace slmq {
namespace {

template <class Kernel>
struct Nothing;

template <class Result, class... Arguments>
struct Nothing<Result (*)(Arguments...)> {
  static Result kernel(Arguments...) { return Result(); }
};

template <class Result, class... Arguments>
void clear(Result (*&kernel)(Arguments...)) {
  kernel = Nothing<Result (*)(Arguments...)>::kernel;
}

template <class Kernel, size_t n>
void clear(Kernel (&kernels)[n]) {
  for (Kernel& kernel : kernels) clear(kernel);
}

template <class... Members>
void clear_all(Members&... members) {
  (clear(members), ...);
}

Kernels make_empty() {
  Kernels kernels{};
  // As many names as members, or this does not compile: none stays null.
  auto& [name, linear, quantize, dequantize, rmsnorm, layernorm, rope, swiglu, geglu, unary,
         softcap, softmax, kv_append, attend, merge, attend_finish, peak_dots, read_memory] =
      kernels;
  clear_all(linear, quantize, dequantize, rmsnorm, layernorm, rope, swiglu, geglu, unary, softcap,
            softmax, kv_append, attend, merge, attend_finish, peak_dots, read_memory);
  name = "empty";
  return kernels;
}

}  // namespace

const Kernels& empty_kernels() {
  static const Kernels kernels = make_empty();
  return kernels;
}

}  // namespace slmq
