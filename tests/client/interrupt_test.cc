#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/client/client_process.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

TEST(InterruptTest, ControlCCancelsTheCall) {
  FakeServer server;
  server.inference.deltas = {"Once upon"};
  server.inference.wait_for_cancel = true;
  ClientProcess client(FERRITE_CLIENT, {"generate", "x", "--server", server.address()});
  EXPECT_EQ(client.ReadSome(), "Once upon");  // so the stream is open
  client.Interrupt();
  EXPECT_EQ(client.ReadSome(), "\n");
  EXPECT_EQ(client.Wait(), 11);
  for (int i = 0; i < 1000 && !server.inference.saw_cancel; ++i) usleep(5000);
  EXPECT_TRUE(server.inference.saw_cancel);
}

TEST(InterruptTest, ControlCEndsTheWaitForHealth) {
  FakeServer server;
  server.SetServing("ferrite.v1.Inference", false);
  ClientProcess client(FERRITE_CLIENT, {"health", "--wait", "60", "--server", server.address()});
  usleep(500'000);  // into the wait; before it, the signal's default would end the process
  client.Interrupt();
  EXPECT_EQ(client.Wait(), 11);
}

TEST(InterruptTest, ControlCPrintsWhatTheBenchmarkMeasuredSoFar) {
  FakeServer server;
  server.control.model.set_vocab_size(100);
  server.control.model.set_context_length(64);
  server.inference.deltas = {"a", "b"};
  server.inference.delta_ids = {{1}, {2, 3}};
  server.inference.wait_for_cancel = true;
  ClientProcess client(FERRITE_CLIENT, {"bench", "--json", "--concurrency", "3", "--prompt-tokens",
                                        "4", "--output-tokens", "8", "--server", server.address()});
  for (int i = 0; i < 4000 && server.inference.waiting < 3; ++i) usleep(5000);
  client.Interrupt();
  const nlohmann::json report = nlohmann::json::parse(client.ReadAll(), nullptr, false);
  EXPECT_EQ(client.Wait(), 11);
  ASSERT_TRUE(report.is_object()) << report;
  EXPECT_EQ(report["interrupted"], true);
  EXPECT_EQ(report["requests"]["completed"], 0);
  EXPECT_EQ(report["requests"]["failed"], 0);
  EXPECT_EQ(report["requests"]["cut_short"], 3);
  EXPECT_LE(report["output_tokens"], 9);  // those that had come
  EXPECT_EQ(report["end_to_end_ms"]["count"], 0);
  EXPECT_TRUE(report["end_to_end_ms"]["p50"].is_null());
}

}  // namespace
}  // namespace ferrite
