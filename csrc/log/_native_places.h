// What a shard keeps of the places in its log, as numpy arrays.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "log/stream.h"

namespace esmm_fast::logs {

namespace py = pybind11;

// An array of element(0), element(1), ...
template <typename T>
py::array_t<uint64_t> column_of(size_t size, T&& element) {
  py::array_t<uint64_t> out(size);
  uint64_t* to = out.mutable_data();
  for (size_t i = 0; i < size; ++i) to[i] = element(i);
  return out;
}

// (line, byte, row hash) of the rows of a block of a common file.
inline py::tuple row_places(const Block& block) {
  const Columns& columns = block.columns;
  return py::make_tuple(
      column_of(columns.rows,
                [&](size_t r) { return block.lines_before + columns.row_line[r] + 1; }),
      column_of(columns.rows, [&](size_t r) { return block.chunk.offset + columns.row_begin[r]; }),
      column_of(columns.rows, [&](size_t r) { return block.hashes[r]; }));
}

// (kind, line, byte, key, byte of the key or none, messages) of a block's findings.
inline py::tuple findings(const Block& block) {
  const std::vector<Finding>& all = block.report.findings;
  py::list messages;
  for (const Finding& finding : all) messages.append(py::str(finding.message));
  const auto column = [&](auto member) {
    return column_of(all.size(), [&](size_t i) -> uint64_t { return member(all[i]); });
  };
  const uint64_t offset = block.chunk.offset;
  return py::make_tuple(
      column([](const Finding& f) { return f.kind; }),
      column([&](const Finding& f) { return block.lines_before + f.place.line + 1; }),
      column([&](const Finding& f) { return offset + f.place.byte; }),
      column([](const Finding& f) { return f.key; }), column([&](const Finding& f) {
        return f.key_byte == Finding::kNoKey ? Finding::kNoKey : offset + f.key_byte;
      }),
      messages);
}

inline py::tuple key_places(const LogStream& stream) {
  const std::vector<Place> places = stream.key_places();
  return py::make_tuple(column_of(places.size(), [&](size_t i) { return places[i].file; }),
                        column_of(places.size(), [&](size_t i) { return places[i].line; }),
                        column_of(places.size(), [&](size_t i) { return places[i].byte; }));
}

}  // namespace esmm_fast::logs
