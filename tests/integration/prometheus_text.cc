#include "tests/integration/prometheus_text.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <optional>
#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/status_macros.h"

namespace ferrite::test {
namespace {

const char kName[] = "[a-zA-Z_:][a-zA-Z0-9_:]*";

absl::Status Wrong(size_t line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

std::optional<double> ParseValue(const std::string& text) {
  static const std::regex kNumber("[+-]?([0-9]+(\\.[0-9]*)?([eE][+-]?[0-9]+)?|Inf)|Na[Nn]");
  if (!std::regex_match(text, kNumber)) {
    return std::nullopt;
  }
  return std::strtod(text.c_str(), nullptr);
}

// The suffix of `name` in a family of this type, or nothing.
std::optional<std::string> SuffixIn(const std::string& family, const std::string& type,
                                    const std::string& name) {
  if (!absl::StartsWith(name, family)) {
    return std::nullopt;
  }
  const std::string suffix = name.substr(family.size());
  const bool composite = type == "histogram" || type == "summary";
  if (composite && (suffix == "_sum" || suffix == "_count")) {
    return suffix;
  }
  if (type == "histogram") {
    return suffix == "_bucket" ? std::optional(suffix) : std::nullopt;
  }
  return suffix.empty() ? std::optional(suffix) : std::nullopt;
}

class Parser {
 public:
  absl::StatusOr<TextMetrics> Parse(const std::string& text) {
    if (!absl::EndsWith(text, "\n")) {
      return absl::InvalidArgumentError("the last line has no end");
    }
    const std::vector<std::string> lines = absl::StrSplit(text, '\n');
    for (size_t i = 0; i + 1 < lines.size(); ++i) {
      RETURN_IF_ERROR(Line(i + 1, lines[i]));
    }
    for (const auto& [name, family] : metrics_) {
      if (family.type == "histogram") {
        RETURN_IF_ERROR(CheckHistogram(name, family));
      }
    }
    return metrics_;
  }

 private:
  absl::Status Line(size_t number, const std::string& line) {
    static const std::regex kHelp(absl::StrCat("# HELP (", kName, ") (([^\\\\]|\\\\[\\\\n])*)"));
    static const std::regex kType(
        absl::StrCat("# TYPE (", kName, ") (counter|gauge|histogram|summary)"));
    static const std::regex kSample(
        absl::StrCat("(", kName, ")(\\{([^{}]*)\\})? ([^ ]+)"));  // no timestamps
    std::smatch match;
    if (std::regex_match(line, match, kHelp)) {
      if (metrics_.contains(match[1])) {
        return Wrong(number, absl::StrCat(match[1].str(), " comes twice"));
      }
      family_ = match[1];
      metrics_[family_].help = match[2];
      return absl::OkStatus();
    }
    if (std::regex_match(line, match, kType)) {
      TextFamily& family = metrics_[family_];
      if (match[1] != family_ || !family.type.empty() || !family.samples.empty()) {
        return Wrong(number, "a TYPE that does not follow its HELP");
      }
      family.type = match[2];
      return absl::OkStatus();
    }
    if (!std::regex_match(line, match, kSample)) {
      return Wrong(number, absl::StrCat("neither HELP, TYPE nor a sample: ", line));
    }
    return Sample(number, match[1], match[3], match[4]);
  }

  absl::Status Sample(size_t number, const std::string& name, const std::string& labels,
                      const std::string& text) {
    TextFamily& family = metrics_[family_];
    const std::optional<std::string> suffix = SuffixIn(family_, family.type, name);
    if (family.type.empty() || !suffix.has_value()) {
      return Wrong(number, absl::StrCat(name, " does not belong to ", family_));
    }
    static const std::string kLabel = "[a-zA-Z_][a-zA-Z0-9_]*=\"([^\"\\\\]|\\\\[\\\\n\"])*\"";
    static const std::regex kLabels(absl::StrCat("(", kLabel, "(,", kLabel, ")*)?"));
    if (!std::regex_match(labels, kLabels)) {
      return Wrong(number, absl::StrCat("labels: ", labels));
    }
    const std::optional<double> value = ParseValue(text);
    if (!value.has_value()) {
      return Wrong(number, absl::StrCat("no number: ", text));
    }
    if (!family.samples[*suffix].emplace(labels, *value).second) {
      return Wrong(number, "a series that comes twice");
    }
    return absl::OkStatus();
  }

  static absl::Status CheckHistogram(const std::string& name, const TextFamily& family) {
    struct Series {
      std::map<double, double> buckets;  // by upper bound
    };
    std::map<std::string, Series> all;
    for (const auto& [labels, value] : family.samples.at("_bucket")) {
      const size_t le = labels.rfind("le=\"");
      if (le == std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat(name, " has a bucket without le"));
      }
      const std::string bound = labels.substr(le + 4, labels.size() - le - 5);
      const std::string rest = labels.substr(0, le == 0 ? 0 : le - 1);
      all[rest].buckets[std::strtod(bound.c_str(), nullptr)] = value;
    }
    for (const auto& [labels, series] : all) {
      double before = 0;
      for (const auto& [bound, count] : series.buckets) {
        if (count < before) {
          return absl::InvalidArgumentError(absl::StrCat(name, "{", labels, "} falls at ", bound));
        }
        before = count;
      }
      const auto& counts = family.samples.at("_count");
      const bool to_infinity = std::isinf(series.buckets.rbegin()->first);
      if (!to_infinity || !counts.contains(labels) || counts.at(labels) != before ||
          !family.samples.at("_sum").contains(labels)) {
        return absl::InvalidArgumentError(absl::StrCat(name, "{", labels, "} does not add up"));
      }
    }
    return absl::OkStatus();
  }

  TextMetrics metrics_;
  std::string family_;
};

}  // namespace

absl::StatusOr<TextMetrics> ParseMetrics(const std::string& text) { return Parser().Parse(text); }

std::map<std::string, std::string> ParseLabels(const std::string& labels) {
  static const std::regex kLabel("([a-zA-Z_][a-zA-Z0-9_]*)=\"(([^\"\\\\]|\\\\.)*)\"");
  std::map<std::string, std::string> parsed;
  for (std::sregex_iterator it(labels.begin(), labels.end(), kLabel), end; it != end; ++it) {
    parsed[(*it)[1]] = (*it)[2];
  }
  return parsed;
}

absl::StatusOr<std::string> HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    close(fd);
    return absl::UnavailableError(absl::StrCat("nobody listens on port ", port));
  }
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: localhost\r\n\r\n");
  (void)!write(fd, request.data(), request.size());
  std::string answer;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(fd, buffer, sizeof(buffer))) > 0;) {
    answer.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  const size_t end = answer.find("\r\n\r\n");
  if (end == std::string::npos) {
    return absl::UnavailableError(absl::StrCat("no HTTP: ", answer));
  }
  const std::string head = answer.substr(0, end);
  if (head.find(" 200 OK") == std::string::npos) {
    return absl::NotFoundError(head);
  }
  if (head.find("Content-Type: text/plain") == std::string::npos) {
    return absl::UnknownError(head);
  }
  return answer.substr(end + 4);
}

}  // namespace ferrite::test
