"""Keys of a data line that are nearly keys of its format: what they hold would be left out in silence.

Contract: names a key only where the one that it resembles is absent, so that `pos_scores_raw` beside `pos_scores`, or `pos_logits`
and `title` anywhere, are nobody's business. Only keys that may be missing matter: without the others a line is refused as it is.
Cost: a comparison for each spelling, not for each line. Rejected: refusing all unknown keys, since lines carry ids and titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

OPTIONAL = ("pos", "neg", "pos_scores", "neg_scores")
ALIKE = 0.88  # share of equal letters: two of nine exchanged, one too many or too few


def misspelt(row: Mapping[str, Any], where: str) -> list[str]:
    """A problem for each key of a line that was probably meant as another one."""
    return [
        f'{where}: has the key "{key}" and no "{name}"; expected "{name}": rename it, or call it something else if that is not meant'
        for key in row.keys() - OPTIONAL
        if (name := nearest(key)) is not None and row.get(name) is None and row[key] is not None
    ]


@lru_cache(maxsize=1024)
def nearest(key: str) -> str | None:
    """The optional key that a spelling resembles: in other capitals or with other marks, and of short names the plural."""
    plain = _plain(key)
    for name in OPTIONAL:
        known = _plain(name)
        if plain in (known, f"{known}s"):
            return name
        # Words of three letters have honest neighbours: post, new.
        if len(known) > 4 and abs(len(plain) - len(known)) < 2 and SequenceMatcher(None, plain, known).ratio() > ALIKE:
            return name
    return None


def _plain(key: str) -> str:
    return "".join(letter for letter in key.lower() if letter.isalnum())
