// A sweep as a picture.
#pragma once

#include <string>
#include <vector>

namespace ferrite {

struct PlotPoint {
  double x = 0;
  double y = 0;
  std::string label;  // may be empty
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;  // joined in this order
};

struct PlotPanel {
  std::string y_label;  // with its unit
  std::vector<PlotSeries> series;
};

struct Plot {
  std::string title;
  std::string x_label;  // of every panel, with its unit
  std::vector<PlotPanel> panels;
};

// The ticks of an axis from 0 to `most`: 1, 2 or 5 times a power of ten apart, and the last is not
// below `most`. {0, 1} if `most` is not above 0.
std::vector<double> Ticks(double most);

// SVG (https://www.w3.org/TR/SVG11/), the panels side by side with axes that start at 0. Points are
// <circle>s; what is not finite is left out.
std::string ToSvg(const Plot& plot);

}  // namespace ferrite
