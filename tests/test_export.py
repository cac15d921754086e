"""A yes/no model as a classification model: the same scores, or a refusal that says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, words
from transformers import AutoModelForSequenceClassification

from rankery import InputError, LLMDecoder
from rankery.cli import main
from rankery.models.export import to_sequence_classification
from rankery.models.reranker import encode_pairs

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(12)]


@pytest.mark.parametrize("no_word", ["n", ""])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_exported_model_scores_alike(tmp_path: Path, family: str, no_word: str) -> None:
    base = make_decoder(tmp_path / "base", family)
    reranker = LLMDecoder.from_pretrained(base, head="yes_no", yes_word="y", no_word=no_word, prefix="sun :")
    reranker.save_pretrained(tmp_path / "asked")
    assert (
        main(["export", "--model", str(tmp_path / "asked"), "--to", "seq-cls", "--output", str(tmp_path / "plain")])
        == 0
    )
    exported = LLMDecoder.from_pretrained(tmp_path / "plain")
    assert exported.reading.head == "score"
    torch.testing.assert_close(exported.compute_score(PAIRS), reranker.compute_score(PAIRS), rtol=1e-4, atol=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert model.config.num_labels == 1
    ids = torch.tensor(encode_pairs(PAIRS[:1], exported.tokenizer, exported.template)[0][0][0])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], exported.compute_score(PAIRS[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["granite", "cohere", "mamba"])
def test_families_without_a_classification_class(tmp_path: Path, family: str, capsys: pytest.CaptureFixture) -> None:
    base = make_decoder(tmp_path / "base", family)
    reranker = LLMDecoder.from_pretrained(base, head="yes_no", yes_word="y", no_word="n")
    reranker.save_pretrained(tmp_path / "asked")
    words = ["export", "--model", str(tmp_path / "asked"), "--to", "seq-cls", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    message = f"transformers has no sequence-classification class for its family ({family})"
    assert message in capsys.readouterr().err
    with pytest.raises(InputError, match=re.escape(message)):
        LLMDecoder.from_pretrained(base)


def test_what_a_head_cannot_hold_is_refused(tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture) -> None:
    asked = {"head": "yes_no", "yes_word": "y", "no_word": "n"}
    capped = make_decoder(tmp_path / "capped", "gemma2")
    LLMDecoder.from_pretrained(capped, **asked).save_pretrained(tmp_path / "asked")
    assert (
        main(["export", "--model", str(tmp_path / "asked"), "--to", "seq-cls", "--output", str(tmp_path / "out")]) == 2
    )
    assert "caps its logits (final_logit_softcapping 30)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["export", "--model", str(llama), "--to", "seq-cls", "--output", str(tmp_path / "out")]) == 2
    assert "nothing says how it is asked; name its preset with --prompt" in capsys.readouterr().err
    assert main(["export", "--model", str(llama), "--to", "seq-cls", "--output", f"{llama}/."]) == 2
    assert "the model itself, which stays as it is: choose another folder" in capsys.readouterr().err
    biased = LLMDecoder.from_pretrained(llama, **asked)
    biased.scorer.vocabulary.bias = torch.nn.Parameter(torch.zeros(biased.model.config.vocab_size))
    with pytest.raises(InputError, match="vocabulary head has a bias"):
        to_sequence_classification(biased)
    with pytest.raises(InputError, match="a sequence-classification model already"):
        to_sequence_classification(LLMDecoder.from_pretrained(llama))
