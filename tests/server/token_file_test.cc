#include "server/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace ferrite {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// FIPS 180-4's examples, from NIST's page of test vectors.
const char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string Line(const std::string& name, const std::string& hash) { return name + ":" + hash; }

std::string Problem(const std::string& text) {
  return std::string(ParseTokenFile("tokens", text).status().message());
}

TEST(TokenFileTest, HashesAreSha256) {
  const auto entries = ParseTokenFile("tokens", Line("abc", kAbc) + "\n" + Line("empty", kEmpty));
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ((*entries)[0].digest, Sha256("abc"));
  EXPECT_EQ((*entries)[1].digest, Sha256(""));
}

TEST(TokenFileTest, ReadsNamesLimitsCommentsAndBlankLines) {
  const auto entries = ParseTokenFile(
      "tokens",
      "# the team\r\n\n  " + Line("a.b-c_9", kAbc) + " \t max_requests=12 \r\n#x\n" +
          Line("other", "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"));
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].name, "a.b-c_9");
  EXPECT_EQ((*entries)[0].max_requests, 12);
  EXPECT_EQ((*entries)[1].max_requests, 0);
  EXPECT_EQ((*entries)[1].digest, Sha256(""));
}

TEST(TokenFileTest, SaysWhatIsWrongAndWhere) {
  EXPECT_THAT(Problem(""), HasSubstr("tokens: holds no token"));
  EXPECT_THAT(Problem("# only this\n"), HasSubstr("holds no token"));
  EXPECT_THAT(Problem("\nsecret\n"), HasSubstr("tokens:2: the line is not like name:sha256"));
  EXPECT_THAT(Problem(Line("a:b", kAbc)), HasSubstr("is not like name:sha256"));
  EXPECT_THAT(Problem(Line("", kAbc)), HasSubstr("has a name that is not 1 to 64"));
  EXPECT_THAT(Problem(Line(std::string(65, 'a'), kAbc)), HasSubstr("has a name that is not"));
  EXPECT_THAT(Problem(Line("\xc3\xa9", kAbc)), HasSubstr("has a name that is not"));
  EXPECT_THAT(Problem(Line("a", std::string(kAbc).substr(1))),
              HasSubstr("of 'a' has no SHA-256 of 64 hexadecimal digits"));
  EXPECT_THAT(Problem(Line("a", "g" + std::string(kAbc).substr(1))), HasSubstr("64 hexadecimal"));
  for (const char* tail : {" max_requests=0", " max_requests=-1", " max_requests=1000001",
                           " max_requests=x", " max=1", " max_requests=1 max_requests=2"}) {
    EXPECT_THAT(Problem(Line("a", kAbc) + tail), HasSubstr("of 'a' has more than")) << tail;
  }
  EXPECT_THAT(Problem(Line("a", kAbc) + "\n" + Line("a", kEmpty)),
              HasSubstr("tokens:2: the line names 'a', and so does line 1"));
  EXPECT_THAT(Problem(Line("a", kAbc) + "\n" + Line("b", kAbc)),
              HasSubstr("tokens:2: the line of 'b' has the hash of line 1"));
}

TEST(TokenFileTest, MessagesHoldNoSecret) {
  // A token that was put where its hash belongs, or alone.
  EXPECT_THAT(Problem("a:hunter2"), Not(HasSubstr("hunter2")));
  EXPECT_THAT(Problem("hunter2"), Not(HasSubstr("hunter2")));
  EXPECT_THAT(Problem(Line("a", kAbc) + "\n" + Line("b", kAbc)), Not(HasSubstr("ba7816bf")));
}

TEST(TokenFileTest, FindsADigestOnlyIfEveryByteIsEqual) {
  const auto entries = ParseTokenFile("tokens", Line("abc", kAbc) + "\n" + Line("empty", kEmpty));
  ASSERT_TRUE(entries.ok());
  EXPECT_EQ(FindDigest(*entries, Sha256("abc")), 0);
  EXPECT_EQ(FindDigest(*entries, Sha256("")), 1);
  EXPECT_EQ(FindDigest(*entries, Sha256("abd")), -1);
  for (size_t i = 0; i < Sha256Digest().size(); ++i) {
    Sha256Digest digest = Sha256("abc");
    digest[i] ^= 1;
    EXPECT_EQ(FindDigest(*entries, digest), -1) << "byte " << i;
  }
}

}  // namespace
}  // namespace ferrite
