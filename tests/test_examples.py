"""Groups: what is drawn of each query, by which rule, and what it does not depend on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankery.data.examples import Draw, DrawnGroups, chunks, false_negatives, one_each, query_groups


def groups_of(labels: list[list[float]], size: int | None, seed: int = 0) -> tuple[object, np.ndarray, np.ndarray]:
    """(source, query of each pair, label of each pair) of one list of labels a query."""
    query = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    label = np.array([value for row in labels for value in row])
    key = np.random.default_rng(9).integers(0, 2**63, len(label), dtype=np.uint64)
    lengths = np.arange(1, len(label) + 1)
    return query_groups(query, label, key, lengths, np.arange(len(label)), 0.0, size, seed), query, label


data = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=9), min_size=1, max_size=8)


@given(data, st.integers(2, 6), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_positive_and_others_each_once_before_any_twice(labels: list[list[float]], size: int, seed: int) -> None:
    source, query, label = groups_of(labels, size, seed)
    taken = {q: {"positive": [], "other": []} for q in range(len(labels))}
    for epoch in range(12):
        draw = source.draw(epoch)
        assert len(draw) == len(labels) == len(source)
        for q, row in enumerate(labels):
            pairs = draw.of(np.array([q]))
            assert set(query[pairs]) == {q}
            assert len(set(pairs.tolist())) == len(pairs) <= size
            highest = max(row)
            positives = [p for p in pairs if label[p] == highest and highest > 0]
            others = [p for p in pairs if p not in positives]
            available = sum(not (value == highest and highest > 0) for value in row)
            assert len(positives) == (1 if highest > 0 else 0)
            assert len(others) == min(available, size - len(positives))
            taken[q]["positive"] += positives
            taken[q]["other"] += others
            assert draw.lengths[q] == (pairs + 1).max()
    for q, row in enumerate(labels):
        highest = max(row)
        for kind, available in (
            ("positive", sum(value == highest > 0 for value in row)),
            ("other", sum(not (value == highest and highest > 0) for value in row)),
        ):
            counts = np.bincount(taken[q][kind], minlength=len(label))[query == q]
            used = counts[[(value == highest and highest > 0) == (kind == "positive") for value in row]]
            if available:
                assert used.min() > 0 or len(taken[q][kind]) < available, "some were drawn again before others at all"


def test_all_negatives_are_used_before_any_comes_again() -> None:
    source, _, _ = groups_of([[1, 0, 0, 0, 0, 0, 0]], 3)
    seen = [pair for epoch in range(3) for pair in source.draw(epoch).pairs.tolist() if pair]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    again = [pair for epoch in range(3, 6) for pair in source.draw(epoch).pairs.tolist() if pair]
    assert sorted(again) == [1, 2, 3, 4, 5, 6]


def test_draws_depend_on_texts_seed_and_epoch_alone() -> None:
    labels = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    source, _, _ = groups_of(labels, 3)
    assert source.draw(4).pairs.tolist() == source.draw(4).pairs.tolist()
    other, _, _ = groups_of(labels, 3, seed=1)
    assert any(source.draw(e).pairs.tolist() != other.draw(e).pairs.tolist() for e in range(3))
    assert isinstance(source, DrawnGroups)
    # The same texts in another order of the file: the same documents.
    order = np.random.default_rng(1).permutation(len(source.order))
    query, label, key = (
        np.asarray(a)[order] for a in (source.query, np.concatenate([np.array(r) for r in labels]), source.key)
    )
    moved = query_groups(query, label, key, np.ones(len(order)), np.arange(len(order)), 0.0, 3, 0)
    for epoch in range(4):
        assert set(key[moved.draw(epoch).pairs]) == set(source.key[source.draw(epoch).pairs])


def test_whole_groups_of_pairs_in_any_order() -> None:
    query = np.array([1, 0, 1, 2, 0])
    source = query_groups(query, np.zeros(5), np.zeros(5, np.uint64), np.arange(5) + 1, np.arange(5), 0.0, None, 0)
    draw = source.draw(7)
    assert [draw.of(np.array([i])).tolist() for i in range(3)] == [[1, 4], [0, 2], [3]]
    assert draw.lengths.tolist() == [5, 3, 4]
    assert draw.of(np.array([2, 0])).tolist() == [3, 1, 4]


def test_single_pairs_of_a_part_of_the_data() -> None:
    draw = one_each(np.array([5, 6, 7, 8]), np.array([1, 3]))
    assert isinstance(draw, Draw)
    assert draw.of(np.array([1, 0])).tolist() == [3, 1]
    assert draw.lengths.tolist() == [6, 8]
    assert [part.tolist() for part in chunks(draw, 1)] == [[0], [1]]


def test_false_negatives() -> None:
    query = np.array([0, 0, 0, 0, 1, 1, 2])
    label = np.array([0.9, 0.6, 0.95, 0.7, 0.5, 0.4, 0.9])
    negative = np.array([False, False, True, True, False, True, True])
    assert np.flatnonzero(false_negatives(query, label, negative, 0.0)).tolist() == [2]
    assert np.flatnonzero(false_negatives(query, label, negative, 0.25)).tolist() == [2, 3, 5]
