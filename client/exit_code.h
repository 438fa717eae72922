// What the client's exit codes say, for scripts.
#pragma once

#include <grpcpp/support/status.h>

#include <ostream>
#include <string>
#include <string_view>

namespace ferrite {

inline constexpr int kExitOk = 0;
inline constexpr int kExitNotServing = 1;  // `health` had an answer, and it was not SERVING
inline constexpr int kExitUsage = 2;

// 0 for OK; else 10 plus the status code's number, so DEADLINE_EXCEEDED (4) is 14.
int ExitCode(grpc::StatusCode code);

// "INVALID_ARGUMENT".
std::string_view StatusCodeName(grpc::StatusCode code);

// Writes `ferrite: CODE: message` unless `status` is OK. Returns its exit code.
int ReportStatus(const grpc::Status& status, std::ostream& err);

// Writes `ferrite: message`. Returns kExitUsage.
int ReportUsage(const std::string& message, std::ostream& err);

}  // namespace ferrite
