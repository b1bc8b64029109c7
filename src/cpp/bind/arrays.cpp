#include "bind/arrays.h"

namespace slmq {

std::string describe_array(const py::handle& object) {
  if (!py::isinstance<py::array>(object))
    return py::str(py::type::handle_of(object).attr("__name__"));
  const auto array = py::reinterpret_borrow<py::array>(object);
  std::string text = py::str(array.dtype());
  text += "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return text + "]";
}

void detail::check_array(const py::handle& object, const py::dtype& dtype, const char* dtype_name,
                         const std::vector<py::ssize_t>& shape, const std::string& what) {
  // Only told when something is wrong: NumPy takes microseconds to name a type.
  const auto message = [&] {
    std::string expected = std::string(dtype_name) + "[";
    for (size_t i = 0; i < shape.size(); ++i)
      expected += (i == 0 ? "" : ", ") + (shape[i] < 0 ? "any" : std::to_string(shape[i]));
    return what + ": expected " + expected + "], got " + describe_array(object);
  };
  if (!py::isinstance<py::array>(object)) throw py::type_error(message());
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!array.dtype().is(dtype) && !array.dtype().equal(dtype)) throw py::type_error(message());
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = shape[i] < 0 || array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  if (!fits) throw py::value_error(message());
  if ((array.flags() & py::array::c_style) == 0)
    throw py::value_error(what +
                          ": expected a C-contiguous array; pass numpy.ascontiguousarray(x)");
  if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(dtype.itemsize()) != 0)
    throw py::value_error(what + ": expected an aligned array; pass a copy");
}

}  // namespace slmq
