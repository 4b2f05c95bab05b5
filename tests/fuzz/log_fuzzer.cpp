// Fuzzes the parser of the log: whatever the bytes are, it reads what a slow reader reads, refuses
// what that refuses, and does so for every cut, every number of threads and every layout.
//
//   byte 0: bit 0 common file · bit 1 a layout that must widen
//   byte 1: chunk size of LogStream; codes, and of how many numbers · the rest: the text
//
// With ESMM_FUZZ_STREAM, LogStream reads every text as well: as a file, as a stream, and in parts.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "log/codes.h"
#include "log/dump.h"
#include "log/stream.h"
#include "slow_reader.h"

using namespace esmm_fast::logs;

namespace {

const std::vector<std::string> kCommonFields = {"101", "127_14", "121", "a_long_name"};
const std::vector<std::string> kSkeletonFields = {"205", "210",     "508",
                                                  "853", "1234567", "another_long"};

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

Layout layout_of(bool common, bool narrow) {
  if (narrow) {
    const size_t fields = common ? kCommonFields.size() : kSkeletonFields.size();
    return {std::vector<uint8_t>(fields), std::vector<uint8_t>(fields), false};
  }
  if (common) return {{0, 1, 0, 1}, {0, 1, 0, 1}, false};
  return {{0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 1, 0}, false};
}

void add_rows(const Columns& columns, bool common, const std::vector<std::string>& fields,
              const std::vector<uint32_t>& dropped, std::vector<slow::Row>& rows) {
  for (size_t r = 0; r < columns.rows; ++r) {
    if (std::binary_search(dropped.begin(), dropped.end(), static_cast<uint32_t>(r))) continue;
    slow::Row row;
    row.key = columns.key[r];
    if (!common) {
      row.sample_id = columns.sample_id[r];
      row.click = columns.click[r];
      row.conversion = columns.conversion[r];
    }
    for (size_t f = 0; f < fields.size(); ++f) {
      const auto [begin, end] = columns.span(f, r);
      for (size_t i = begin; i < end; ++i)
        row.features[fields[f]].emplace_back(columns.id(f, i), columns.value(f, i));
    }
    rows.push_back(std::move(row));
  }
}

struct Read {
  std::vector<slow::Row> rows;
  std::vector<uint64_t> bad_lines;  // begins of the lines that were skipped
  uint64_t lines = 0;
};

// What the slow reader makes of the text, whose last byte is '\n'.
Read read_slowly(const std::string& text, bool common, const std::vector<std::string>& fields) {
  Read read;
  for (size_t begin = 0; begin < text.size(); ++read.lines) {
    const size_t end = text.find('\n', begin);
    size_t stop = end;
    if (stop > begin && text[stop - 1] == '\r') --stop;
    if (stop > begin) {
      const auto row = slow::Line(text.substr(begin, stop - begin)).read(common, fields);
      if (row) {
        read.rows.push_back(*row);
      } else {
        read.bad_lines.push_back(begin);
      }
    }
    begin = end + 1;
  }
  return read;
}

struct Fast {
  Columns columns;
  Report report;
};

Fast tokenized(const std::string& text, const Grammar& grammar, const Layout& layout) {
  std::string padded = text + std::string(kTextPadding, '\0');
  Fast fast;
  fast.columns.layout = layout;
  tokenize({padded.data(), padded.data() + text.size(), false}, grammar, fast.columns, fast.report);
  return fast;
}

// The usual columns described as a log's own: the same lines are good, and hold the same.
void check_own_columns(const std::string& text, Grammar grammar, const Layout& layout,
                       const Fast& usual) {
  static const OwnColumns own({{ColumnKind::kSampleId, "sample_id"},
                               {ColumnKind::kLabel, "click"},
                               {ColumnKind::kLabel, "conversion"},
                               {ColumnKind::kKey, "key"},
                               {ColumnKind::kFeatureNum, "feature_num"}},
                              true, KeyKind::kHex);
  grammar.own = &own;
  grammar.skip_bad_lines = grammar.keep_rejects = true;
  const Fast found = tokenized(text, grammar, layout);
  const std::vector<std::string>& fields = grammar.common ? kCommonFields : kSkeletonFields;
  std::vector<slow::Row> rows, own_rows;
  add_rows(usual.columns, grammar.common, fields, {}, rows);
  add_rows(found.columns, grammar.common, fields, {}, own_rows);
  for (slow::Row& row : rows) row.conversion = row.click && row.conversion;  // as stages are stored
  require(own_rows == rows, "own columns hold the same");
  require(found.report.rejects.size() == usual.report.rejects.size(), "as many lines are skipped");
}

// Numbers as they are stored: as codes of the widest that they need, or as they are.
struct Stored {
  std::vector<uint8_t> bytes;
  std::vector<uint16_t> shorts;
  std::vector<uint64_t> dictionary64;
  std::vector<uint32_t> dictionary32;
};

// Numbers to codes, which name the same numbers again; `limit`: of the codes.
template <typename Number>
StoredNumbers coded(const Number* numbers, const uint8_t* valid, size_t size, size_t limit,
                    std::vector<Stored>& kept) {
  Stored& stored = kept.emplace_back();
  Codes codes;
  stored.bytes.resize(size);
  stored.shorts.resize(size);
  const bool fits = codes.encode(numbers, valid, size, limit, stored.bytes.data());
  require(fits == (codes.size() <= limit), "codes fit while there are no more than the limit");
  require(codes.encode(numbers, valid, size, 65536, stored.shorts.data()), "two bytes suffice");
  for (const uint64_t number : codes.numbers()) {
    stored.dictionary64.push_back(number);
    stored.dictionary32.push_back(static_cast<uint32_t>(number));
  }
  std::vector<Number> all(codes.size()), back(size);
  for (size_t i = 0; i < all.size(); ++i)
    std::memcpy(&all[i], &stored.dictionary64[i], sizeof(Number));
  require(decode(stored.shorts.data(), valid, size, all.data(), all.size(), back.data()),
          "codes are of the dictionary");
  for (size_t i = 0; i < size; ++i) {
    const bool here = !valid || (valid[i >> 3] >> (i & 7) & 1);
    const Number expected = here ? numbers[i] : Number{0};
    require(std::memcmp(&back[i], &expected, sizeof expected) == 0, "codes lose nothing");
    if (fits) require(stored.bytes[i] == stored.shorts[i], "codes do not depend on their width");
  }
  StoredNumbers out;
  out.items = fits ? static_cast<const void*>(stored.bytes.data()) : stored.shorts.data();
  out.bytes = fits ? 1 : 2;
  out.dictionary = sizeof(Number) == 8 ? static_cast<const void*>(stored.dictionary64.data())
                                       : stored.dictionary32.data();
  out.dictionary_bytes = sizeof(Number);
  out.dictionary_size = all.size();
  return out;
}

// The columns as lines of the log; `limit`: of codes of one byte, 0: numbers as they are.
std::string dumped(const Columns& columns, bool common, const std::vector<std::string>& fields,
                   size_t limit) {
  std::vector<Stored> kept;
  kept.reserve(2 * fields.size());
  std::vector<uint32_t> own(columns.rows);
  for (size_t r = 0; r < columns.rows; ++r) own[r] = static_cast<uint32_t>(r);
  StoredRows rows;
  rows.keys = columns.key.data();
  if (!common) {
    rows.sample_id.items = columns.sample_id.data();
    rows.sample_id.bytes = 8;
    rows.click = columns.click.data();
    rows.conversion = columns.conversion.data();
    rows.common_row = own.data();
  }
  for (size_t f = 0; f < fields.size(); ++f) {
    const Column& column = columns.fields[f];
    StoredColumn stored;
    stored.name = fields[f];
    (columns.layout.multi[f] ? (stored.offsets = column.offsets.data(), 0)
                             : (stored.valid = column.valid.data(), 0));
    stored.ids.bytes = columns.layout.wide ? 8 : 4;
    stored.ids.items =
        columns.layout.wide ? static_cast<const void*>(column.ids64.data()) : column.ids32.data();
    if (columns.layout.weighted[f]) stored.values.items = column.values.data();
    const size_t size = columns.layout.multi[f] ? column.occurrences : columns.rows;
    if (limit) {
      stored.ids = columns.layout.wide
                       ? coded(column.ids64.data(), stored.valid, size, limit, kept)
                       : coded(column.ids32.data(), stored.valid, size, limit, kept);
      if (columns.layout.weighted[f])
        stored.values = coded(column.values.data(), stored.valid, size, limit, kept);
    }
    rows.fields.push_back(stored);
  }
  std::string text;
  append_lines(rows, 0, columns.rows, text);
  return text;
}

#ifdef ESMM_FUZZ_STREAM

StreamOptions stream_options(bool common, const Layout& layout, int threads, size_t chunk_bytes,
                             bool skip) {
  StreamOptions options;
  options.common = common;
  options.fields = common ? kCommonFields : kSkeletonFields;
  options.other_fields = common ? kSkeletonFields : kCommonFields;
  options.layout = layout;
  options.threads = threads;
  options.chunk_bytes = chunk_bytes;
  options.skip_bad_lines = skip;
  options.keep_rejects = skip;
  return options;
}

// The text through a whole LogStream, as a file or as a stream: in the end one line of facts.
struct Streamed {
  std::vector<slow::Row> rows;
  std::string problem, rejects, tallies;
  std::vector<std::pair<std::vector<uint64_t>, std::vector<uint64_t>>> counts;

