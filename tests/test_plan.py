"""The step plan: properties that hold for every data set, batch, budget and number of processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankery.data.examples import Draw, Fixed, computed, met, one_each, query_groups, trunks_of
from rankery.data.packing import packing_of
from rankery.data.plan import (
    MICRO_BATCH_OVERHEAD,
    MicroBatch,
    Plan,
    computed_tokens,
    cut_points,
    deal,
    epoch_order,
    fill_points,
)


def groups(lengths: list[list[int]]) -> Fixed:
    """Groups of pairs with these lengths; pairs are numbered in order."""
    sizes = np.array([len(group) for group in lengths])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return Fixed(Draw(np.arange(starts[-1]), starts, sizes, np.array([max(group) for group in lengths])))


def singles(lengths: list[list[int]]) -> Fixed:
    return Fixed(one_each(np.array([length for group in lengths for length in group])))


def flat(lengths: list[list[int]]) -> np.ndarray:
    return np.array([length for group in lengths for length in group])


data = st.lists(st.lists(st.integers(1, 512), min_size=1, max_size=6), min_size=1, max_size=30)
plans = st.builds(
    lambda kind, lengths, *rest: Plan(kind(lengths), flat(lengths), *rest),
    st.sampled_from([groups, singles]), data, st.integers(0, 5), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4096),
    st.sampled_from(["padded", "packed"]),
)  # fmt: skip


def width(plan: Plan, pairs: np.ndarray) -> int:
    lengths = plan.lengths[pairs]
    return int(lengths.sum() if plan.layout == "packed" else lengths.max() * len(pairs))


@given(plans)
@settings(max_examples=200, deadline=None)
def test_each_example_once_an_epoch_and_processes_in_step(plan: Plan) -> None:
    seen: list[int] = []
    for number in range(plan.steps_per_epoch):
        step = plan.step(number)
        assert len({len(row) for row in step.micro_batches}) == 1, "processes have different numbers of micro-batches"
        for at_once in zip(*step.micro_batches, strict=True):
            assert len({micro_batch.passes for micro_batch in at_once}) == 1, (
                "processes have different numbers of passes"
            )
        real = [int(i) for row in step.micro_batches for m in row if m.weight for i in m.pairs]
        assert sorted(real) == sorted(step.pairs.tolist())
        assert sum(step.sizes) == len(step.pairs)
        seen += real
        for micro_batch in (micro_batch for row in step.micro_batches for micro_batch in row):
            assert sum(micro_batch.sizes) == len(micro_batch.pairs) >= 1
            assert len(micro_batch.pieces) <= micro_batch.passes
            for piece in micro_batch.pieces:
                assert width(plan, piece) <= plan.budget or len(piece) == 1
    assert sorted(seen) == list(range(len(plan.lengths)))


@given(plans)
@settings(max_examples=100, deadline=None)
def test_groups_stay_together_and_are_split_only_over_the_budget(plan: Plan) -> None:
    draw = plan.examples.draw(0)
    owner = {int(pair): i for i in range(len(draw)) for pair in draw.of(np.array([i]))}
    for number in range(plan.steps_per_epoch):
        for micro_batch in (m for row in plan.step(number).micro_batches for m in row if m.weight):
            at = 0
            for size in micro_batch.sizes:
                members = micro_batch.pairs[at : at + size].tolist()
                (example,) = {owner[pair] for pair in members}
                assert sorted(members) == draw.of(np.array([example])).tolist()
                at += size
            if micro_batch.cuts:
                assert len(micro_batch.sizes) == 1
                assert width(plan, micro_batch.pairs) > plan.budget


@given(plans, st.integers(1, 4), st.integers(1, 4096))
@settings(max_examples=50, deadline=None)
def test_steps_do_not_depend_on_budget_processes_or_packing(plan: Plan, processes: int, budget: int) -> None:
    other = Plan(
        plan.examples,
        plan.lengths,
        plan.seed,
        plan.batch,
        processes,
        budget,
        "padded" if plan.layout == "packed" else "packed",
    )
    assert plan.steps_per_epoch == other.steps_per_epoch
    for number in range(plan.steps_per_epoch):
        assert plan.step(number).pairs.tolist() == other.step(number).pairs.tolist()


def test_epochs_and_seeds_draw_in_different_orders() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, 1, 1)) == orders[3]


def brute_force(sizes: np.ndarray, lengths: np.ndarray, budget: int) -> int:
    """The fewest tokens of all cuts."""
    count = len(lengths)
    best = None
    for choice in range(1 << (count - 1)):
        points = [i + 1 for i in range(count - 1) if choice >> i & 1]
        blocks = [range(a, b) for a, b in zip([0, *points], [*points, count], strict=True)]
        costs = [int(lengths[block[0]]) * int(sizes[list(block)].sum()) for block in blocks]
        if all(cost <= budget or len(block) == 1 for cost, block in zip(costs, blocks, strict=True)):
            total = sum(costs) + MICRO_BATCH_OVERHEAD * len(blocks)
            best = total if best is None else min(best, total)
    assert best is not None
    return best


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 4)), min_size=1, max_size=9), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_cut_is_optimal(examples: list[tuple[int, int]], budget: int) -> None:
    examples = sorted(examples, reverse=True)
    lengths = np.array([length for length, _ in examples])
    sizes = np.array([size for _, size in examples])
    points = list(cut_points(sizes, lengths, budget))
    blocks = np.split(np.arange(len(lengths)), points)
    cost = sum(int(lengths[b[0]]) * int(sizes[b].sum()) + MICRO_BATCH_OVERHEAD for b in blocks)
    assert cost == brute_force(sizes, lengths, budget)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(300, 3000))
def test_packed_parts_are_few_and_even(tokens: list[int], budget: int) -> None:
    parts = np.split(np.array(tokens), fill_points(np.array(tokens), budget))
    sums = [int(part.sum()) for part in parts]
    assert max(sums) <= budget
    assert len(parts) <= 2 * -(-sum(tokens) // budget)


queries = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=9)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(queries, st.integers(1, 400), st.integers(1, 3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_pairs_that_share_a_query_are_within_the_budget(
    found: list[tuple[int, list[tuple[int, int]]]], budget: int, processes: int, scoring: bool
) -> None:
    """As they are laid out, in training and in scoring; a query may be cut differently for a long document."""
    query = np.repeat(np.arange(len(found)), [len(pairs) for _, pairs in found])
    heads = np.array([max(head - cut, 0) for head, pairs in found for cut, _ in pairs])
    lengths = heads + np.array([own for _, pairs in found for _, own in pairs])
    if scoring:
        draw, trunks = met("shared", lengths, heads, query, budget)
        assert len(draw) <= len(lengths)
    else:
        trunks = trunks_of(lengths, heads, query)
        draw = query_groups(query, query, query, lengths, np.arange(len(query)), 0.0, None, 0).draw(0)
    dealt = deal(np.arange(len(draw)), draw, lengths, processes, budget, "shared", trunks)
    for micro_batch in (micro_batch for row in dealt for micro_batch in row):
        for piece in micro_batch.pieces:
            packing = packing_of(lengths[piece].tolist(), heads[piece].tolist(), query[piece].tolist())
            tokens = packing.position_ids.shape[1]
            assert tokens == computed(lengths, trunks, piece).sum()
            assert tokens <= budget or len(piece) == 1
    assert sorted(p for row in dealt for m in row if m.weight for p in m.pairs.tolist()) == list(range(len(lengths)))


def test_parts_of_a_large_group_each_compute_its_query() -> None:
    """12 documents of 60 tokens behind 200: 920 tokens at once, and two parts of 560 under a budget of 600."""
    lengths, heads, query = np.full(12, 260), np.full(12, 200), np.zeros(12, dtype=np.int64)
    draw = query_groups(query, query, query, lengths, np.arange(12), 0.0, None, 0).draw(0)
    for budget, parts in ((920, [12]), (600, [6, 6])):
        ((micro_batch,),) = deal(np.arange(1), draw, lengths, 1, budget, "shared", trunks_of(lengths, heads, query))
        assert [len(piece) for piece in micro_batch.pieces] == parts


def test_one_example_on_two_processes() -> None:
    plan = Plan(singles([[10]]), np.array([10]), 0, 8, 2, 100)
    first, second = plan.step(0).micro_batches
    assert sorted((first[0].weight, second[0].weight)) == [0.0, 1.0]
    assert computed_tokens(plan.step(0), plan.lengths) == 20


def test_large_group_on_two_processes() -> None:
    plan = Plan(groups([[10] * 5]), np.full(5, 10), 0, 8, 2, 20)
    (large,), (filler,) = sorted(plan.step(0).micro_batches, key=lambda row: -row[0].weight)
    assert [len(piece) for piece in large.pieces] == [2, 2, 1] or sorted(map(len, large.pieces)) == [1, 2, 2]
    assert isinstance(filler, MicroBatch)
    assert (filler.weight, filler.passes, large.passes) == (0.0, 3, 3)


def test_little_padding_on_realistic_lengths() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.1, 0.7, 6400).astype(int), 10, 512)
    plan = Plan(Fixed(one_each(lengths)), lengths, 0, 32, 1, 2048)
    steps = [plan.step(number) for number in range(200)]
    computed = sum(computed_tokens(step, plan.lengths) for step in steps)
    assert computed / lengths.sum() < 1.1
    packed = replace(plan, layout="packed")
    assert sum(computed_tokens(packed.step(n), lengths, layout="packed") for n in range(200)) == lengths.sum()
