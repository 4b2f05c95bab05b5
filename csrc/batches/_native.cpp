// The Python face of csrc/batches: look-ups, the columns of a dataset, the order of an epoch, the
// loader.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "batches/loader.h"
#include "batches/order.h"

namespace py = pybind11;

namespace esmm_fast {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Hands an array over to NumPy without a copy.
template <typename T>
py::array_t<T> to_numpy(Buffer<T>& buffer, std::vector<py::ssize_t> shape) {
  if (buffer.data() == nullptr) return py::array_t<T>(std::move(shape));
  T* data = buffer.release();
  const py::capsule owner(data, [](void* memory) { std::free(memory); });
  return py::array_t<T>(std::move(shape), data, owner);
}

template <typename T>
py::array_t<T> to_numpy(Buffer<T>& buffer) {
  return to_numpy(buffer, {static_cast<py::ssize_t>(buffer.size())});
}

py::array_t<int64_t> to_numpy(std::vector<int64_t> vector) {
  auto* held = new std::vector<int64_t>(std::move(vector));
  const py::capsule owner(held, [](void* v) { delete static_cast<std::vector<int64_t>*>(v); });
  return py::array_t<int64_t>({static_cast<py::ssize_t>(held->size())}, held->data(), owner);
}

template <typename T>
const T* at_address(uintptr_t address) {
  return reinterpret_cast<const T*>(address);  // 0 becomes null
}

const int64_t* data_or_null(const std::optional<Array<int64_t>>& array) {
  return array ? array->data() : nullptr;
}

template <typename Id>
py::array_t<int32_t> lookup_rows(const Lookup& lookup, const Array<Id>& ids, int32_t base) {
  py::array_t<int32_t> rows(std::vector<py::ssize_t>(ids.shape(), ids.shape() + ids.ndim()));
  const Id* in = ids.data();
  int32_t* out = rows.mutable_data();
  const int64_t count = ids.size();
  const py::gil_scoped_release release;
  lookup.rows(in, count, base, out);
  return rows;
}

// A source and the Python objects whose memory it points into.
struct PySource {
  Source source;
  std::vector<py::object> alive;

  void add_field(bool common, std::shared_ptr<Lookup> lookup, int32_t base) {
    (common ? source.common_fields : source.impression_fields).push_back({std::move(lookup), base});
  }
  void add_common(int64_t rows, std::vector<Column> columns, py::object owner) {
    Segment segment;
    segment.rows = rows;
    segment.columns = std::move(columns);
    add(std::move(segment), source.common_fields.size(), source.common, std::move(owner));
  }
  void add_impressions(int64_t rows, std::vector<Column> columns, uintptr_t common_row,
                       uintptr_t sample_id, int64_t sample_id_bytes,
                       const std::vector<uintptr_t>& labels, const std::vector<uintptr_t>& carried,
                       py::object owner) {
    Segment segment;
    segment.rows = rows;
    segment.columns = std::move(columns);
    segment.common_row = at_address<uint32_t>(common_row);
    segment.sample_id = at_address<void>(sample_id);
    segment.sample_id_bytes = sample_id_bytes;
    for (const uintptr_t label : labels) segment.labels.push_back(at_address<uint8_t>(label));
    for (const uintptr_t column : carried) segment.carried.push_back(at_address<uint8_t>(column));
    if (static_cast<int64_t>(labels.size()) != source.stages) {
      throw std::invalid_argument("labels: expected one column per stage");
    }
    if (carried.size() != source.carried_widths.size()) {
      throw std::invalid_argument("carried: expected one column per width");
    }
    add(std::move(segment), source.impression_fields.size(), source.impressions, std::move(owner));
  }

 private:
  void add(Segment segment, size_t fields, Segments& side, py::object owner) {
    if (segment.columns.size() != fields) {
      throw std::invalid_argument("columns: expected one per field");
    }
    side.add(std::move(segment));
    alive.push_back(std::move(owner));
  }
};

// A loader and what it reads; the loader ends first (members go in reverse order).
class PyLoader {
 public:
  PyLoader(std::shared_ptr<PySource> source, std::optional<Array<int64_t>> order,
           std::optional<Array<int64_t>> selection, int64_t impressions, int64_t batch_size,
           int64_t first_batch, int64_t batches, int64_t threads, int64_t prefetch)
      : source_(std::move(source)),
        order_(std::move(order)),
        selection_(std::move(selection)),
        process_(getpid()) {
    Cut cut;
    cut.order = data_or_null(order_);
    cut.selection = data_or_null(selection_);
    cut.impressions = impressions;
    cut.batch_size = batch_size;
    cut.first_batch = first_batch;
    cut.batches = batches;
    loader_ = std::make_unique<Loader>(source_->source, cut, threads, prefetch);
  }
  ~PyLoader() {
    if (getpid() != process_) (void)loader_.release();  // a fork has no threads to wait for
  }