  bool operator==(const Streamed&) const = default;
};

void require_same(const Streamed& one, const Streamed& other, const char* what) {
  if (one == other) return;
  for (const Streamed* read : {&one, &other})
    std::fprintf(stderr, "%zu rows, tallies %s, problem %s, %zu bytes of rejects\n",
                 read->rows.size(), read->tallies.c_str(), read->problem.c_str(),
                 read->rejects.size());
  require(false, what);
}

Streamed streamed(const std::string& text, const std::vector<std::string>& fields,
                  const StreamOptions& options, bool as_file, uint32_t part = 0,
                  uint32_t parts = 1) {
  Input input{"log", "", {}};
  input.part = part;
  input.parts = parts;
  const int file = as_file ? memfd_create("log", 0) : -1;
  size_t at = 0;
  if (as_file) {
    require(write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "write");
    input.path = "/proc/self/fd/" + std::to_string(file);
  } else {
    input.read = [&](char* to, size_t size) {
      const size_t taken = std::min({size, text.size() - at, size_t{100}});
      std::memcpy(to, text.data() + at, taken);
      at += taken;
      return taken;
    };
  }
  Streamed out;
  {
    LogStream stream({input}, options, std::make_shared<KeyMap>(), !options.common);
    std::shared_ptr<Block> block;
    for (;;) {
      const auto step = stream.next(block, std::chrono::milliseconds(1000));
      if (step == LogStream::Step::kEnd) break;
      if (step == LogStream::Step::kNothingYet) continue;
      add_rows(block->columns, options.common, fields, block->dropped, out.rows);
      out.rejects += block->rejects;
    }
    if (stream.problem()) {
      const Problem& problem = *stream.problem();
      out.problem = std::to_string(problem.place.line) + " " + std::to_string(problem.place.byte) +
                    " " + problem.message;
      out.rows.clear();  // how much came before the error is a matter of the cuts
      out.rejects.clear();
    } else {
      const Totals& totals = stream.totals();
      const auto add = [&](const Tally& tally) {
        out.tallies += std::to_string(tally.count) + "@" +
                       std::to_string(tally.count ? tally.first.byte : 0) + " ";
      };
      std::for_each(totals.anomalies.begin(), totals.anomalies.end(), add);
      std::for_each(totals.rejected.begin(), totals.rejected.end(), add);
      for (uint64_t without : totals.rows_without) out.tallies += std::to_string(without) + " ";
      out.tallies += std::to_string(totals.rows) + " " + std::to_string(totals.lines) + " " +
                     std::to_string(totals.clicks) + " " + std::to_string(totals.bytes);
      for (size_t f = 0; f < fields.size(); ++f) {
        IdCounts counts = stream.counts(f);
        out.counts.emplace_back(std::move(counts.ids), std::move(counts.counts));
      }
    }
  }
  if (as_file) close(file);
  return out;
}

void check_counts(const Streamed& read, const std::vector<std::string>& fields) {
  for (size_t f = 0; f < fields.size(); ++f) {
    std::map<uint64_t, uint64_t> counted;
    for (const slow::Row& row : read.rows) {
      const auto found = row.features.find(fields[f]);
      if (found == row.features.end()) continue;
      for (const auto& [id, value] : found->second) ++counted[id];
    }
    std::vector<uint64_t> ids, counts;
    for (const auto& [id, count] : counted) {
      ids.push_back(id);
      counts.push_back(count);
    }
    require(read.counts[f].first == ids && read.counts[f].second == counts,
            "counts are those of the rows");
  }
}

// The text cut anywhere, by any number of threads, as a file or as a stream: one outcome.
void check_streams(const std::string& text, bool common, bool narrow, uint8_t cut) {
  const std::vector<std::string>& fields = common ? kCommonFields : kSkeletonFields;
  const size_t chunk_bytes = 1 + cut;
  const Layout layout = layout_of(common, narrow);
  for (const bool skip : {false, true}) {
    const Streamed whole =
        streamed(text, fields, stream_options(common, layout, 1, 1 << 20, skip), true);
    if (whole.problem.empty()) check_counts(whole, fields);
    const StreamOptions other = stream_options(common, layout, 1 + cut % 3, chunk_bytes, skip);
    require_same(whole, streamed(text, fields, other, true),
                 "a file cut elsewhere, read by other threads, is the same");
    require_same(whole, streamed(text, fields, other, false), "a stream is the same as a file");
  }
  // The parts of a file hold what the file holds, each line once.
  StreamOptions shard = stream_options(common, layout, 1 + cut % 3, chunk_bytes, true);
  shard.shard = true;
  const Streamed whole = streamed(text, fields, shard, true);
  if (!whole.problem.empty()) return;  // an empty file
  Streamed joined;
  const uint32_t parts = 2 + cut % 5;
  for (uint32_t part = 0; part < parts; ++part) {
    Streamed one = streamed(text, fields, shard, true, part, parts);
    require(one.problem.empty(), "a part of a good file is good");
    joined.rows.insert(joined.rows.end(), one.rows.begin(), one.rows.end());
    joined.rejects += one.rejects;
  }
  require(joined.rows == whole.rows, "the rows of all parts are those of the file");
  require(joined.rejects == whole.rejects, "so are the lines that are skipped");
}

#endif

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const bool common = data[0] & 1, narrow = data[0] & 2;
  const std::string original(reinterpret_cast<const char*>(data) + 2, size - 2);
  std::string text = original;
  if (text.empty() || text.back() != '\n') text += '\n';
  const std::vector<std::string>& fields = common ? kCommonFields : kSkeletonFields;
  static const FieldNames common_names(kCommonFields, kSkeletonFields);
  static const FieldNames skeleton_names(kSkeletonFields, kCommonFields);
  Grammar grammar;
  grammar.names = common ? &common_names : &skeleton_names;
  grammar.common = common;
  grammar.skip_bad_lines = true;
  grammar.keep_rejects = true;

