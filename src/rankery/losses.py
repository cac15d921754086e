"""Losses: pure functions (logits, targets, sizes) -> (sum, count), in fp32 whatever the precision of the logits.

Contract: the sum runs over the micro-batch's units: pairs for pointwise losses, usable groups for pair- and listwise ones (a
group from which the loss can learn nothing is not counted). The caller divides once, by the count of the whole step on all
processes, so that no cut changes the loss. A group is the documents of one query, side by side. docs/losses.md compares names,
logarithms and reductions with other libraries'. Cost: memory of the squares of the groups' sizes, for losses of pairs. Rejected:
means, which weigh a small micro-batch as much as a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from rankery.data.packing import upload

# Shapes: B pairs, C classes, G groups, N documents of the largest group.
Loss = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]
PAIRS_AT_ONCE = 1 << 20  # places of a [G, N, N]: 4 MB in fp32; one group may be larger


def by_size(loss: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A loss of groups that takes groups of about one size at a time.

    All that it compares at once is padded to its largest group: a query of 1,000 documents beside 31 of 10 would take 32 times the
    memory.
    """

    @wraps(loss)
    def summed(
        logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int], **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chunks = list(_chunks(sizes))
        if len(chunks) == 1:
            return loss(logits, targets, sizes, **options)
        groups = list(zip(logits.split(list(sizes)), targets.split(list(sizes)), strict=True))
        parts = []
        for chunk in chunks:
            scores, wanted = (torch.cat(values) for values in zip(*(groups[i] for i in chunk), strict=True))
            parts.append(loss(scores, wanted, [sizes[i] for i in chunk], **options))
        totals, counts = zip(*parts, strict=True)
        return torch.stack(totals).sum(), torch.stack(counts).sum()

    return summed


