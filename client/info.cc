#include "client/info.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/exit_code.h"
#include "client/json.h"
#include "client/options.h"
#include "ferrite/v1/control.grpc.pb.h"

namespace ferrite {
namespace {

struct Info {
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  v1::GetLoadResponse load;
};

grpc::Status Ask(Connection* connection, Info* info) {
  const auto stub = v1::Control::NewStub(connection->channel());
  {
    Call call(connection);
    const grpc::Status status = stub->GetServerInfo(call.context(), {}, &info->server);
    if (!status.ok()) return status;
  }
  {
    Call call(connection);
    const grpc::Status status = stub->GetModelInfo(call.context(), {}, &info->model);
    if (!status.ok()) return status;
  }
  Call call(connection);
  return stub->GetLoad(call.context(), {}, &info->load);
}

nlohmann::ordered_json ToJson(const google::protobuf::Message& message) {
  return nlohmann::ordered_json::parse(ToJsonLine(message), nullptr, /*allow_exceptions=*/false);
}

void PrintWorker(const v1::WorkerInfo& worker, const v1::GetLoadResponse& load, std::ostream& out) {
  out << absl::StrFormat(
      "worker %d   %s, %s, %d sequences, %d tokens a step (%d beside decodes), %d KV blocks of "
      "%d\n",
      worker.index(), worker.device(), worker.compute_type(), worker.max_running(),
      worker.max_step_tokens(), worker.mixed_step_tokens(), worker.kv_blocks(),
      worker.kv_block_size());
  for (const v1::WorkerLoad& now : load.workers()) {
    if (now.index() != worker.index()) continue;
    out << absl::StrFormat(
        "           %d running, %d waiting, %d of %d KV blocks free, %d tokens outstanding\n"
        "           %d steps, %d preemptions\n",
        now.requests_running(), now.requests_waiting(), now.kv_blocks_free(), now.kv_blocks_total(),
        now.tokens_outstanding(), now.steps_total(), now.preemptions_total());
  }
}

void PrintText(const Info& info, std::ostream& out) {
  const v1::GetServerInfoResponse& server = info.server;
  out << absl::StrFormat(
      "server     ferrite %s (%s), up %.1f s, ready after %.2f s%s\n"
      "           messages up to %d bytes\n"
      "           answers %s, fingerprint %s\n",
      server.version(), server.compiler(), server.uptime_seconds(), server.startup_seconds(),
      info.load.draining() ? ", draining" : "", server.max_message_bytes(),
      server.deterministic() ? "deterministic" : "may depend on what else is served",
      server.fingerprint());
  const v1::GetModelInfoResponse& model = info.model;
  out << absl::StrFormat(
      "model      %s (%s), %d parameters\n"
      "           vocabulary %d, context %d, layers %d, hidden %d, heads %d, KV heads %d, head "
      "%d\n",
      model.name(), model.architecture(), model.num_parameters(), model.vocab_size(),
      model.context_length(), model.num_layers(), model.hidden_size(), model.num_heads(),
      model.num_kv_heads(), model.head_dim());
  out << absl::StrFormat(
      "           BOS %s, end tokens %s\n"
      "           defaults: temperature %g, top_k %d, top_p %g, min_p %g\n",
      model.has_bos_token_id() ? absl::StrCat(model.bos_token_id()) : "none",
      model.eos_token_ids().empty() ? "none" : absl::StrJoin(model.eos_token_ids(), ", "),
      model.default_temperature(), model.default_top_k(), model.default_top_p(),
      model.default_min_p());
  for (const v1::WorkerInfo& worker : server.workers()) PrintWorker(worker, info.load, out);
}

}  // namespace

CLI::App* AddInfo(CLI::App* app, InfoOptions* options) {
  CLI::App* command = app->add_subcommand("info", "Describe the server, its model and its load");
  command->add_flag("--json", options->json, "Print one JSON object");
  return command;
}

int RunInfo(const InfoOptions& options, const ConnectionOptions& connection_options,
            const Console& console) {
  Connection connection(connection_options);
  Info info;
  const grpc::Status status = Ask(&connection, &info);
  if (!status.ok()) return ReportStatus(status, console.err);
  if (options.json) {
    const nlohmann::ordered_json all = {{"server", ToJson(info.server)},
                                        {"model", ToJson(info.model)},
                                        {"load", ToJson(info.load)}};
    console.out << all.dump(2) << "\n";
  } else {
    PrintText(info, console.out);
  }
  return kExitOk;
}

}  // namespace ferrite
