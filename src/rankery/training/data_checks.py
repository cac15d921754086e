"""What a configuration and its data have to say to each other: which documents are learnt from together, and what does not fit.

Contract: pure functions of the configuration and the tokenised data, before anything is written; problems are lists, so that
the caller raises all at once. Cost: one look at the labels; of the losses, until each has found something to learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rankery.config import TrainConfig
from rankery.data.encoding import EncodedPairs
from rankery.data.examples import Examples, Fixed, chunks, false_negatives, one_each, query_groups
from rankery.evaluation.metrics import metric_names
from rankery.evaluation.runs import encoded_pairs
from rankery.objective import GRADED_LOSSES, LABEL_LOSSES, LOGIT_LOSSES, Objective, is_grouped, loss_weights

# What a query needs for a loss to learn from it.
LEARNS_FROM = {
    "listwise_ce": "both a document with a label above min_label and one with a lower label",
    "listwise_kl": "two documents",
    "other": "two documents with different labels",
}


def lists_are_labels(config: TrainConfig) -> bool:
    """Whether scores in the data are there to leave out probable false negatives, and its lists are what is learnt."""
    return config.false_negative_margin is not None and any(
        name in LABEL_LOSSES for name in loss_weights(config.loss_type)
    )


def grades(data: EncodedPairs) -> int:
    """How many grades the labels have; 0 where some are scores, which no list of grades is."""
    labels = np.unique(np.asarray(data.arrays["label"]))
    return len(labels) if (labels == np.rint(labels)).all() else 0


def learns_by_gain(config: TrainConfig, train: EncodedPairs) -> bool:
    """Whether each grade is learnt against the lower ones: labels of two grades have nothing between."""
    return config.listwise_grades == "gain" and grades(train) > 2


def as_begun(config: TrainConfig, begun: Mapping[str, Any]) -> tuple[TrainConfig, str]:
    """(the configuration with which a run goes on, what to say of it): it learns to its end what it began with.

    Args:
        config: of the resumption.
        begun: the configuration as run.json has it. Before there was `listwise_grades`, a query's highest grade alone was learnt.
    """
    if "listwise_grades" in begun:
        return config, ""
    return config.model_copy(update={"listwise_grades": "top"}), ", as this run began"


def describe_grades(config: TrainConfig, train: EncodedPairs, begun: str = "") -> str:
    """What losses make of more than two grades, a line each; empty where there is nothing to tell."""
    known_logits = not np.isnan(train.arrays["teacher_logit"]).all()
    names = [name for name in loss_weights(config.loss_type) if name in GRADED_LOSSES]
    names = [name for name in names if not (name in LOGIT_LOSSES and known_logits)]
    if not names or grades(train) <= 2:
        return ""
    if config.listwise_grades == "gain":
        what, other = "each against the lower ones, by its gain", "top learns a query's highest alone"
    else:
        what, other = "a query's highest alone", "gain learns each against the lower ones"
    return "".join(f"\n  {name}: {grades(train)} grades, {what}{begun} (listwise_grades={other})" for name in names)


def without_false_negatives(config: TrainConfig, data: EncodedPairs) -> np.ndarray:
    """The pairs that take part, [pairs], rising: all but documents listed as negatives that score like positives."""
    if config.false_negative_margin is None:
        return np.arange(len(data))
    arrays = data.arrays
    query, score, is_negative = arrays["pair_query"], np.asarray(arrays["label"]), np.asarray(arrays["listed"]) < 0
    return np.flatnonzero(~false_negatives(query, score, is_negative, config.false_negative_margin))


def _are_unscored(data: EncodedPairs, min_label: float) -> bool:
    """Whether every document listed as a negative has the label of lists without scores."""
    negatives = np.asarray(data.arrays["label"])[np.asarray(data.arrays["listed"]) < 0]
    return bool((negatives == min_label).all())


def learnt_together(config: TrainConfig, data: EncodedPairs, kept: np.ndarray) -> Examples:
    """What is learnt from together: single pairs of those that take part, or the groups of queries."""
    arrays = data.arrays
    if is_grouped(config.loss_type):
        return query_groups(
            np.asarray(arrays["pair_query"]), np.asarray(arrays["label"]), np.asarray(arrays["key"]), data.lengths, kept,
            config.min_label, config.train_group_size, config.seed,
        )  # fmt: skip
    return Fixed(one_each(data.lengths, kept if len(kept) < len(data) else None))


def unusable_losses(objective: Objective, examples: Examples, data: EncodedPairs) -> list[str]:
    """A problem for each loss that finds nothing to learn in the whole data set."""
    draw = examples.draw(0)
    found = dict.fromkeys((name for name, _, _ in objective.terms), 0)
    for chosen in chunks(draw, 256):
        targets = torch.from_numpy(data.targets(draw.of(chosen)))
        for name, count in objective.usable(targets, draw.sizes[chosen].tolist()).items():
            found[name] += count
        if all(found.values()):
            return []
    return [
        f"loss_type {name} finds nothing to learn in {', '.join(data.paths)}: no query there has {LEARNS_FROM.get(name, LEARNS_FROM['other'])}; "
        "use another loss, or add such documents to the queries"
        for name, count in found.items()
        if not count
    ]


def unfit_data(config: TrainConfig, data: dict[str, EncodedPairs]) -> list[str]:
    """What only the data can tell of a configuration: labels that are no classes or no teacher's, a best_metric that cannot be."""
    problems: list[str] = []
    for encoded in data.values():
        values = np.asarray(encoded.arrays["label"])
        odd = np.flatnonzero(values != np.rint(values))
        if config.num_labels > 1 and len(odd):
            problems.append(
                f"{encoded.where(int(odd[0]))}: label {values[odd[0]]:g} is no integer; expected integer labels with "
                "num_labels above 1"
            )
    train = data["train"]
    labels, names = np.asarray(train.arrays["label"]), loss_weights(config.loss_type)
    soft = labels != np.rint(labels)
    if lists_are_labels(config):
        soft &= np.asarray(train.arrays["listed"]) == 0
    if "listwise_ce" in names and soft.any():
        first = int(np.argmax(soft))
        problems.append(
            f"{train.where(first)}: label {labels[first]:g} is a score, but loss_type listwise_ce wants labels, each of which "
            "it learns against the lower ones of its query; use listwise_kl for scores, or false_negative_margin, with which the lists pos "
            "and neg are the labels"
        )
    has_logit = ~np.isnan(train.arrays["teacher_logit"])
    if names.keys() & set(LOGIT_LOSSES) and has_logit.any() and not has_logit.all():
        with_logit, without = int(np.argmax(has_logit)), int(np.argmin(has_logit))
        problems.append(
            f"{train.where(without)}: has no teacher's logits, but {train.where(with_logit)} has; expected pos_logits (and "
            f"neg_logits) in every line or in none: loss_type {config.loss_type} learns them"
        )
    if "pairwise_margin_mse" in names and not has_logit.any() and (labels == np.rint(labels)).all():
        problems.append(
            f"{', '.join(train.paths)}: every label is an integer, but loss_type pairwise_margin_mse learns a teacher's margins; "
            "expected its scores or logits (rankery score); use pairwise_ranknet for labels"
        )
    if config.false_negative_margin is not None and not (np.asarray(train.arrays["listed"]) < 0).any():
        problems.append(
            f"false_negative_margin is {config.false_negative_margin:g}, but {', '.join(train.paths)} lists no documents as "
            'negatives; expected lines with "pos", "neg", "pos_scores" and "neg_scores" (rankery score --keep-lists)'
        )
    elif config.false_negative_margin is not None and _are_unscored(train, config.min_label):
        problems.append(
            f"false_negative_margin is {config.false_negative_margin:g}, but no document that {', '.join(train.paths)} lists as a "
            'negative has a score; expected "neg_scores" and "pos_scores" (rankery score --keep-lists)'
        )
    if "val" in data and config.best_metric not in (None, "auto", "loss"):
        found = metric_names(
            encoded_pairs(data["val"]),
            min_label=config.min_label,
            recall_at=config.recall_at,
            relevant_above=config.relevant_above,
        )
        if config.best_metric not in found:
            needs = (
                "soft scores, different ones of one query" if config.best_metric == "Kendall" else "relevant documents"
            )
            problems.append(
                f"best_metric is {config.best_metric}, which is measured on {needs}; {', '.join(data['val'].paths)} has none; expected "
                f"{', '.join(['loss', *found])}{'' if config.best_metric == 'Kendall' else ', or relevant_above set'}"
            )
    return problems
