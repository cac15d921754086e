"""Losses: hand-computed values, plain reference code, properties, gradients, precision; and another library's values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rankery.losses import (
    lambda_rank,
    list_mle,
    listwise_ce,
    listwise_ce_top,
    listwise_kl,
    p_list_mle,
    pairwise_margin_mse,
    pairwise_ranknet,
    point_ce,
    point_mse,
)
from rankery.objective import LOSSES, Objective

SIZES = (3, 1, 5, 2, 7)
GROUPED = [name for name in LOSSES if not name.startswith("point_")]
VARIANTS = {
    **{name: LOSSES[name] for name in GROUPED},
    "ce of the top grade": listwise_ce_top,
    "ranknet by grade": partial(pairwise_ranknet, weight="grade"),
    "kl at temperatures": partial(listwise_kl, teacher_temperature=2.0, student_temperature=0.5),
    "lambda_rank at 3": partial(lambda_rank, ndcg_at=3),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(name: str, s: list[float], t: list[float], **options: object) -> float | None:
    """The loss of one group, in plain Python; None where there is nothing to learn. t: targets, or a teacher's logits."""
    n = range(len(s))
    better = [(i, j) for i in n for j in n if t[i] > t[j]]
    if name == "pairwise_ranknet":
        losses = [
            math.log(1 + math.exp(-(s[i] - s[j]))) * (t[i] - t[j] if options.get("weight") == "grade" else 1)
            for i, j in better
        ]
        return sum(losses) / len(losses) if losses else None
    if name == "pairwise_margin_mse":
        losses = [(s[i] - s[j] - t[i] + t[j]) ** 2 for i, j in better]
        return sum(losses) / len(losses) if losses else None
    if name == "listwise_ce":
        levels = sorted(set(t))[1:]
        means = []
        for level in levels:
            own, lower = [s[i] for i in n if t[i] == level], [s[j] for j in n if t[j] < level]
            means.append(sum(math.log(math.exp(x) + sum(map(math.exp, lower))) - x for x in own) / len(own))
        return sum(a * b for a, b in zip(levels, means, strict=True)) / sum(levels) if levels else None
    if name == "listwise_ce_top":
        best = [i for i in n if t[i] == max(t) and t[i] > 0]
        rest = [j for j in n if t[j] < max(t)]
        if not best or not rest:
            return None
        return sum(math.log(math.exp(s[p]) + sum(math.exp(s[j]) for j in rest)) - s[p] for p in best) / len(best)
    if name == "listwise_kl":
        wanted = [math.exp(x / options.get("teacher_temperature", 1.0)) for x in t]
        got = [math.exp(x / options.get("student_temperature", 1.0)) for x in s]
        p, q = [x / sum(wanted) for x in wanted], [x / sum(got) for x in got]
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) if len(s) > 1 else None
    if name in ("list_mle", "p_list_mle"):
        lowest = min(t)
        terms, weights = [], []
        for i in n:
            if t[i] > lowest:
                terms.append(math.log(sum(math.exp(s[j]) for j in n if t[j] <= t[i])) - s[i])
                ranks = range(sum(x > t[i] for x in t) + 1, sum(x >= t[i] for x in t) + 1)
                weights.append(sum(2.0 ** (len(s) - r) - 1 for r in ranks) / len(ranks))
        if not terms:
            return None
        if name == "list_mle":
            return sum(terms)
        return sum(a * b for a, b in zip(terms, weights, strict=True)) / sum(weights)
    assert name == "lambda_rank"
    at = options.get("ndcg_at") or len(s)
    place = [(-s[i], t[i]) for i in n]  # of equal scores the lower target first
    rank = {i: sum(p < place[i] for p in place) + (1 + place.count(place[i])) / 2 for i in n}
    discount = [1 / math.log2(1 + rank[i]) if rank[i] <= at or "whole_list" in options else 0.0 for i in n]
    if "whole_list" in options:  # how LambdaLoss takes a cut-off
        better = [(i, j) for i, j in better if min(rank[i], rank[j]) <= at]
    ideal = sum(x / math.log2(1 + r) for r, x in enumerate(sorted(t, reverse=True)[:at], 1))
    losses = [
        (t[i] - t[j]) / ideal * abs(discount[i] - discount[j]) * math.log(1 + math.exp(-(s[i] - s[j])))
        for i, j in better
    ]
    return sum(losses) / len(losses) if losses else None


