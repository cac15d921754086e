"""The cosine of an embedding model is what its folder says: its pooling, its layers, its prompts, its length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, write_rows

import rankery
from rankery import InputError
from rankery.evaluation.pooling import MODES, pooled, read_recipe
from rankery.evaluation.retrieval import DenseEncoder

TEXTS = ["sun moon star", "rain", "sea hill stone sand tree leaf root seed rose fern"]


def test_each_pooling_of_three_tokens() -> None:
    """Worked by hand: states 1, 3, 8 and one of padding; with a prompt of one token, of the last two."""
    states = torch.tensor([[[1.0], [3.0], [8.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 0]])
    expected = {
        "cls": 1,
        "max": 8,
        "mean": 4,
        "mean_sqrt_len_tokens": 12 / 3**0.5,
        "weightedmean": 31 / 6,
        "lasttoken": 8,
    }
    assert pooled(states, mask, MODES)[0].tolist() == pytest.approx([expected[mode] for mode in MODES])
    skipping = {
        "cls": 3,
        "max": 8,
        "mean": 5.5,
        "mean_sqrt_len_tokens": 11 / 2**0.5,
        "weightedmean": 30 / 5,
        "lasttoken": 8,
    }
    assert pooled(states, mask, MODES, skipped=1)[0].tolist() == pytest.approx([skipping[mode] for mode in MODES])


@pytest.mark.parametrize(
    ("pooling", "dense", "include_prompt"),
    [("cls", False, True), ("lasttoken", False, True), (("mean", "max"), True, True), ("weightedmean", True, False)],
)
def test_vectors_are_those_of_sentence_transformers(
    pooling: str | tuple[str, ...], dense: bool, include_prompt: bool, bert: Path, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(0)
    width = 32 * (1 if isinstance(pooling, str) else len(pooling))
    modules = [
        Transformer(str(bert), max_seq_length=9),
        Pooling(32, pooling_mode=pooling, include_prompt=include_prompt),
    ]
    modules += [Dense(width, 8), Normalize()] if dense else []
    theirs = library.SentenceTransformer(
        modules=modules, prompts={"query": "moon ", "passage": "sea sea "}, device="cpu"
    )
    theirs.save(str(tmp_path / "model"))
    ours = DenseEncoder(tmp_path / "model", device="cpu")
    for vectors, expected in (
        (ours.encode_queries(TEXTS), theirs.encode_query(TEXTS, normalize_embeddings=True)),
        (ours.encode_documents(TEXTS), theirs.encode_document(TEXTS, normalize_embeddings=True)),
    ):
        np.testing.assert_allclose(vectors, expected, atol=2e-6)


def folder_of(tmp_path: Path, bert: Path, pooling: dict, kinds: tuple[str, ...] = ("Transformer", "Pooling")) -> Path:
    """A folder that says how it is pooled, in the words of older releases."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text(json.dumps(pooling))
    paths = {"Transformer": "", "Pooling": "pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, kind)} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_an_evaluation_pools_as_the_folder_says(bert: Path, tmp_path: Path) -> None:
    """And in the dtype that is asked for; a folder that says nothing is pooled by the mean, as before."""
    data = make_data(tmp_path / "d.jsonl")
    folder = folder_of(tmp_path, bert, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    options = {"data": data, "output": tmp_path / "out", "device": "cpu"}
    found = {}
    for name, words in (("cls", {}), ("bf16", {"dtype": "bfloat16"})):
        rankery.evaluate(baselines=folder, **options, **words)
        run = [line.split() for line in (tmp_path / "out" / "run.trec").read_text().splitlines()]
        found[name] = {(fields[0], fields[2]): float(fields[4]) for fields in run}
    encoder = DenseEncoder(bert, device="cpu")
    states = {}
    for text in ("sun 0", json.loads(data.read_text().splitlines()[0])["pos"][0]):
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states[text] = torch.nn.functional.normalize(encoder.model(input_ids=ids).last_hidden_state[0, 0], dim=0)
    query, document = states.values()
    assert found["cls"]["q0", "d0"] == pytest.approx(float(query @ document), abs=1e-5)
    assert found["bf16"]["q0", "d0"] == pytest.approx(found["cls"]["q0", "d0"], abs=0.05)
    assert found["bf16"] != found["cls"]
    assert read_recipe(bert).modes == ("mean",)


def test_what_is_not_known_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"query": "moon", "pos": ["moon sea"], "neg": ["sea"]}])
    folder = folder_of(tmp_path, bert, {}, ("Transformer", "Pooling", "LSTM"))
    with pytest.raises(InputError, match="its modules are Transformer, Pooling, LSTM; expected"):
        rankery.evaluate(baselines=folder, data=data)
    (folder / "modules.json").write_text("[1]")
    with pytest.raises(InputError, match="expected a list of modules"):
        rankery.evaluate(baselines=folder, data=data)
