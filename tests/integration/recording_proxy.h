// What a server sends to its client, byte for byte.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/mutex.h"

namespace ferrite::test {

// Stands between one connection of a client and a server of the loopback.
class RecordingProxy {
 public:
  explicit RecordingProxy(int server_port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    socklen_t size = sizeof(address);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
    address.sin_port = htons(static_cast<uint16_t>(server_port));
    server_ = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_EQ(connect(server_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    pump_ = std::thread([this] { Pump(); });
  }
  ~RecordingProxy() {
    shutdown(server_, SHUT_RDWR);
    shutdown(listener_, SHUT_RDWR);
    pump_.join();
    close(server_);
    close(listener_);
  }

  const std::string& address() const { return address_; }
  // What the server has sent so far.
  std::string sent() {
    MutexLock lock(&mutex_);
    return sent_;
  }

 private:
  void Pump() {
    const int client = accept(listener_, nullptr, nullptr);
    std::array<pollfd, 2> ends = {pollfd{client, POLLIN, 0}, pollfd{server_, POLLIN, 0}};
    std::array<char, 65536> buffer;
    while (client >= 0 && poll(ends.data(), ends.size(), -1) > 0) {
      for (size_t from = 0; from < ends.size(); ++from) {
        if (ends[from].revents == 0) continue;
        const ssize_t got = read(ends[from].fd, buffer.data(), buffer.size());
        if (got <= 0) {
          close(client);
          return;
        }
        if (from == 1) {
          MutexLock lock(&mutex_);
          sent_.append(buffer.data(), static_cast<size_t>(got));
        }
        for (ssize_t done = 0; done < got;) {
          const ssize_t put = send(ends[1 - from].fd, buffer.data() + done,
                                   static_cast<size_t>(got - done), MSG_NOSIGNAL);
          if (put <= 0) break;
          done += put;
        }
      }
    }
  }

  int listener_ = -1, server_ = -1;
  std::string address_;
  Mutex mutex_;
  std::string sent_ ABSL_GUARDED_BY(mutex_);
  std::thread pump_;
};

}  // namespace ferrite::test
