// The tokenizer of the log.
//
//   skeleton := sample_id ',' click ',' conversion ',' key ',' feature_num ',' list '\n'
//   common   := key ',' feature_num ',' list '\n'
//   list     := [ feature ( \x01 feature )* ]        feature := field \x02 id \x03 value
//
// One pass, one parser: numbers are read eight bytes at a time, a feature's field is first compared
// with the field of the feature before it, and whatever is not spelled the usual way takes a longer
// road inside the same functions. PERF: the chain of addresses (where a token ends decides where
// the next begins) bounds it, about 40 cycles a feature.
#include "log/tokenize.h"

#include <cstring>

#include "log/failure.h"
#include "log/numbers.h"
#include "log/own_columns.h"
#include "log/row_writer.h"
#include "log/separators.h"

namespace esmm_fast::logs {
namespace {

template <typename Id, bool kCommon>
class Tokenizer {
 public:
  Tokenizer(const Text& text, const Grammar& grammar, Columns& columns, Report& report)
      : text_(text),
        grammar_(grammar),
        names_(*grammar.names),
        columns_(columns),
        report_(report),
        rows_(columns, !grammar.keys, grammar.own && !kCommon ? grammar.own->carried() : 0),
        separators_(text.begin, text.end - text.begin),
        needed_(columns.layout) {}

  // False if the text needs a wider layout: it is set, and the work is to be done again with it.
  bool run() {
    for (const char* p = text_.begin; p != text_.end;) {
      const char* line = p;
      if (at_line_end(p)) {
        key_at_ = nullptr;
        note(Anomaly::kBlankLines, p);
        if (*p == '\r') note(Anomaly::kCrlf, p++);
        ++p;
        ++report_.lines;
        continue;
      }
      rows_.open();
      key_at_ = nullptr;
      p = grammar_.own ? own_line(p) : kCommon ? common_line(p) : skeleton_line(p);
      if (p && widen_) {
        columns_.layout.widen(needed_);
        return false;
      }
      if (p) [[likely]] {
        close_row(line, p);
      } else {
        drop_row();
        p = static_cast<const char*>(std::memchr(line, '\n', text_.end - line)) + 1;
        const Place place{0, report_.lines, static_cast<uint64_t>(failure_.at - text_.begin)};
        const auto in_words = [&] { return message(failure_, text_, line, names_, kCommon); };
        if (!grammar_.skip_bad_lines) {
          report_.error = {failure_.reason, place, in_words()};
          break;
        }
        const auto reason = static_cast<size_t>(failure_.reason);
        Tally& tally = report_.rejected[reason];
        if (tally.count == 0) tally.message = in_words();
        tally.add(place);
        if (grammar_.keep_findings) {
          keep_finding(static_cast<uint8_t>(kAnomalies + reason), place);
          report_.findings.back().message = in_words();
        }
        if (grammar_.keep_rejects)
          report_.rejects.push_back(
              {static_cast<uint64_t>(line - text_.begin), static_cast<uint64_t>(p - text_.begin)});
      }
      ++report_.lines;
    }
    if (text_.no_final_newline && !report_.error) {
      // The place is that of the missing newline.
      key_at_ = nullptr;
      note(Anomaly::kNoFinalNewline,
           Place{0, report_.lines - 1, static_cast<uint64_t>(text_.end - 1 - text_.begin)});
    }
    rows_.finish();
    report_.rows_without.resize(names_.size());
    for (size_t f = 0; f < names_.size(); ++f) report_.rows_without[f] = rows_.rows_without(f);
    return true;
  }

 private:
  void note(Anomaly anomaly, const char* at) {
    note(anomaly, Place{0, report_.lines, static_cast<uint64_t>(at - text_.begin)});
  }
  void note(Anomaly anomaly, const Place& place) {
    report_.anomalies[static_cast<size_t>(anomaly)].add(place);
    if (grammar_.keep_findings) keep_finding(static_cast<uint8_t>(anomaly), place);
  }
  void keep_finding(uint8_t kind, const Place& place) {
    const uint64_t key_byte = key_at_ ? key_at_ - text_.begin : Finding::kNoKey;
    report_.findings.push_back({kind, place, key_, key_byte, {}});
  }

