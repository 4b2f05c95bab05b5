// The Python face of codes.h: numpy arrays to codes and back.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "log/codes.h"

namespace py = pybind11;

namespace esmm_fast {
namespace {

using logs::Codes;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Valid = std::optional<Array<uint8_t>>;  // Arrow's bitmap

const uint8_t* bitmap_of(const Valid& valid, py::ssize_t size) {
  if (!valid) return nullptr;
  if (8 * valid->size() < size)
    throw std::invalid_argument("valid: a bit for each of " + std::to_string(size) +
                                " numbers expected, got " + std::to_string(8 * valid->size()));
  return valid->data();
}

// The codes, or None if there would be more numbers than `limit`.
template <typename Code, typename In>
py::object encode(Codes& codes, const Array<In>& numbers, const Valid& valid, size_t limit) {
  py::array_t<Code> out(numbers.size());
  Code* to = out.mutable_data();
  const uint8_t* bitmap = bitmap_of(valid, numbers.size());
  bool fits;
  {
    py::gil_scoped_release release;
    fits = codes.encode(numbers.data(), bitmap, numbers.size(), limit, to);
  }
  return fits ? py::object(out) : py::none();
}

template <typename In>
py::object encode_as(Codes& codes, const Array<In>& numbers, const Valid& valid, int bytes,
                     size_t limit) {
  const size_t most = bytes == 1 ? 256 : 65536;
  if ((bytes != 1 && bytes != 2) || limit > most)
    throw std::invalid_argument("bytes: 1 (limit <= 256) or 2 (limit <= 65536) expected, got " +
                                std::to_string(bytes) + " (limit " + std::to_string(limit) + ")");
  return bytes == 1 ? encode<uint8_t>(codes, numbers, valid, limit)
                    : encode<uint16_t>(codes, numbers, valid, limit);
}

template <typename Code, typename Number>
py::array_t<Number> decode(const Array<Code>& codes, const Array<Number>& numbers,
                           const Valid& valid) {
  py::array_t<Number> out(codes.size());
  Number* to = out.mutable_data();
  const uint8_t* bitmap = bitmap_of(valid, codes.size());
  bool fits;
  {
    py::gil_scoped_release release;
    fits = logs::decode(codes.data(), bitmap, codes.size(), numbers.data(), numbers.size(), to);
  }
  if (!fits)
    throw std::out_of_range("a code is outside its dictionary of " +
                            std::to_string(numbers.size()) + ": the file is damaged");
  return out;
}

template <typename T>
py::array_t<T> numbers_of(const Codes& codes) {
  py::array_t<T> out(codes.size());
  for (size_t code = 0; code < codes.size(); ++code)
    std::memcpy(out.mutable_data(code), &codes.numbers()[code], sizeof(T));  // little-endian
  return out;
}

template <typename Number>
void define(py::class_<Codes>& codes, py::module_& m, const char* name) {
  codes
      .def("encode", &encode_as<Number>, py::arg("numbers").noconvert(), py::arg("valid"),
           py::arg("bytes"), py::arg("limit"),
           "Codes of 1 or 2 bytes, new numbers behind the others; None if there would be more than "
           "`limit`.")
      .def(name, &numbers_of<Number>, "All numbers by their codes.");
  m.def("decode", &decode<uint8_t, Number>, py::arg("codes").noconvert(),
        py::arg("numbers").noconvert(), py::arg("valid"));
  m.def("decode", &decode<uint16_t, Number>, py::arg("codes").noconvert(),
        py::arg("numbers").noconvert(), py::arg("valid"),
        "The numbers of codes; 0 where a bit of `valid` is not set.");
}

}  // namespace

void bind_codes(py::module_& m) {
  py::class_<Codes> codes(m, "Codes", "Numbers as codes into a dictionary.");
  codes.def(py::init<>()).def("__len__", &Codes::size);
  define<uint32_t>(codes, m, "uint32");
  define<uint64_t>(codes, m, "uint64");
  define<float>(codes, m, "float32");
}

}  // namespace esmm_fast
