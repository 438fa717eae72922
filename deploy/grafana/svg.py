"""Draws panels as SVG with the standard library alone: lines and heatmaps, axes and legends.

Values are drawn as they are: a straight line joins two neighbouring samples, and what is no number
is a gap. A library of render.py.
"""
import collections
import dataclasses
import math
from html import escape

WIDTH, HEIGHT = 420, 256  # of a panel
LEFT, RIGHT, TOP = 62, 12, 34  # of its plot area
PLOT_HEIGHT = 140
SHADES = 12  # of a heatmap
COLORS = ("#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b58900", "#0a9396", "#7f7f7f",
          "#d6619e")


@dataclasses.dataclass(frozen=True)
class Series:
    name: str
    points: tuple[tuple[float, float], ...]  # seconds since the picture's begin, value


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A panel to be drawn. Of a heatmap each series is a bucket, from the lowest up."""

    title: str
    unit: str
    kind: str  # timeseries or heatmap
    series: tuple[Series, ...]
    threshold: float | None = None
    maximum: float | None = None


def _three_digits(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for factor, suffix in steps:
        if abs(value) >= factor * 0.9995:
            return _three_digits(value / factor) + suffix
    factor, suffix = steps[-1]
    return _three_digits(value / factor) + suffix


def format_value(value: float, unit: str) -> str:
    """The value in Grafana's unit, with three digits."""
    if math.isnan(value):
        return "no value"
    if value == 0:
        return "0"
    if unit == "s":
        return _scaled(value, ((1, " s"), (1e-3, " ms"), (1e-6, " µs")))
    if unit == "percentunit":
        return _three_digits(value * 100) + " %"
    suffix = {"reqps": "/s", "ops": "/s"}.get(unit, unit.removeprefix("suffix:").rstrip())
    suffix = "" if unit == "short" else suffix
    if abs(value) >= 1000:
        return _scaled(value, ((1e6, " M"), (1e3, " k"))) + suffix
    return _three_digits(value) + suffix


