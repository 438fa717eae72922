// Certificates made on the spot, for tests of TLS.
#pragma once

#include <memory>
#include <string>

struct x509_st;
struct evp_pkey_st;

namespace ferrite::test {

struct PemPair {
  std::string certificate;
  std::string key;
};

// A certificate authority with an EC P-256 key of its own.
class TestCa {
 public:
  explicit TestCa(const std::string& name);

  const std::string& pem() const { return pem_; }

  // A certificate for `name` (its subject and a DNS name), and for localhost and 127.0.0.1 too if
  // `for_loopback`. Valid from `from_days` to `to_days` from now.
  PemPair Issue(const std::string& name, bool for_loopback = true, int from_days = -1,
                int to_days = 1);

 private:
  std::shared_ptr<evp_pkey_st> key_;
  std::shared_ptr<x509_st> certificate_;
  std::string pem_;
  long serial_ = 1;
};

// `text` into a file, at once: a reader sees the old file or all of the new one.
void ReplaceFile(const std::string& path, const std::string& text);

}  // namespace ferrite::test
