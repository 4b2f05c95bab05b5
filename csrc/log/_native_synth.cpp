// The Python face of the synthetic log; esmm_fast/data/synth.py holds the files and the loop.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <memory>
#include <system_error>

#include "log/synth.h"

namespace py = pybind11;

namespace esmm_fast {
namespace {

using namespace synth;

// World and true model of one seed, kept in place for the parts that point to them.
struct Generator {
  Generator(uint64_t seed, double ctr, double cvr, double mean_impressions)
      : world(seed), model(world, ctr, cvr, mean_impressions) {}
  World world;
  TrueModel model;
};

py::dict to_dict(const Counts& counts) {
  py::dict fields;
  for (int f = 0; f < kFields; ++f) {
    const uint64_t rows = f < kCommonFields ? counts.common_rows : counts.impressions;
    if (rows == 0) continue;  // not a field of this file
    fields[py::str(std::string(kFieldSpecs[f].name))] =
        py::dict(py::arg("occurrences") = counts.occurrences[f],
                 py::arg("rows_without") = rows - counts.rows_with[f]);
  }
  py::dict result;
  result["impressions"] = counts.impressions;
  result["clicks"] = counts.clicks;
  result["conversions"] = counts.conversions;
  result["conversions_without_click"] = counts.conversions_without_click;
  result["impressions_without_item"] = counts.impressions_without_item;
  result["common_rows"] = counts.common_rows;
  result["bytes"] = counts.bytes;
  result["fields"] = fields;
  return result;
}

// Runs `work` without the GIL; a failed write becomes an OSError that names the file.
template <typename Work>
Counts written(const std::string& path, const Work& work) {
  try {
    py::gil_scoped_release release;
    return work();
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    throw py::error_already_set();
  }
}

py::dict describe() {
  py::dict fields, effects, slopes;
  for (const FieldSpec& spec : kFieldSpecs)
    fields[py::str(std::string(spec.name))] = py::dict(
        py::arg("first_id") = spec.first_id, py::arg("last_id") = spec.first_id + spec.size - 1,
        py::arg("longest") = spec.longest, py::arg("weighted") = spec.weighted);
  for (const Effect& effect : kEffectSizes)
    effects[py::str(std::string(effect.name))] =
        py::dict(py::arg("click") = effect.click, py::arg("conversion") = effect.conversion,
                 py::arg("shared") = effect.shared);
  for (const Slope& slope : kSlopes)
    slopes[py::str(std::string(slope.name))] =
        py::dict(py::arg("click") = slope.click, py::arg("conversion") = slope.conversion);
  py::dict result;
  result["fields"] = fields;
  result["effects"] = effects;
  result["slopes"] = slopes;
  result["drift"] = kDrift;
  return result;
}

}  // namespace

void bind_synth(py::module_& m) {
  m.def("synth_describe", &describe,
        "Returns the id blocks and the sizes of the true model's effects.");

  py::class_<Generator>(m, "SynthGenerator",
                        "The world of a seed and its true model, intercepts set.")
      .def(py::init<uint64_t, double, double, double>(), py::arg("seed"), py::arg("ctr"),
           py::arg("cvr"), py::arg("mean_impressions"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("click_intercept",
                             [](const Generator& g) { return g.model.click_intercept(); })
      .def_property_readonly("conversion_intercept",
                             [](const Generator& g) { return g.model.conversion_intercept(); });

  py::class_<Part>(m, "SynthPart", "One part of a log, laid out; writes its files piece by piece.")
      .def(py::init([](const Generator& generator, uint64_t part, uint64_t impressions,
                       double mean_impressions, double without_item_share,
                       double stray_conversion_share) {
             py::gil_scoped_release release;
             return std::make_unique<Part>(generator.world, generator.model,
                                           PartSpec{part, impressions, mean_impressions,
                                                    without_item_share, stray_conversion_share});
           }),
           py::arg("generator"), py::arg("part"), py::arg("impressions"),
           py::arg("mean_impressions"), py::arg("without_item_share"),
           py::arg("stray_conversion_share"), py::keep_alive<1, 2>())
      .def_property_readonly("groups", &Part::groups)
      .def(
          "group_start",
          [](const Part& part, uint64_t group) {
            if (group > part.groups())
              throw py::index_error("group " + std::to_string(group) + " is outside of the " +
                                    std::to_string(part.groups()) + " groups");
            return part.group_start(group);
          },
          py::arg("group"))
      .def(
          "write_skeleton",
          [](Part& part, int file, const std::string& path, uint64_t first, uint64_t last,
             int threads) {
            const auto rows =
                static_cast<py::ssize_t>(part.group_start(last) - part.group_start(first));
            py::array_t<float> pctr(rows), pcvr(rows);
            float* const to_pctr = pctr.mutable_data();
            float* const to_pcvr = pcvr.mutable_data();
            const Counts counts = written(path, [&] {
              return part.write_skeleton(file, first, last, threads, to_pctr, to_pcvr);
            });
            return py::make_tuple(to_dict(counts), pctr, pcvr);
          },
          py::arg("file"), py::arg("path"), py::arg("first"), py::arg("last"), py::arg("threads"),
          "Appends the impressions of groups [first, last); returns (counts, pctr, pcvr).")
      .def(
          "write_common",
          [](Part& part, int file, const std::string& path, uint64_t first, uint64_t last,
             int threads) {
            return to_dict(
                written(path, [&] { return part.write_common(file, first, last, threads); }));
          },
          py::arg("file"), py::arg("path"), py::arg("first"), py::arg("last"), py::arg("threads"),
          "Appends rows [first, last) of the common file; returns counts.")
      .def(
          "distinct_ids",
          [](const Part& part) {
            py::dict result;
            for (int f = 0; f < kFields; ++f)
              result[py::str(std::string(kFieldSpecs[f].name))] =
                  part.seen().distinct(static_cast<Field>(f));
            return result;
          },
          "Returns the number of distinct ids written so far, by field.");
}

}  // namespace esmm_fast
