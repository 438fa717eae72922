#include "server/tls_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/testing/test_ca.h"

namespace ferrite {
namespace {

using test::PemPair;
using test::ReplaceFile;
using test::TestCa;
using ::testing::HasSubstr;

// openssl pkcs8 -topk8, of a P-256 key, passphrase "secret".
const char kEncryptedKey[] =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAia1d0trA6f7QICCAAw\n"
    "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEMFRnYL1MaaRcjdSDkJTwMEEgZBF\n"
    "Sqr+8pDInMzr8fElGrCqHVR17Gk2rCG1EkQt2JS1MQBEhDiMAkvEvlFLUe1xlqc3\n"
    "9XHwXHFRigAyKfbKEizwLucpBHRxSQxfuEBg4UGQPQ2aQR0VG8blh4LLyUfzO2Xq\n"
    "lQq9jeKgp2mKzIv6Dix+ffNP8d4NQ6Z4PXscpsUed19AuIXwHfAZkEhWnQGlzN4=\n"
    "-----END ENCRYPTED PRIVATE KEY-----\n";

class TlsFilesTest : public ::testing::Test {
 protected:
  TlsFilesTest() {
    const std::string base = absl::StrCat(::testing::TempDir(), "/ferrite-tls-", getpid());
    config_.certificate = base + ".crt";
    config_.key = base + ".key";
    config_.client_ca = base + ".ca";
    Write(pair_.certificate, pair_.key, ca_.pem());
  }
  ~TlsFilesTest() override {
    for (const std::string& path : {config_.certificate, config_.key, config_.client_ca}) {
      std::remove(path.c_str());
    }
  }

  void Write(const std::string& certificate, const std::string& key, const std::string& ca) {
    ReplaceFile(config_.certificate, certificate);
    ReplaceFile(config_.key, key);
    ReplaceFile(config_.client_ca, ca);
  }

  std::string Problem() { return std::string(ReadTlsFiles(config_).status().message()); }

  TestCa ca_{"test ca"};
  const PemPair pair_ = ca_.Issue("server.test", true, -2, 3);
  ServerConfig::Tls config_;
};

TEST_F(TlsFilesTest, ReadsGoodFiles) {
  Write(pair_.certificate + ca_.pem(), pair_.key, ca_.pem() + TestCa("other").pem());
  const auto files = ReadTlsFiles(config_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->certificate, pair_.certificate + ca_.pem());
  EXPECT_EQ(files->subject, "CN=server.test");
  EXPECT_LT(absl::AbsDuration(files->not_before - (absl::Now() - absl::Hours(48))),
            absl::Minutes(2));
  EXPECT_LT(absl::AbsDuration(files->not_after - (absl::Now() + absl::Hours(72))),
            absl::Minutes(2));
}

TEST_F(TlsFilesTest, NamesAFileThatIsMissing) {
  for (const auto& [key, path] :
       {std::pair("tls.certificate", config_.certificate), std::pair("tls.key", config_.key),
        std::pair("tls.client_ca", config_.client_ca)}) {
    Write(pair_.certificate, pair_.key, ca_.pem());
    std::remove(path.c_str());
    EXPECT_EQ(Problem(), absl::StrCat(key, " is '", path,
                                      "', which cannot be opened: No such file or directory"));
  }
}

TEST_F(TlsFilesTest, NamesAFileThatHoldsSomethingElse) {
  Write("hello\n", pair_.key, ca_.pem());
  EXPECT_EQ(Problem(), absl::StrCat("tls.certificate is '", config_.certificate,
                                    "', which holds no PEM certificate"));
  Write(pair_.certificate, pair_.certificate, ca_.pem());
  EXPECT_THAT(Problem(), HasSubstr("tls.key is '" + config_.key));
  EXPECT_THAT(Problem(), HasSubstr("holds no PEM private key"));
  Write(pair_.certificate, pair_.key, "");
  EXPECT_THAT(Problem(), HasSubstr("tls.client_ca is '" + config_.client_ca));
  std::string cut = pair_.certificate;
  cut.resize(cut.size() / 2);
  Write(pair_.certificate + cut, pair_.key, ca_.pem());
  EXPECT_THAT(Problem(), HasSubstr("which cannot be parsed at certificate 2"));
}

TEST_F(TlsFilesTest, NamesAKeyOfAnotherCertificate) {
  Write(pair_.certificate, ca_.Issue("server.test").key, ca_.pem());
  EXPECT_EQ(Problem(), absl::StrCat("tls.key is '", config_.key,
                                    "', which is not the key of the first certificate in "
                                    "tls.certificate '",
                                    config_.certificate, "'"));
}

TEST_F(TlsFilesTest, NamesAKeyWithAPassphrase) {
  Write(pair_.certificate, kEncryptedKey, ca_.pem());
  EXPECT_EQ(Problem(), absl::StrCat("tls.key is '", config_.key,
                                    "', which has a passphrase; it must have none"));
}

}  // namespace
}  // namespace ferrite
