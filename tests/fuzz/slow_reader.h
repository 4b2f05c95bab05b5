// A reader of the log that shares no code with the parser: byte by byte, from the grammar alone.
// What the fuzz harness compares the parser with.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace slow {

using Occurrence = std::pair<uint64_t, float>;  // feature id, value
using Features = std::map<std::string, std::vector<Occurrence>>;

struct Row {
  uint64_t sample_id = 0, key = 0;
  int click = 0, conversion = 0;
  Features features;

  bool operator==(const Row&) const = default;
};

// One line without its '\n' (and without the '\r' before that).
class Line {
 public:
  explicit Line(std::string text) : text_(std::move(text)) {}

  // The row, or nothing if the line does not follow the grammar.
  std::optional<Row> read(bool common, const std::vector<std::string>& fields) {
    Row row;
    if (!common) {
      const auto id = number();
      if (!id || !take(',')) return {};
      row.sample_id = *id;
      for (int* label : {&row.click, &row.conversion}) {
        if (at_ >= text_.size() || (text_[at_] != '0' && text_[at_] != '1')) return {};
        *label = text_[at_++] - '0';
        if (!take(',')) return {};
      }
    }
    for (int i = 0; i < 16; ++i, ++at_) {
      if (at_ >= text_.size()) return {};
      const char c = text_[at_];
      if (c >= '0' && c <= '9') {
        row.key = row.key * 16 + (c - '0');
      } else if (c >= 'a' && c <= 'f') {
        row.key = row.key * 16 + (c - 'a' + 10);
      } else {
        return {};
      }
    }
    if (!take(',')) return {};
    const auto announced = number();
    if (!announced || !take(',')) return {};
    uint64_t found = 0;
    while (at_ < text_.size()) {
      const size_t name_end = text_.find('\2', at_);
      if (name_end == std::string::npos) return {};
      const std::string name = text_.substr(at_, name_end - at_);
      bool known = false;
      for (const std::string& field : fields) known |= field == name;
      if (!known) return {};
      at_ = name_end + 1;
      const auto id = number();
      if (!id || !take('\3')) return {};
      const auto value = decimal();
      if (!value) return {};
      row.features[name].emplace_back(*id, *value);
      ++found;
      if (at_ < text_.size() && !take('\1')) return {};
    }
    if (found != *announced) return {};
    return row;
  }

 private:
  bool take(char c) { return at_ < text_.size() && text_[at_] == c && ++at_; }
  bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }

  std::optional<uint64_t> number() {
    if (!digit()) return {};
    unsigned __int128 value = 0;
    for (; digit(); ++at_) {
      value = value * 10 + (text_[at_] - '0');
      if (value > UINT64_MAX) return {};
    }
    return static_cast<uint64_t>(value);
  }

  std::optional<float> decimal() {
    const size_t begin = at_;
    if (!digit()) return {};
    while (digit()) ++at_;
    if (at_ < text_.size() && text_[at_] == '.') {
      ++at_;
      if (!digit()) return {};
      while (digit()) ++at_;
    }
    const std::string token = text_.substr(begin, at_ - begin);
    const float value = std::strtof(token.c_str(), nullptr);
    if (value > 3.4028234663852886e38f) return {};  // infinite
    return value;
  }

  std::string text_;
  size_t at_ = 0;
};

}  // namespace slow
