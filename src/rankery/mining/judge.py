"""A teacher that says which candidates may be negatives.

Contract: a candidate may not score above the query's best positive less a margin, in the teacher's scores from 0 to 1. Cost: a
forward pass for each pair that is asked for and that the store lacks. Rejected: the weakest positive as the measure, which one
wrong label would turn into no negatives at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from rankery.data.finite import check_finite
from rankery.distilling.store import Store, teacher_digest
from rankery.distilling.teacher import known_logits
from rankery.evaluation.information import NEARLY
from rankery.mining.rows import Query
from rankery.mining.select import Candidate, Passes
from rankery.models.opening import open_reranker


class Judge:
    """A reranker that says which candidates may be negatives."""

    def __init__(
        self,
        model: str | Path,
        margin: float,
        store: str | Path | None,
        prompt: str | None,
        dtype: str | None,
        device: str | None,
    ):
        self.reranker = open_reranker(model, prompt, dtype=dtype, device=device)
        self.margin = margin
        self.lowest, self.highest, self.scored = math.inf, -math.inf, 0  # of what it ranks by
        self.store = Store(Path(store)) if store else None
        self.digest = teacher_digest(self.reranker) if self.store else ""

    def of(self, queries: Sequence[Query], documents: Sequence[str], left_out: Counter[str]) -> Passes:
        """Whether candidates of these queries may be negatives; those that may not are counted in `left_out`."""
        own = [(query.text, text) for query in queries for text in query.relevant]
        scores = iter(self._scores(own))
        limits = [max(next(scores) for _ in query.relevant) - self.margin for query in queries]

        def judge(asked: Sequence[tuple[int, Candidate]]) -> list[bool]:
            pairs = [(queries[number].text, documents[one.document]) for number, one in asked]
            scored = zip(asked, self._scores(pairs), strict=True)
            passes = [score <= limits[number] for (number, _), score in scored]
            left_out["teacher"] += len(passes) - sum(passes)
            return passes

        return judge

    @property
    def is_flat(self) -> bool:
        """Whether all pairs so far have (nearly) one score, so that it has judged nothing."""
        return self.scored > 1 and self.highest - self.lowest < NEARLY

    def close(self) -> None:
        if self.store is not None:
            self.store.database.close()

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """In [0, 1]: the sigmoid of the logit, or of several classes the expected grade."""
        logits = torch.from_numpy(known_logits(self.reranker, self.digest, pairs, self.store))
        check_finite(logits, lambda i: f"query {pairs[i][0]!r:.60}, document {pairs[i][1]!r:.80}", "the teacher")
        scores = self.reranker.rank_scores(logits)
        if len(scores):
            self.lowest, self.highest = min(self.lowest, float(scores.min())), max(self.highest, float(scores.max()))
            self.scored += len(scores)
        return (scores.sigmoid() if logits.dim() == 1 else scores).tolist()
