"""Every accepted shape, and the message for everything else."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest
from conftest import SHARED, write_rows

from rankery.data.files import expand_paths
from rankery.data.records import LabelRange, check_records, read_records
from rankery.errors import InputError


def read(path: Path, labels: LabelRange | None = None) -> list[tuple]:
    return [(r.query, r.documents, r.labels) for r in read_records([path], labels)]


@pytest.mark.parametrize(
    ("row", "documents", "labels"),
    [
        ({"query": "q", "pos": ["a"], "neg": ["b", "c"]}, ("a", "b", "c"), (1, 0, 0)),
        ({"query": "q", "pos": ["a", "b"], "pos_scores": [0.25, 1]}, ("a", "b"), (0.25, 1)),
        ({"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": None, "neg_scores": [0.5]}, ("a", "b"), (1, 0.5)),
        ({"query": "q", "content": "a", "label": 1, "other": []}, ("a",), (1,)),
        ({"query": "q", "hits": [{"content": "a", "label": 1}, {"content": "b", "label": 0}]}, ("a", "b"), (1, 0)),
        ({"query": "", "pos": [""]}, ("",), (1,)),
    ],
)
def test_shapes(tmp_path: Path, row: dict, documents: tuple, labels: tuple) -> None:
    assert read(write_rows(tmp_path / "data.jsonl", [row])) == [(row["query"], documents, labels)]


def test_unscored_documents_take_the_ends_of_the_label_range(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"query": "q", "pos": ["a"], "neg": ["b"]}])
    assert read(path, LabelRange(-1, 3)) == [("q", ("a", "b"), (3, -1))]


def test_gzip_byte_order_mark_blank_lines_and_globs(tmp_path: Path) -> None:
    line = json.dumps({"query": "月", "pos": ["月亮"]}, ensure_ascii=False).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + line + b"\n\n" + line))
    (tmp_path / "b.jsonl").write_bytes(line)
    paths = expand_paths(str(tmp_path / "*.jsonl*"))
    assert [path.name for path in paths] == ["a.jsonl.gz", "b.jsonl"]
    records = list(read_records(paths))
    assert [(record.query, record.lines) for record in records] == [("月", (1,)), ("月", (3,)), ("月", (1,))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "data.jsonl:2: is not JSON"),
        ("[1]", "data.jsonl:2: is a list; expected an object"),
        ('{"query": 3, "pos": ["a"]}', 'data.jsonl:2: "query" is a number; expected a string'),
        ('{"query": "q"}', r"data.jsonl:2: has the keys \['query'\]"),
        ('{"query": "q", "pos": "a"}', "\"pos\" is the string 'a'; expected a list of strings"),
        ('{"query": "q", "pos": [null]}', 'document 1 of "pos" is missing; expected a string'),
        ('{"query": "q", "pos": ["a"], "pos_scores": [1, 0]}', '"pos" has 1 documents but "pos_scores" has 2 scores'),
        (
            '{"query": "q", "pos": ["a"], "pos_scores": [3]}',
            r"is 3; expected a number from min_label \(0\) to max_label \(1\)",
        ),
        ('{"query": "q", "pos": ["a"], "pos_scores": [NaN]}', "is nan; expected a finite number"),
        ('{"query": "q", "pos": ["a"], "pos_scores": ["1"]}', "is the string '1'; expected a finite number"),
        ('{"query": "q", "pos": ["a"], "pos_scores": [true]}', "is a boolean; expected a finite number"),
        ('{"query": "q", "pos": ["\\ud800"]}', "lone surrogate"),
        ('{"query": "q", "content": "a"}', '"label" is missing; expected a finite number'),
        ('{"query": "q", "hits": [1]}', '"hits" is a list; expected a list of'),
        ('{"query": "q", "pos": []}', "has no documents"),
        ('{"query": "q", "content": "a", "label": 1' + "0" * 400 + "}", "is larger than"),
        ('{"query": "q", "content": "a", "label": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"query": "q", "content": "a", "label": -1e300}', "is larger than"),
        ("null", "data.jsonl:2: is null; expected an object"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_messages(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "q", "pos": ["a"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        check_records([path])
    with pytest.raises(InputError, match=message):
        list(read_records([path]))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ({"pos_logits": [1.5]}, '"pos" has 2 documents but "pos_logits" has 1 logits; expected one logit for each'),
        ({"pos_logits": [1.5, 2]}, 'has "pos_logits" but no "neg_logits"; expected a logit for each document of both'),
        ({"neg_logits": [1.5]}, 'has "neg_logits" but no "pos_logits"'),
        ({"pos_logits": [1, 2], "neg_logits": 3}, '"neg_logits" is a number; expected a list of numbers'),
        ({"pos_logits": [1, None], "neg_logits": [3]}, 'logit 2 of "pos_logits" is missing; expected a finite number'),
        ({"pos_logits": [1, math.inf], "neg_logits": [3]}, 'logit 2 of "pos_logits" is inf; expected a finite number'),
        ({"pos_logits": [1, 2], "neg_logits": [True]}, 'logit 1 of "neg_logits" is a boolean; expected a finite'),
    ],
)
def test_logits_of_a_teacher(tmp_path: Path, logits: dict, message: str) -> None:
    row = {"query": "q", "pos": ["a", "b"], "neg": ["c"]}
    good = {**row, "pos_logits": [-12.5, 3], "neg_logits": [-20]}
    path = write_rows(tmp_path / "data.jsonl", [good, {**row, **logits}])
    with pytest.raises(InputError, match=rf"data.jsonl:2: {re.escape(message)}"):
        check_records([path])
    assert check_records([path], LabelRange(strict=False)).queries == 2, "who only evaluates has no use for them"
    write_rows(path, [good, row, {"query": "q", "pos": ["a"], "pos_logits": [1]}])
    assert [record.teacher_logits for record in read_records([path])] == [(-12.5, 3.0, -20.0), None, (1.0,)]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("pos_score", "pos_scores"),
        ("pos_scroes", "pos_scores"),
        ("posScores", "pos_scores"),
        ("neg-scores", "neg_scores"),
        ("neg_score", "neg_scores"),
        ("negs", "neg"),
        ("Neg", "neg"),
    ],
)
def test_keys_that_are_nearly_those_of_the_format(tmp_path: Path, given: str, meant: str) -> None:
    """Refused where the key that they resemble is absent: what they hold would be left out in silence."""
    row = {"query": "q", "pos": ["a"], given: [0.5] if "cor" in given.lower() or "cro" in given else ["b"]}
    path = write_rows(tmp_path / "data.jsonl", [row])
    with pytest.raises(InputError, match=rf'data.jsonl:1: has the key "{given}" and no "{meant}"; expected "{meant}"'):
        check_records([path])
    value = {"neg": ["b"], "pos_scores": [1], "neg_scores": []}[meant]
    assert check_records([write_rows(path, [{**row, meant: value}])]).queries == 1
    assert check_records([write_rows(path, [{**row, given: None}])]).queries == 1


def test_other_keys_are_left_alone(tmp_path: Path) -> None:
    names = [
        *(
            "id",
            "title",
            "pos_ids",
            "neg_ids",
            "neg_from",
            "pos_scores_raw",
            "scores",
            "post",
            "new",
            "net",
        ),
        *(
            "score",
            "source",
            "pos_docs",
            "neg_type",
            "pos_label",
            "positions",
            "label",
            "document",
            "answers",
            "POS_TAGS",
        ),
    ]
    row = {"query": "q", "pos": ["a"]}
    path = write_rows(tmp_path / "data.jsonl", [row, {**row, **{name: ["x"] for name in names}}])
    assert check_records([path]).queries == 2


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    first, second, empty = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    first.write_text('{"query": 1, "pos": [2]}\nx\n')
    second.write_text("y\n")
    empty.write_text("")
    with pytest.raises(InputError) as caught:
        check_records([first, second, empty])
    assert len(caught.value.problems) == 5
    with pytest.raises(InputError, match=r"nowhere.jsonl: does not exist"):
        expand_paths(["nowhere.jsonl", str(first)])


def test_empty_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty\.jsonl: is empty; expected one JSON object a line"):
        check_records([tmp_path / "empty.jsonl"])
    data = bytearray(gzip.compress(b'{"query": "q", "pos": ["a"]}\n' * 1000))
    for name, content in (("cut", data[:40]), ("flipped", data[:20] + bytes([data[20] ^ 255]) + data[21:])):
        file = tmp_path / f"{name}.jsonl.gz"
        file.write_bytes(bytes(content))
        with pytest.raises(InputError, match="cannot be read"):
            check_records([file])


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    (tmp_path / "d[1].jsonl").write_text("{}")
    assert expand_paths(str(tmp_path / "d[1].jsonl")) == [tmp_path / "d[1].jsonl"]


def test_no_positive_anywhere(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"query": "q", "pos": ["a"], "pos_scores": [0]}])
    with pytest.raises(InputError, match="no positive anywhere"):
        check_records([path])


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not present")
@pytest.mark.parametrize(
    ("name", "labels", "queries", "pairs"),
    [
        ("wikiqa/train.jsonl", (0, 1), 856, 8647),
        ("mediqa2019_qa/train.jsonl", (0, 3), 208, 1701),
        ("qbqtc/train.jsonl", (0, 2), 791, 14970),
        ("t2ranking_sample/t2rank_100.distill.standard.jsonl", (0, 1), 100, 2005),
        ("rag_retrieval_formats/pointwise_reranker_train_data.jsonl", (0, 2), 10, 200),
        ("rag_retrieval_formats/grouped_reranker_train_data_listwise_label.jsonl", (-20, 2), 10, 200),
    ],
)
def test_real_files(name: str, labels: tuple, queries: int, pairs: int) -> None:
    summary = check_records([SHARED / name], LabelRange(*labels))
    assert (summary.queries, summary.pairs) == (queries, pairs)
