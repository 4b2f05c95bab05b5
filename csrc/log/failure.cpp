// The message about a bad line: see failure.h.
#include "log/failure.h"

#include <algorithm>
#include <cstring>

#include "log/numbers.h"
#include "log/own_columns.h"

namespace esmm_fast::logs {
namespace {

constexpr size_t kQuoted = 40;  // bytes of the log shown in a message

std::string escaped(const char* begin, const char* end, const Spelling* spelling) {
  std::string out = "'";
  for (const char* p = begin; p != end; ++p) {
    const unsigned char c = spelling ? spelling->own(*p) : *p;
    if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[c >> 4], kHex[c & 15]};
    }
  }
  return out + "'";
}

// The token at `begin`, at least up to and with the wrong byte `at`.
std::string got(const Failure& failure, const Text& text) {
  if (at_line_end(failure.token))
    return text.no_final_newline && failure.token + 1 == text.end ? "the end of the file"
                                                                  : "the end of the line";
  const char* end = failure.token;
  const auto separates = [](char c) { return (c >= 1 && c <= 3) || c == ','; };
  while (!at_line_end(end) && !separates(*end)) ++end;
  end = std::max(end, std::min(failure.at, failure.token + kQuoted));
  if (end == failure.token) ++end;  // a separator where there should be a token
  const bool cut = end - failure.token > static_cast<ptrdiff_t>(kQuoted);
  return escaped(failure.token, cut ? failure.token + kQuoted : end, text.spelling) +
         (cut ? "..." : "");
}

// A sentence about the usual separators, with those of the file.
std::string respelled(std::string sentence, const Spelling& spelling) {
  constexpr std::pair<const char*, char> kSeparators[] = {
      {"','", ','}, {"'\\x01'", 1}, {"'\\x02'", 2}, {"'\\x03'", 3}};
  for (size_t at = sentence.find('\''); at != std::string::npos; at = sentence.find('\'', at + 1)) {
    for (const auto& [usual, byte] : kSeparators) {
      if (sentence.compare(at, std::strlen(usual), usual) != 0) continue;
      const std::string own = escaped(&byte, &byte + 1, &spelling);
      sentence.replace(at, std::strlen(usual), own);
      at += own.size() - 1;
      break;
    }
  }
  return sentence;
}

bool hex_key_at(const char* p) {
  uint64_t key;
  return read_hex(p, key) == p + 16 && p[16] == ',';
}

const char* behind_number(const char* p) {
  const char* begin = p;
  while (*p >= '0' && *p <= '9') ++p;
  return p != begin && *p == ',' ? p + 1 : nullptr;
}

// Behind feature_num, a list begins with a field and \x02.
bool list_at(const char* p) {
  return p && (p = behind_number(p)) &&
         static_cast<unsigned char>(p[std::strcspn(p, "\x01\x02\x03,\n")]) == 2;
}

bool looks_like_common(const char* line) { return hex_key_at(line) && list_at(line + 17); }

bool looks_like_skeleton(const char* line) {
  const char* p = line;
  for (int column = 0; column < 3; ++column) {
    if (!(p = behind_number(p))) return false;
  }
  return hex_key_at(p) && list_at(p + 17);
}

std::string field_list(const FieldNames& names, bool common) {
  constexpr size_t kShown = 24;
  std::string list = common ? "a field of the common side (" : "a field of the impression side (";
  for (size_t f = 0; f < std::min(names.size(), kShown); ++f) list += (f ? ", " : "") + names[f];
  return list + (names.size() > kShown ? ", ...)" : ")");
}

}  // namespace

std::string message(const Failure& failure, const Text& text, const char* line,
                    const FieldNames& names, bool common) {
  if (failure.reason == Reason::kFeatureNumMismatch) {
    return std::string(failure.text) + "; expected " + std::to_string(failure.announced) +
           " features, got " + std::to_string(failure.found);
  }
  std::string expected =
      failure.expected == kExpectedFields ? field_list(names, common) : failure.expected;
  if (text.spelling) expected = respelled(std::move(expected), *text.spelling);
  std::string out;
  if (at_line_end(failure.at)) {
    const bool file_end = text.no_final_newline && failure.at + 1 == text.end;
    out = "the line ends too early; expected " + expected + ", got " +
          std::string(file_end ? "the end of the file" : "the end of the line");
  } else {
    out = std::string(failure.text) + "; expected " + expected + ", got " + got(failure, text);
  }
  if (failure.reason == Reason::kMissingCommonRow && !at_line_end(failure.at))
    out += " (is the common file of another log, or of the other half?)";
  if (common ? looks_like_skeleton(line) : looks_like_common(line)) {
    out += common ? " (this is a line of a skeleton file: are the two files swapped?)"
                  : " (this is a line of a common-features file: are the two files swapped?)";
  }
  return out;
}

}  // namespace esmm_fast::logs
