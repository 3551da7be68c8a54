"""Charts as inline SVG: no script, no request, sharp at any size, in the colours of the page's own style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 14, 42
BESIDE = 10
"""Pixels by which single observations stand beside their mean, whose mark would hide them."""
MOST_POINTS = 400
"""Most points drawn of a curve: more could not be told apart, and would make the page heavy."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: Points
    style: str
    """CSS class, `a` to `c`."""
    dots: Points = ()
    """Single observations behind the curve."""
    marked: bool = False
    """Whether each point of the curve gets a mark."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of ``value`` in the picture."""
        low, high, x = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (x - low) / ((high - low) or 1.0) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, title: str, percent: bool = False, log_x: bool = False
) -> str:
    """Curves over a common axis, with a legend; values in percent where asked."""
    lines = [replace(line, points=_drawable(line.points), dots=_finite(line.dots)) for line in lines]
    every = [p for line in lines for p in (*line.points, *line.dots)]
    if not every:
        return ""
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    pad = 0.06 * ((max(ys) - min(ys)) or abs(ys[0]) or 1.0)
    x = _Axis(min(xs), max(xs), LEFT + 8, WIDTH - RIGHT - 8, log_x)
    y = _Axis(min(ys) - pad, max(ys) + pad, HEIGHT - BOTTOM, TOP)
    ticks = _apart(sorted(set(xs)), x) if log_x else _nice(x.low, x.high)
    parts = [_grid(x, y, ticks, percent=percent), _labels(x_label, y_label)]
    parts += [_curve(line, x, y) for line in lines]
    return _svg("".join(parts), title) + _legend(lines)


def _apart(values: Sequence[float], x: _Axis) -> list[float]:
    """``values`` without those whose labels would run into the one before."""
    kept: list[float] = []
    for value in values:
        if not kept or x.at(value) - x.at(kept[-1]) > 36:
            kept.append(value)
    return kept


def _finite(points: Points) -> Points:
    """``points`` without those that have no place in a picture."""
    return [p for p in points if all(map(math.isfinite, p))]


def _drawable(points: Points) -> Points:
    """The finite points, or as many means of neighbours as can be told apart; the last point is kept."""
    points = _finite(points)
    if len(points) <= MOST_POINTS:
        return points
    width = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points) - 1, width)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def _ticks(low: float, high: float, *, percent: bool) -> list[tuple[float, str]]:
    """Round values between ``low`` and ``high`` with their labels, all with the digits that tell them apart."""
    scale, unit = (100, " %") if percent else (1, "")
    values = _nice(low * scale, high * scale)
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    if max((abs(v) for v in values), default=0.0) >= 1e5 or step < 1e-4:
        return [(v / scale, f"{v:.3g}{unit}") for v in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(v / scale, f"{v:.{digits}f}{unit}") for v in values]


def _nice(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    raw = ((high - low) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _grid(x: _Axis, y: _Axis, x_ticks: Sequence[float], *, percent: bool) -> str:
    parts = []
    for tick, text in _ticks(y.low, y.high, percent=percent):
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    parts += [
        f'<text x="{x.at(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:.5g}</text>'
        for tick in x_ticks
    ]
    return "".join(parts)


def _labels(x_label: str, y_label: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _curve(line: Line, x: _Axis, y: _Axis) -> str:
    dots = "".join(
        f'<circle class="dot {line.style}" cx="{x.at(a) + BESIDE:.1f}" cy="{y.at(b):.1f}" r="3"/>' for a, b in line.dots
    )
    path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line.points)
    curve = f'<polyline class="curve {line.style}" points="{path}"/>'
    if line.marked:
        curve += "".join(
            f'<circle class="mark {line.style}" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4.5"/>' for a, b in line.points
        )
    return dots + curve


def _svg(body: str, title: str) -> str:
    name = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>{body}</svg>'


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(f'<li><span class="key {line.style}"></span>{escape(line.name)}</li>' for line in lines)
    return f'<ul class="legend">{items}</ul>'


def bars(values: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars of (name, length, text), the longest drawn in the accent colour."""
    longest = max((v for _, v, _ in values), default=0.0) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><span class="bar{" top" if value == longest else ""}" '
        f'style="width:{100 * value / longest:.1f}%"></span></td><td class="number">{escape(text)}</td></tr>'
        for name, value, text in values
    )
    return f'<table class="bars" aria-label="{escape(title)}">{rows}</table>'


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix as a table: rows are the truth, columns the predictions, shade is the share of the row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for number, (row, name) in enumerate(zip(counts, names, strict=True)):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="--share:{n / total:.3f}"{" class=right" if number == column else ""}>{n or ""}</td>'
            for column, n in enumerate(row)
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0"><table class="heat">'
        "<caption>Rows: the truth. Columns: what the model said. "
        "The stronger the colour, the larger the share of the row.</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
