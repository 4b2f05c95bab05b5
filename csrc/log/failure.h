// The message about a bad line: what was expected and what stands there.
#pragma once
#include <cstdint>
#include <string>

#include "log/tokenize.h"

namespace esmm_fast::logs {

// Where and why the tokenizer stopped; kept small, as a log can have millions of bad lines.
struct Failure {
  Reason reason = Reason::kFile;
  const char* text = "";        // the reason in words
  const char* at = nullptr;     // the first wrong byte
  const char* token = nullptr;  // begin of the text that is quoted
  const char* expected = "";
  uint64_t announced = 0, found = 0;  // kFeatureNumMismatch
};

// Stands for the list of the side's fields.
inline constexpr const char kExpectedFields[] = "a field of the schema";

// "<reason>; expected <...>, got <...>" and, if the line looks like one of the other file, a hint.
std::string message(const Failure& failure, const Text& text, const char* line,
                    const FieldNames& names, bool common);

}  // namespace esmm_fast::logs
