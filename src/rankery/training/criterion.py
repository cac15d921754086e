"""Which number chooses the best model and says whether training helped: best_metric, or what stands in where it cannot vary.

Contract: a pure function of the configuration and the validation data, neither of which a resumption changes, so a resumed run
chooses as before. A metric that every order of the documents leaves the same chooses nothing, nor does a loss that finds nothing
to learn: then the loss does, else the last model is kept, and it is said at the start. Rejected: an error, which a run could not be
resumed from that was started before this was checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rankery.config import TrainConfig
from rankery.data.encoding import EncodedPairs
from rankery.evaluation.information import constant_value, why_constant
from rankery.evaluation.runs import encoded_pairs
from rankery.objective import Objective

DEFAULT_METRIC = "nDCG@10"


@dataclass(frozen=True)
class Criterion:
    """The metric that chooses the model to keep (None: the last is kept), and the one that the verdict is by (None: nothing can
    tell); `note` says what stands in for what."""

    selects: str | None = None
    judges: str | None = None
    note: str = ""


def choose_criterion(config: TrainConfig, objective: Objective, data: EncodedPairs | None) -> Criterion:
    """The criterion of a run with this validation data.

    `config.best_metric` is among the metrics of the data (`data_checks.unfit_data`).
    """
    if data is None:
        return Criterion()
    wanted = wanted_metric(config.best_metric)
    name = wanted or DEFAULT_METRIC
    problem = _why_not(config, objective, data, name)
    judges: str | None = name
    if problem:
        judges = None if name == "loss" or _why_not(config, objective, data, "loss") else "loss"
    if not problem or wanted is None:
        return Criterion(wanted and judges, judges)
    instead = "the best model is that of the least validation loss" if judges else "the last model is kept"
    stops = f", and patience ({config.patience}) stops nothing" if config.patience and not judges else ""
    return Criterion(judges, judges, f"note: {problem}; {instead}{stops}")


def wanted_metric(best_metric: str | None) -> str | None:
    """The metric that a configuration's best_metric names; None: none."""
    return DEFAULT_METRIC if best_metric == "auto" else best_metric


def is_better(name: str, new: dict[str, float], old: dict[str, float]) -> bool:
    """Whether metrics are better than others, by one of them."""
    return new[name] < old[name] if name == "loss" else new[name] > old[name]


def _why_not(config: TrainConfig, objective: Objective, data: EncodedPairs, name: str) -> str:
    """Why a metric of the validation data says nothing; empty where it says something."""
    if name == "loss":
        by_query = np.argsort(np.asarray(data.arrays["pair_query"]), kind="stable")
        sizes = np.bincount(data.arrays["pair_query"]).tolist()
        usable = objective.usable(torch.from_numpy(data.targets(by_query)), sizes)
        return "" if any(usable.values()) else f"the loss finds nothing to learn in {', '.join(data.paths)}"
    pairs = encoded_pairs(data)
    options = {"min_label": config.min_label, "recall_at": config.recall_at, "relevant_above": config.relevant_above}
    value = constant_value(pairs, name, **options)
    if value is None:
        return ""
    above = config.min_label if config.relevant_above is None else config.relevant_above
    return (
        f"{name} is {value:.4f} whatever the order of documents in {', '.join(data.paths)}: "
        f"{why_constant(pairs, above)}"
    )
