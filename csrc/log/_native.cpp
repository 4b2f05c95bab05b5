// The Python face of csrc/log: the GIL is released while it works, and columns go to NumPy without
// copies.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <tuple>

#include "log/_native_places.h"
#include "log/dump.h"
#include "log/newlines.h"
#include "log/stream.h"
#include "log/xxh64.h"

namespace py = pybind11;

namespace esmm_fast {
void bind_synth(pybind11::module_& m);  // csrc/log/_native_synth.cpp
void bind_codes(pybind11::module_& m);  // csrc/log/_native_codes.cpp

namespace {

using namespace logs;

constexpr size_t kMostChunkBytes = size_t{64}
                                   << 20;         // stays below the longest line a chunk may hold
constexpr size_t kStreamBytes = size_t{1} << 20;  // read from a Python stream at a time

// ---- Inputs

// Reads a Python object's readinto() from any thread. Always kStreamBytes at a time, so that a
// broken stream breaks at the same byte whatever the chunk size.
class PythonStream {
 public:
  explicit PythonStream(py::object stream) : stream_(std::move(stream)), bytes_(kStreamBytes) {}
  ~PythonStream() {
    py::gil_scoped_acquire gil;
    stream_ = py::object();
  }

  size_t read(char* to, size_t size) {
    if (begin_ == end_) {
      py::gil_scoped_acquire gil;
      try {
        const py::memoryview view = py::memoryview::from_memory(bytes_.data(), kStreamBytes);
        begin_ = 0;
        end_ = stream_.attr("readinto")(view).cast<size_t>();
      } catch (py::error_already_set& error) {
        const std::string kind = py::str(error.type().attr("__name__"));
        const std::string reason = py::str(error.value());
        throw std::runtime_error("the stream cannot be read; expected its bytes, got " + kind +
                                 ": " + reason);
      }
    }
    const size_t taken = std::min(size, end_ - begin_);
    std::memcpy(to, bytes_.data() + begin_, taken);
    begin_ += taken;
    return taken;
  }

