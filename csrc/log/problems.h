// What can be wrong with a log: reasons that make a line bad, and anomalies that are tolerated and
// counted.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace esmm_fast::logs {

// Why a line is bad. The names (reason_name) are part of the manifest.
enum class Reason : uint8_t {
  kTruncatedLine,
  kBadSampleId,
  kBadLabel,
  kBadCommonKey,
  kMissingCommonRow,
  kBadFeatureNum,
  kFeatureNumMismatch,
  kUnknownField,
  kWrongSeparator,
  kBadFeatureId,
  kBadValue,
  kConflictingCommonRow,
  kBadColumn,
  kFile,  // the file as a whole: empty, unreadable, changed, a line without end
  kCount
};

// What is unusual but harmless.
enum class Anomaly : uint8_t {
  kCrlf,
  kBlankLines,
  kTrailingSeparators,
  kNoFinalNewline,
  kEmptyLists,
  kDuplicateCommonRows,
  kConversionsWithoutClick,
  kCount
};

constexpr size_t kReasons = static_cast<size_t>(Reason::kCount);
constexpr size_t kAnomalies = static_cast<size_t>(Anomaly::kCount);

const char* reason_name(Reason reason);
const char* anomaly_name(Anomaly anomaly);

// A place in the log. Within a chunk, line counts from 0 at its first line and byte from its first
// byte; the ordered stage turns both into the file's (lines from 1, bytes from 0).
struct Place {
  uint32_t file = 0;
  uint64_t line = 0;
  uint64_t byte = 0;
};

// How often something was seen, and where first.
struct Tally {
  uint64_t count = 0;
  Place first;
  std::string message;  // of the first, for reasons

  void add(const Place& place) {
    if (count++ == 0) first = place;
  }
  void add(const Tally& later) {
    if (count == 0) {
      first = later.first;
      message = later.message;
    }
    count += later.count;
  }
};

using ReasonTallies = std::array<Tally, kReasons>;
using AnomalyTallies = std::array<Tally, kAnomalies>;

// The first error of a log in file order.
struct Problem {
  Reason reason = Reason::kFile;
  Place place;
  std::string message;  // "<reason>; expected <...>, got <...>"
};

}  // namespace esmm_fast::logs
