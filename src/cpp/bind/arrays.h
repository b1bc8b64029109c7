// Checked access to NumPy arrays: nothing is converted behind the caller's back.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

namespace slmq {

namespace py = pybind11;

std::string describe_array(const py::handle& object);  // "float64[3, 4]" or a type's name

namespace detail {
// Throws TypeError (dtype, not an array) or ValueError (shape, strides, alignment).
void check_array(const py::handle& object, const py::dtype& dtype, const char* dtype_name,
                 const std::vector<py::ssize_t>& shape, const std::string& what);
}  // namespace detail

template <class T>
struct ArrayName;
template <>
struct ArrayName<float> {
  static constexpr const char* value = "float32";
};
template <>
struct ArrayName<double> {
  static constexpr const char* value = "float64";
};
template <>
struct ArrayName<int32_t> {
  static constexpr const char* value = "int32";
};
template <>
struct ArrayName<int8_t> {
  static constexpr const char* value = "int8";
};
template <>
struct ArrayName<uint8_t> {
  static constexpr const char* value = "uint8";
};

// A C-contiguous, aligned array of T. `shape`: expected sizes, -1 for any.
template <class T>
py::array_t<T> checked_array(const py::handle& object, const std::vector<py::ssize_t>& shape,
                             const std::string& what) {
  detail::check_array(object, py::dtype::of<T>(), ArrayName<T>::value, shape, what);
  return py::reinterpret_borrow<py::array_t<T>>(object);
}

template <class T>
std::vector<T> checked_vector(const py::handle& object, py::ssize_t size, const std::string& what) {
  const auto array = checked_array<T>(object, {size}, what);
  return std::vector<T>(array.data(), array.data() + array.size());
}

// The same of numbers that say where memory is: what was checked is what is used, whatever becomes of
// the array.
using Numbers = std::shared_ptr<const std::vector<int32_t>>;
inline Numbers checked_numbers(const py::handle& object, py::ssize_t size, const char* what) {
  return std::make_shared<const std::vector<int32_t>>(checked_vector<int32_t>(object, size, what));
}

}  // namespace slmq
