#include "client/health.h"

#include <chrono>
#include <limits>
#include <string>
#include <thread>

#include "client/exit_code.h"
#include "client/options.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ferrite {
namespace {

using HealthV1 = grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr std::chrono::milliseconds kPollInterval(100);
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

struct Answer {
  grpc::Status status;
  HealthCheckResponse response;

  bool serving() const { return status.ok() && response.status() == HealthCheckResponse::SERVING; }
};

// Asks once, for at most `seconds`: a server that takes the call and never answers must not hold
// the wait up.
Answer Check(HealthV1::Stub* stub, const std::string& service, double seconds,
             Connection* connection) {
  HealthCheckRequest request;
  request.set_service(service);
  Call call(connection, seconds);
  Answer answer;
  answer.status = stub->Check(call.context(), request, &answer.response);
  return answer;
}

// Asks until the answer is SERVING, the time is over or the user interrupts; the last answer.
Answer WaitForServing(HealthV1::Stub* stub, const HealthOptions& options, Connection* connection) {
  const std::chrono::duration<double> wait(*options.wait_seconds);
  const auto start = std::chrono::steady_clock::now();
  Answer answer = Check(stub, options.service, wait.count(), connection);
  while (!answer.serving() && !connection->interrupted()) {
    const std::chrono::duration<double> left =
        wait - (std::chrono::steady_clock::now() - start) - kPollInterval;
    if (left.count() <= 0) break;
    std::this_thread::sleep_for(kPollInterval);
    answer = Check(stub, options.service, left.count(), connection);
  }
  return answer;
}

}  // namespace

CLI::App* AddHealth(CLI::App* app, HealthOptions* options) {
  CLI::App* command = app->add_subcommand("health", "Ask whether the server is serving");
  command->add_option_function<std::string>(
      "--service", [options](const std::string& given) { options->service = given; },
      "The service to ask about; by default " + options->service +
          ", which says whether it is ready. An empty name says whether it is alive");
  AddSeconds(command, "--wait", &options->wait_seconds,
             "Ask again until it is serving, for at most so many seconds");
  return command;
}

int RunHealth(const HealthOptions& options, const ConnectionOptions& connection_options,
              const Console& console) {
  Connection connection(connection_options);
  const auto stub = HealthV1::NewStub(connection.channel());
  const Answer answer = options.wait_seconds.has_value()
                            ? WaitForServing(stub.get(), options, &connection)
                            : Check(stub.get(), options.service, kNoLimit, &connection);
  if (!answer.status.ok()) return ReportStatus(answer.status, console.err);
  console.out << HealthCheckResponse::ServingStatus_Name(answer.response.status()) << "\n";
  return answer.serving() ? kExitOk : kExitNotServing;
}

}  // namespace ferrite
