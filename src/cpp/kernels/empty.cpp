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

Kernels make_empty() {
  Kernels kernels{};
  for_each_kernel(kernels, [](auto& kernel) {
    kernel = Nothing<std::remove_reference_t<decltype(kernel)>>::kernel;
  });
  kernels.name = "empty";
  return kernels;
}

}  // namespace

const Kernels& empty_kernels() {
  static const Kernels kernels = make_empty();
  return kernels;
}

}  // namespace slmq