  py::object next() {
    if (getpid() != process_) {
      throw std::runtime_error(
          "this iterator over batches was made in another process; a fork does not take its "
          "threads along: "
          "make the iterator where it is used");
    }
    std::optional<BatchArrays> made;
    {
      const py::gil_scoped_release release;
      made = loader_->next();
    }
    if (!made) return py::none();
    BatchArrays& b = *made;
    const py::ssize_t impressions = b.sample_id.size();
    const py::ssize_t stages = source_->source.stages;
    py::dict out;
    out["common"] = b.common;
    out["rows"] = to_numpy(b.rows);
    out["offsets"] = to_numpy(b.offsets);
    out["weights"] = b.weighted ? py::object(to_numpy(b.weights)) : py::none();
    out["bag_of_occurrence"] = to_numpy(b.bag_of_occurrence);
    out["touched_rows"] = to_numpy(b.touched_rows);
    out["segment_ptr"] = to_numpy(b.segment_ptr);
    out["occurrence_by_row"] = to_numpy(b.occurrence_by_row);
    out["common_of_impression"] = to_numpy(b.common_of_impression);
    out["labels"] = to_numpy(b.labels, {impressions, stages});
    out["sample_id"] = to_numpy(b.sample_id);
    py::list carried;
    for (Buffer<uint8_t>& column : b.carried) carried.append(to_numpy(column));
    out["carried"] = carried;
    return out;
  }

  void stop() {
    if (getpid() != process_) return;
    const py::gil_scoped_release release;
    loader_->stop();
  }

 private:
  std::shared_ptr<PySource> source_;
  std::optional<Array<int64_t>> order_, selection_;
  pid_t process_;
  std::unique_ptr<Loader> loader_;
};

Column column(uintptr_t ids, int64_t id_bytes, int64_t ids_length, uintptr_t offsets,
              uintptr_t validity, int64_t validity_offset, uintptr_t row_of_code, int64_t codes,
              uintptr_t values, int64_t value_bytes, int64_t values_length, uintptr_t value_offsets,
              uintptr_t value_validity, int64_t value_validity_offset, uintptr_t value_of_code,
              int64_t value_codes) {
  Column c;
  c.ids = at_address<void>(ids);
  c.id_bytes = id_bytes;
  c.ids_length = ids_length;
  c.offsets = at_address<int32_t>(offsets);
  c.validity = at_address<uint8_t>(validity);
  c.validity_offset = validity_offset;
  c.row_of_code = at_address<int32_t>(row_of_code);
  c.codes = codes;
  c.values = at_address<void>(values);
  c.value_bytes = value_bytes;
  c.values_length = values_length;
  c.value_offsets = at_address<int32_t>(value_offsets);
  c.value_validity = at_address<uint8_t>(value_validity);
  c.value_validity_offset = value_validity_offset;
  c.value_of_code = at_address<float>(value_of_code);
  c.value_codes = value_codes;
  return c;
}

}  // namespace