def _nice_step(top: float, steps: int = 4) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten with which `steps` reach the top."""
    power = 10 ** math.floor(math.log10(top / steps))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * steps >= top * 0.999)


def _text(x: float, y: float, text: str, size: int = 10, anchor: str = "start",
          more: str = "") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>'
            f"{escape(text)}</text>")


class Plot:
    """Where seconds and values are, in a panel."""

    def __init__(self, seconds: float, top: float):
        self.seconds, self.top = seconds, top
        self.width = WIDTH - LEFT - RIGHT

    def x(self, seconds: float) -> float:
        return LEFT + self.width * seconds / self.seconds

    def y(self, value: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - min(value, self.top) / self.top)


def _time_axis(plot: Plot, marks: tuple[float, ...]) -> list[str]:
    bottom = TOP + PLOT_HEIGHT
    made = [f'<line x1="{plot.x(at):.1f}" x2="{plot.x(at):.1f}" y1="{TOP}" y2="{bottom}" '
            'stroke="#999" stroke-dasharray="2 3"/>' for at in marks]
    for i in range(5):
        at = plot.seconds * i / 4
        made.append(_text(plot.x(at), bottom + 14, f"{at // 60:.0f}:{at % 60:02.0f}", 9, "middle"))
    return made


def _path(plot: Plot, series: Series) -> str:
    """The points of a series; a gap where a sample is missing or no number."""
    made, drawing = [], False
    for at, value in series.points:
        if math.isnan(value):
            drawing = False
            continue
        made.append(f"{'L' if drawing else 'M'}{plot.x(at):.1f} {plot.y(value):.1f}")
        drawing = True
    return "".join(made)


def _legend(drawing: Drawing) -> list[str]:
    """The names, with the greatest value of each; there is room for four lines."""
    made, x, y = [], LEFT - 50, TOP + PLOT_HEIGHT + 34
    for i, series in enumerate(drawing.series):
        top = max((v for _, v in series.points if not math.isnan(v)), default=math.nan)
        label = f"{series.name} (max {format_value(top, drawing.unit)})"
        width = 18 + 5.2 * len(label)
        if x + width > WIDTH:
            x, y = LEFT - 50, y + 13
        made.append(f'<rect x="{x}" y="{y - 7}" width="9" height="4" '
                    f'fill="{COLORS[i % len(COLORS)]}"/>')
        made.append(_text(x + 13, y, label, 9))
        x += width
    return made


def _lines(drawing: Drawing, seconds: float, marks: tuple[float, ...]) -> list[str]:
    values = [v for series in drawing.series for _, v in series.points if not math.isnan(v)]
    step = _nice_step(drawing.maximum or max(values, default=0) or 1)
    plot = Plot(seconds, drawing.maximum or 4 * step)
    made = []
    for i in range(5):
        value = plot.top * i / 4
        made.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{plot.y(value):.1f}" '
                    f'y2="{plot.y(value):.1f}" stroke="#ddd"/>')
        made.append(_text(LEFT - 5, plot.y(value) + 3, format_value(value, drawing.unit), 9, "end"))
    if drawing.threshold is not None and drawing.threshold <= plot.top:
        y = plot.y(drawing.threshold)
        made.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                    'stroke="#c4162a" stroke-dasharray="6 4"/>')
    made += _time_axis(plot, marks)
    for i, series in enumerate(drawing.series):
        made.append(f'<path d="{_path(plot, series)}" fill="none" stroke-width="1.5" '
                    f'stroke="{COLORS[i % len(COLORS)]}"/>')
    return made + _legend(drawing)


def _heatmap(drawing: Drawing, seconds: float, marks: tuple[float, ...]) -> list[str]:
    """A column for each sample, a row for each bucket, in SHADES: darker where there is more."""
    plot = Plot(seconds, 1)
    height = PLOT_HEIGHT / max(len(drawing.series), 1)
    top = max((v for series in drawing.series for _, v in series.points if v > 0), default=1)
    made, cells = [], collections.defaultdict(list)
    for row, series in enumerate(drawing.series):
        y = TOP + PLOT_HEIGHT - (row + 1) * height
        if row % 2 == 0:
            made.append(_text(LEFT - 5, y + height / 2 + 3, "≤ " + series.name, 8, "end"))
        for (at, value), (after, _) in zip(series.points, series.points[1:]):
            if value > 0:
                width = plot.x(after) - plot.x(at)
                cells[math.ceil(SHADES * value / top)].append(
                    f"M{plot.x(at):.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z")
    made += [f'<path d="{"".join(cells[shade])}" fill="#d9480f" '
             f'fill-opacity="{shade / SHADES:.2f}"/>' for shade in sorted(cells)]
    legend = _text(LEFT - 50, TOP + PLOT_HEIGHT + 34,
                   f"darkest: {format_value(top, 'short')} in one window; white: none", 9)
    return made + _time_axis(plot, marks) + [legend]


def picture(drawings: list[Drawing], seconds: float, marks: tuple[float, ...], title: str,
            description: str, columns: int = 3) -> str:
    """The panels side by side. `marks` are the times of dashed vertical lines."""
    rows = math.ceil(len(drawings) / columns)
    width, height = columns * WIDTH, rows * HEIGHT + 30
    made = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="sans-serif" fill="#222">',
            f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            _text(12, 20, title, 14, more=' font-weight="bold"')]
    for i, drawing in enumerate(drawings):
        x, y = (i % columns) * WIDTH, 30 + (i // columns) * HEIGHT
        draw = _heatmap if drawing.kind == "heatmap" else _lines
        made.append(f'<g transform="translate({x} {y})">')
        made.append(_text(LEFT - 50, 20, drawing.title, 12, more=' font-weight="bold"'))
        made += draw(drawing, seconds, marks)
        made.append("</g>")
    return "\n".join(made + ["</svg>", ""])
