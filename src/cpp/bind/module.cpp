// The extension module slmq._native.
#include "bind/bindings.h"

// Everything that two Python threads can share has a lock or is never changed: no GIL is needed.
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "Kernels, plan and packed matrices of slmq. Use the slmq package instead.";
  m.attr("__version__") = SLMQ_VERSION;
  slmq::bind_system(m);
  slmq::bind_matrix(m);
  slmq::bind_kernels(m);
  slmq::bind_logistic(m);
  slmq::bind_plan(m);
  slmq::bind_recording(m);
  slmq::bind_quantizer(m);
  slmq::bind_selftest(m);
  slmq::bind_training(m);
  slmq::bind_tuning(m);
}
