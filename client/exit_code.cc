#include "client/exit_code.h"

#include <iterator>

namespace ferrite {

int ExitCode(grpc::StatusCode code) {
  return code == grpc::StatusCode::OK ? kExitOk : 10 + static_cast<int>(code);
}

std::string_view StatusCodeName(grpc::StatusCode code) {
  static constexpr std::string_view kNames[] = {"OK",
                                                "CANCELLED",
                                                "UNKNOWN",
                                                "INVALID_ARGUMENT",
                                                "DEADLINE_EXCEEDED",
                                                "NOT_FOUND",
                                                "ALREADY_EXISTS",
                                                "PERMISSION_DENIED",
                                                "RESOURCE_EXHAUSTED",
                                                "FAILED_PRECONDITION",
                                                "ABORTED",
                                                "OUT_OF_RANGE",
                                                "UNIMPLEMENTED",
                                                "INTERNAL",
                                                "UNAVAILABLE",
                                                "DATA_LOSS",
                                                "UNAUTHENTICATED"};
  const auto number = static_cast<size_t>(code);
  return number < std::size(kNames) ? kNames[number] : "UNKNOWN";
}

int ReportStatus(const grpc::Status& status, std::ostream& err) {
  if (!status.ok()) {
    err << "ferrite: " << StatusCodeName(status.error_code()) << ": " << status.error_message()
        << "\n";
  }
  return ExitCode(status.error_code());
}

int ReportUsage(const std::string& message, std::ostream& err) {
  err << "ferrite: " << message << "\n";
  return kExitUsage;
}

}  // namespace ferrite
