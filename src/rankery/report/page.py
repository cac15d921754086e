"""Pieces of one self-contained HTML page: skeleton, navigation, tables, texts that open on demand.

    page("Rerankers", [Section("summary", "Summary", table(...)), ...]) -> the whole file as a string

Contract: pure functions from values to `Html`; a string that is not `Html` is text and is escaped, wherever it stands. The page
loads nothing: no script, no font, no image from elsewhere, and its content security policy forbids what a text might smuggle in.
It follows the reader's light or dark scheme, fits a phone, and is read with a keyboard or a screen reader. Cost: a string join.
Rejected: a template engine (a dependency whose escaping has to be turned on) and scripts for sorting or folding (`<details>` folds).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankery.report.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "link", "br", "hr", "line", "rect", "circle", "path", "polyline", "polygon"}
MISSING = "\N{EN DASH}"


class Html(str):
    """Markup that is safe as it is; every other string is text."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A part of a page; `anchor` is its address (`#anchor`), unique on the page."""

    anchor: str
    title: str
    body: Html


def text(value: object) -> Html:
    """A value as markup: `Html` as it is, anything else escaped; half characters, which UTF-8 cannot hold, become "?"."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode()))


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`; of attribute names a last _ is dropped and others are -; None and False leave out."""
    written = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"{name}{''.join(written)}"
    if name in VOID and not children:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{''.join(map(text, children))}</{name}>")


def join(*parts: object) -> Html:
    """Parts one after the other."""
    return Html("\n".join(map(text, parts)))


def paragraph(*children: object, note: bool = False) -> Html:
    """A paragraph; `note` sets it smaller and paler."""
    return element("p", *children, class_="note" if note else None)


def link(anchor: str, label: object) -> Html:
    """A link to a place on the same page."""
    return element("a", label, href=f"#{anchor}")


def heading(title: object, anchor: str | None = None) -> Html:
    """A heading inside a section."""
    return element("h3", title, id=anchor)


def facts(rows: Iterable[tuple[object, object]]) -> Html:
    """Names with their values, as a description list."""
    pairs = [element("div", element("dt", name), element("dd", formatted(value))) for name, value in rows]
    return element("dl", *pairs, class_="facts")


def details(summary: object, *body: object, open_: bool = False) -> Html:
    """What opens on demand, by mouse or keyboard."""
    return element("details", element("summary", summary), *body, open=open_)


def passage(value: str, language: str | None = None) -> Html:
    """A text as it is in the data, with its line breaks; long words break."""
    return element("div", value, class_="passage", dir="auto", lang=language)


def columns(*parts: object) -> Html:
    """Parts side by side where there is room, one below the other on a phone."""
    return element("div", *[element("div", part) for part in parts], class_="columns")


def formatted(value: object, digits: int = 4) -> Html:
    """A cell: integers with thousands marked, floats with so many decimals, a dash for None and NaN, texts as they are."""
    if value is None or value != value:
        return text(MISSING)
    if isinstance(value, float):
        return text(f"{value:,.{digits}f}")
    return text(f"{value:,}" if is_number(value) else value)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(
    caption: object,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    digits: int = 4,
    numeric: Sequence[int] | None = None,
) -> Html:
    """A table that scrolls inside its own box where the page is narrow.

    Args:
        caption: what it shows; also the name of the box for screen readers.
        head: the columns' names.
        rows: cells, see `formatted`; the first of each row is its heading.
        digits: decimals of floats.
        numeric: columns set flush right; None: those that hold numbers (and nothing but numbers and None).
    """
    body = [list(row) for row in rows]
    if numeric is None:
        numeric = [
            i
            for i in range(len(head))
            if any(is_number(row[i]) for row in body) and all(row[i] is None or is_number(row[i]) for row in body)
        ]
    kinds = ["n" if i in numeric else None for i in range(len(head))]
    header = element(
        "tr", *[element("th", name, scope="col", class_=kind) for name, kind in zip(head, kinds, strict=True)]
    )
    lines = [
        element(
            "tr",
            element("th", formatted(row[0], digits), scope="row", class_=kinds[0]),
            *[
                element("td", formatted(cell, digits), class_=kind)
                for cell, kind in zip(row[1:], kinds[1:], strict=True)
            ],
        )
        for row in body
    ]
    inner = element("table", element("caption", caption), element("thead", header), element("tbody", join(*lines)))
    # A box that scrolls has to be reachable for those who scroll by keys.
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=_plain(caption))


def page(title: str, sections: Sequence[Section], *, lead: object = "", language: str = "en") -> str:
    """The whole file: a title, what it is about, links to the sections, the sections."""
    menu = [element("li", link(section.anchor, section.title)) for section in sections]
    parts = [
        element(
            "section", element("h2", section.title, id=section.anchor), section.body, aria_labelledby=section.anchor
        )
        for section in sections
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),  # or a browser asks a server for one
        element("title", title),
        element("style", Html(CSS)),
    )
    lead = paragraph(lead, note=True) if isinstance(lead, str) and not isinstance(lead, Html) and lead else text(lead)
    body = element(
        "body",
        element("a", "Skip to the content", class_="skip", href="#content"),
        element("header", element("h1", title), lead),
        element("nav", element("ul", *menu), aria_label="Sections"),
        element("main", join(*parts), id="content", tabindex="-1"),
    )
    return f"<!doctype html>\n{element('html', head, body, lang=language)}\n"


def _plain(caption: object) -> str | None:
    return None if isinstance(caption, Html) else str(caption)