 private:
  py::object stream_;
  std::vector<char> bytes_;
  size_t begin_ = 0, end_ = 0;
};

// (name, path or None, stream or None); `part` of `parts` of it
Input input_of(const py::tuple& spec, uint32_t part, uint32_t parts) {
  Input input;
  input.part = part;
  input.parts = parts;
  input.name = spec[0].cast<std::string>();
  if (!spec[1].is_none()) {
    input.path = spec[1].cast<std::string>();
  } else {
    auto stream = std::make_shared<PythonStream>(spec[2].cast<py::object>());
    input.read = [stream](char* to, size_t size) { return stream->read(to, size); };
  }
  return input;
}

// ---- Blocks

template <typename T>
py::array_t<T> view(const std::shared_ptr<Block>& block, const Buffer<T>& buffer, size_t size) {
  const py::capsule owner(new std::shared_ptr<Block>(block),
                          [](void* held) { delete static_cast<std::shared_ptr<Block>*>(held); });
  return py::array_t<T>({size}, {sizeof(T)}, buffer.data(), owner);
}

// Per field (offsets or None, valid bits or None, ids, values or None).
py::list field_arrays(const std::shared_ptr<Block>& block) {
  const Columns& columns = block->columns;
  py::list arrays;
  for (size_t f = 0; f < columns.fields.size(); ++f) {
    const Column& column = columns.fields[f];
    const bool multi = columns.layout.multi[f];
    const size_t size = multi ? column.occurrences : columns.rows;
    py::object offsets = py::none(), valid = py::none(), ids, values = py::none();
    if (multi) {
      offsets = view(block, column.offsets, columns.rows + 1);
    } else {
      valid = view(block, column.valid, (columns.rows + 7) / 8);
    }
    if (columns.layout.wide) {
      ids = view(block, column.ids64, size);
    } else {
      ids = view(block, column.ids32, size);
    }
    if (columns.layout.weighted[f]) values = view(block, column.values, size);
    arrays.append(py::make_tuple(offsets, valid, ids, values));
  }
  return arrays;
}

py::dict place_dict(const LogStream& stream, const Place& place) {
  py::dict out;
  out["file"] = stream.input_name(place.file);
  out["line"] = place.line;
  out["byte"] = place.byte;
  return out;
}

py::dict tally_dict(const LogStream& stream, const Tally& tally) {
  py::dict out = place_dict(stream, tally.first);
  out["count"] = tally.count;
  if (!tally.message.empty()) out["message"] = tally.message;
  return out;
}

py::dict totals_dict(const LogStream& stream) {
  const Totals& totals = stream.totals();
  py::dict out, anomalies, rejected;
  for (size_t a = 0; a < kAnomalies; ++a) {
    if (totals.anomalies[a].count)
      anomalies[anomaly_name(static_cast<Anomaly>(a))] = tally_dict(stream, totals.anomalies[a]);
  }
  for (size_t r = 0; r < kReasons; ++r) {
    if (totals.rejected[r].count)
      rejected[reason_name(static_cast<Reason>(r))] = tally_dict(stream, totals.rejected[r]);
  }
  out["rows"] = totals.rows;
  out["lines"] = totals.lines;
  out["bytes"] = totals.bytes;
  out["clicks"] = totals.clicks;
  out["conversions"] = totals.conversions;
  out["common_rows_used"] = totals.common_rows_used;
  out["rows_without"] = totals.rows_without;
  out["anomalies"] = anomalies;
  out["rejected"] = rejected;
  return out;
}

py::object problem_of(const LogStream& stream) {
  const auto& problem = stream.problem();
  if (!problem) return py::none();
  py::dict out = place_dict(stream, problem->place);
  out["reason"] = reason_name(problem->reason);
  out["message"] = problem->message;
  return out;
}

// `own` is (column kinds, column names, counted, key kind), or None.
std::shared_ptr<const OwnColumns> own_columns(const py::object& own) {
  if (own.is_none()) return nullptr;
  const auto spec = own.cast<py::tuple>();
  const auto kinds = spec[0].cast<std::vector<int>>();
  const auto names = spec[1].cast<std::vector<std::string>>();
  std::vector<std::pair<ColumnKind, std::string>> columns;
  for (size_t i = 0; i < kinds.size(); ++i)
    columns.emplace_back(static_cast<ColumnKind>(kinds[i]), names.at(i));
  return std::make_shared<OwnColumns>(std::move(columns), spec[2].cast<bool>(),
                                      static_cast<KeyKind>(spec[3].cast<int>()));
}

// `separators` is empty (the usual ones) or four bytes.
std::shared_ptr<const Spelling> spelling(const std::string& separators) {
  if (separators.empty()) return nullptr;
  if (separators.size() != 4)
    throw std::invalid_argument("separators: four bytes expected, got " +
                                std::to_string(separators.size()));
  std::array<unsigned char, 4> bytes;
  std::copy(separators.begin(), separators.end(), bytes.begin());
  return std::make_shared<Spelling>(bytes);
}

// The next block, or None at the end or at the first bad line (then .problem is set). Ctrl-C is
// heard while waiting.
std::shared_ptr<Block> next_block(LogStream& stream) {
  std::shared_ptr<Block> block;
  for (;;) {
    LogStream::Step step;
    {
      py::gil_scoped_release release;
      step = stream.next(block, std::chrono::milliseconds(100));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (step != LogStream::Step::kNothingYet)
      return step == LogStream::Step::kBlock ? block : nullptr;
  }
}

template <typename T>
py::array_t<T> owned(std::vector<T> values) {
  auto* held = new std::vector<T>(std::move(values));
  const py::capsule owner(held, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>({held->size()}, {sizeof(T)}, held->data(), owner);
}

// A stream's threads may wait for the GIL (Python inputs), so it is released while they are joined.
struct JoinWithoutGil {
  void operator()(LogStream* stream) const {
    py::gil_scoped_release release;
    delete stream;
  }
};

// ---- Dump

template <typename T>
const T* pointer(const py::object& array) {
  return array.is_none() ? nullptr : static_cast<const T*>(array.cast<py::array>().data());
}

// `spec` is an array, or (codes, dictionary), or None.
StoredNumbers stored_numbers(const py::object& spec) {
  StoredNumbers numbers;
  if (spec.is_none()) return numbers;
  const bool coded = py::isinstance<py::tuple>(spec);
  const auto items = (coded ? py::object(spec.cast<py::tuple>()[0]) : spec).cast<py::array>();
  numbers.items = items.data();
  numbers.bytes = items.itemsize();
  if (coded) {
    const auto dictionary = spec.cast<py::tuple>()[1].cast<py::array>();
    numbers.dictionary = dictionary.data();
    numbers.dictionary_bytes = dictionary.itemsize();
    numbers.dictionary_size = dictionary.size();
  }
  return numbers;
}

py::bytes dump_rows(const py::object& sample_id, const py::object& click,
                    const py::object& conversion, const py::object& common_row,
                    const py::object& keys, const py::list& fields, uint64_t begin, uint64_t end) {
  StoredRows rows;
  rows.sample_id = stored_numbers(sample_id);
  rows.click = pointer<uint8_t>(click);
  rows.conversion = pointer<uint8_t>(conversion);
  rows.common_row = pointer<uint32_t>(common_row);
  rows.keys = pointer<uint64_t>(keys);
  for (const py::handle& item : fields) {
    const auto spec = item.cast<py::tuple>();  // (name, offsets, valid, ids, values)
    StoredColumn column;
    column.name = spec[0].cast<std::string>();
    column.offsets = pointer<int32_t>(spec[1]);
    column.valid = pointer<uint8_t>(spec[2]);
    column.ids = stored_numbers(spec[3]);
    column.values = stored_numbers(spec[4]);
    rows.fields.push_back(std::move(column));
  }
  std::string text;
  {
    py::gil_scoped_release release;
    append_lines(rows, begin, end, text);
  }
  return py::bytes(text);
}

}  // namespace

void bind_log(py::module_& m) {
  bind_synth(m);
  bind_codes(m);
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {  // what() begins with the file
      const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  py::class_<KeyMap, std::shared_ptr<KeyMap>>(m, "KeyMap", "Common-row keys to row numbers.")
      .def(py::init<>())
      .def("__len__", &KeyMap::size)
      .def(
          "keys", [](const KeyMap& keys) { return owned(keys.keys()); }, "All keys by row, uint64.")
      .def(
          "insert",
          [](KeyMap& keys, const py::array_t<uint64_t, py::array::c_style>& given) {
            py::array_t<uint32_t> rows(given.size());
            py::array_t<bool> is_new(given.size());
            for (py::ssize_t i = 0; i < given.size(); ++i)
              std::tie(rows.mutable_data()[i], is_new.mutable_data()[i]) =
                  keys.insert(given.data()[i]);
            return py::make_tuple(rows, is_new);
          },
          py::arg("keys"),
          "Rows (uint32) of keys, those that are new behind the others, and which "
          "were new.")
      .def(
          "find",
          [](const KeyMap& keys, const py::array_t<uint64_t, py::array::c_style>& given) {
            py::array_t<uint32_t> rows(given.size());
            for (py::ssize_t i = 0; i < given.size(); ++i)
              rows.mutable_data()[i] = keys.find(given.data()[i]);
            return rows;
          },
          py::arg("keys"), "Rows (uint32) of keys; 2^32 - 1 where there is none.");

  py::class_<Block, std::shared_ptr<Block>>(m, "Block", "The rows of one chunk of the log.")
      .def_property_readonly("rows", [](const Block& block) { return block.columns.rows; })
      .def_property_readonly("multi", [](const Block& block) { return block.columns.layout.multi; })
      .def_property_readonly("weighted",
                             [](const Block& block) { return block.columns.layout.weighted; })
      .def_property_readonly("wide", [](const Block& block) { return block.columns.layout.wide; })
      .def_property_readonly("dropped", [](const Block& block) { return block.dropped; })
      .def_property_readonly("rejects", [](const Block& block) { return py::bytes(block.rejects); })
      .def_property_readonly(
          "bytes", [](const Block& block) { return block.chunk.text.end - block.chunk.text.begin; })
      .def_property_readonly("sample_id",
                             [](const std::shared_ptr<Block>& block) {
                               return view(block, block->columns.sample_id, block->columns.rows);
                             })
      .def_property_readonly("click",
                             [](const std::shared_ptr<Block>& block) {
                               return view(block, block->columns.click, block->columns.rows);
                             })
      .def_property_readonly("conversion",
                             [](const std::shared_ptr<Block>& block) {
                               return view(block, block->columns.conversion, block->columns.rows);
                             })
      .def_property_readonly("common_row",
                             [](const std::shared_ptr<Block>& block) {
                               return view(block, block->columns.common_row, block->columns.rows);
                             })
      .def_property_readonly("key",
                             [](const std::shared_ptr<Block>& block) {
                               return view(block, block->columns.key, block->columns.rows);
                             })
      .def("carried",
           [](const std::shared_ptr<Block>& block) {
             py::list arrays;
             for (const Buffer<uint64_t>& carried : block->columns.carried)
               arrays.append(view(block, carried, block->columns.rows));
             return arrays;
           })
      .def_property_readonly("file", [](const Block& block) { return block.chunk.file; })
      .def_property_readonly("lines", [](const Block& block) { return block.report.lines; })
      .def("row_places", &row_places)
      .def("findings", &findings)
      .def("fields", &field_arrays);

  py::class_<LogStream, std::unique_ptr<LogStream, JoinWithoutGil>>(
      m, "LogStream", "A log read by several threads, handed over block by block in file order.")
      .def(py::init([](const py::list& inputs, bool common, std::vector<std::string> fields,
                       std::vector<std::string> other_fields, std::vector<uint8_t> multi,
                       std::vector<uint8_t> weighted, std::shared_ptr<KeyMap> keys, bool discovers,
                       int threads, size_t chunk_bytes, bool skip_bad_lines, bool keep_rejects,
                       bool count_ids, const py::object& own, const py::bytes& separators,
                       const py::object& shard) {
             if (threads < 1)
               throw std::invalid_argument("threads: at least 1 expected, got " +
                                           std::to_string(threads));
             if (chunk_bytes < 1 || chunk_bytes > kMostChunkBytes)
               throw std::invalid_argument("chunk_bytes: 1 to " + std::to_string(kMostChunkBytes) +
                                           " expected, got " + std::to_string(chunk_bytes));
             uint32_t part = 0, parts = 1;
             if (!shard.is_none()) std::tie(part, parts) = shard.cast<std::pair<int, int>>();
             std::vector<Input> specs;
             for (const py::handle& spec : inputs)
               specs.push_back(input_of(spec.cast<py::tuple>(), part, parts));
             StreamOptions options;
             options.common = common;
             options.fields = std::move(fields);
             options.other_fields = std::move(other_fields);
             options.layout = {std::move(multi), std::move(weighted), false};
             options.threads = threads;
             options.chunk_bytes = chunk_bytes;
             options.skip_bad_lines = skip_bad_lines;
             options.keep_rejects = keep_rejects;
             options.count_ids = count_ids;
             options.shard = !shard.is_none();
             options.own = own_columns(own);
             options.spelling = spelling(separators);
             return std::unique_ptr<LogStream, JoinWithoutGil>(
                 new LogStream(std::move(specs), std::move(options), std::move(keys), discovers));
           }),
           py::kw_only(), py::arg("inputs"), py::arg("common"), py::arg("fields"),
           py::arg("other_fields"), py::arg("multi"), py::arg("weighted"), py::arg("keys"),
           py::arg("discovers"), py::arg("threads"), py::arg("chunk_bytes"),
           py::arg("skip_bad_lines"), py::arg("keep_rejects"), py::arg("count_ids"),
           py::arg("own") = py::none(), py::arg("separators") = py::bytes(),
           py::arg("shard") = py::none())
      .def("next", &next_block)
      .def("problem", &problem_of)
      .def("totals", &totals_dict)
      .def("input_range", &LogStream::input_range, py::arg("file"))
      .def("key_places", &key_places)
      .def(
          "counts",
          [](const LogStream& stream, size_t field) {
            IdCounts counts;
            {
              py::gil_scoped_release release;
              counts = stream.counts(field);
            }
            return py::make_tuple(owned(std::move(counts.ids)), owned(std::move(counts.counts)));
          },
          py::arg("field"), "(ids ascending, counts) of one field, uint64.");

  py::class_<Xxh64>(m, "Xxh64", "The XXH64 checksum with seed 0.")
      .def(py::init<>())
      .def(
          "update",
          [](Xxh64& hash, const py::buffer& data) {
            const py::buffer_info info = data.request();
            py::gil_scoped_release release;
            hash.update(info.ptr, static_cast<size_t>(info.size * info.itemsize));
          },
          py::arg("data"))
      .def("hexdigest", [](const Xxh64& hash) {
        char text[17];
        std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash.digest()));
        return std::string(text);
      });

  py::list kinds;
  for (size_t a = 0; a < kAnomalies; ++a) kinds.append(anomaly_name(static_cast<Anomaly>(a)));
  for (size_t r = 0; r < kReasons; ++r) kinds.append(reason_name(static_cast<Reason>(r)));
  m.attr("finding_kinds") = kinds;

  m.def("count_newlines", &count_newlines, py::arg("path"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>(),
        "Line ends of a regular file: a yardstick for the parser.");
  m.def("dump_rows", &dump_rows, py::kw_only(), py::arg("sample_id"), py::arg("click"),
        py::arg("conversion"), py::arg("common_row"), py::arg("keys"), py::arg("fields"),
        py::arg("begin"), py::arg("end"),
        "Rows [begin, end) of a record batch as lines of the log.");
}

}  // namespace esmm_fast
