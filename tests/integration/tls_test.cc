// TLS and mTLS, certificates that change under load, and the client's options for both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/harness.h"
#include "tests/integration/process.h"
#include "tests/integration/security_clients.h"

namespace ferrite {
namespace {

using test::CallByPath;
using test::Connect;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::PemPair;
using test::Process;
using test::ReplaceFile;
using test::TestCa;
using test::Tls;
using ::testing::HasSubstr;

const char kServer[] = FERRITE_SERVER_BINARY;
const char kClient[] = FERRITE_CLIENT_BINARY;
const char kModel[] = "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k";
const char kGetLoad[] = "/ferrite.v1.Control/GetLoad";

// A folder with the files of a server and of a client.
class TlsTest : public ::testing::Test {
 protected:
  TlsTest() {
    const std::string base = absl::StrCat(::testing::TempDir(), "/ferrite-tls-", getpid(), "-");
    config_ = Harness::DefaultConfig();
    config_.tls.certificate = base + "server.crt";
    config_.tls.key = base + "server.key";
    config_.tls.reload_seconds = 0.02;
    client_ca_file_ = base + "client-ca.crt";
    ca_file_ = base + "ca.crt";
    cert_file_ = base + "client.crt";
    key_file_ = base + "client.key";
    Install(ca_.Issue("server.test"));
    ReplaceFile(client_ca_file_, client_ca_.pem());
    ReplaceFile(ca_file_, ca_.pem());
    ReplaceFile(cert_file_, client_.certificate);
    ReplaceFile(key_file_, client_.key);
  }

  void Install(const PemPair& pair) {
    ReplaceFile(config_.tls.certificate, pair.certificate);
    ReplaceFile(config_.tls.key, pair.key);
  }

  void WantClientCertificates(const std::string& mode) {
    config_.tls.client_ca = client_ca_file_;
    config_.tls.client_certificates = mode;
  }

  // How a call over a connection of its own ends.
  static grpc::StatusCode Try(const Harness& harness,
                              const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    return CallByPath(Connect(harness.address(), credentials), kGetLoad, "", "").error_code();
  }

  // Whether such a call ends so within 10 s.
  static bool Becomes(grpc::StatusCode code, const Harness& harness,
                      const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    for (int i = 0; i < 500; ++i) {
      if (Try(harness, credentials) == code) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

  static constexpr grpc::StatusCode kOk = grpc::StatusCode::OK;
  static constexpr grpc::StatusCode kUnavailable = grpc::StatusCode::UNAVAILABLE;

  TestCa ca_{"server ca"};
  TestCa client_ca_{"client ca"};
  const PemPair client_ = client_ca_.Issue("client.test");
  ServerConfig config_;
  std::string client_ca_file_, ca_file_, cert_file_, key_file_;
};

TEST_F(TlsTest, ServesClientsThatTrustItsCa) {
  const auto harness = Harness::Fake({}, config_);
  ASSERT_NE(harness, nullptr);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem())), kOk);
  EXPECT_EQ(Try(*harness, Tls(TestCa("another").pem())), kUnavailable);
  EXPECT_EQ(Try(*harness, nullptr), kUnavailable) << "plain text";
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), client_)), kOk) << "a certificate nobody asked for";
}

TEST_F(TlsTest, ClientsRefuseAnExpiredCertificateAndAnotherName) {
  Install(ca_.Issue("server.test", true, -10, -1));
  const auto expired = Harness::Fake({}, config_);
  ASSERT_NE(expired, nullptr);
  EXPECT_EQ(Try(*expired, Tls(ca_.pem())), kUnavailable);
  Install(ca_.Issue("server.test"));
  EXPECT_TRUE(Becomes(kOk, *expired, Tls(ca_.pem()))) << "renewed without a restart";
  Install(ca_.Issue("server.test", false));
  EXPECT_TRUE(Becomes(kUnavailable, *expired, Tls(ca_.pem()))) << "not for this address";
}

TEST_F(TlsTest, RequiredClientCertificatesAreRequired) {
  WantClientCertificates("required");
  const auto harness = Harness::Fake({}, config_);
  ASSERT_NE(harness, nullptr);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), client_)), kOk);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem())), kUnavailable) << "none";
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), TestCa("client ca").Issue("client.test"))), kUnavailable)
      << "of another CA of the same name";
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), client_ca_.Issue("client.test", true, -10, -1))),
            kUnavailable)
      << "expired";
}

