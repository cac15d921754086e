"""Which of the documents that retrievers found become a query's negatives: pure functions of what was found.

Contract: no negative has the words of a forbidden text or of another negative; ranks are inside the window; which ones are taken
depends on the query, its documents and the seed alone, not on other queries. Several retrievers take turns: the first gives its
next document, then the second, and so on, each leaving out what is taken already. Cost: a few microseconds a candidate.
Rejected: reciprocal rank fusion, which puts first what all retrievers rank high, and that is where the unlabelled positives are;
and a random generator, whose state would make a query's negatives depend on those before it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankery.data.files import mix, text_hash

WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Found:
    """What a retriever found for a query, best first."""

    documents: np.ndarray  # [k] indices in the corpus
    scores: np.ndarray  # [k] float32, falling
    positive: float | None = None  # the retriever's score of the query's best positive, where it was asked for


@dataclass(frozen=True)
class Candidate:
    """A document that may become a negative, with the retriever that found it and its place there, from 1."""

    document: int
    source: str
    rank: int


@dataclass(frozen=True)
class Rules:
    """What makes a found document a candidate.

    `first` and `last` rank; `margin`: it has to score below the best positive by this share of that score (None: no such rule);
    `at_random`: in a seeded order instead of the retriever's.
    """

    first: int = 10
    last: int = 100
    margin: float | None = None
    at_random: bool = True
    seed: int = 42


def plain(text: str) -> str:
    """The words of a text in lower case, to compare texts by; of a text without words, the text."""
    return " ".join(WORDS.findall(unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def candidates(
    query: str,
    found: Mapping[str, Found],
    text_of: Callable[[int], str],
    forbidden: Container[str],
    rules: Rules,
    left_out: Counter[str] | None = None,
) -> list[Candidate]:
    """The documents that may become negatives of a query, in the order in which they are to be taken.

    Args:
        query: its text, for the seeded order.
        found: what each retriever found, by its name; they take turns in this order.
        text_of: a document's text.
        forbidden: plain texts (see `plain`) of what is no negative.
        rules: window, margin and order.
        left_out: counts what the rules "margin" and "forbidden" left out.
    """
    counts: Counter[str] = Counter() if left_out is None else left_out
    lists = [_ordered(query, name, one, text_of, rules, counts) for name, one in found.items()]
    taken: set[str] = set()
    chosen: list[Candidate] = []
    places = [iter(one) for one in lists]
    while places:
        for place in list(places):
            for candidate in place:
                text = plain(text_of(candidate.document))
                if text in forbidden:
                    counts["forbidden"] += 1
                elif text not in taken:
                    taken.add(text)
                    chosen.append(candidate)
                    break
            else:
                places.remove(place)
    return chosen


def _ordered(
    query: str, name: str, found: Found, text_of: Callable[[int], str], rules: Rules, counts: Counter[str]
) -> list[Candidate]:
    """A retriever's documents inside the window and the margin, in the order to be taken."""
    window = slice(rules.first - 1, rules.last)
    limit = np.inf
    if rules.margin is not None and found.positive is not None:
        limit = found.positive - rules.margin * abs(found.positive)
    inside = [
        Candidate(int(document), name, rank)
        for rank, (document, score) in enumerate(
            zip(found.documents[window], found.scores[window], strict=True), rules.first
        )
        if score <= limit
    ]
    counts["margin"] += len(found.documents[window]) - len(inside)
    if not rules.at_random or not inside:
        return inside
    keys = mix(np.array([text_hash(query, text_of(one.document)) for one in inside], dtype=np.uint64), rules.seed)
    return [inside[i] for i in np.argsort(keys, kind="stable")]


Passes = Callable[[Sequence[tuple[int, Candidate]]], Sequence[bool]]


def accepted(orders: Sequence[Sequence[Candidate]], wanted: int, passes: Passes) -> list[list[Candidate]]:
    """The first `wanted` candidates of each query that pass; `passes` is asked for no more than may still be needed.

    Args:
        orders: candidates of each query, in the order to be taken.
        wanted: negatives of a query.
        passes: for some (query number, candidate), whether each may be a negative.
    """
    chosen: list[list[Candidate]] = [[] for _ in orders]
    asked = [0] * len(orders)
    while True:
        round_of = [
            (query, candidate)
            for query, order in enumerate(orders)
            for candidate in order[asked[query] : asked[query] + wanted - len(chosen[query])]
        ]
        if not round_of:
            return chosen
        for (query, candidate), may_be in zip(round_of, passes(round_of), strict=True):
            asked[query] += 1
            if may_be:
                chosen[query].append(candidate)
