#include "client/bench_plot.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>

#include "absl/strings/str_format.h"

namespace ferrite {
namespace {

constexpr double kPanelWidth = 480;
constexpr double kHeight = 360;
constexpr double kLeft = 70;
constexpr double kRight = 20;
constexpr double kTop = 60;
constexpr double kBottom = 50;
constexpr const char* kColors[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd"};

std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      // XML has no other control characters; a model's name is its server's.
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return escaped;
}

std::string Text(double x, double y, const std::string& more, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\"%s>%s</text>\n", x, y, more, Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2, const char* color) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                         x1, y1, x2, y2, color);
}

bool Finite(const PlotPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

// From values to the picture.
class Axes {
 public:
  Axes(double left, const PlotPanel& panel) : left_(left) {
    double most_x = 0;
    double most_y = 0;
    for (const PlotSeries& series : panel.series) {
      for (const PlotPoint& point : series.points) {
        if (!Finite(point)) continue;
        most_x = std::max(most_x, point.x);
        most_y = std::max(most_y, point.y);
      }
    }
    x_ticks_ = Ticks(most_x);
    y_ticks_ = Ticks(most_y);
  }

  double X(double x) const {
    return left_ + kLeft + x / x_ticks_.back() * (kPanelWidth - kLeft - kRight);
  }
  double Y(double y) const {
    return kHeight - kBottom - y / y_ticks_.back() * (kHeight - kTop - kBottom);
  }

  std::string Draw(const std::string& x_label, const std::string& y_label) const {
    std::string svg;
    for (const double tick : x_ticks_) {
      svg += Line(X(tick), Y(0), X(tick), Y(y_ticks_.back()), "#dddddd");
      svg += Text(X(tick), Y(0) + 16, " text-anchor=\"middle\"", absl::StrFormat("%g", tick));
    }
    for (const double tick : y_ticks_) {
      svg += Line(X(0), Y(tick), X(x_ticks_.back()), Y(tick), "#dddddd");
      svg += Text(X(0) - 6, Y(tick) + 4, " text-anchor=\"end\"", absl::StrFormat("%g", tick));
    }
    svg += Line(X(0), Y(0), X(x_ticks_.back()), Y(0), "black");
    svg += Line(X(0), Y(0), X(0), Y(y_ticks_.back()), "black");
    svg += Text((X(0) + X(x_ticks_.back())) / 2, kHeight - 12, " text-anchor=\"middle\"", x_label);
    const double middle = (Y(0) + Y(y_ticks_.back())) / 2;
    svg += Text(left_ + 16, middle,
                absl::StrFormat(" text-anchor=\"middle\" transform=\"rotate(-90 %.1f %.1f)\"",
                                left_ + 16, middle),
                y_label);
    return svg;
  }

 private:
  const double left_;
  std::vector<double> x_ticks_;
  std::vector<double> y_ticks_;
};

std::string DrawSeries(const PlotSeries& series, const Axes& axes, const char* color) {
  std::string line;
  std::string points;
  for (const PlotPoint& point : series.points) {
    if (!Finite(point)) continue;
    const double x = axes.X(point.x);
    const double y = axes.Y(point.y);
    line += absl::StrFormat("%s%.1f,%.1f", line.empty() ? "" : " ", x, y);
    points +=
        absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x, y, color);
    if (!point.label.empty()) points += Text(x + 5, y - 5, " font-size=\"10\"", point.label);
  }
  return absl::StrFormat("<polyline points=\"%s\" fill=\"none\" stroke=\"%s\"/>\n", line, color) +
         points;
}

}  // namespace

std::vector<double> Ticks(double most) {
  if (!(most > 0) || !std::isfinite(most)) return {0, 1};
  constexpr double kAbout = 5;  // ticks
  const double power = std::pow(10, std::floor(std::log10(most / kAbout)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power * kAbout >= most) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> ticks = {0};
  while (ticks.back() < most) ticks.push_back(step * static_cast<double>(ticks.size()));
  return ticks;
}

std::string ToSvg(const Plot& plot) {
  const double width = kPanelWidth * static_cast<double>(plot.panels.size());
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f "
      "%.0f\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      width, kHeight, width, kHeight);
  svg += Text(width / 2, 20, " text-anchor=\"middle\" font-size=\"14\"", plot.title);
  double left = 0;
  for (const PlotPanel& panel : plot.panels) {
    const Axes axes(left, panel);
    svg += axes.Draw(plot.x_label, panel.y_label);
    for (size_t i = 0; i < panel.series.size(); ++i) {
      const char* color = kColors[i % std::size(kColors)];
      svg += DrawSeries(panel.series[i], axes, color);
      svg += Text(left + kLeft + 60 * static_cast<double>(i), 42,
                  absl::StrFormat(" fill=\"%s\"", color), panel.series[i].name);
    }
    left += kPanelWidth;
  }
  return svg + "</svg>\n";
}

}  // namespace ferrite
