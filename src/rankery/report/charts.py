"""Charts as inline SVG, each a `<figure>` with title, description and legend: lines, bars, histograms, scatter, reliability.

Contract: pure functions from numbers to `Html`; colours are the page's variables, so a chart follows the light or dark scheme, and
series differ by dash or mark as well as by colour. A screen reader hears title and description; the numbers themselves belong
into a table beside. Cost: a line of many points is thinned to those that can be seen. Rejected: matplotlib (a dependency of 30 MB
whose images keep one scheme and cannot be searched) and plotly (4 MB of script on every page).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankery.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axis, frame, label, number, tick_label
from rankery.report.page import Html, element

COLOURS = 6
DASHES = (None, "7 3", "2 3", "9 3 2 3", "1 4", "12 4")
MOST_POINTS = 400  # of one line; more cannot be told apart on the drawing
ROW = 22.0  # height of a bar with its space


@dataclass(frozen=True)
class Line:
    """One series of a line chart; NaN breaks the line. `low` and `high` draw a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Point:
    """One mark of a scatter chart."""

    name: str
    x: float
    y: float


def line_chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    include_y: Sequence[float] = (),
    marks: bool | None = None,
) -> Html:
    """Lines over a common x; `marks` draws each point (None: where a line has 30 or fewer); `include_y` widens the axis, to 0 say."""
    thin = [_thinned(line) for line in lines]
    x, y = _axes(
        [v for line in thin for v in line.x],
        [v for line in thin for values in (line.y, line.low or (), line.high or ()) for v in values],
        log_x,
        include_y,
    )
    parts = [frame(x, y, x_label, y_label)]
    for i, line in enumerate(thin):
        if line.low is not None and line.high is not None:
            parts.append(_band(x, y, line, i))
        for run in _runs(x, line):
            points = [(x.place(a), y.place(b)) for a, b in run]
            parts.append(_polyline(points, i))
            if marks or (marks is None and len(line.x) <= 30) or len(points) == 1:
                parts += [
                    _mark(a, b, i, f"{line.name}: {v:.4g} at {tick_label(u)}")
                    for (a, b), (u, v) in zip(points, run, strict=True)
                ]
    names = [line.name for line in lines] if len(lines) > 1 else []
    return figure(title, description, Html("".join(parts)), names)


def histogram(
    title: str, description: str, edges: Sequence[float], counts: Mapping[str, Sequence[float]], x_label: str
) -> Html:
    """Distributions laid over each other, each as its share of all it has; `edges` [bins + 1], counts of each bin [bins]."""
    shares = {name: [v / (math.fsum(values) or 1) for v in values] for name, values in counts.items()}
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = axis([v for values in shares.values() for v in values], HEIGHT - BOTTOM, TOP, include=(0.0,))
    parts = [frame(x, y, x_label, "share")]
    for i, values in enumerate(shares.values()):
        corners = [(x.start, y.start)]
        for left, right, value in zip(edges[:-1], edges[1:], values, strict=True):
            corners += [(x.place(left), y.place(value)), (x.place(right), y.place(value))]
        corners.append((x.end, y.start))
        area = _points(corners)
        parts.append(element("polygon", points=area, fill=_colour(i), fill_opacity="0.18"))
        parts.append(_polyline(corners, i))
    names = [f"{name} ({int(math.fsum(values)):,})" for name, values in counts.items()]
    return figure(title, description, Html("".join(parts)), names)