def name_and_options(loss: Callable) -> tuple[str, dict]:
    return (loss.func.__name__, loss.keywords) if isinstance(loss, partial) else (loss.__name__, {})


def sample(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, targets) of groups of SIZES: teacher scores or logits, or labels with many ties."""
    torch.manual_seed(seed)
    logits = torch.randn(sum(SIZES)) * 2
    scores = torch.rand(sum(SIZES))
    return logits, scores if kind == "scores" else (scores * 3).floor() / 2


def test_hand_computed_values() -> None:
    logits, targets = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.25])
    s = sigmoid(2)
    total, count = point_ce(logits, targets, [1, 1])
    assert count == 2
    assert float(total) == pytest.approx(math.log(2) - 0.25 * math.log(s) - 0.75 * math.log(1 - s), rel=1e-6)
    total, count = point_mse(logits, targets, [1, 1])
    assert float(total) == pytest.approx(0.25 + (s - 0.25) ** 2, rel=1e-6)
    total, count = pairwise_ranknet(logits, targets, [2])
    assert (float(total), int(count)) == (pytest.approx(math.log(1 + math.exp(2)), rel=1e-6), 1)
    total, count = listwise_ce(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), [3])
    assert (float(total), int(count)) == (pytest.approx(math.log(math.e + 2) - 1, rel=1e-6), 1)
    total, count = list_mle(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.5, 0.0]), [3])
    expected = math.log(1 + math.exp(-1) + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert (float(total), int(count)) == (pytest.approx(expected, rel=1e-6), 1)


def test_classes() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    total, count = point_ce(logits, torch.tensor([0.5, 1.0]), [1, 1])
    expected = math.log(math.e + 2) - 0 + math.log(2 + math.exp(3)) - 3
    assert (float(total), count) == (pytest.approx(expected, rel=1e-6), 2)


@pytest.mark.parametrize("kind", ["scores", "labels"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_plain_reference(variant: str, kind: str) -> None:
    name, options = name_and_options(VARIANTS[variant])
    for seed in range(5):
        logits, targets = sample(kind, seed)
        logits = logits.round() if seed > 2 else logits  # ties
        parts = [
            reference(name, s.tolist(), t.tolist(), **options)
            for s, t in zip(logits.split(SIZES), targets.split(SIZES), strict=True)
        ]
        total, count = VARIANTS[variant](logits, targets, SIZES)
        assert int(count) == sum(part is not None for part in parts)
        assert float(total) == pytest.approx(sum(part or 0.0 for part in parts), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_add_up_over_cuts(name: str) -> None:
    logits, targets = sample("scores")
    whole, count = LOSSES[name](logits, targets, SIZES)
    parts = [LOSSES[name](s, t, [len(s)]) for s, t in zip(logits.split(SIZES), targets.split(SIZES), strict=True)]
    assert sum(int(n) for _, n in parts) == count
    torch.testing.assert_close(sum(total for total, _ in parts), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_inside_a_group_and_a_shift_change_nothing(variant: str) -> None:
    loss = VARIANTS[variant]
    for kind, tied in itertools.product(("scores", "labels"), (False, True)):
        logits, targets = sample(kind)
        logits = logits.round() if tied else logits
        whole, count = loss(logits, targets, SIZES)
        order = torch.cat(
            [
                start + torch.randperm(size)
                for start, size in zip(itertools.accumulate((0, *SIZES)), SIZES, strict=False)
            ]
        )
        shuffled, again = loss(logits[order], targets[order], SIZES)
        torch.testing.assert_close(shuffled, whole)
        assert again == count
        shift = torch.repeat_interleave((torch.randn(len(SIZES)) * 5).round(), torch.tensor(SIZES))
        torch.testing.assert_close(loss(logits + shift, targets, SIZES)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_finite_differences(variant: str) -> None:
    logits, targets = sample("labels")
    logits = logits.double().requires_grad_()
    VARIANTS[variant](logits, targets, SIZES)[0].backward()
    step = 1e-2
    for at in range(len(logits)):
        with torch.no_grad():
            moved = [logits.clone() for _ in range(2)]
            moved[0][at] += step
            moved[1][at] -= step
            high, low = (float(VARIANTS[variant](m, targets, SIZES)[0]) for m in moved)
        assert float(logits.grad[at]) == pytest.approx((high - low) / (2 * step), rel=2e-3, abs=2e-3), at


def test_documents_that_are_alike_have_one_gradient() -> None:
    """Whatever their order, also where all scores are equal, as those of a new head may be."""
    for logits in (torch.zeros(5), torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0])):
        logits.requires_grad_()
        lambda_rank(logits, torch.tensor([0.5, 1.0, 0.0, 0.0, 0.0]), [5])[0].backward()
        assert float(logits.grad[2]) == float(logits.grad[3]) > 0
        assert float(logits.grad[1]) < 0


@pytest.mark.parametrize("name", GROUPED)
def test_groups_without_anything_to_learn_weigh_nothing(name: str) -> None:
    logits = torch.randn(3, requires_grad=True)
    alone = torch.randn(1, requires_grad=True)
    same = torch.zeros(3) if name != "listwise_kl" else torch.tensor([0.2, 0.4, 0.6])
    both = torch.cat([logits, alone])
    total, count = LOSSES[name](both, torch.cat([same, torch.ones(1)]), (3, 1))
    assert int(count) == (1 if name == "listwise_kl" else 0)
    total.backward()
    assert float(alone.grad) == 0.0
    assert torch.isfinite(logits.grad).all()


def test_best_order_has_the_least_loss() -> None:
    targets = torch.tensor([1.0, 0.5, 0.0])
    for name in GROUPED:
        losses = {
            order: float(LOSSES[name](torch.tensor(order) * 2.0, targets, [3])[0])
            for order in itertools.permutations((2.0, 1.0, 0.0))
        }
        assert min(losses, key=losses.__getitem__) == (2.0, 1.0, 0.0), name


def test_gradient_of_point_ce_is_score_minus_target() -> None:
    logits = torch.randn(8, dtype=torch.float32, requires_grad=True)
    targets = torch.rand(8)
    point_ce(logits, targets, [8])[0].backward()
    torch.testing.assert_close(logits.grad, torch.sigmoid(logits.detach()) - targets)


@pytest.mark.parametrize("name", LOSSES)
def test_computed_in_fp32_and_finite(name: str) -> None:
    total, _ = LOSSES[name](torch.randn(4, dtype=torch.bfloat16), torch.rand(4), [4])
    assert total.dtype == torch.float32
    logits = torch.tensor([-200.0, 200.0, 0.0, 90.0, -90.0], requires_grad=True)
    extreme, _ = LOSSES[name](logits, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]), [3, 2])
    extreme.backward()
    assert torch.isfinite(extreme)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [200, 2000])
def test_position_weights_of_long_lists_are_finite(size: int) -> None:
    logits = torch.randn(size, requires_grad=True)
    total, _ = p_list_mle(logits, torch.linspace(1, 0, size), [size])
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_weighted_sum_divides_each_term_by_its_own_count() -> None:
    logits, labels = sample("labels")
    targets = torch.stack([labels, torch.randn(len(labels))], dim=1)
    objective = Objective((("listwise_ce", 1.0, listwise_ce), ("point_ce", 0.2, point_ce)))
    groups = int(listwise_ce(logits, labels, SIZES)[1])
    assert objective.counts(targets, SIZES) == (groups, sum(SIZES))
    expected = listwise_ce(logits, labels, SIZES)[0] / groups + 0.2 * point_ce(logits, labels, SIZES)[0] / sum(SIZES)
    torch.testing.assert_close(objective(logits, targets, SIZES, (groups, sum(SIZES))), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_a_teacher_learn_its_logits_the_others_labels(name: str) -> None:
    logits, labels = sample("labels")
    targets = torch.stack([labels, torch.randn(len(labels)) * 20], dim=1)
    objective = Objective(((name, 1.0, LOSSES[name]),))
    of_teacher = name in ("listwise_kl", "pairwise_margin_mse")
    total, count = LOSSES[name](logits, targets[:, 1] if of_teacher else labels, SIZES)
    assert objective.usable(targets, SIZES) == {name: int(count)}
    torch.testing.assert_close(objective(logits, targets, SIZES, (1,)), total)
    assert objective.mean(logits, targets, SIZES) == pytest.approx(float(total / count), rel=1e-5)


def test_mean_over_a_data_set_is_that_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sample("labels")
    targets = torch.stack([labels, labels], dim=1)
    objective = Objective((("list_mle", 1.0, list_mle), ("point_ce", 0.2, point_ce)))
    whole = float(objective(logits, targets, SIZES, objective.counts(targets, SIZES)))
    monkeypatch.setattr("rankery.losses.PAIRS_AT_ONCE", 20)
    assert objective.mean(logits, targets, SIZES) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kind", ["scores", "labels"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_by_size_have_the_loss_of_all_at_once(variant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = sample(kind)
    found = []
    for places in (1 << 20, 25, 1):
        monkeypatch.setattr("rankery.losses.PAIRS_AT_ONCE", places)
        leaf = logits.clone().requires_grad_()
        total, count = VARIANTS[variant](leaf, targets, SIZES)
        total.backward()
        found.append((total.detach(), count, leaf.grad))
    for total, count, gradient in found[1:]:
        assert int(count) == int(found[0][1])
        torch.testing.assert_close(total, found[0][0])
        torch.testing.assert_close(gradient, found[0][2])


class Made(TorchDispatchMode):
    """Counts the numbers in all tensors that operations give, and in the largest."""

    total = largest = 0

    def __torch_dispatch__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = function(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, (tuple, list)) else [given]:
            if isinstance(tensor, torch.Tensor):
                self.total, self.largest = self.total + tensor.numel(), max(self.largest, tensor.numel())
        return given


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_that_of_the_groups_not_of_the_largest_times_their_number(variant: str) -> None:
    numbers = {}
    for sizes in ([300], [300] + [10] * 300):
        logits, targets = torch.randn(sum(sizes), requires_grad=True), torch.rand(sum(sizes))
        with Made() as made:
            VARIANTS[variant](logits, targets, sizes)[0].backward()
        numbers[len(sizes)] = made
    assert numbers[301].largest <= 1 << 20
    assert numbers[301].total < 20 * max(numbers[1].total, 300**2)


def peer_model(logits: torch.Tensor) -> torch.nn.Module:
    """A CrossEncoder of the other library that gives the logits it is told: document "3" has the fourth."""
    from sentence_transformers import CrossEncoder

    class Told(CrossEncoder):
        num_labels, device = 1, torch.device("cpu")

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs: list, **_: object) -> dict:
            return {"at": torch.tensor([int(document) for _, document in pairs])}

        def forward(self, tokens: dict) -> dict:
            return {"scores": logits[tokens["at"]].unsqueeze(-1)}

    return Told()


def test_values_agree_with_sentence_transformers() -> None:
    """docs/losses.md's table, on random groups of one size (its reductions differ over groups of several sizes)."""
    peers = pytest.importorskip("sentence_transformers.cross_encoder.losses", reason="needs sentence-transformers")
    torch.manual_seed(3)
    groups, size = 6, 5
    sizes = [size] * groups
    logits, scores = torch.randn(groups * size), torch.rand(groups * size)
    inputs = [["q"] * groups, [[str(g * size + i) for i in range(size)] for g in range(groups)]]

    def theirs(kind: str, targets: torch.Tensor, **options: object) -> float:
        loss = getattr(peers, kind)(peer_model(logits), **options)
        return float(loss(inputs, list(targets.view(groups, size))))

    def ours(loss: Callable, targets: torch.Tensor) -> float:
        total, count = loss(logits, targets, sizes)
        return float(total / count)

    # RankNetLoss and LambdaLoss take the mean over all pairs of the batch: equal where groups have equally many.
    distinct = torch.stack([torch.randperm(size) / (size - 1) for _ in range(groups)]).flatten()
    natural = {"reduction_log": "natural"}
    assert ours(pairwise_ranknet, distinct) == pytest.approx(theirs("RankNetLoss", distinct, **natural), abs=1e-5)
    # Their gain is 2^label - 1, ours the label.
    gains = torch.log2(1 + distinct)
    options = {**natural, "weighting_scheme": peers.LambdaRankScheme()}
    assert ours(lambda_rank, distinct) == pytest.approx(theirs("LambdaLoss", gains, **options), abs=1e-5)
    # At a cut-off theirs leaves pairs out, with the discounts of the whole list: of 5 documents equally many in each group.
    rows = zip(logits.view(groups, size).tolist(), distinct.view(groups, size).tolist(), strict=True)
    at_2 = [reference("lambda_rank", s, t, ndcg_at=2, whole_list=True) for s, t in rows]
    assert sum(at_2) / groups == pytest.approx(theirs("LambdaLoss", gains, **options, k=2), abs=1e-5)
    assert ours(partial(lambda_rank, ndcg_at=2), distinct) != pytest.approx(sum(at_2) / groups, rel=0.1)
    assert ours(list_mle, scores) == pytest.approx(theirs("ListMLELoss", scores, respect_input_order=False), abs=1e-5)
    weighted = {"respect_input_order": False, "lambda_weight": peers.PListMLELambdaWeight()}
    assert ours(p_list_mle, scores) == pytest.approx(theirs("PListMLELoss", scores, **weighted), abs=1e-5)
    # ListNet's labels are the teacher's logits; it keeps the teacher's entropy, which no gradient sees.
    teacher = torch.logit(scores.clamp(0.01, 0.99))
    p = teacher.view(groups, size).softmax(dim=1)
    entropy = float(-(p * p.log()).sum(dim=1).mean())
    assert ours(listwise_kl, teacher) + entropy == pytest.approx(theirs("ListNetLoss", teacher), abs=1e-5)