  // Against the slow reader, line by line.
  const Read expected = read_slowly(text, common, fields);
  const Fast fast = tokenized(text, grammar, layout_of(common, narrow));
  std::vector<slow::Row> rows;
  add_rows(fast.columns, common, fields, {}, rows);
  require(rows == expected.rows, "rows are those of the slow reader");
  require(fast.report.lines == expected.lines, "lines are those of the slow reader");
  std::vector<uint64_t> bad_lines;
  for (const Rejected& line : fast.report.rejects) bad_lines.push_back(line.begin);
  require(bad_lines == expected.bad_lines, "skipped lines are those of the slow reader");

  // The first error stands in the first of the skipped lines.
  grammar.skip_bad_lines = grammar.keep_rejects = false;
  const Fast stopped = tokenized(text, grammar, layout_of(common, narrow));
  require(stopped.report.error.has_value() == !bad_lines.empty(), "an error for a bad line");
  if (stopped.report.error) {
    const uint64_t byte = stopped.report.error->place.byte;
    require(byte >= bad_lines[0] && byte <= text.find('\n', bad_lines[0]),
            "the first wrong byte is in the first bad line");
  }

  // There and back.
  const std::string dump = dumped(fast.columns, common, fields, 0);
  if (data[1] % 4 == 0) {
    const size_t limit = data[1] % 8 ? 256 : 1 + data[1] / 8 % 4;
    require(dumped(fast.columns, common, fields, limit) == dump, "a dump of codes is the same");
  }
  const Fast again = tokenized(dump, grammar, fast.columns.layout);
  require(!again.report.error, "a dump is a good log");
  std::vector<slow::Row> rows_again;
  add_rows(again.columns, common, fields, {}, rows_again);
  require(rows_again == rows, "a dump holds what was read");

  check_own_columns(text, grammar, layout_of(common, narrow), fast);

#ifdef ESMM_FUZZ_STREAM
  check_streams(original, common, narrow, data[1]);
#endif
  return 0;
}
