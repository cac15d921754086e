"""Axes of charts: round ticks, linear or logarithmic, and a frame that turns values into places on the drawing.

Contract: pure Python, places in the units of the drawing (1 unit is 1 pixel where the chart is `WIDTH` wide). Cost: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankery.report.page import Html, element

WIDTH, HEIGHT = 480.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 14.0, 12.0, 46.0
TINY = 1e-100  # what is nearer to 0 stands at 0: the arithmetic of steps would underflow
DIGIT = 8.0  # width of a character of a tick label, a little more than it is


@dataclass(frozen=True)
class Axis:
    """One direction: values from `low` to `high` stand from `start` to `end` on the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the axis; few enough to be read."""
        length = abs(self.end - self.start)
        if self.is_log:
            found = log_ticks(self.low, self.high)
            if len(found) > 1:
                return found
        return round_ticks(self.low, self.high, max(2, int(length // 55)))


def axis(
    values: Iterable[float], start: float, end: float, *, is_log: bool = False, include: Sequence[float] = ()
) -> Axis:
    """An axis with room for all finite values and the ones to `include`, out to round numbers; logarithmic only if all are above 0."""
    finite = [value for value in (*values, *include) if math.isfinite(value)] or [0.0, 1.0]
    low, high = (edge if abs(edge) > TINY else 0.0 for edge in (min(finite), max(finite)))
    if is_log and low > 0:
        return Axis(low / 1.5, high * 1.5, start, end, True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    step = _round_step(high - low, 5)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, at most so many."""
    step = _round_step(high - low, most)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 2, 5)
    return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]


def tick_label(value: float) -> str:
    """Short: 0.25, 1,500, 20k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Html:
    """Grid, ticks and names of both axes."""
    parts: list[Html] = []
    for value in y.ticks():
        at = number(y.place(value))
        parts.append(element("line", x1=number(x.start), x2=number(x.end), y1=at, y2=at, class_="grid"))
        parts.append(label(x.start - 7, y.place(value) + 4, tick_label(value), "end", pale=True))
    taken = -math.inf
    for value in x.ticks():
        place, name = x.place(value), tick_label(value)
        half = len(name) * DIGIT / 2
        if place - half < taken:
            continue
        taken = place + half + 4
        at = number(place)
        parts.append(element("line", x1=at, x2=at, y1=number(y.start), y2=number(y.start + 4), class_="axis"))
        parts.append(label(place, y.start + 18, name, "middle", pale=True))
    parts.append(
        element("line", x1=number(x.start), x2=number(x.end), y1=number(y.start), y2=number(y.start), class_="axis")
    )
    parts.append(label((x.start + x.end) / 2, y.start + 38, x_label, "middle"))
    middle = (y.start + y.end) / 2
    turned = f"rotate(-90 14 {number(middle)})"
    parts.append(element("text", y_label, x="14", y=number(middle), text_anchor="middle", transform=turned))
    return Html("".join(parts))


def label(x: float, y: float, words: str, anchor: str, *, pale: bool = False) -> Html:
    return element("text", words, x=number(x), y=number(y), text_anchor=anchor, class_="pale" if pale else None)


def number(value: float) -> str:
    """A place, with a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def _round_step(span: float, most: int) -> float:
    rough = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
