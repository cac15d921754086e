"""Pages: what is text stays text, tables and charts say what they hold, and a browser loads nothing else."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import visit
from hypothesis import example, given
from hypothesis import strategies as st

from rankery.report.axes import axis, log_ticks, round_ticks, tick_label
from rankery.report.charts import Line, Point, bar_chart, histogram, line_chart, reliability, scatter
from rankery.report.page import Html, Section, details, element, facts, join, page, passage, table

NASTY = "<script>document.title='x'; console.error('ran')</script><img src=http://example.invalid/a.png onerror=x> \"'&"


class Reader(HTMLParser):
    """Tags and texts of a page; fails where a tag is closed that was not opened last."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def whole_page(words: str = NASTY) -> str:
    charts = join(
        line_chart(
            words, words, [Line(words, range(9), [1.0, math.nan, *range(7)]), Line("b", [0, 8], [1, 2])], words, words
        ),
        histogram(words, words, [0, 1, 2], {words: [1, 3], "other": [2, 0]}, words),
        scatter(words, words, [Point(words, 1, 2), Point("b", 1, 2), Point("c", 5e4, 3)], words, words, log_x=True),
        reliability(words, words, {words: [(0.1, 0.2, 5), (0.9, 0.8, 7)]}, words, words),
        bar_chart(words, words, [words, "x"], {words: [0.5, None], "b": [-1, 2]}, words),
    )
    texts = join(details(words, passage(words)), facts([(words, words), ("n", 1234)]))
    tables = table(words, ["", words], [[words, words], ["x", "y"]])
    return page(
        words, [Section("a", words, charts), Section("b", words, texts), Section("c", "tables", tables)], lead=words
    )


def test_texts_are_never_markup() -> None:
    reader = Reader(whole_page())
    assert reader.count("script") == reader.count("img") == 0
    assert reader.count("svg") >= 5
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert reader.words.count("console.error('ran')") > 20


@given(st.text())
def test_any_text_comes_back_as_it_was(words: str) -> None:
    words = words.replace("\0", "").replace("\r", "")
    assert Reader(element("p", words, title=words)).words == words
    assert Reader(element("p", words, title=words)).tags == [("p", {"title": words})]


def test_half_characters_can_be_written() -> None:
    assert element("p", "a\ud800").encode() == b"<p>a?</p>"


def test_numbers_stand_flush_right_and_missing_ones_are_a_dash() -> None:
    source = table("numbers", ["system", "n", "share", "note"], [["a", 12345, 0.5, "x"], ["b", None, math.nan, 7]])
    reader = Reader(source)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", source)
    assert cells == ["12,345", "0.5000", "x", "–", "–", "7"]
    flush = [attributes.get("class") == "n" for tag, attributes in reader.tags if tag in ("th", "td")]
    assert flush == [False, True, True, False] * 3
    scopes = [attributes["scope"] for tag, attributes in reader.tags if tag == "th"]
    assert scopes == ["col"] * 4 + ["row"] * 2
    assert reader.count("caption") == 1


def test_pages_are_reachable_by_keys() -> None:
    reader = Reader(page("t", [Section("one", "One", Html("<p>1</p>")), Section("two", "Two", Html("<p>2</p>"))]))
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    anchors = [attributes.get("id") for _, attributes in reader.tags]
    assert links == ["#content", "#one", "#two"]
    assert all(link[1:] in anchors for link in links)


def numbers_in(source: str, pattern: str) -> list[list[float]]:
    return [[float(v) for v in re.split("[ ,]", found)] for found in re.findall(pattern, source)]


def test_a_line_of_many_points_keeps_its_peak() -> None:
    values = [math.sin(i / 50) for i in range(100_000)]
    values[77_777] = 40.0
    source = line_chart("t", "d", [Line("a", range(100_000), values)], "x", "y")
    points = numbers_in(source, r'<polyline points="([^"]+)"')[-1]
    assert len(points) < 2 * 500  # x and y of each
    assert min(points[1::2]) == 12  # the top of the drawing
    assert (points[0], points[-2]) == (74, 466)


def test_gaps_break_a_line() -> None:
    source = line_chart("t", "d", [Line("a", range(5), [1, 2, math.nan, 3, 4])], "x", "y")
    assert source.count('<polyline points="') == 2  # two pieces, and one line needs no legend


def test_bars_are_as_long_as_their_values() -> None:
    source = bar_chart("t", "d", ["a", "b", "c"], {"s": [1.0, 2.0, None]}, "x")
    widths = [float(v) for v in re.findall(r'<rect [^>]*width="([\d.]+)"', source)]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.1)


@example([1.0, 2e-309], True)
@example([0.0, 5e-324], False)
@example([1.0, 1.0 + 2**-52], False)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9), st.booleans())
def test_every_value_stands_on_its_axis(values: list[float], is_log: bool) -> None:
    across = axis(values, 50.0, 400.0, is_log=is_log)
    assert all(50 - 1e-6 <= across.place(v) <= 400 + 1e-6 for v in values)
    ticks = across.ticks()
    assert all(50 - 1e-6 <= across.place(tick) <= 400 + 1e-6 for tick in ticks)
    assert len(ticks) >= 2


def test_ticks_are_round() -> None:
    assert round_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert round_ticks(-0.31, 0.28, 6) == [-0.3, -0.2, -0.1, 0, 0.1, 0.2]
    assert log_ticks(8, 120) == [10, 20, 50, 100]
    assert [tick_label(v) for v in (0.25, 1500, 20_000, 3e6, -0.5)] == ["0.25", "1,500", "20k", "3M", "-0.5"]


def test_a_browser_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(whole_page(), encoding="utf-8")
    seen = visit(tmp_path / "page.html", tmp_path)
    assert seen.dom.rstrip().endswith("</html>")
    assert "<title>&lt;script&gt;" in seen.dom
    assert (seen.console, seen.requests) == ([], [])


def test_the_browser_would_tell(tmp_path: Path) -> None:
    """A page that does ask and does say: both are seen."""
    (tmp_path / "page.html").write_text("<img src='http://127.0.0.1:9/a.png'><script>console.error('ran')</script>")
    seen = visit(tmp_path / "page.html", tmp_path)
    assert any("ran" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/a.png"]