def bar_chart(
    title: str,
    description: str,
    labels: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],
    x_label: str,
    *,
    include: Sequence[float] = (0.0,),
) -> Html:
    """Horizontal bars: a group for each label, a bar for each series; None is left out. Long labels stand above their group."""
    inside = max((len(name) for name in labels), default=0) <= 14
    left = 20 + 7 * max((len(name) for name in labels), default=0) if inside else 14.0
    group = ROW * len(bars) * 0.8 + (8 if inside else ROW + 4)
    bottom = TOP + group * len(labels)
    x = axis([v for row in bars.values() for v in row if v is not None], left, WIDTH - RIGHT - 40, include=include)
    parts: list[Html] = []
    for value in x.ticks():
        at = number(x.place(value))
        parts.append(element("line", x1=at, x2=at, y1=number(TOP), y2=number(bottom), class_="grid"))
        parts.append(label(x.place(value), bottom + 18, tick_label(value), "middle", pale=True))
    for i, name in enumerate(labels):
        top = TOP + i * group
        if inside:
            parts.append(label(left - 8, top + (group - 8) / 2 + 6, name, "end"))
        else:
            parts.append(label(left, top + 16, name, "start"))
            top += ROW
        for j, values in enumerate(bars.values()):
            parts.append(_bar(x, values[i], top + 2 + j * ROW * 0.8, j))
    parts.append(label((x.start + x.end) / 2, bottom + 38, x_label, "middle"))
    return figure(
        title, description, Html("".join(parts)), list(bars) if len(bars) > 1 else [], bottom + BOTTOM, solid=True
    )


def scatter(
    title: str, description: str, points: Sequence[Point], x_label: str, y_label: str, *, log_x: bool = False
) -> Html:
    """Labelled points; a label moves below, left or above where it would cover a mark or another label."""
    x, y = _axes([p.x for p in points], [p.y for p in points], log_x, ())
    places = [(x.place(p.x), y.place(p.y)) for p in points]
    parts = [frame(x, y, x_label, y_label)]
    taken = [(a - 6, a + 6, b - 6, b + 6) for a, b in places]  # left, right, top, bottom of what is there
    for i, (point, (a, b)) in enumerate(zip(points, places, strict=True)):
        width = 7.2 * len(point.name)
        spots = [(begin, b + 5 + move) for move in (0, 13, -13, 26, -26, 39, -39) for begin in (a + 9, a - 9 - width)]
        inside = [(u, v) for u, v in spots if u >= LEFT and u + width <= WIDTH and v <= y.start] or [(LEFT, b + 18)]
        begin, base = next((s for s in inside if not _covers(s, width, taken)), inside[0])
        taken.append((begin, begin + width, base - 11, base + 3))
        parts.append(_mark(a, b, i, f"{point.name}: {point.x:.4g}, {point.y:.4g}", size=5))
        parts.append(label(begin, base, point.name, "start"))
    return figure(title, description, Html("".join(parts)), [])


def _covers(spot: tuple[float, float], width: float, taken: Sequence[tuple[float, float, float, float]]) -> bool:
    """Whether a label that begins at a place would lie on what is there."""
    begin, base = spot
    return any(
        begin < right and begin + width > left and base - 11 < low and base + 3 > top for left, right, top, low in taken
    )


def reliability(
    title: str, description: str, bins: Mapping[str, Sequence[tuple[float, float, int]]], x_label: str, y_label: str
) -> Html:
    """Reliability diagram (Murphy and Winkler 1977): of each bin (mean prediction, observed share, how many), beside the diagonal.

    A mark's area grows with how many pairs the bin holds.
    """
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, x_label, y_label)]
    diagonal = _points([(x.start, y.start), (x.end, y.end)])
    parts.append(element("polyline", points=diagonal, class_="axis", stroke_dasharray="4 4"))
    for i, (name, rows) in enumerate(bins.items()):
        most = max((count for *_, count in rows), default=1)
        places = [(x.place(a), y.place(b)) for a, b, _ in rows]
        parts.append(_polyline(places, i))
        for (a, b), (mean, share, count) in zip(places, rows, strict=True):
            says = f"{name}: predicted {mean:.3f}, observed {share:.3f}, {count:,} pairs"
            parts.append(_mark(a, b, i, says, size=2.5 + 4 * math.sqrt(count / most)))
    return figure(title, description, Html("".join(parts)), list(bins))


