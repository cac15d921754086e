"""Half precision keeps the order: the product that gives the logits is of fp32 numbers, in scoring and in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import WORDS, make_bert, make_decoder, make_xlmr

from rankery import CrossEncoder, LLMDecoder
from rankery.data.collate import pack
from rankery.models.precision import FinalLinear
from rankery.models.reranker import Reranker, encode_pairs
from rankery.models.scorer import VocabularyRows

PAIRS = [(f"{word} {other}", f"{other} {third}") for word in WORDS[:12] for other in WORDS[:6] for third in WORDS[:4]]
YES_NO = {"head": "yes_no", "yes_word": "yes", "no_word": "no"}
KINDS: list[tuple[Any, Any, dict[str, str]]] = [
    (make_bert, CrossEncoder, {}),
    (make_xlmr, CrossEncoder, {}),
    (make_decoder, LLMDecoder, {}),
    (make_decoder, LLMDecoder, YES_NO),
]


class Product:
    """The product that gives the logits: what went in, and what that comes to in fp64."""

    def __init__(self, reranker: Reranker):
        (self.module,) = (m for m in reranker.scorer.modules() if isinstance(m, FinalLinear | VocabularyRows))
        self.states: list[torch.Tensor] = []
        self.module.register_forward_hook(lambda module, args, output: self.states.append(args[0].detach()))

    def logits(self) -> torch.Tensor:
        states = torch.cat([x.reshape(-1, x.shape[-1]) for x in self.states]).double()
        rows = getattr(self.module, "rows", [0])
        bias = 0 if self.module.bias is None else self.module.bias[rows].double()
        logits = states @ self.module.weight[rows].detach().double().T + bias
        return logits[:, 0] - logits[:, 1] if len(rows) == 2 else logits[:, 0]


@pytest.mark.parametrize(("make", "kind", "options"), KINDS)
def test_half_precision_keeps_the_order(make: Any, kind: Any, options: dict[str, str], tmp_path: Path) -> None:
    reranker = kind.from_pretrained(make(tmp_path / "base"), 1, seed=0, dtype="bfloat16", **options)
    product = Product(reranker)
    scores = reranker.compute_score(PAIRS)
    assert all(states.dtype == torch.bfloat16 for states in product.states)
    expected = product.logits().sort().values
    torch.testing.assert_close(scores.double().sort().values, expected, atol=1e-6, rtol=1e-6)
    assert len(scores.bfloat16().unique()) < 0.9 * len(PAIRS), "nothing would tie in bf16"
    assert len(scores.unique()) == len(PAIRS)


@pytest.mark.parametrize(("make", "kind", "options"), KINDS)
def test_training_does_too(make: Any, kind: Any, options: dict[str, str], tmp_path: Path) -> None:
    reranker = kind.from_pretrained(make(tmp_path / "base"), 1, seed=0, **options)
    product = Product(reranker)
    rows, _, _ = encode_pairs(PAIRS[:9], reranker.tokenizer, reranker.template)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = reranker.scorer(*pack(rows).arguments)
    torch.testing.assert_close(logits.double(), product.logits(), atol=1e-6, rtol=1e-6)
    logits.sum().backward()
    assert product.module.weight.grad.dtype == torch.float32


def test_the_saved_folder_scores_alike_in_transformers(tmp_path: Path) -> None:
    reranker = CrossEncoder.from_pretrained(make_xlmr(tmp_path / "base"), 1, seed=0)
    reranker.save_pretrained(tmp_path / "saved")
    half = CrossEncoder.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert type(model.classifier.out_proj) is torch.nn.Linear
    inputs = tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model.eval()(**inputs).logits.float()[:, 0]
    scores = half.compute_score(PAIRS)
    torch.testing.assert_close(scores, theirs, atol=0.05, rtol=0.05)


def test_full_precision_is_untouched(tmp_path: Path) -> None:
    """Bit for bit transformers' own logits in fp32, and fp64 stays fp64."""
    reranker = CrossEncoder.from_pretrained(make_bert(tmp_path / "base"), 1, seed=0)
    rows, _, _ = encode_pairs(PAIRS[:1], reranker.tokenizer, reranker.template)
    batch = pack(rows)
    logits = reranker.scorer(*batch.arguments)
    reranker.model.classifier.__class__ = torch.nn.Linear
    assert torch.equal(reranker.scorer(*batch.arguments), logits)
    reranker.model.classifier.__class__ = FinalLinear
    assert reranker.to(torch.float64).scorer(*batch.arguments).dtype == torch.float64