  void close_row(const char* line, const char* end) {
    const size_t row = columns_.rows;
    rows_.close();
    if constexpr (kCommon) {
      columns_.row_line[row] = report_.lines;
      columns_.row_begin[row] = line - text_.begin;
      columns_.row_end[row] = end - text_.begin;
    } else {
      const bool click = columns_.click[row], conversion = columns_.conversion[row];
      report_.clicks += click;
      report_.conversions += click && conversion;
      if (conversion && !click) note(Anomaly::kConversionsWithoutClick, line);
    }
    if (contradicts_) note(Anomaly::kConversionsWithoutClick, contradicts_);
    if (crlf_) note(Anomaly::kCrlf, crlf_);
    if (trailing_) note(Anomaly::kTrailingSeparators, trailing_);
    if (empty_list_) note(Anomaly::kEmptyLists, empty_list_);
    crlf_ = trailing_ = empty_list_ = contradicts_ = nullptr;
  }

  // Takes back what a bad line has written.
  void drop_row() {
    rows_.drop();
    if (widen_) needed_ = columns_.layout;
    widen_ = false;
    crlf_ = trailing_ = empty_list_ = contradicts_ = nullptr;
  }

  // ---- Lines: each returns the byte behind the line's '\n', or null with failure_ set.

  const char* fail(Reason reason, const char* text, const char* at, const char* token,
                   const char* expected) {
    failure_ = {at_line_end(at) ? Reason::kTruncatedLine : reason, text, at, token, expected, 0, 0};
    return nullptr;
  }

  const char* skeleton_line(const char* p) {
    const size_t row = columns_.rows;
    const char* token = p;
    const NumberError error = read_decimal(p, columns_.sample_id[row]);
    if (error == NumberError::kTooLarge)
      return fail(Reason::kBadSampleId, "sample_id is beyond 64 bits", token, token,
                  "at most 18446744073709551615");
    if (error != NumberError::kNone || *p != ',')
      return fail(Reason::kBadSampleId, "sample_id is not a decimal number", p, token,
                  "sample_id (digits) and ','");
    ++p;
    if (!(p = label(p, "click is not 0 or 1", "click (0 or 1) and ','", columns_.click[row])))
      return nullptr;
    if (!(p = label(p, "conversion is not 0 or 1", "conversion (0 or 1) and ','",
                    columns_.conversion[row])))
      return nullptr;

    token = p;
    if (!key_text_ ||
        std::memcmp(key_text_, p, 17) != 0) {  // impressions of one common row stand together
      key_text_ = nullptr;
      if (!(p = common_key(p))) return nullptr;
      if (grammar_.keys && (common_row_ = grammar_.keys->find(key_)) == KeyMap::kNone)
        return fail(Reason::kMissingCommonRow, "no common row has this common_feature_index", token,
                    token, "a key of the common files");
      key_text_ = token;
    } else {
      p += 17;
    }
    if (grammar_.keys) {
      columns_.common_row[row] = common_row_;
    } else {
      columns_.key[row] = key_;
      columns_.row_line[row] = report_.lines;
      columns_.row_begin[row] = token - text_.begin;
      key_at_ = token;
    }
    return features(p);
  }

  const char* common_line(const char* p) {
    if (!(p = common_key(p))) return nullptr;
    columns_.key[columns_.rows] = key_;
    return features(p);
  }

  const char* own_line(const char* p) {
    OwnLine line;
    if (!(p = grammar_.own->read(p, kCommon, grammar_.keys, text_.spelling, line, columns_,
                                 failure_)))
      return nullptr;
    contradicts_ = line.contradicts;
    if (!kCommon && !grammar_.keys) {
      const size_t row = columns_.rows;
      columns_.row_line[row] = report_.lines;
      columns_.row_begin[row] = (line.key_at ? line.key_at : text_.begin) - text_.begin;
      key_ = columns_.key[row];
      key_at_ = line.key_at;
    }
    return counted_list(p, line.counted_at, line.announced);
  }

  const char* label(const char* p, const char* text, const char* expected, uint8_t& out) {
    if (*p != '0' && *p != '1') return fail(Reason::kBadLabel, text, p, p, expected);
    if (p[1] != ',') return fail(Reason::kBadLabel, text, p + 1, p, expected);
    out = *p - '0';
    return p + 2;
  }

  // 16 lower-case hex characters and ',' into key_.
  const char* common_key(const char* p) {
    constexpr const char* kText = "common_feature_index is not 16 lower-case hex characters";
    constexpr const char* kExpected = "common_feature_index (16 of 0-9 a-f) and ','";
    uint64_t key;
    const char* end = read_hex(p, key);
    if (end != p + 16 || *end != ',') return fail(Reason::kBadCommonKey, kText, end, p, kExpected);
    key_ = key;
    return end + 1;
  }