def figure(
    title: str, description: str, drawing: Html, names: Sequence[str], height: float = HEIGHT, *, solid: bool = False
) -> Html:
    """A drawing with title, description and, of several series, a legend of lines with marks, or of `solid` boxes."""
    image = element(
        "svg",
        drawing,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
    )
    caption = element("figcaption", element("strong", title), " ", description)
    legend = element("ul", *[element("li", _swatch(i, solid), name) for i, name in enumerate(names)], class_="legend")
    return element("figure", caption, legend if names else "", image)


def _swatch(index: int, solid: bool) -> Html:
    box = element("rect", x="8", width="18", height="12", fill=_colour(index))
    drawing = box if solid else Html(_polyline([(1, 6), (33, 6)], index) + _mark(17, 6, index, None))
    return element("svg", drawing, viewBox="0 0 34 12", aria_hidden="true")


def _axes(x: Sequence[float], y: Sequence[float], log_x: bool, include_y: Sequence[float]) -> tuple[Axis, Axis]:
    across = axis(x, LEFT, WIDTH - RIGHT, is_log=log_x)
    return across, axis(y, HEIGHT - BOTTOM, TOP, include=include_y)


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(a)},{number(b)}" for a, b in places)


def _polyline(places: Sequence[tuple[float, float]], index: int) -> Html:
    dash = DASHES[(index + index // COLOURS) % len(DASHES)]
    return element(
        "polyline", points=_points(places), fill="none", stroke=_colour(index), stroke_width="2", stroke_dasharray=dash
    )


def _band(x: Axis, y: Axis, line: Line, index: int) -> Html:
    assert line.low is not None
    assert line.high is not None
    rows = [row for row in zip(line.x, line.low, line.high, strict=True) if all(map(math.isfinite, row))]
    edge = [(x.place(a), y.place(high)) for a, _, high in rows] + [
        (x.place(a), y.place(low)) for a, low, _ in reversed(rows)
    ]
    return element("polygon", points=_points(edge), fill=_colour(index), fill_opacity="0.15")


def _mark(x: float, y: float, index: int, says: str | None, size: float = 3.5) -> Html:
    """Circle, square, triangle or diamond, with what a pointer over it says."""
    title = element("title", says) if says else ""
    shape, s = index % 4, size
    if shape == 0:
        return element("circle", title, cx=number(x), cy=number(y), r=number(s), fill=_colour(index))
    corners = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)],
        3: [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
    }[shape]
    return element("polygon", title, points=_points([(x + a, y + b) for a, b in corners]), fill=_colour(index))


def _bar(x: Axis, value: float | None, top: float, index: int) -> Html:
    if value is None or not math.isfinite(value):
        return Html("")
    zero, end = x.place(min(max(0.0, x.low), x.high)), x.place(value)
    box = element(
        "rect",
        x=number(min(zero, end)),
        y=number(top),
        width=number(abs(end - zero)),
        height=number(ROW * 0.7),
        fill=_colour(index),
    )
    return Html(box + label(max(zero, end) + 5, top + ROW * 0.55, f"{value:.4g}", "start", pale=True))


def _thinned(line: Line) -> Line:
    """The lowest and the highest point of each of equal stretches, so that no peak is lost; lines with a band: every n-th point."""
    size = len(line.x)
    if size <= MOST_POINTS:
        return line
    stretches = MOST_POINTS // 2
    if line.low is not None or line.high is not None:
        kept = sorted({round(i * (size - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    else:
        kept = []
        for i in range(stretches):
            inside = range(i * size // stretches, (i + 1) * size // stretches)
            kept += sorted({min(inside, key=lambda j: line.y[j]), max(inside, key=lambda j: line.y[j])})
        kept = sorted({0, size - 1, *kept})
    pick = [None if v is None else [v[i] for i in kept] for v in (line.x, line.y, line.low, line.high)]
    return Line(line.name, pick[0] or [], pick[1] or [], pick[2], pick[3])


def _runs(x: Axis, line: Line) -> list[list[tuple[float, float]]]:
    """Stretches without a gap; a logarithmic axis has no place for 0."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(line.x, line.y, strict=True):
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not x.is_log):
            runs[-1].append((a, b))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
