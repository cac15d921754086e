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
from rankery.data.plan import MicroBatch, deal
from rankery.errors import InputError
from rankery.losses import Loss
from rankery.models.budget import pad_multiple
from rankery.models.reranker import expected_grade
from rankery.training.engine import Engine


def validation_logits(engine: Engine, model: Any, data: EncodedPairs, budget: int, labels: int) -> torch.Tensor:
    """Logits of all pairs, fp32 on the CPU: [pairs] or [pairs, labels]. Out of memory: again with half the token budget.

    Raises:
        InputError: not even one pair at a time fits into memory.
    """
    everything = np.arange(len(data))
    while True:
        shares = deal(everything, np.ones(len(data), dtype=np.int64), data.lengths, engine.processes, budget)
        logits = _local_logits(engine, model, data, shares[engine.process], labels)
        if not engine.sum(torch.tensor([float(logits is None)])).item():
            break
        if all(len(micro_batch.examples) == 1 for share in shares for micro_batch in share):
            raise InputError(
                "out of memory in the evaluation with one pair at a time; set a smaller max_len", shared=True
            )
        budget //= 2
    assert logits is not None
    logits = engine.sum(logits).cpu().float()
    return logits.squeeze(1) if labels == 1 else logits


@torch.no_grad()
def _local_logits(
    engine: Engine, model: Any, data: EncodedPairs, share: list[MicroBatch], labels: int
) -> torch.Tensor | None:
    """Logits of this process's pairs, 0 elsewhere, [pairs, labels] fp64; None where memory ran out."""
    model.eval()
    logits = torch.zeros((len(data), labels), dtype=torch.float64)
    try:
        for micro_batch in share:
            batch = collate(data, micro_batch.examples, micro_batch.weight, pad_multiple(engine.device))
            batch = batch.to(engine.device)
            with engine.autocast():
                out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            if batch.weight:
                logits[torch.from_numpy(micro_batch.examples)] = out.cpu().double().reshape(-1, labels)
    except torch.OutOfMemoryError:
        if engine.sharded:  # the others wait inside a collective call: the launcher stops them
            raise
        return None
    finally:
        model.train()
    return logits


def evaluate(
    engine: Engine, model: Any, data: EncodedPairs, loss: Loss, budget: int, config: TrainConfig
) -> dict[str, float]:
    """Metrics by name, with "loss"; equal on all processes."""
    logits = validation_logits(engine, model, data, budget, config.num_labels)

    def measure() -> dict[str, float]:
        from rankery.evaluate.metrics import ranking_metrics
        from rankery.evaluate.runs import EvaluationPairs

        total, count = loss(logits, torch.from_numpy(data.targets(np.arange(len(data)))))
        scores = (logits if logits.dim() == 1 else expected_grade(logits)).numpy()
        arrays = data.arrays
        pairs = EvaluationPairs(
            query=np.asarray(arrays["pair_query"]), label=np.asarray(arrays["label"]), key=np.asarray(arrays["key"])
        )
        metrics = ranking_metrics(
            pairs,
            scores,
            min_label=config.min_label,
            recall_at=config.recall_at,
            seed=config.seed,
            relevant_above=config.relevant_above,
        )
        return {"loss": float(total) / count, **metrics}

    return engine.on_main(measure)