TEST_F(TlsTest, OptionalClientCertificatesMustBeGoodIfShown) {
  WantClientCertificates("optional");
  const auto harness = Harness::Fake({}, config_);
  ASSERT_NE(harness, nullptr);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), client_)), kOk);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem())), kOk);
  EXPECT_EQ(Try(*harness, Tls(ca_.pem(), TestCa("x").Issue("client.test"))), kUnavailable);
}

TEST_F(TlsTest, CertificatesChangeUnderLoadWithoutDroppingAStream) {
  WantClientCertificates("required");
  FakeBackendOptions slow;
  slow.step_time = std::chrono::milliseconds(20);
  const auto harness = Harness::Fake(slow, config_);
  ASSERT_NE(harness, nullptr);
  const auto old_credentials = Tls(ca_.pem(), client_);
  const auto channel = Connect(harness->address(), old_credentials);
  const auto stub = v1::Inference::NewStub(channel);
  std::vector<std::thread> streams;
  std::atomic<int> running{0}, whole{0};
  for (int i = 0; i < 4; ++i) {
    streams.emplace_back([&] {
      grpc::ClientContext context;
      v1::GenerateRequest request = Greedy("Hi", 40);
      request.mutable_stopping()->set_ignore_eos(true);
      const auto reader = stub->GenerateStream(&context, request);
      v1::GenerateStreamResponse message;
      int tokens = 0;
      bool counted = false;
      while (reader->Read(&message)) {
        if (!std::exchange(counted, true)) ++running;
        for (const auto& choice : message.delta().choices()) tokens += choice.token_ids_size();
        for (const auto& choice : message.finished().choices()) tokens += choice.token_ids_size();
      }
      const grpc::Status status = reader->Finish();
      EXPECT_TRUE(status.ok()) << status.error_message();
      if (status.ok() && tokens == 40) ++whole;
    });
  }
  while (running < 4) std::this_thread::sleep_for(std::chrono::milliseconds(1));

  TestCa new_ca("new server ca"), new_client_ca("new client ca");
  const auto new_credentials = Tls(new_ca.pem(), new_client_ca.Issue("client.test"));
  Install(new_ca.Issue("server.test"));
  ReplaceFile(client_ca_file_, new_client_ca.pem());
  EXPECT_TRUE(Becomes(kOk, *harness, new_credentials));
  EXPECT_EQ(Try(*harness, old_credentials), kUnavailable) << "new connections see the new ones";
  EXPECT_EQ(CallByPath(channel, kGetLoad, "", "").error_code(), kOk) << "old ones go on";
  for (std::thread& stream : streams) stream.join();
  EXPECT_EQ(whole, 4);
}

TEST_F(TlsTest, WrongFilesLeaveTheOldOnesInUse) {
  const auto harness = Harness::Fake({}, config_);
  ASSERT_NE(harness, nullptr);
  const auto stays_ok = [&] {
    for (int i = 0; i < 10; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(Try(*harness, Tls(ca_.pem())), kOk);
    }
  };
  ReplaceFile(config_.tls.key, ca_.Issue("server.test").key);  // not this certificate's
  stays_ok();
  unlink(config_.tls.certificate.c_str());
  stays_ok();
  TestCa other("other");
  Install(other.Issue("server.test"));
  EXPECT_TRUE(Becomes(kOk, *harness, Tls(other.pem())));
}

TEST_F(TlsTest, AWrongFileEndsTheStart) {
  ReplaceFile(config_.tls.key, client_.key);
  Process server({kServer, kModel, "--server.listen=127.0.0.1:0",
                  "--tls.certificate=" + config_.tls.certificate, "--tls.key=" + config_.tls.key});
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.err(), HasSubstr("start_failed"));
  EXPECT_THAT(server.err(), HasSubstr("tls.key is '" + config_.tls.key));
  EXPECT_THAT(server.err(), HasSubstr("is not the key of the first certificate"));
}

