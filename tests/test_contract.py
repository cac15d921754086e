"""The contract of a model folder: a schema that says which key is wrong, and digests of what probes cannot see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_bert
from safetensors.torch import load_file, save_file

from rankery import CrossEncoder, InputError
from rankery.models.contract import read_contract


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    CrossEncoder.from_pretrained(make_bert(folder / "base"), seed=0, max_len=32).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_len", "32", "max_len: Input should be a valid integer"),
        ("max_len", -1, "max_len: Input should be greater than or equal to 1"),
        ("num_labels", True, "num_labels: Input should be a valid integer"),
        ("num_labels", 10**9, "num_labels: Input should be less than or equal to 10000"),
        ("num_labels", 2, "rows of [1] scores, num_labels is 2"),
        ("query_format", "query", "query_format: String should match"),
        ("model_type", "t5", "model_type: Input should be 'bert_encoder' or 'llm_decoder'"),
        ("golden", [1, 2], "golden has 2 scores, probes has 8 pairs"),
        ("golden", None, "golden"),
        ("tolerance", {"float32": 1e400}, "tolerance.float32: Input should be a finite number"),
        ("tolerance", {}, "tolerance has no float32"),
        ("template", [], "template: Input should be a valid dictionary"),
        ("files", {"a": 1}, "files: Input should be a valid list"),
        ("max_label", 0, "min_label is not below max_label"),
        ("format_version", None, "format_version: Input should be a valid integer"),
    ],
)
def test_a_key_that_cannot_be_is_named(model: Path, key: str, value: Any, said: str) -> None:
    rewrite(model / "rankery.json", **{key: value})
    with pytest.raises(InputError) as caught:
        read_contract(model)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe{", b"[" * 100_000, b'{"format_version": 1}'])
def test_a_contract_that_is_none(model: Path, content: bytes) -> None:
    (model / "rankery.json").write_bytes(content)
    with pytest.raises(InputError, match="is no rankery contract, or was changed"):
        read_contract(model)


def test_what_probes_cannot_see_is_seen(model: Path, tmp_path: Path) -> None:
    """A row of the vocabulary that no probe holds, a window that only long pairs reach, the scale of labels."""
    weights = load_file(model / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    weights[name][25] += 1.0  # "fern"
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model.safetensors changed since the model was saved"):
        CrossEncoder.from_pretrained(model)
    CrossEncoder.from_pretrained(model, verify=False).save_pretrained(tmp_path / "meant")
    CrossEncoder.from_pretrained(tmp_path / "meant")
    rewrite(tmp_path / "meant" / "rankery.json", max_label=3.0)
    with pytest.raises(InputError, match=r"rankery.json changed since the model was saved"):
        CrossEncoder.from_pretrained(tmp_path / "meant")


def test_what_does_not_matter_may_change(model: Path) -> None:
    rewrite(model / "config.json", transformers_version="9.9", dtype="bfloat16", id2label={"0": "relevance"})
    (model / "README.md").write_text("mine")
    tokenizer = model / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"\n", b"\r\n"))
    CrossEncoder.from_pretrained(model)


def test_folders_without_digests_load(model: Path) -> None:
    """As rankery saved them before it wrote any."""
    contract = json.loads((model / "rankery.json").read_text())
    before = CrossEncoder.from_pretrained(model).compute_score([("sun", "moon")])
    del contract["digest"], contract["digests"]
    (model / "rankery.json").write_text(json.dumps(contract))
    assert CrossEncoder.from_pretrained(model).compute_score([("sun", "moon")]).equal(before)
