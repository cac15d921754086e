"""Templates, truncation and the token cache, against the tokenizer's own pair format."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_data, write_rows
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rankery.data import encoding
from rankery.data.collate import collate
from rankery.data.encoding import cache_key, encode, is_cached, open_encoded
from rankery.data.records import LabelRange, read_records
from rankery.data.template import PairTemplate, pair_template
from rankery.errors import InputError

LABELS = LabelRange()


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_equals_the_tokenizers_own_pairs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(kind))
    template = pair_template(tokenizer, 100)
    path = make_data(tmp_path / "data.jsonl")
    folder = tmp_path / "cache" / cache_key([path], tokenizer, template, LABELS)
    encode([path], tokenizer, template, LABELS, folder)
    data = open_encoded(folder, template, LABELS, [path])
    pairs = [(record.query, document) for record in read_records([path]) for document in record.documents]
    assert len(data) == len(pairs) == 48
    for i, (query, document) in enumerate(pairs):
        expected = tokenizer(query, document)
        ids, types = data.build(i)
        assert ids.tolist() == expected["input_ids"]
        assert data.lengths[i] == len(ids)
        if kind == "bert":
            assert types.tolist() == expected["token_type_ids"]
    batch = collate(data, np.array([5, 0]), layout="padded")
    assert batch.input_ids.shape == (2, max(data.lengths[5], data.lengths[0]))
    assert batch.attention_mask.sum(1).tolist() == [data.lengths[5], data.lengths[0]]
    assert data.targets(np.array([5, 0]))[:, 0].tolist() == [0.0, 1.0]
    assert data.where(5) == f"{path}:2"


@pytest.mark.parametrize("name", ["data.jsonl.gz", "packed.jsonl"])
def test_a_gzip_file_gives_the_tokens_of_the_plain_one(tmp_path: Path, bert: Path, name: str) -> None:
    """All that training and messages read of it; a file is what it holds, whatever its name."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template = pair_template(tokenizer, 32)
    plain = make_data(tmp_path / "data.jsonl")
    packed = tmp_path / name
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    found = []
    for path in (plain, packed):
        folder = tmp_path / "cache" / cache_key([path], tokenizer, template, LABELS)
        encode([path], tokenizer, template, LABELS, folder)
        found.append(open_encoded(folder, template, LABELS, [path]))
    assert found[0].arrays.keys() == found[1].arrays.keys()
    for name, array in found[0].arrays.items():
        assert array.dtype == found[1].arrays[name].dtype
        assert array.tobytes() == found[1].arrays[name].tobytes(), name
    assert found[1].lengths.tolist() == found[0].lengths.tolist()
    assert found[1].where(5) == f"{packed}:2"
    assert len(list((tmp_path / "cache").iterdir())) == 2, "one cache served both: nothing was compared"