TEST_F(TlsTest, TheLogSaysWhatBecameOfTheFiles) {
  Install(ca_.Issue("server.test", true, -10, -1));
  Process server({kServer, kModel, "--server.listen=127.0.0.1:0", "--tls.reload_seconds=0.02",
                  "--tls.certificate=" + config_.tls.certificate, "--tls.key=" + config_.tls.key});
  server.AwaitPort();
  EXPECT_THAT(server.err(), HasSubstr("WARNING tls_loaded"));
  EXPECT_THAT(server.err(), HasSubstr("valid_now=false"));
  ReplaceFile(config_.tls.key, "hello");
  EXPECT_TRUE(server.Logs("ERROR tls_refused")) << server.err();
  EXPECT_TRUE(server.Logs("holds no PEM private key")) << server.err();
  Install(ca_.Issue("renewed.test"));
  EXPECT_TRUE(server.Logs("INFO tls_loaded")) << server.err();
  EXPECT_TRUE(server.Logs("CN=renewed.test")) << server.err();
}

// The client program's exit code.
int RunFerrite(const std::vector<std::string>& arguments, std::string* out = nullptr) {
  std::vector<std::string> all = {kClient};
  all.insert(all.end(), arguments.begin(), arguments.end());
  Process client(all);
  const int exit_code = client.Wait();
  if (out != nullptr) *out = client.out() + client.err();
  return exit_code;
}

TEST_F(TlsTest, TheClientProgramSpeaksTlsAndSendsATokenItMade) {
  std::string made;
  ASSERT_EQ(RunFerrite({"token", "--name", "ci", "--max-requests", "2"}, &made), 0);
  std::string token, line;
  std::istringstream lines(made);
  ASSERT_TRUE(std::getline(lines, token) && std::getline(lines, line)) << made;
  const std::string tokens_file = config_.tls.key + ".tokens", token_file = config_.tls.key + ".t";
  ReplaceFile(tokens_file, line + "\n");
  ReplaceFile(token_file, token + "\n");
  Process server({kServer, kModel, "--server.listen=127.0.0.1:0",
                  "--tls.certificate=" + config_.tls.certificate, "--tls.key=" + config_.tls.key,
                  "--tls.client_ca=" + client_ca_file_, "--tls.client_certificates=required",
                  "--auth.token_file=" + tokens_file});
  const std::string address = "localhost:" + server.AwaitPort();

  const std::vector<std::string> info = {"info", "--timeout", "10", "--server", address};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), info.begin(), info.end());
    return more;
  };
  const std::vector<std::string> good = {"--tls", "--ca",    ca_file_,       "--cert",  cert_file_,
                                         "--key", key_file_, "--token-file", token_file};
  std::string out;
  EXPECT_EQ(RunFerrite(with(good), &out), 0) << out;
  auto named = good;
  named.insert(named.end(), {"--server-name", "server.test"});
  EXPECT_EQ(RunFerrite(with(named), &out), 0) << out;
  named.back() = "elsewhere.test";
  EXPECT_EQ(RunFerrite(with(named), &out), 24) << out;
  const std::vector<std::string> no_token(good.begin(), good.end() - 2);
  EXPECT_EQ(RunFerrite(with(no_token), &out), 26) << out;
  EXPECT_THAT(out, HasSubstr("UNAUTHENTICATED: the authorization header is missing"));
  setenv("FERRITE_TOKEN", token.c_str(), 1);
  EXPECT_EQ(RunFerrite(with(no_token), &out), 0) << out;
  setenv("FERRITE_TOKEN", "another", 1);
  EXPECT_EQ(RunFerrite(with(no_token), &out), 26) << out;
  EXPECT_EQ(RunFerrite(with(good), &out), 0) << "the file counts before the environment: " << out;
  unsetenv("FERRITE_TOKEN");
  EXPECT_EQ(RunFerrite(with({"--tls", "--ca", ca_file_, "--token-file", token_file}), &out), 24)
      << "no client certificate: " << out;
  EXPECT_EQ(RunFerrite(with({"--tls", "--token-file", token_file}), &out), 24)
      << "the system's CAs did not sign it: " << out;
  EXPECT_EQ(RunFerrite(with({"--token-file", token_file}), &out), 24) << "plain text: " << out;
}

}  // namespace
}  // namespace ferrite
