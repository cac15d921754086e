"""Work done one piece ahead of its use, on a thread: the processor prepares what comes next while a GPU scores the last.

Contract: results come in order; an error comes with the piece that raised it. Where the processor is what scores, nothing is
gained: it is done in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(pieces: Iterable[T], threaded: bool) -> Iterator[T]:
    """The same pieces; `threaded`: each is made while its predecessor is used."""
    if not threaded:
        yield from pieces
        return
    source = iter(pieces)
    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(_next, source)
        while piece := following.result():
            following = executor.submit(_next, source)
            yield from piece


def _next(source: Iterator[T]) -> list[T]:
    """The next piece, alone; nothing at the end."""
    return list(islice(source, 1))