  // feature_num, the list, and the end of the line.
  const char* features(const char* p) {
    const char* token = p;
    uint64_t announced;
    const NumberError error = read_decimal(p, announced);
    if (error == NumberError::kTooLarge)
      return fail(Reason::kBadFeatureNum, "feature_num is beyond 64 bits", token, token,
                  "a count of features");
    if (error != NumberError::kNone || *p != ',')
      return fail(Reason::kBadFeatureNum, "feature_num is not a decimal number", p, token,
                  "feature_num (digits) and ','");
    return counted_list(p + 1, token, announced);
  }

  // The list of `announced` features (where `token`, not null, says so), and the end of the line.
  const char* counted_list(const char* p, const char* token, uint64_t announced) {
    uint64_t found = 0;
    if (at_line_end(p)) {
      empty_list_ = p;
    } else if (!(p = list(p, found))) {
      return nullptr;
    }
    if (token && found != announced) [[unlikely]] {
      fail(Reason::kFeatureNumMismatch, "feature_num is not the number of features in the list",
           token, token, "");
      failure_.announced = announced;
      failure_.found = found;
      return nullptr;
    }
    if (*p == '\r') crlf_ = p++;
    return p + 1;
  }

  // The features up to the end of the line, at which it returns.
  const char* list(const char* p, uint64_t& found) {
    for (;;) {
      bool ended = false;
      p = usual_features(p, found, ended);
      if (ended) return p;
      if (found && at_line_end(p)) {
        trailing_ = p - 1;
        return p;
      }
      if (!(p = feature(p))) return nullptr;
      ++found;
      if (*p != 1) return p;
      ++p;
    }
  }

  // Takes features as long as they are spelled the usual way: a field of up to 7 bytes, an id of up
  // to 8 digits, a value of one digit, a point and up to 6 digits; nothing that widens the layout.
  // Returns the '\n' behind the last, with `ended`, or the begin of the first of another kind.
  //
  // PERF: no branch depends on what a feature holds, and tokens are found by their separators: the
  // chain from one feature to the next is a look at the next three positions. Only the end of the
  // line and an unusual feature are mispredicted.
  const char* usual_features(const char* p, uint64_t& found, bool& ended) {
    constexpr float kPowers[8] = {1, 1e1f, 1e2f, 1e3f, 1e4f, 1e5f, 1e6f, 1e7f};
    const char* const text = text_.begin;
    FieldWriter<Id>* const writers = rows_.writers();
    const uint32_t* separator = separators_.seek(static_cast<uint32_t>(p - text));
    for (;;) {
      const char* const id_begin = text + separator[0] + 1;
      const char* const value_begin = text + separator[1] + 1;
      const char* const end = text + separator[2];
      const uint64_t name_length = id_begin - 1 - p;
      const uint64_t id_length = value_begin - 1 - id_begin;
      const uint64_t value_length = end - value_begin;

      const uint64_t name = load8(p) & ~uint64_t{0} >> ((56 - 8 * name_length) & 63);
      const FieldNames::Entry& entry = names_.entry(name);
      FieldWriter<Id>& out = writers[entry.field];

      const uint64_t id = (load8(id_begin) ^ kZeros) << ((64 - 8 * id_length) & 63);
      const uint64_t value_text = load8(value_begin);
      const uint64_t value_word = value_text ^ kZeros;
      const uint64_t value_digits = ((value_word & 0xff) | (value_word >> 8 & ~uint64_t{0xff}))
                                    << ((72 - 8 * value_length) & 63);
      const float value =
          static_cast<float>(eight_digits(value_digits)) / kPowers[(value_length - 2) & 7];

      const uint64_t unusual =
          (name ^ entry.key) | ((name_length | (id_length - 1)) & ~uint64_t{7}) |
          static_cast<uint64_t>(value_begin[-1] ^ 3) | non_digits(id) | non_digits(value_digits) |
          ((value_text & 0xff00) ^ 0x2e00) | static_cast<uint64_t>(value_length - 3 > 5) |
          static_cast<uint64_t>(out.at == out.limit) |
          (static_cast<uint64_t>(value != 1) & ~out.value_mask);
      if (unusual) [[unlikely]]
        return p;
      if (*end != 1) {
        ended = *end == '\n';
        if (!ended) return p;
        out.put(eight_digits(id), value);
        ++found;
        return end;
      }
      out.put(eight_digits(id), value);
      ++found;
      separator = separators_.take(separator + 3);
      p = end + 1;
    }
  }

