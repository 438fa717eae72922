#include "client/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "client/exit_code.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

TEST(ExitCodeTest, IsTenPlusTheStatusCode) {
  EXPECT_EQ(ExitCode(grpc::StatusCode::OK), 0);
  EXPECT_EQ(ExitCode(grpc::StatusCode::CANCELLED), 11);
  EXPECT_EQ(ExitCode(grpc::StatusCode::INVALID_ARGUMENT), 13);
  EXPECT_EQ(ExitCode(grpc::StatusCode::UNAVAILABLE), 24);
  EXPECT_EQ(ExitCode(grpc::StatusCode::UNAUTHENTICATED), 26);
}

TEST(ExitCodeTest, StatusCodesHaveTheirNames) {
  EXPECT_EQ(StatusCodeName(grpc::StatusCode::OK), "OK");
  EXPECT_EQ(StatusCodeName(grpc::StatusCode::DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED");
  EXPECT_EQ(StatusCodeName(grpc::StatusCode::RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
  EXPECT_EQ(StatusCodeName(grpc::StatusCode::UNIMPLEMENTED), "UNIMPLEMENTED");
  EXPECT_EQ(StatusCodeName(grpc::StatusCode::UNAUTHENTICATED), "UNAUTHENTICATED");
  EXPECT_EQ(StatusCodeName(static_cast<grpc::StatusCode>(99)), "UNKNOWN");
}

TEST(ExitCodeTest, HelpListsAllOfThem) {
  const std::string help = RunWith({"--help"}).out;
  for (int number = 1; number <= 16; ++number) {
    const auto code = static_cast<grpc::StatusCode>(number);
    EXPECT_THAT(
        help, HasSubstr(std::to_string(ExitCode(code)) + " " + std::string(StatusCodeName(code))));
  }
}

TEST(CliTest, HelpAndVersionAreNoErrors) {
  EXPECT_EQ(RunWith({"--help"}).exit_code, 0);
  EXPECT_THAT(RunWith({"--help"}).out, AllOf(HasSubstr("generate"), HasSubstr("Exit codes")));
  EXPECT_EQ(RunWith({"generate", "--help"}).exit_code, 0);
  EXPECT_THAT(RunWith({"generate", "--help"}).out, HasSubstr("--max-new-tokens"));
  EXPECT_THAT(RunWith({"--version"}).out, MatchesRegex("ferrite [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(CliTest, WrongUsageExitsWithTwo) {
  EXPECT_EQ(RunWith({}).exit_code, 2);
  EXPECT_EQ(RunWith({"generat", "x"}).exit_code, 2);
  EXPECT_EQ(RunWith({"abort"}).exit_code, 2);
  EXPECT_EQ(RunWith({"detokenize"}).exit_code, 2);
  EXPECT_EQ(RunWith({"info", "--timeout", "-1"}).exit_code, 2);
  EXPECT_THAT(RunWith({"info", "--jason"}).err, StartsWith("ferrite: "));
}

TEST(CliTest, AServerThatIsNotThereIsUnavailable) {
  const ClientResult result = RunWith({"info", "--server", "unix:/nowhere/ferrite.sock"});
  EXPECT_EQ(result.exit_code, 24);
  EXPECT_THAT(result.err, StartsWith("ferrite: UNAVAILABLE: "));
}

TEST(CliTest, TheServerOptionMayComeFirst) {
  FakeServer server;
  EXPECT_EQ(RunWith({"--server", server.address(), "generate", "x"}).exit_code, 0);
  EXPECT_EQ(server.inference.calls, 1);
}

TEST(CliTest, TalksOverAUnixSocket) {
  const std::string address = "unix:" + testing::TempDir() + "/ferrite-cli-test.sock";
  FakeServer server(address);
  EXPECT_EQ(RunWith({"generate", "x", "--server", address}).exit_code, 0);
  EXPECT_EQ(server.inference.calls, 1);
}

TEST(TokenizeTest, PrintsIdsAndTokens) {
  FakeServer server;
  server.inference.tokens.add_token_ids(1);
  server.inference.tokens.add_tokens("<s>");
  server.inference.tokens.add_token_ids(403);
  server.inference.tokens.add_tokens("\xE2\x96\x81\"On\n");
  const ClientResult result = RunWith({"tokenize", "Once", "--server", server.address()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "1\t\"<s>\"\n403\t\"\xE2\x96\x81\\\"On\\n\"\n");
  EXPECT_EQ(server.inference.tokenize_request.text(), "Once");
  EXPECT_FALSE(server.inference.tokenize_request.has_add_special_tokens());
  EXPECT_FALSE(server.inference.tokenize_request.has_model());

  EXPECT_EQ(RunWith({"tokenize", "--ids-only", "--no-special-tokens", "--model", "m", "--server",
                     server.address()},
                    "piped\n", false)
                .out,
            "1,403\n");
  EXPECT_EQ(server.inference.tokenize_request.text(), "piped");
  EXPECT_TRUE(server.inference.tokenize_request.has_add_special_tokens());
  EXPECT_FALSE(server.inference.tokenize_request.add_special_tokens());
  EXPECT_EQ(server.inference.tokenize_request.model(), "m");
}

TEST(DetokenizeTest, PrintsTheText) {
  FakeServer server;
  server.inference.text.set_text("Once upon");
  const ClientResult result =
      RunWith({"detokenize", "1,403", "7", "--server", server.address(), "--model", "m"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "Once upon\n");
  EXPECT_THAT(server.inference.detokenize_request.token_ids(), ElementsAre(1, 403, 7));
  EXPECT_FALSE(server.inference.detokenize_request.has_skip_special_tokens());
  EXPECT_EQ(server.inference.detokenize_request.model(), "m");

  RunWith({"detokenize", "1", "--keep-special-tokens", "--server", server.address()});
  EXPECT_TRUE(server.inference.detokenize_request.has_skip_special_tokens());
  EXPECT_FALSE(server.inference.detokenize_request.skip_special_tokens());

  EXPECT_EQ(RunWith({"detokenize", "one", "--server", server.address()}).exit_code, 2);
}

TEST(AbortTest, NamesTheRequest) {
  FakeServer server;
  EXPECT_EQ(RunWith({"abort", "r1", "--server", server.address()}).exit_code, 0);
  EXPECT_EQ(server.control.aborted, "r1");
  server.control.status = grpc::Status(grpc::StatusCode::NOT_FOUND, "no request r1 in flight");
  const ClientResult result = RunWith({"abort", "r1", "--server", server.address()});
  EXPECT_EQ(result.exit_code, 15);
  EXPECT_EQ(result.err, "ferrite: NOT_FOUND: no request r1 in flight\n");
}

class InfoTest : public testing::Test {
 protected:
  InfoTest() {
    server_.control.server.set_version("1.2.3");
    server_.control.server.set_max_message_bytes(4194304);
    v1::WorkerInfo* worker = server_.control.server.add_workers();
    worker->set_device("cpu");
    worker->set_compute_type("bf16");
    worker->set_kv_blocks(128);
    worker->set_max_step_tokens(512);
    worker->set_mixed_step_tokens(96);
    server_.control.model.set_name("stories260k");
    server_.control.model.set_num_parameters(260032);
    server_.control.model.set_bos_token_id(1);
    server_.control.model.add_eos_token_ids(2);
    server_.control.model.add_eos_token_ids(3);
    server_.control.load.set_draining(true);
    v1::WorkerLoad* load = server_.control.load.add_workers();
    load->set_requests_waiting(5);
    load->set_kv_blocks_free(77);
    load->set_kv_blocks_total(128);
  }

  FakeServer server_;
};

TEST_F(InfoTest, PrintsLinesForPeople) {
  const ClientResult result = RunWith({"info", "--server", server_.address()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part :
       {"ferrite 1.2.3", "draining", "4194304 bytes", "stories260k", "260032 parameters", "BOS 1",
        "end tokens 2, 3", "cpu, bf16", "512 tokens a step (96 beside decodes)", "5 waiting",
        "77 of 128 KV blocks free"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST_F(InfoTest, PrintsJsonWithTheFieldsOfTheContract) {
  const ClientResult result = RunWith({"info", "--json", "--server", server_.address()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json info = nlohmann::json::parse(result.out);
  EXPECT_EQ(info["server"]["version"], "1.2.3");
  EXPECT_EQ(info["server"]["workers"][0]["compute_type"], "bf16");
  EXPECT_EQ(info["model"]["eos_token_ids"], nlohmann::json({2, 3}));
  EXPECT_EQ(info["model"]["num_layers"], 0);  // zeros are said too
  EXPECT_EQ(info["load"]["draining"], true);
  EXPECT_EQ(info["load"]["workers"][0]["kv_blocks_free"], 77);
}

TEST_F(InfoTest, AFailureIsReported) {
  server_.control.status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  const ClientResult result = RunWith({"info", "--server", server_.address()});
  EXPECT_EQ(result.exit_code, 24);
  EXPECT_EQ(result.out, "");
}

}  // namespace
}  // namespace ferrite