void bind_batches(py::module_& m) {
  py::class_<Lookup, std::shared_ptr<Lookup>>(m, "Lookup", "Feature id -> row of one table.")
      .def(py::init([](const Array<uint64_t>& ids) {
             const uint64_t* data = ids.data();
             const int64_t count = ids.size();
             const py::gil_scoped_release release;
             return std::make_shared<Lookup>(data, count);
           }),
           py::arg("ids"), "Takes uint64 [n]: ids[i] has row i + 1.")
      .def_static(
          "hashed", [](int64_t rows) { return std::make_shared<Lookup>(Lookup::hashed(rows)); },
          py::arg("rows"), "Returns the look-up of a hashed table: an id's hash is its row.")
      .def("rows", &lookup_rows<uint32_t>, py::arg("ids").noconvert(), py::arg("base") = 0)
      .def("rows", &lookup_rows<uint64_t>, py::arg("ids"), py::arg("base") = 0,
           "Returns int32 base + row of every id; base alone where the id is unknown.")
      .def("__len__", &Lookup::size)
      .def_property_readonly("direct", &Lookup::direct);

  py::class_<Column>(m, "Column", "Addresses of one field's Arrow buffers in one record batch.")
      .def(py::init(&column), py::kw_only(), py::arg("ids"), py::arg("id_bytes"),
           py::arg("ids_length"), py::arg("offsets"), py::arg("validity"),
           py::arg("validity_offset"), py::arg("row_of_code"), py::arg("codes"), py::arg("values"),
           py::arg("value_bytes"), py::arg("values_length"), py::arg("value_offsets"),
           py::arg("value_validity"), py::arg("value_validity_offset"), py::arg("value_of_code"),
           py::arg("value_codes"));

  py::class_<PySource, std::shared_ptr<PySource>>(m, "BatchSource",
                                                  "The columns batches are made from.")
      .def(py::init([](int64_t stages, bool raw_labels, bool has_common_row, bool weighted,
                       int64_t row_end, std::vector<int64_t> carried_widths) {
             auto self = std::make_shared<PySource>();
             self->source.stages = stages;
             self->source.labels = raw_labels ? LabelKind::kRaw : LabelKind::kAnd;
             self->source.has_common_row = has_common_row;
             self->source.weighted = weighted;
             self->source.row_end = row_end;
             self->source.carried_widths = std::move(carried_widths);
             return self;
           }),
           py::kw_only(), py::arg("stages"), py::arg("raw_labels"), py::arg("has_common_row"),
           py::arg("weighted"), py::arg("row_end"), py::arg("carried_widths"))
      .def("add_field", &PySource::add_field, py::kw_only(), py::arg("common"), py::arg("lookup"),
           py::arg("base"))
      .def("add_common", &PySource::add_common, py::kw_only(), py::arg("rows"), py::arg("columns"),
           py::arg("owner"))
      .def("add_impressions", &PySource::add_impressions, py::kw_only(), py::arg("rows"),
           py::arg("columns"), py::arg("common_row"), py::arg("sample_id"),
           py::arg("sample_id_bytes"), py::arg("labels"), py::arg("carried"), py::arg("owner"));

  m.def(
      "group_starts",
      [](const PySource& source, const std::optional<Array<int64_t>>& selection,
         int64_t impressions) {
        std::vector<int64_t> starts;
        {
          const py::gil_scoped_release release;
          starts = group_starts(source.source, data_or_null(selection), impressions);
        }
        return to_numpy(std::move(starts));
      },
      py::arg("source"), py::arg("selection"), py::arg("impressions"),
      "Returns int64 [groups + 1]: where each group of the selection begins, then `impressions`.");

  m.def(
      "epoch_order",
      [](const Array<int64_t>& starts, int64_t group_limit, uint64_t seed, uint64_t epoch) {
        const int64_t* data = starts.data();
        const int64_t groups = starts.size() - 1;
        std::vector<int64_t> order;
        {
          const py::gil_scoped_release release;
          order = epoch_order(data, groups, group_limit, seed, epoch);
        }
        return to_numpy(std::move(order));
      },
      py::arg("group_starts"), py::arg("group_limit"), py::arg("seed"), py::arg("epoch"),
      "Returns int64 [impressions]: the positions of the selection in the order of an epoch.");

  py::class_<PyLoader>(m, "Loader", "Makes the batches of an epoch ahead of their use.")
      .def(py::init<std::shared_ptr<PySource>, std::optional<Array<int64_t>>,
                    std::optional<Array<int64_t>>, int64_t, int64_t, int64_t, int64_t, int64_t,
                    int64_t>(),
           py::arg("source"), py::kw_only(), py::arg("order"), py::arg("selection"),
           py::arg("impressions"), py::arg("batch_size"), py::arg("first_batch"),
           py::arg("batches"), py::arg("threads"), py::arg("prefetch"))
      .def("next", &PyLoader::next,
           "Returns the arrays of the next batch by name, None after the last one.")
      .def("stop", &PyLoader::stop);
}

}  // namespace esmm_fast
