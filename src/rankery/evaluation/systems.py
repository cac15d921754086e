"""The systems of a comparison: what they are called, and how those that are no run yet score the candidates.

Contract: a model scores its pairs with all processes of the group, each its share; scores do not depend on who scored what, but for
rounding. One model is in memory at a time. Cost: a forward pass a pair, and a second tokenisation to see what truncation cuts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankery.data.finite import check_finite
from rankery.data.records import pair_place
from rankery.errors import InputError, option
from rankery.evaluation.inputs import Candidates
from rankery.processes import Group, own_device

Kind = Literal["model", "baseline", "run"]
BLOCK_PAIRS = 512  # neighbouring pairs that one process scores


@dataclass(frozen=True)
class System:
    """What the user named: a model, a baseline (random, bm25, or the folder of an embedding model), or a run file."""

    kind: Kind
    value: str


@dataclass(frozen=True)
class Scored:
    """Scores of the P pairs, and what they cost."""

    scores: np.ndarray  # [P] float32
    seconds: float
    parameters: int | None = None
    megabytes: float | None = None  # of the weights in memory
    cut: np.ndarray | None = None  # [P] bool, whether truncation took tokens
    calibrated: Callable[[np.ndarray], np.ndarray] | None = None  # scores to probabilities, by the model's calibration


def names_of(systems: Sequence[System]) -> list[str]:
    """A short name for each: the end of its path that tells it from the others.

    Raises:
        InputError: the same system twice.
    """
    if len(set(systems)) < len(systems):
        twice = sorted({f"{option(s.kind)} {s.value}" for s in systems if systems.count(s) > 1})
        raise InputError([f"{name} is there twice; expected each system once" for name in twice])
    parts = [_parts(system) for system in systems]
    names: list[str] = []
    for own in parts:
        others = [other for other in parts if other != own]
        size = next((n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names.append("/".join(own[-size:]))
    names = [f"cosine of {name}" if is_cosine(system) else name for name, system in zip(names, systems, strict=True)]
    kinds = [name if names.count(name) == 1 else f"{name} ({s.kind})" for name, s in zip(names, systems, strict=True)]
    return [name if kinds.count(name) == 1 else s.value for name, s in zip(kinds, systems, strict=True)]


def score_system(
    system: System, candidates: Candidates, group: Group, *, seed: int = 42, options: dict[str, Any]
) -> Scored:
    """Scores of all pairs by a model or baseline, on every process of the group.

    `options` are those of `open_reranker` (device, dtype, prompt) and `compute_score` (batch_size, max_length).

    Raises:
        InputError: as `open_reranker` and `compute_score`; scores that are not finite.
    """
    if system.kind == "model":
        found = _score_model(system.value, candidates, group, options)
    else:
        found = Scored(np.zeros(len(candidates.pairs), np.float32), 0.0)
        if group.process == 0:
            found = _score_baseline(system.value, candidates, seed, options)
        found = replace(found, scores=group.add_up(found.scores))
    check_finite(found.scores, partial(pair_place, candidates.records), system.value, shared=True)
    return found


def _score_baseline(value: str, candidates: Candidates, seed: int, options: dict[str, Any]) -> Scored:
    from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores

    begun = time.monotonic()
    if value == "random":
        return Scored(random_scores(candidates.records, seed), time.monotonic() - begun)
    if value == "bm25":
        return Scored(bm25_scores(candidates.records), time.monotonic() - begun)
    from rankery.evaluation.retrieval import DenseEncoder

    encoder = DenseEncoder(value, device=own_device(options.get("device")), dtype=options.get("dtype"))
    begun = time.monotonic()
    scores = cosine_scores(candidates.records, encoder)
    return Scored(scores, time.monotonic() - begun, *_size(encoder.model))


def _score_model(model: str, candidates: Candidates, group: Group, options: dict[str, Any]) -> Scored:
    from rankery.models.opening import open_reranker

    opening = {name: options.get(name) for name in ("device", "dtype", "prompt")}
    scoring: dict[str, Any] = {name: options.get(name) for name in ("batch_size", "max_length")}
    opening["device"] = own_device(opening["device"])
    reranker = open_reranker(model, **opening)
    texts = candidates.texts()
    mine = _share(len(texts), group)
    own = [texts[i] for i in mine.tolist()]
    group.meet()
    begun = time.monotonic()
    shown = group.process == 0 and sys.stderr.isatty()
    logits = reranker.compute_score(
        own, show_progress=shown, finite=False, **scoring
    )  # all processes tell of it together
    scores: np.ndarray = np.zeros(len(texts), np.float32)
    scores[mine] = reranker.rank_scores(logits).numpy()
    scores = group.add_up(scores)
    seconds = time.monotonic() - begun
    cut: np.ndarray = np.zeros(len(texts), np.int32)
    cut[mine] = _cut(own, reranker, scoring["max_length"])
    return Scored(scores, seconds, *_size(reranker.model), group.add_up(cut) > 0, _calibrated(reranker))


def _share(pairs: int, group: Group) -> np.ndarray:
    """The pairs that this process scores: every so many-th block of neighbours, small enough that all have enough of them."""
    block = max(1, min(BLOCK_PAIRS, pairs // (8 * group.processes)))
    return np.flatnonzero(np.arange(pairs) // block % group.processes == group.process)


def _cut(pairs: Sequence[tuple[str, str]], reranker: Any, max_length: int | None) -> np.ndarray:
    """Whether truncation takes tokens from a pair, [pairs] bool."""
    from rankery.data.tokens import text_ids

    template = reranker.template
    template = replace(template, max_len=max_length) if max_length else template
    tokens: list[np.ndarray] = []
    kinds: tuple[Literal["query", "document"], ...] = ("query", "document")
    for i, kind in enumerate(kinds):
        counts = dict.fromkeys((pair[i] for pair in pairs), 0)
        found = text_ids(reranker.tokenizer, template, kind, list(counts), template.room + 1)
        for text, ids in zip(counts, found, strict=True):
            counts[text] = len(ids)
        tokens.append(np.array([counts[pair[i]] for pair in pairs], np.int64))
    return tokens[0] + tokens[1] > template.room


def _calibrated(reranker: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """Probabilities of what the reranker ranks by; None without a calibration."""
    from scipy.special import logit

    from rankery.models.calibration import SURE

    calibration, several = reranker.calibration, reranker.num_labels > 1
    if calibration is None:
        return None
    # With several labels documents are ranked by the expected grade, and calibrated by its logit.
    return lambda scores: calibration.probabilities(logit(np.clip(scores, SURE, 1 - SURE)) if several else scores)


def _size(model: Any) -> tuple[int, float]:
    """(weights, their megabytes)."""
    weights = list(model.parameters())
    return sum(w.numel() for w in weights), sum(w.numel() * w.element_size() for w in weights) / 1e6


def _parts(system: System) -> list[str]:
    """A path's parts; of a run file without its endings."""
    if system.kind == "baseline" and not is_cosine(system):
        return ["BM25" if system.value == "bm25" else "random order"]
    parts = [part for part in Path(system.value).parts if part != "/"] or [system.value]
    if system.kind == "run":
        parts[-1] = (
            parts[-1].removesuffix(".gz").removesuffix(".trec").removesuffix(".run").removesuffix(".txt") or parts[-1]
        )
    return parts


def is_cosine(system: System) -> bool:
    return system.kind == "baseline" and system.value not in ("random", "bm25")
