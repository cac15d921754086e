"""Keys of a data line that are nearly keys of its format: what they hold would be left out in silence.

Contract: names a key only where the one that it resembles is absent, and where it holds what that one would: texts, or numbers. So
`pos_scores_raw` beside `pos_scores`, `scores` of words, or `pos_logits` and `title` anywhere, are nobody's business. Only keys that
may be missing matter: without the others a line is refused as it is. Cost: a comparison for each spelling, not for each line.
Rejected: refusing all unknown keys, since lines carry ids and titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from rankery.errors import cut

OPTIONAL = ("pos", "neg", "pos_scores", "neg_scores")
# What other tools, and people, call them.
ELSEWHERE = {
    "pos": (
        "positive",
        "positives",
        "posn",
        "posneg",
        "positivepassages",
        "positivectxs",
        "posdocs",
        "postexts",
        "pospassages",
    ),
    "neg": (
        *(
            "negative",
            "negatives",
            "negn",
            "hardneg",
            "hardnegs",
            "hardnegative",
            "hardnegatives",
            "negdocs",
            "negtexts",
        ),
        *("negpassages", "negativepassages", "negativectxs", "hardnegativectxs"),
    ),
    "pos_scores": ("scores", "positivescores", "positivescore", "labels", "poslabels", "teacherscores"),
    "neg_scores": ("negativescores", "negativescore", "neglabels", "hardnegativescores"),
}
ALIKE = 0.88  # share of equal letters: two of nine exchanged, one too many or too few


def misspelt(row: Mapping[str, Any], where: str) -> list[str]:
    """A problem for each key of a line that was probably meant as another one."""
    return [
        f'{where}: has the key "{cut(key)}" and no "{name}"; expected "{name}": rename it, or call it something else if that is not meant'
        for key in row.keys() - OPTIONAL
        if (name := nearest(key)) is not None and row.get(name) is None and _could_be(name, key, row[key])
    ]


@lru_cache(maxsize=1024)
def nearest(key: str) -> str | None:
    """The optional key that a spelling resembles: in other capitals or with other marks, of short names the plural, or another's name."""
    plain = _plain(key)
    for name in OPTIONAL:
        known = _plain(name)
        if plain in (known, f"{known}s", *ELSEWHERE[name]):
            return name
        # Words of three letters have honest neighbours: post, new.
        if len(known) > 4 and abs(len(plain) - len(known)) < 2 and SequenceMatcher(None, plain, known).ratio() > ALIKE:
            return name
    return None


def _could_be(name: str, key: str, value: Any) -> bool:
    """Whether a value may be what the key of that name holds; of a near spelling anything may, of another's name its own kind."""
    if _plain(key) not in ELSEWHERE[name]:
        return value is not None
    values = value if isinstance(value, list) else [value]
    kinds = (str, dict) if name in ("pos", "neg") else (int, float)
    return bool(values) and isinstance(values[0], kinds) and not isinstance(values[0], bool)


def _plain(key: str) -> str:
    return "".join(letter for letter in key.lower() if letter.isalnum())