  // One feature, spelled any way that the grammar allows; returns the byte behind its value.
  const char* feature(const char* p) {
    const int known = names_.find(p);
    if (known < 0) [[unlikely]]
      return bad_field(p);
    const size_t field = known;
    FieldWriter<Id>& out = rows_[field];
    p += names_[field].size() + 1;

    const char* token = p;
    uint64_t id;
    const NumberError id_error = read_decimal(p, id);
    if (id_error != NumberError::kNone || *p != 3) [[unlikely]] {
      if (id_error == NumberError::kTooLarge)
        return fail(Reason::kBadFeatureId, "feature id is beyond 64 bits", token, token,
                    "at most 18446744073709551615");
      if (p == token || is_of_number(*p))
        return fail(Reason::kBadFeatureId, "feature id is not a decimal number", p, token,
                    "a feature id (digits) and '\\x03'");
      return fail(Reason::kWrongSeparator, "wrong separator behind a feature id", p, p,
                  "'\\x03' behind the feature id");
    }
    if (sizeof(Id) == 4 && id > UINT32_MAX) [[unlikely]] {
      needed_.wide = widen_ = true;
    }

    token = ++p;
    float value;
    const NumberError value_error = read_value(p, value);
    if (value_error != NumberError::kNone || (*p != 1 && !at_line_end(p))) [[unlikely]] {
      if (value_error == NumberError::kTooLarge)
        return fail(Reason::kBadValue, "value is beyond float32", token, token,
                    "a decimal of float32's range");
      if (value_error != NumberError::kNone || is_of_number(*p))
        return fail(Reason::kBadValue, "value is not a plain decimal", p, token,
                    "a value (digits, or digits '.' digits)");
      return fail(Reason::kWrongSeparator, "wrong separator behind a value", p, p,
                  "'\\x01' or the end of the line behind the value");
    }

    if (!out.weighted && value != 1) [[unlikely]] {
      needed_.weighted[field] = widen_ = true;
    }
    if (out.at == out.limit) {
      if (out.multi) {
        rows_.grow_occurrences(field, 2 * out.limit);
      } else {
        needed_.multi[field] = widen_ = true;
        --out.at;
      }
    }
    out.put(id, value);
    return p;
  }

  // A byte that someone meant as part of a number, rather than as a separator.
  static bool is_of_number(char c) {
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '.' ||
           c == '-' || c == '+' || c == '_';
  }

  const char* bad_field(const char* p) {
    const char* end = p;
    while (is_of_number(*end)) ++end;
    if (end == p && !at_line_end(p))
      return fail(Reason::kUnknownField, "a field is missing", p, p, kExpectedFields);
    if (*end == 2) {
      const bool other = names_.is_of_other_side({p, static_cast<size_t>(end - p)});
      const char* text = !other    ? "unknown field"
                         : kCommon ? "field of the skeleton file in a common file"
                                   : "field of the common file in a skeleton file";
      return fail(Reason::kUnknownField, text, p, p, kExpectedFields);
    }
    if (at_line_end(end) || names_.find_name({p, static_cast<size_t>(end - p)}) >= 0)
      return fail(Reason::kWrongSeparator, "wrong separator behind a field", end, end,
                  "'\\x02' behind the field");
    return fail(Reason::kUnknownField, "unknown field", p, p, kExpectedFields);
  }

  const Text text_;
  const Grammar grammar_;
  const FieldNames& names_;
  Columns& columns_;
  Report& report_;
  RowWriter<Id, kCommon> rows_;
  Separators separators_;

  Failure failure_;
  Layout needed_;  // the layout plus what this line needs more, if widen_
  bool widen_ = false;
  const char *crlf_ = nullptr, *trailing_ = nullptr, *empty_list_ = nullptr,
             *contradicts_ = nullptr;  // anomalies of this line
  const char* key_text_ = nullptr;     // where the key that key_ and common_row_ belong to was read
  const char* key_at_ = nullptr;       // of this line's key, where it is stored; null: not read
  uint64_t key_ = 0;
  uint32_t common_row_ = 0;
};

template <typename Id>
bool run(const Text& text, const Grammar& grammar, Columns& columns, Report& report) {
  return grammar.common ? Tokenizer<Id, true>(text, grammar, columns, report).run()
                        : Tokenizer<Id, false>(text, grammar, columns, report).run();
}

}  // namespace

void tokenize(const Text& text, const Grammar& grammar, Columns& columns, Report& report) {
  for (;;) {
    report = Report();
    if (columns.layout.wide ? run<uint64_t>(text, grammar, columns, report)
                            : run<uint32_t>(text, grammar, columns, report))
      return;
  }
}

}  // namespace esmm_fast::logs
