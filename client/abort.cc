#include "client/abort.h"

#include "client/exit_code.h"
#include "client/options.h"
#include "ferrite/v1/control.grpc.pb.h"

namespace ferrite {

CLI::App* AddAbort(CLI::App* app, AbortOptions* options) {
  CLI::App* command = app->add_subcommand("abort", "End a request in flight");
  command->add_option("REQUEST_ID", options->request_id, "The id that it was given")->required();
  return command;
}

int RunAbort(const AbortOptions& options, const ConnectionOptions& connection_options,
             const Console& console) {
  v1::AbortRequest request;
  request.set_request_id(options.request_id);
  Connection connection(connection_options);
  Call call(&connection);
  v1::AbortResponse response;
  return ReportStatus(
      v1::Control::NewStub(connection.channel())->Abort(call.context(), request, &response),
      console.err);
}

}  // namespace ferrite
