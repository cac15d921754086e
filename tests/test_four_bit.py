"""Weights in 4 bits, really: encoders and decoders score and train, heads and poolers stay whole, and nothing changes on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_bert, make_data, make_decoder, make_xlmr

from rankery import CrossEncoder, LLMDecoder, train
from rankery.models.loading import four_bit
from rankery.models.reranker import Reranker

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
PAIRS = [(word, f"{word} {other}") for word in WORDS[:5] for other in WORDS[:5]]
KINDS: list[tuple[Any, Any, set[str]]] = [
    (make_bert, CrossEncoder, {"classifier", "bert.pooler.dense"}),  # 32 wide: less than a block of 64 values
    (make_xlmr, CrossEncoder, {"classifier.dense", "classifier.out_proj"}),
    (make_decoder, LLMDecoder, {"score"}),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind[0].__name__)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, set[str]]:
    make, kind, kept = request.param
    return make(tmp_path_factory.mktemp(make.__name__)), kind, kept


def test_scoring(kind: tuple[Path, Any, set[str]]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    base, cls, kept = kind
    whole = cls.from_pretrained(base, 1, seed=0)
    four: Reranker = cls.from_pretrained(base, 1, seed=0, load_in_4bit=True)
    linear = {name: m for name, m in four.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name for name, m in linear.items() if type(m).__name__ != "Linear4bit"} == kept
    before = {name: (p.data_ptr(), p.shape) for name, p in four.model.named_parameters() if p.dtype == torch.uint8}
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(four.compute_score, [PAIRS] * 4))
    assert all(torch.equal(scores, found[0]) for scores in found)
    with torch.no_grad():
        for name, module in linear.items():
            if name not in kept:  # what the 4 bits stand for
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                whole.model.get_submodule(name).weight.copy_(weight)
    assert torch.corrcoef(torch.stack([found[0], whole.compute_score(PAIRS)]))[0, 1] > 0.98
    assert before == {
        name: (p.data_ptr(), p.shape) for name, p in four.model.named_parameters() if p.dtype == torch.uint8
    }


def test_training(kind: tuple[Path, Any, set[str]], tmp_path: Path) -> None:
    """Before and after an evaluation, whose scores come in evaluation mode."""
    base, cls, _ = kind
    data = str(make_data(tmp_path / "data.jsonl"))
    folder = train(
        {"model_name_or_path": str(base), "train_dataset": data, "val_dataset": data, "output_dir": str(tmp_path / "out")},
        model_type=cls.model_type, load_in_4bit=True, lora_rank=4, lora_merge=False, epochs=2, log_with="none", lr=1e-3,
        max_len=48, mixed_precision="bf16",
    )  # fmt: skip
    scores = cls.from_pretrained(folder, load_in_4bit=True).compute_score(PAIRS)
    assert scores.isfinite().all()
    assert scores.std() > 0


def test_it_is_made_where_it_will_be() -> None:
    device = torch.device("cuda", 1)
    assert four_bit(True, device)["device_map"] == {"": device}
