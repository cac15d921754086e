"""Folders that other programs saved: damaged weights are one line, prompts and heads of their own are not overridden in silence."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_bert, make_decoder, words
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankery import CrossEncoder, InputError, LLMDecoder
from rankery.models.opening import open_reranker

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(4)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 438000000\n"


def as_pickle(folder: Path) -> dict:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_objects(folder: Path) -> None:
    torch.save({"model": as_pickle(folder), "args": argparse.Namespace(a=1)}, folder / "pytorch_model.bin")


def missing_shards(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(POINTER), "model.safetensors: is a pointer of Git LFS"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: holds no readable weights"),
        (cut, "model.safetensors: holds no readable weights"),
        (missing_shards, "model-00001-of-00002.safetensors"),
        (lambda f: (as_pickle(f), (f / "pytorch_model.bin").write_bytes(POINTER)), "pytorch_model.bin: is a pointer of Git LFS"),
        (lambda f: (as_pickle(f), (f / "pytorch_model.bin").write_bytes(b"")), "pytorch_model.bin: holds no readable weights"),
        (lambda f: (as_pickle(f), (f / "pytorch_model.bin").write_bytes(b"PK\3\4cut")), "could not be loaded"),
        (other_objects, "pytorch_model.bin: holds no readable weights"),
    ],
)  # fmt: skip
def test_damaged_weights_are_one_line(bert: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    damage(folder)
    with pytest.raises(InputError) as caught:
        CrossEncoder.from_pretrained(folder, seed=0)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_gguf_file(tmp_path: Path) -> None:
    for content in (b"", POINTER, b"GGUF" + b"\xff" * 60):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(InputError):
            open_reranker(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "num_labels"]
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(bert: Path, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: 10**10}))
    with pytest.raises(InputError, match=r"config.json (says|describes)"):
        CrossEncoder.from_pretrained(folder, seed=0)


def with_modules(folder: Path, *kinds: str) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": "", "type": f"sentence_transformers.x.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def test_a_prompt_of_its_own_is_not_overridden(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path / "model")
    with_modules(folder, "Transformer", "LogitScore")
    for opens in (open_reranker, lambda f: LLMDecoder.from_pretrained(f, head="yes_no", yes_word="y", no_word="n")):
        with pytest.raises(InputError, match=r"brings a prompt of its own .* name a preset"):
            opens(folder)
    named = {"special_token": "yes :", "yes_word": "y", "no_word": "n"}
    assert LLMDecoder.from_pretrained(folder, head="yes_no", **named).compute_score(PAIRS).isfinite().all()


def test_heads_and_prompts_of_encoders(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "model")
    settings = {"prompts": {"query": "find: "}, "model_type": "SentenceTransformer"}
    with_modules(folder, "Transformer", "Pooling", "Normalize")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    CrossEncoder.from_pretrained(folder, seed=0)  # an embedding model as a base
    with_modules(folder, "Transformer")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**settings, "model_type": "CrossEncoder"}))
    with pytest.raises(InputError, match="brings prompts of its own"):
        CrossEncoder.from_pretrained(folder, seed=0)
    CrossEncoder.from_pretrained(folder, seed=0, query_format="find: {}")
    with_modules(folder, "Transformer", "Pooling", "Dense")
    with pytest.raises(InputError, match=r"modules of its own \(Pooling, Dense in modules.json\)"):
        CrossEncoder.from_pretrained(folder, seed=0)


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_modernbert_decoders_send_nobody_in_a_circle(llama: Path, tmp_path: Path, auto: type) -> None:
    config = AutoConfig.for_model(
        "modernbert-decoder", vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, num_labels=1,
    )  # fmt: skip
    auto.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "model")
    opens = [CrossEncoder.from_pretrained, open_reranker, *(
        lambda folder, head=head: LLMDecoder.from_pretrained(folder, head=head, seed=0) for head in ("score", "yes_no")
    )]  # fmt: skip
    for one in opens:
        with pytest.raises(InputError, match="neither as llm_decoder nor as bert_encoder; choose another"):
            one(tmp_path / "model")
