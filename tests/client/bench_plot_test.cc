#include "client/bench_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <regex>
#include <string>
#include <vector>

namespace ferrite {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Whether every tag is closed by its own, attributes have quotes, and text has no bare & or <:
// enough of https://www.w3.org/TR/xml/ for what has no comments, declarations or CDATA.
bool IsWellFormed(const std::string& xml) {
  static const std::regex kTag(
      R"(<(/?)([A-Za-z]\w*)((?:\s+[A-Za-z][\w-]*="(?:[^"<&]|&\w+;)*")*)\s*(/?)>)");
  static const std::regex kText(R"((?:[^<>&]|&(?:amp|lt|gt|quot);)*)");
  std::vector<std::string> open;
  auto at = xml.cbegin();
  int roots = 0;
  for (std::smatch tag; std::regex_search(at, xml.cend(), tag, kTag); at = tag[0].second) {
    if (!std::regex_match(std::string(at, tag[0].first), kText)) return false;
    if (tag[1].length() > 0) {
      if (open.empty() || open.back() != tag[2]) return false;
      open.pop_back();
      continue;
    }
    roots += open.empty() ? 1 : 0;
    if (tag[4].length() == 0) open.push_back(tag[2]);
  }
  return open.empty() && roots == 1 && std::string(at, xml.cend()) == "\n";
}

struct Circle {
  double x;
  double y;
};

std::vector<Circle> Circles(const std::string& svg) {
  static const std::regex kCircle(R"(<circle cx="([\d.-]+)\" cy="([\d.-]+)\")");
  std::vector<Circle> circles;
  for (std::sregex_iterator i(svg.begin(), svg.end(), kCircle), end; i != end; ++i) {
    circles.push_back({std::stod((*i)[1]), std::stod((*i)[2])});
  }
  return circles;
}

// Where the picture puts the tick with this text.
double TickAt(const std::string& svg, const std::string& text, const std::string& anchor,
              const std::string& coordinate) {
  const std::regex tick("<text x=\"([\\d.]+)\" y=\"([\\d.]+)\" text-anchor=\"" + anchor + "\">" +
                        text + "</text>");
  std::smatch found;
  if (!std::regex_search(svg, found, tick)) return -1;
  return std::stod(found[coordinate == "x" ? 1 : 2]);
}

Plot Example() {
  return {"a <model> & \"more\"\n",
          "output tokens/s",
          {{"time, ms", {{"p50", {{0, 0, "1"}, {100, 10, "2"}, {50, 5, ""}}}}}}};
}

TEST(PlotTest, TicksAreRoundAndReachTheMost) {
  EXPECT_THAT(Ticks(10), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(Ticks(101), SizeIs(4));  // 0, 50, 100, 150
  EXPECT_THAT(Ticks(0), ElementsAre(0, 1));
  for (double most = 1e-6; most < 1e9; most *= 1.37) {
    const std::vector<double> ticks = Ticks(most);
    EXPECT_GE(ticks.back(), most);
    EXPECT_LT(ticks[ticks.size() - 2], most);
    EXPECT_GE(ticks.size(), 3u) << most;
    EXPECT_LE(ticks.size(), 7u) << most;
  }
}

TEST(PlotTest, IsWellFormedXml) {
  const std::string svg = ToSvg(Example());
  EXPECT_TRUE(IsWellFormed(svg)) << svg;
  EXPECT_THAT(svg, HasSubstr("a &lt;model&gt; &amp; &quot;more&quot;"));
  EXPECT_FALSE(IsWellFormed("<a><b></a></b>\n"));
  EXPECT_FALSE(IsWellFormed("<a>&</a>\n"));
}

TEST(PlotTest, AxesHaveLabelsWithUnits) {
  const std::string svg = ToSvg(Example());
  EXPECT_THAT(svg, HasSubstr(">output tokens/s</text>"));
  EXPECT_THAT(svg, HasSubstr(">time, ms</text>"));
  EXPECT_THAT(svg, HasSubstr(">p50</text>"));
}

TEST(PlotTest, PointsAreWhereTheAxesSay) {
  const std::string svg = ToSvg(Example());
  const std::vector<Circle> circles = Circles(svg);
  ASSERT_THAT(circles, SizeIs(3));
  EXPECT_NEAR(circles[0].x, TickAt(svg, "0", "middle", "x"), 0.11);
  EXPECT_NEAR(circles[0].y, TickAt(svg, "0", "end", "y") - 4, 0.11);  // the text's base line
  EXPECT_NEAR(circles[1].x, TickAt(svg, "100", "middle", "x"), 0.11);
  EXPECT_NEAR(circles[1].y, TickAt(svg, "10", "end", "y") - 4, 0.11);
  EXPECT_NEAR(circles[2].x, (circles[0].x + circles[1].x) / 2, 0.11);
  EXPECT_NEAR(circles[2].y, (circles[0].y + circles[1].y) / 2, 0.11);
  EXPECT_GT(circles[0].y, circles[1].y) << "y goes down in a picture";
}

TEST(PlotTest, WhatIsNotFiniteIsLeftOut) {
  Plot plot = Example();
  plot.panels[0].series[0].points[1].y = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Circles(ToSvg(plot)), SizeIs(2));
  plot.panels[0].series[0].points.clear();
  EXPECT_TRUE(IsWellFormed(ToSvg(plot)));
}

}  // namespace
}  // namespace ferrite
