#include "server/text_page.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A connection to a port of the loopback.
class Connection {
 public:
  explicit Connection(int port) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Sends this, and reads until the other side ends.
  std::string Ask(const std::string& text) const {
    EXPECT_EQ(write(socket_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    std::string answer;
    char buffer[4096];
    for (ssize_t n = 0; (n = read(socket_, buffer, sizeof(buffer))) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
    return answer;
  }

 private:
  const int socket_;
};

std::unique_ptr<TextPage> Counting(std::atomic<int>* calls, std::string address = "127.0.0.1:0") {
  auto page = TextPage::Serve(address, "/page", "text/plain; charset=utf-8",
                              [calls] { return absl::StrCat("call ", ++*calls, "\n"); });
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? *std::move(page) : nullptr;
}

TEST(TextPageTest, MakesTheTextWhenItIsAskedFor) {
  std::atomic<int> calls = 0;
  const auto page = Counting(&calls);
  ASSERT_NE(page, nullptr);
  for (int i = 1; i <= 20; ++i) {
    const std::string answer =
        Connection(page->port()).Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK"));
    EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; charset=utf-8"));
    EXPECT_THAT(answer, EndsWith(absl::StrCat("call ", i, "\n")));
  }
}

TEST(TextPageTest, HasNothingElse) {
  std::atomic<int> calls = 0;
  const auto page = Counting(&calls);
  ASSERT_NE(page, nullptr);
  for (const char* request : {"GET / HTTP/1.0\r\n\r\n", "GET /pages HTTP/1.0\r\n\r\n",
                              "DELETE /page HTTP/1.0\r\n\r\n", "nonsense\r\n\r\n"}) {
    EXPECT_THAT(Connection(page->port()).Ask(request), StartsWith("HTTP/1.1 4")) << request;
  }
  EXPECT_EQ(calls, 0);
}

TEST(TextPageTest, ClientsThatSendNothingDoNotStopIt) {
  std::atomic<int> calls = 0;
  auto page = Counting(&calls);
  ASSERT_NE(page, nullptr);
  std::vector<std::unique_ptr<Connection>> silent;
  for (int i = 0; i < 10; ++i) silent.push_back(std::make_unique<Connection>(page->port()));
  EXPECT_THAT(Connection(page->port()).Ask("GET /page HTTP/1.0\r\n\r\n"), HasSubstr("200 OK"));
  page.reset();  // with some of them still there
}

TEST(TextPageTest, TakesAnAddressOnce) {
  std::atomic<int> calls = 0;
  auto page = Counting(&calls);
  ASSERT_NE(page, nullptr);
  const std::string address = absl::StrCat("127.0.0.1:", page->port());
  const auto second = TextPage::Serve(address, "/", "text/plain", [] { return ""; });
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << second.status();
  page.reset();
  EXPECT_NE(Counting(&calls, address), nullptr) << "free again";
}

TEST(TextPageTest, SaysWhatIsNoAddress) {
  for (const char* address : {"", "9400", "localhost", ":9400", "127.0.0.1:", "127.0.0.1:65536",
                              "127.0.0.1:-1", "127.0.0.1:x", "::1:9400", "[]:9400"}) {
    const auto page = TextPage::Serve(address, "/", "text/plain", [] { return ""; });
    EXPECT_EQ(page.status().code(), absl::StatusCode::kInvalidArgument) << address;
  }
  const auto elsewhere = TextPage::Serve("192.0.2.1:0", "/", "text/plain", [] { return ""; });
  EXPECT_EQ(elsewhere.status().code(), absl::StatusCode::kUnavailable) << elsewhere.status();
}

}  // namespace
}  // namespace ferrite
