"""Work done one piece ahead of its use, on a thread: tokenising the next texts while a GPU scores the last ones.

Contract: results come in order; an error comes with the piece that raised it. Where the processor is what scores, nothing is
gained: it is done in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(work: Iterable[Callable[[], T]], threaded: bool) -> Iterator[T]:
    """What each piece of work gives, in order; `threaded`: each is done while its predecessor's result is used."""
    if not threaded:
        yield from (piece() for piece in work)
        return
    with ThreadPoolExecutor(1) as executor:
        waiting: Future[T] | None = None
        for piece in work:
            following = executor.submit(piece)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