def test_pairs_agree_with_sentence_transformers() -> None:
    peers = pytest.importorskip("sentence_transformers.cross_encoder.losses", reason="needs sentence-transformers")
    torch.manual_seed(4)
    logits = torch.randn(12)
    teacher = torch.randn(12)
    positives, negatives = [str(i) for i in range(0, 12, 2)], [str(i) for i in range(1, 12, 2)]
    first = torch.maximum(teacher[0::2], teacher[1::2])  # the teacher's better one is the positive
    second = torch.minimum(teacher[0::2], teacher[1::2])
    margins = first - second
    theirs = float(peers.MarginMSELoss(peer_model(logits))([["q"] * 6, positives, negatives], margins))
    targets = torch.stack([first, second], dim=1).flatten()
    total, count = pairwise_margin_mse(logits, targets, [2] * 6)
    assert float(total / count) == pytest.approx(theirs, abs=1e-5)
    assert first.gt(second).all()
    pairs, scores = [["q"] * 12, [str(i) for i in range(12)]], torch.rand(12)
    for loss, peer in (
        (point_ce, peers.BinaryCrossEntropyLoss(peer_model(logits))),
        (point_mse, peers.MSELoss(peer_model(logits), activation_fn=torch.nn.Sigmoid())),
    ):
        total, count = loss(logits, scores, [12])
        assert float(total / count) == pytest.approx(float(peer(pairs, scores)), abs=1e-5)
    # One query at a time has no negatives in its batch: a softmax over its own documents.
    total, count = listwise_ce(logits, torch.tensor([1.0, 0.0, 0.0, 0.0] * 3), [4] * 3)
    peer = peers.MultipleNegativesRankingLoss(peer_model(logits), scale=1.0, activation_fn=None)
    alone = [float(peer([["q"], *[[str(4 * query + i)] for i in range(4)]], None)) for query in range(3)]
    assert float(total / count) == pytest.approx(sum(alone) / 3, abs=1e-5)
