"""Arguments of public functions that are of another kind than their signatures name: one InputError, in Python's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import write_rows

import rankery
from rankery.arguments import checked, described, fits
from rankery.cli import main
from rankery.errors import InputError

FUNCTIONS = ["calibrate", "check", "compare", "distil", "evaluate", "mine", "score", "train", "tune"]
WRONG: list[Any] = [object(), 3, 1.5, b"a", [None], {"a": object()}, True, float("nan"), print]


def test_all_public_functions_look_at_their_arguments() -> None:
    assert [name for name in rankery.__all__ if inspect.isfunction(getattr(rankery, name))] == FUNCTIONS
    for name in FUNCTIONS:
        assert hasattr(getattr(rankery, name), "__wrapped__"), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_argument_of_another_kind_gets_further(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one too many or too few; no error speaks of options."""
    monkeypatch.chdir(tmp_path)
    function = getattr(rankery, name)
    parameters = inspect.signature(function).parameters
    needed = {key: "nowhere" for key, one in parameters.items() if one.default is one.empty and one.kind.value < 4}
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {}), ((None,) * 20, {})]
    calls += [((), {**needed, key: value}) for key in parameters if key != "overrides" for value in WRONG]
    if "overrides" not in parameters:
        calls.append(((), {**needed, "no_such_parameter": 1}))
    for positional, named in calls:
        with pytest.raises(InputError) as caught:
            function(*positional, **named)
        assert "--" not in str(caught.value), caught.value
        assert max(map(len, caught.value.problems)) < 600
    assert not list(tmp_path.iterdir())


def test_all_are_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        rankery.evaluate(3, data=[4], recall_at=10, seed="1", relevant_above=[2])
    assert caught.value.problems == [
        "models is 3; expected a string, a path or a list, each of it a string or a path",
        "data is [4]; expected a string, a path or a list, each of it a string or a path",
        "recall_at is 10; expected a list, each of it an integer",
        "relevant_above is [2]; expected a number or None",
        "seed is '1'; expected an integer",
    ]
    with pytest.raises(InputError, match=r"mine: missing a required argument: 'output'; expected mine\(data, output"):
        rankery.mine("a")


def test_messages_name_options_on_the_command_line_alone(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match=r"no system is named; expected models, baselines or runs\ndata and qrels are"):
        rankery.evaluate()
    assert main(["evaluate"]) == 2
    assert (
        capsys.readouterr().err.splitlines()[1] == "error: --data and --qrels are neither there; expected one of them"
    )
    with pytest.raises(InputError, match=r"no system is named; expected models"):
        rankery.evaluate()


def test_numbers_of_numpy_and_any_collection_are_what_they_stand_for(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"query": f"q{i}", "pos": ["a b"], "neg": ["c d"]} for i in range(3)])
    found = rankery.evaluate(
        baselines={"bm25"},
        data=(str(data),),
        recall_at=np.array([1, 2]),
        seed=np.int64(3),
        relevant_above=np.float32(0.5),
    )
    assert list(found.systems) == ["BM25"]
    assert rankery.check(map(str, [data]), max_texts=np.int32(2000)).queries == 3


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (bool, [True, np.bool_(False)], [0, "yes", None], "True or False"),
        (int, [1, np.uint8(3)], [True, 1.0, "1"], "an integer"),
        (float, [1, 0.5, np.float32(2)], [True, "1", None], "a number"),
        (tuple[int, int], [(1, 2), [1, 2]], [(1,), (1, "2"), "12"], "2 values: an integer, an integer"),
        (Literal["a", "b"], ["a"], ["c", 1], "one of a, b"),
        (Mapping[str, Any] | None, [None, {}], [[], 1], "a mapping or None"),
        (Sequence[float], [[1], (0.5,), np.ones(2), iter([1])], ["1", b"1", {1: 2}, [None], 1], "a list, each of it a number"),
        (Callable[[str], object], [print], ["print"], "a function"),
    ],
)  # fmt: skip
def test_what_fits(kind: Any, good: list[Any], bad: list[Any], words: str) -> None:
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)
    assert described(kind) == words


def test_a_function_is_called_as_it_was() -> None:
    @checked
    def joined(first: str, *rest: int, sep: str = "-", **more: Any) -> str:
        return sep.join([first, *map(str, rest), *more])

    assert joined("a", 1, 2, sep="+", x=3) == "a+1+2+x"
    assert joined.__name__ == "joined"


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.compute_score(3),
        lambda model: model.compute_score("ab"),
        lambda model: model.compute_score([3]),
        lambda model: model.compute_score([("a", None)]),
        lambda model: model.compute_score([("a", "b")], batch_size="x"),
        lambda model: model.compute_score([("a", "b")], max_length=1.5),
        lambda model: model.compute_score([("a", "b")], normalize="no"),
        lambda model: model.rerank("a", 3),
        lambda model: model.rerank(3, ["a"]),
        lambda model: model.rerank("a", [None]),
        lambda model: model.rerank("a", ["b"], top_k="x"),
    ],
)
def test_methods_of_a_model(call: Callable[[Any], Any], reranker: Any) -> None:
    with pytest.raises(InputError) as caught:
        call(reranker)
    assert max(map(len, caught.value.problems)) < 400


@pytest.fixture(scope="module")
def reranker(bert: Path) -> Any:
    return rankery.CrossEncoder.from_pretrained(bert, seed=0)
