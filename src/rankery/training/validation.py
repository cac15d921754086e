"""Scores the validation set on all processes, and its metrics.

Contract: every process computes its share, in equal numbers of micro-batches, with dropout off; all get the same metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rankery.config import TrainConfig
from rankery.data.collate import collate
from rankery.data.encoding import EncodedPairs
from rankery.data.examples import met
from rankery.data.plan import Layout, MicroBatch, deal
from rankery.errors import InputError
from rankery.evaluation.information import orders_nothing
from rankery.evaluation.metrics import ranking_metrics
from rankery.evaluation.runs import encoded_pairs
from rankery.models.budget import pad_multiple
from rankery.models.reranker import expected_grade
from rankery.models.varlen import takes
from rankery.objective import Objective
from rankery.training.engine import DTYPES, Engine

SAMPLED_PAIRS = 128  # of the training data, scored at the end where there is no other


def validation_logits(
    engine: Engine,
    model: Any,
    data: EncodedPairs,
    budget: int,
    layout: Layout,
    labels: int,
    pairs: np.ndarray | None = None,
) -> torch.Tensor:
    """Logits of all pairs, fp32 on the CPU: [pairs] or [pairs, labels]. Out of memory: again with half the token budget.

    With `pairs`, indices, only of these; of the others 0.

    Raises:
        InputError: not even one pair at a time fits into memory.
        torch.OutOfMemoryError: a sharded engine, which cannot try again.
    """
    while True:
        draw, trunks = met(layout, data.lengths, data.heads, np.asarray(data.arrays["pair_query"]), budget, pairs)
        shares = deal(np.arange(len(draw)), draw, data.lengths, engine.processes, budget, layout, trunks)
        logits = _local_logits(engine, model, data, shares[engine.process], layout, labels)
        if not engine.sum(torch.tensor([float(logits is None)])).item():
            break
        if all(len(micro_batch.pairs) == 1 for share in shares for micro_batch in share):
            raise InputError(
                "out of memory in the evaluation with one pair at a time; set a smaller max_len", shared=True
            )
        budget //= 2
    assert logits is not None
    logits = engine.sum(logits).cpu().float()
    return logits.squeeze(1) if labels == 1 else logits


@torch.no_grad()
def _local_logits(
    engine: Engine, model: Any, data: EncodedPairs, share: list[MicroBatch], layout: Layout, labels: int
) -> torch.Tensor | None:
    """Logits of this process's pairs, 0 elsewhere, [pairs, labels] fp64; None where memory ran out."""
    chunked = not takes(engine.device, DTYPES[engine.precision])
    was_training = model.training
    model.eval()
    logits = torch.zeros((len(data), labels), dtype=torch.float64)
    scored: list[tuple[np.ndarray, torch.Tensor]] = []  # on the device until all are there: it never waits
    try:
        for micro_batch in share:
            batch = collate(data, micro_batch.pairs, layout, pad_multiple(engine.device), chunked)
            with engine.autocast():
                out = model(*batch.to(engine.device).arguments)
            if micro_batch.weight:
                scored.append((micro_batch.pairs, out.reshape(-1, labels)))
    except torch.OutOfMemoryError:
        if engine.sharded:  # cannot be repeated: the caller stops all processes
            raise
        return None
    finally:
        model.train(was_training)
    if scored:
        pairs, found = zip(*scored, strict=True)
        logits[torch.from_numpy(np.concatenate(pairs))] = torch.cat(found).cpu().double()
    return logits


def evaluate(
    engine: Engine,
    model: Any,
    data: EncodedPairs,
    objective: Objective,
    budget: int,
    layout: Layout,
    config: TrainConfig,
) -> tuple[dict[str, float], bool]:
    """Metrics by name, with "loss", and whether the scores order nothing; equal on all processes.

    Raises:
        InputError: scores that are not finite, with the examples.
    """
    logits = validation_logits(engine, model, data, budget, layout, config.num_labels)
    odd = torch.nonzero(~torch.isfinite(logits.reshape(len(data), -1)).all(dim=1)).flatten().tolist()
    if odd:
        raise InputError(
            f"{len(odd)} of {len(data)} scores of the validation are not finite. Examples: {data.named(odd)}. Look at these "
            "lines; else try a smaller lr, or mixed_precision bf16 or no",
            shared=True,
        )

    def measure() -> tuple[dict[str, float], bool]:
        query = np.asarray(data.arrays["pair_query"])
        by_query = np.argsort(query, kind="stable")
        sizes = np.bincount(query).tolist()
        targets = torch.from_numpy(data.targets(by_query))
        loss = objective.mean(logits[torch.from_numpy(by_query)], targets, sizes)
        scores = (logits if logits.dim() == 1 else expected_grade(logits)).numpy()
        metrics = ranking_metrics(
            encoded_pairs(data),
            scores,
            min_label=config.min_label,
            recall_at=config.recall_at,
            seed=config.seed,
            relevant_above=config.relevant_above,
        )
        return {"loss": loss, **metrics}, orders_nothing(scores, query)

    return engine.on_main(measure)


def is_flat(
    engine: Engine, model: Any, data: EncodedPairs, budget: int, layout: Layout, labels: int, most: int = SAMPLED_PAIRS
) -> bool:
    """Whether the model orders nothing of a sample of the data: documents of queries that lie evenly in it. Equal on all processes.

    Raises:
        InputError: as `validation_logits`.
    """
    query = np.asarray(data.arrays["pair_query"])
    sizes = np.bincount(query, minlength=data.queries)
    count = max(1, int(most / sizes.mean()))
    chosen = np.unique(np.linspace(0, data.queries - 1, count).astype(np.int64))
    pairs = np.flatnonzero(np.isin(query, chosen))[:most]
    logits = validation_logits(engine, model, data, budget, layout, labels, pairs)[torch.from_numpy(pairs)]
    scores = logits if logits.dim() == 1 else expected_grade(logits)
    return orders_nothing(scores.numpy(), query[pairs])