def _chunks(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Groups from the largest to the smallest, PAIRS_AT_ONCE at a time."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    while order:
        most = max(1, PAIRS_AT_ONCE // sizes[order[0]] ** 2)
        yield order[:most]
        order = order[most:]


def point_ce(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each pair.

    One label, logits [B]: binary cross-entropy on soft labels, -t log s - (1 - t) log(1 - s) with s = sigmoid(logit)
    (the specification's point_ce). Several labels, logits [B, C]: -log softmax(logits)[class] with class = t (C - 1).

    Args:
        logits: [B] or [B, C], any float dtype.
        targets: [B] in [0, 1].
        sizes: not used; pairs stand for themselves.
    """
    logits, targets = logits.float(), targets.float()
    count = torch.tensor(len(targets))
    if logits.dim() == 1:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), count
    classes = (targets * (logits.shape[-1] - 1)).round().long()
    return F.cross_entropy(logits, classes, reduction="sum"), count


def point_mse(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of each pair, (sigmoid(logit) - t)^2 (the specification's point_mse, on scores in [0, 1]).

    Args:
        logits: [B], any float dtype.
        targets: [B] in [0, 1].
        sizes: not used; pairs stand for themselves.
    """
    return F.mse_loss(logits.float().sigmoid(), targets.float(), reduction="sum"), torch.tensor(len(targets))


@by_size
def pairwise_ranknet(
    logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int], weight: str = "none"
) -> tuple[torch.Tensor, torch.Tensor]:
    """RankNet (Burges et al. 2005): log(1 + exp(-(s_i - s_j))) for every i, j of a group with t_i > t_j; their mean.

    Args:
        logits: [B], any float dtype.
        targets: [B]; only their differences count.
        sizes: documents of each group, in order, [G].
        weight: `none`, or `grade`: each i, j weighs t_i - t_j.
    """
    scores, grades, real = _groups(logits, targets, sizes)
    ordered, steps = _ordered(grades, real)
    weights = ordered * (steps if weight == "grade" else 1.0)
    return _mean_of_pairs(F.softplus(-_differences(scores)) * weights, ordered)


@by_size
def pairwise_margin_mse(
    logits: torch.Tensor, teacher: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin MSE (Hofstätter et al. 2020): ((s_i - s_j) - (z_i - z_j))^2 for every i, j with z_i > z_j; their mean.

    Args:
        logits: [B], any float dtype.
        teacher: [B] a teacher's logits z.
        sizes: documents of each group, in order, [G].
    """
    scores, wanted, real = _groups(logits, teacher, sizes)
    ordered, _ = _ordered(wanted, real)
    margins = _differences(scores) - _differences(wanted)
    return _mean_of_pairs(margins.square() * ordered, ordered)


@by_size
def listwise_ce(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over each document and those of lower grades: -s_i + log(exp s_i + sum of exp s_j over the j with t_j < t_i).

    A grade's loss is the mean over its documents, as in Gao et al. 2021; a group's loss is the mean over its grades above the
    lowest, each weighed by its gain t (Järvelin and Kekäläinen 2002, linear gains as evaluation has them). Positives of several
    ranks, each against the lower ones, are those of RINCE (Hoffmann et al. 2022). With two grades in a group it is
    `listwise_ce_top`, whose arithmetic is kept for such data.

    Args:
        logits: [B], any float dtype.
        targets: [B] labels scaled to [0, 1]: gains.
        sizes: documents of each group, in order, [G].
    """
    scores, grades, real = _groups(logits, targets, sizes)
    terms, counted, usable = _before_others(scores, grades, real, ties=False)
    alike = ((_differences(grades) == 0) & counted[:, None, :]).sum(dim=2).clamp(min=1)
    weights = grades * counted / alike
    return ((terms * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=TINY)).sum(), usable.sum()


@by_size
def listwise_ce_top(
    logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over a group with one positive: -s_p + log(exp s_p + sum of exp s_n over the n with t_n < t_p).

    The localised contrastive estimation of Gao et al. 2021. A group's positives are its documents of the highest target, if
    that is above 0; each stands alone before the others, and the group's loss is their mean. All lower targets are alike.

    Args:
        logits: [B], any float dtype.
        targets: [B] labels scaled to [0, 1].
        sizes: documents of each group, in order, [G].
    """
    scores, grades, real = _groups(logits, targets, sizes)
    best = grades.masked_fill(~real, -torch.inf).amax(dim=1, keepdim=True)
    positive = real & (grades == best) & (best > 0)
    rest = torch.logsumexp(scores.masked_fill(~real | positive, LOWEST), dim=1, keepdim=True)
    usable = positive.any(dim=1) & (real & ~positive).any(dim=1)
    losses = F.softplus(rest - scores).masked_fill(~positive | ~usable[:, None], 0.0)
    return (losses.sum(dim=1) / positive.sum(dim=1).clamp(min=1)).sum(), usable.sum()


@by_size
def listwise_kl(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    sizes: Sequence[int],
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || q) of the teacher's and the student's distribution over a group: sum of p (log p - log q).

    p = softmax(z / teacher_temperature), q = softmax(s / student_temperature). ListNet's loss (Cao et al. 2007) with a
    teacher's logits for labels, less the teacher's entropy.

    Args:
        logits: [B], any float dtype.
        teacher: [B] a teacher's logits z.
        sizes: documents of each group, in order, [G].
        teacher_temperature: above 1 flattens the teacher's distribution.
        student_temperature: same for the student's.
    """
    scores, z, real = _groups(logits, teacher, sizes)
    wanted = (z / teacher_temperature).masked_fill(~real, LOWEST).log_softmax(dim=1)
    got = (scores / student_temperature).masked_fill(~real, LOWEST).log_softmax(dim=1)
    usable = real.sum(dim=1) > 1
    terms = (wanted.exp() * (wanted - got)).masked_fill(~real | ~usable[:, None], 0.0)
    return terms.sum(), usable.sum()


@by_size
def list_mle(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """ListMLE (Xia et al. 2008): minus the log-likelihood of a group's order under Plackett and Luce's model.

    -s_i + log(sum of exp s_j over the j with t_j <= t_i), summed over i. Documents of equal target all have each other in
    their sum (Breslow's ties, 1974), so that no order is made up between them; those of the lowest target order nothing and
    are left out (in an order without ties their term is 0).

    Args:
        logits: [B], any float dtype.
        targets: [B]; only their order counts.
        sizes: documents of each group, in order, [G].
    """
    terms, counted, usable = _before_others(*_groups(logits, targets, sizes), ties=True)
    return (terms * counted).sum(), usable.sum()


@by_size
def p_list_mle(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Position-aware ListMLE (Lan et al. 2014): ListMLE whose term at rank r of n weighs 2^(n - r) - 1.

    Weights are scaled to a sum of 1; documents of equal target share the mean weight of the ranks that they take.

    Args:
        logits: [B], any float dtype.
        targets: [B]; only their order counts.
        sizes: documents of each group, in order, [G].
    """
    scores, grades, real = _groups(logits, targets, sizes)
    terms, counted, usable = _before_others(scores, grades, real, ties=True)
    length = real.sum(dim=1, keepdim=True)
    rank = torch.arange(1, real.shape[1] + 1, device=scores.device)
    # 2^(n - r) - 1, divided by 2^n: the same after scaling, and finite for any n.
    by_rank = (torch.pow(2.0, -rank) - torch.pow(2.0, -length)).clamp(min=0.0)
    total = F.pad(by_rank.cumsum(dim=1), (1, 0))  # weight of the first r ranks
    above = ((grades[:, None, :] > grades[:, :, None]) & real[:, None, :]).sum(dim=2)
    tied = ((grades[:, None, :] == grades[:, :, None]) & real[:, None, :]).sum(dim=2).clamp(min=1)
    last = (above + tied).clamp(max=real.shape[1])
    weights = (total.gather(1, last) - total.gather(1, above)) / tied * counted
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=TINY)
    return (terms * weights).sum(), usable.sum()


@by_size
def lambda_rank(
    logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int], ndcg_at: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """LambdaRank (Burges 2010): RankNet whose every i, j weighs the nDCG that swapping the two would change; their mean.

    |t_i - t_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / maxDCG, with ranks r by the current scores and linear gains, as
    evaluation has them. With `ndcg_at` = k (nDCG@k) discounts end at rank k, so a pair counts if one of the two is within it.
    Of equal scores the lower target ranks first, as in the worst order; those of equal target too share their mean rank.

    Args:
        logits: [B], any float dtype.
        targets: [B] gains.
        sizes: documents of each group, in order, [G].
        ndcg_at: cut-off k; None: the whole group.
    """
    scores, grades, real = _groups(logits, targets, sizes)
    ordered, steps = _ordered(grades, real)
    ahead = _differences(-scores.detach())  # by how much j scores above i
    before = (ahead > 0) | ((ahead == 0) & (_differences(grades) > 0))
    alike = (ahead == 0) & (_differences(grades) == 0)
    others = real[:, None, :]
    rank = (before & others).sum(dim=2) + ((alike & others).sum(dim=2) - 1) / 2  # from 0
    within = real.shape[1] if ndcg_at is None else ndcg_at
    discount = (1.0 / torch.log2(rank + 2.0)) * (rank < within)
    ideal = grades.masked_fill(~real, 0.0).sort(dim=1, descending=True).values[:, :within]
    places = torch.arange(ideal.shape[1], device=scores.device)
    best = (ideal / torch.log2(places + 2.0)).sum(dim=1).clamp(min=TINY)
    weights = steps * _differences(discount).abs() / best[:, None, None]
    return _mean_of_pairs(F.softplus(-_differences(scores)) * weights * ordered, ordered)


LOWEST = -1e30  # stands for minus infinity in sums of exponentials: no NaN in gradients
TINY = torch.finfo(torch.float32).tiny


def _groups(
    logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scores, targets, whether there is a document), each [G, N]; shorter groups are filled with zeros."""
    lengths = torch.tensor(list(sizes))
    assert int(lengths.sum()) == len(logits) == len(targets)
    count, longest = len(lengths), int(lengths.max())
    before = torch.arange(count) * longest - (
        lengths.cumsum(0) - lengths
    )  # places of a row less documents of earlier groups
    places = upload(torch.arange(len(logits)) + before.repeat_interleave(lengths), logits.device)

    def rows(values: torch.Tensor) -> torch.Tensor:
        empty = torch.zeros(count * longest, dtype=torch.float32, device=logits.device)
        return empty.scatter(0, places, values.float()).view(count, longest)

    return rows(logits), rows(targets), rows(torch.ones_like(logits)) > 0


def _differences(values: torch.Tensor) -> torch.Tensor:
    """values_i - values_j, [G, N, N], of values [G, N]."""
    return values[:, :, None] - values[:, None, :]


def _ordered(grades: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(whether i is better than j, by how much), [G, N, N]."""
    steps = _differences(grades)
    return (steps > 0) & real[:, :, None] & real[:, None, :], steps.clamp(min=0.0)


def _mean_of_pairs(losses: torch.Tensor, ordered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum over groups of the mean over their ordered pairs, groups that have some)."""
    pairs = ordered.sum(dim=(1, 2))
    return (losses.sum(dim=(1, 2)) / pairs.clamp(min=1)).sum(), (pairs > 0).sum()


def _before_others(
    scores: torch.Tensor, grades: torch.Tensor, real: torch.Tensor, ties: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(-log of each document's chance to come first of itself and the lower ones, whether it counts, [G, N]; usable groups, [G]).

    With `ties` those of its own grade are among the others (Plackett and Luce's model); the lowest grade never counts.
    """
    steps = _differences(grades)
    below = (steps >= 0 if ties else steps > 0) & real[:, None, :]
    if not ties:
        below = below | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    chances = torch.logsumexp(scores[:, None, :].masked_fill(~below, LOWEST), dim=2) - scores
    lowest = grades.masked_fill(~real, torch.inf).amin(dim=1, keepdim=True)
    counted = real & (grades > lowest)
    return chances.masked_fill(~counted, 0.0), counted, counted.any(dim=1)
