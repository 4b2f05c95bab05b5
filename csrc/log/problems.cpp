// Names of reasons and anomalies, as the manifest and `info` spell them.
#include "log/problems.h"

namespace esmm_fast::logs {

const char* reason_name(Reason reason) {
  constexpr const char* kNames[kReasons] = {"truncated_line",
                                            "bad_sample_id",
                                            "bad_label",
                                            "bad_common_key",
                                            "missing_common_row",
                                            "bad_feature_num",
                                            "feature_num_mismatch",
                                            "unknown_field",
                                            "wrong_separator",
                                            "bad_feature_id",
                                            "bad_value",
                                            "conflicting_common_row",
                                            "bad_column",
                                            "bad_file"};
  return kNames[static_cast<size_t>(reason)];
}

const char* anomaly_name(Anomaly anomaly) {
  constexpr const char* kNames[kAnomalies] = {
      "crlf",        "blank_lines",           "trailing_separators",      "no_final_newline",
      "empty_lists", "duplicate_common_rows", "conversions_without_click"};
  return kNames[static_cast<size_t>(anomaly)];
}

}  // namespace esmm_fast::logs
