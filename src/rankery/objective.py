"""The objective of a training: one loss, or several with weights; each divided by its own global count.

Contract: `parse` turns the configuration's loss_type into terms; `Objective` is what the loop calls. Counts come from targets
alone, so every process knows a step's before its first backward pass and nothing is exchanged for them. Rejected: one count for
all terms, which would make a pointwise term's weight depend on how many documents a query has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from rankery import losses
from rankery.losses import Loss

if TYPE_CHECKING:
    from rankery.config import TrainConfig

LOSSES: dict[str, Loss] = {
    function.__name__: function
    for function in (
        losses.point_ce, losses.point_mse, losses.pairwise_ranknet, losses.pairwise_margin_mse, losses.listwise_ce,
        losses.listwise_kl, losses.list_mle, losses.p_list_mle, losses.lambda_rank,
    )
}  # fmt: skip
POINTWISE = ("point_ce", "point_mse")
LOGIT_LOSSES = ("pairwise_margin_mse", "listwise_kl")  # learn a teacher's logits; the others: labels or scores
LABEL_LOSSES = ("listwise_ce",)  # learn labels alone
# Names that others use for the same.
ALIASES = {"pointwise_bce": "point_ce", "pointwise_mse": "point_mse", "listwise_softmax": "listwise_ce"}
# The loss that a key of the configuration is an option of: (key, name of the function's argument).
OPTIONS = {
    "pairwise_ranknet": (("ranknet_weight", "weight"),),
    "listwise_kl": (("teacher_temperature", "teacher_temperature"), ("student_temperature", "student_temperature")),
    "lambda_rank": (("ndcg_at", "ndcg_at"),),
}
GRADED_LOSSES = ("listwise_ce", "listwise_kl")  # what they learn of more than two grades is for listwise_grades to say


def loss_weights(loss_type: str | Mapping[str, float]) -> dict[str, float]:
    """Weight by our name of each loss."""
    given = {loss_type: 1.0} if isinstance(loss_type, str) else loss_type
    return {ALIASES.get(name, name): float(weight) for name, weight in given.items()}


def is_grouped(loss_type: str | Mapping[str, float]) -> bool:
    """Whether the documents of a query have to meet: any loss that is not pointwise."""
    return any(name not in POINTWISE for name in loss_weights(loss_type))


@dataclass(frozen=True)
class Objective:
    """Terms with their weights.

    Targets are [B, 2], as `EncodedPairs.targets`: labels or scores in [0, 1], and a teacher's logits.
    """

    terms: tuple[tuple[str, float, Loss], ...]

    def counts(self, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[int, ...]:
        """Units of each term in these pairs: what a step's sums are divided by, 1 at least."""
        return tuple(max(1, count) for count in self.usable(targets, sizes).values())

    def usable(self, targets: torch.Tensor, sizes: Sequence[int]) -> dict[str, int]:
        """Units of each term that it can learn from, by its name."""
        sums = self._sums(torch.zeros(len(targets)), targets, sizes)
        return {name: int(count) for name, _, _, count in sums}

    def mean(self, logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> float:
        """The loss of a whole data set: what one step over all of it would have."""
        return float(self(logits, targets, sizes, self.counts(targets, sizes)))

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int], counts: Sequence[int]
    ) -> torch.Tensor:
        """A micro-batch's share of the step's loss: the sum over terms of weight x sum / count of the step."""
        sums = self._sums(logits, targets, sizes)
        shares = [weight / count * total for (_, weight, total, _), count in zip(sums, counts, strict=True)]
        return torch.stack(shares).sum()

    def _sums(
        self, logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[str, float, torch.Tensor, torch.Tensor]]:
        """(name, weight, sum, count) of each term."""
        for name, weight, loss in self.terms:
            yield name, weight, *loss(logits, targets[:, int(name in LOGIT_LOSSES)], sizes)


def build_objective(config: TrainConfig, by_gain: bool) -> Objective:
    """The objective that a configuration describes.

    Args:
        config: of the training.
        by_gain: whether each grade of the labels is learnt against the lower ones. The two forms of listwise_ce are equal where
            labels have two grades, but not to the last bit, to which a run resumes.
    """
    terms = []
    for name, weight in loss_weights(config.loss_type).items():
        loss = losses.listwise_ce_top if name == "listwise_ce" and not by_gain else LOSSES[name]
        options = {argument: getattr(config, key) for key, argument in OPTIONS.get(name, ())}
        terms.append((name, weight, partial(loss, **options) if options else loss))
    return Objective(tuple(terms))
