"""Signs of life: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SAID_EVERY_S = 30.0
T = TypeVar("T")


def shown(items: Iterable[T], total: int, doing: str, what: str, step: int = 1) -> Iterator[T]:
    """The items, with progress shown as they are taken; each stands for `step` of the total, the last one for what is left."""
    from tqdm import tqdm

    bar = tqdm(total=total, unit="", desc=f"{doing} {what}", disable=not sys.stderr.isatty())
    begun = said = time.monotonic()
    with bar:
        for number, item in enumerate(items, 1):
            yield item
            done = min(number * step, total)
            bar.update(done - bar.n if not bar.disable else 0)
            now = time.monotonic()
            if bar.disable and now - said >= SAID_EVERY_S:
                said = now
                left = (total - done) * (now - begun) / done
                print(f"{doing}: {done} of {total} {what}, {left:.0f} s left", flush=True)