@given(st.integers(5, 64), st.integers(0, 100), st.integers(0, 100))
def test_truncation_rule(max_len: int, query: int, document: int) -> None:
    template = PairTemplate((1,), (2,), (2,), None, max_len, 0)
    kept_query, kept_document = (int(n) for n in template.cut(query, document))
    room = template.room
    assert kept_query + kept_document == min(room, query + document), "text is cut that had room"
    assert kept_document >= min(document, room - room // 2), "the document has less than its half"
    if query <= room // 2:
        assert kept_query == query, "a query that leaves the document its half is cut"
    ids, _ = template.build(range(query), range(document))
    assert len(ids) == min(max_len, query + document + 3)
    assert ids[-1] == 2


def test_cache_is_reused_rebuilt_and_keyed(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template = pair_template(tokenizer, 32)
    path = make_data(tmp_path / "data.jsonl")
    key = cache_key([path], tokenizer, template, LABELS)
    assert key != cache_key([path], tokenizer, pair_template(tokenizer, 33), LABELS)
    assert key != cache_key([path], tokenizer, pair_template(tokenizer, 32, "q: {}"), LABELS)
    other = AutoTokenizer.from_pretrained(bert)
    other.add_tokens(["meadow"])
    assert key != cache_key([path], other, template, LABELS)
    assert key != cache_key([path], tokenizer, template, LabelRange(0, 2))
    assert key != cache_key([make_data(tmp_path / "more.jsonl", 13)], tokenizer, template, LABELS)
    monkeypatch.setattr(encoding, "CACHE_VERSION", encoding.CACHE_VERSION - 1)  # which had other arrays
    assert key != cache_key([path], tokenizer, template, LABELS)
    monkeypatch.undo()
    folder = tmp_path / "cache" / key
    encode([path], tokenizer, template, LABELS, folder)
    monkeypatch.setattr(encoding, "text_ids", lambda *_: pytest.fail("tokenised again"))
    encode([path], tokenizer, template, LABELS, folder)
    monkeypatch.undo()
    with (folder / "label.bin").open("r+b") as file:
        file.truncate(3)
    assert not is_cached(folder)
    encode([path], tokenizer, template, LABELS, folder)
    assert is_cached(folder)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [key]


def test_a_cache_that_another_run_wrote_meanwhile_is_left_to_it(tmp_path: Path, bert: Path) -> None:
    """It may be reading that cache; `progress` is where the other one comes in."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template = pair_template(tokenizer, 32)
    path, folder = make_data(tmp_path / "data.jsonl"), tmp_path / "cache" / "name"
    written = []

    def overtaken(records: Iterator) -> Iterator:
        encode([path], tokenizer, template, LABELS, folder)
        written.append((folder / "meta.json").stat().st_ino)
        yield from records

    encode([path], tokenizer, template, LABELS, folder, overtaken)
    assert written == [(folder / "meta.json").stat().st_ino]
    assert [entry.name for entry in folder.parent.iterdir()] == ["name"]


def test_pair_lines_of_a_query_are_joined(tmp_path: Path, bert: Path) -> None:
    rows = [
        {"query": q, "content": c, "label": label}
        for q, c, label in [("sun", "a", 1), ("sea", "b", 0), ("sun", "c", 2)]
    ]
    path = write_rows(tmp_path / "data.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template, labels = pair_template(tokenizer, 32), LabelRange(0, 2)
    encode([path], tokenizer, template, labels, tmp_path / "cache")
    data = open_encoded(tmp_path / "cache", template, labels, [path])
    assert data.arrays["pair_query"].tolist() == [0, 1, 0]
    assert data.targets(np.arange(3))[:, 0].tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "labels", "targets"),
    [
        (0.0, 3.0, [0, 1, 2, 3], [0, 1 / 3, 2 / 3, 1]),
        (-1.0, 1.0, [-1, -0.5, 0, 1], [0, 0.25, 0.5, 1]),
        (0.0, 1.0, [0, 0.1, 0.7, 1], [0, 0.1, 0.7, 1]),
    ],
)
def test_labels_are_scaled_evenly(
    tmp_path: Path, bert: Path, low: float, high: float, labels: list[float], targets: list[float]
) -> None:
    """(label - min_label) / (max_label - min_label), computed by hand."""
    path = write_rows(tmp_path / "data.jsonl", [{"query": "sun", "pos": ["a", "b", "c", "d"], "pos_scores": labels}])
    tokenizer, allowed = AutoTokenizer.from_pretrained(bert), LabelRange(low, high)
    template = pair_template(tokenizer, 20)
    encode([path], tokenizer, template, allowed, tmp_path / "cache")
    data = open_encoded(tmp_path / "cache", template, allowed, [path])
    np.testing.assert_allclose(data.targets(np.arange(4))[:, 0], targets, rtol=1e-6, atol=1e-7)


def test_logits_of_a_teacher_are_kept_and_else_those_of_its_scores(tmp_path: Path, bert: Path) -> None:
    """Scores of which nothing is left beside their logits; where there are only scores, 0 and 1 count as 0.0001 and 0.9999."""
    rows = [
        {"query": "sun", "pos": ["a", "b"], "pos_scores": [1, 0], "neg": ["c"], "neg_scores": [0]},
        {"query": "sea", "pos": ["a", "b"], "pos_scores": [0.8, 0], "neg": ["c"], "neg_scores": [1]},
    ]
    rows[0] |= {"pos_logits": [-9.5, -12.0], "neg_logits": [-15]}
    path = write_rows(tmp_path / "data.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template = pair_template(tokenizer, 20)
    encode([path], tokenizer, template, LABELS, tmp_path / "cache")
    targets = open_encoded(tmp_path / "cache", template, LABELS, [path]).targets(np.arange(6))
    assert targets.dtype == np.float32
    assert targets[:, 0].tolist() == pytest.approx([1, 0, 0, 0.8, 0, 1])
    assert targets[:, 1].tolist() == pytest.approx([-9.5, -12, -15, np.log(4), -np.log(9999), np.log(9999)], rel=1e-4)


def test_messages(bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    with pytest.raises(InputError, match=r"query_format is 'q'; expected a text with \{\}"):
        pair_template(tokenizer, 32, "q")
    with pytest.raises(InputError, match="max_len is 4; expected at least 5"):
        pair_template(tokenizer, 4)
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="has no pad token"):
        pair_template(tokenizer, 32)
