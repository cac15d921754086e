"""Folders of adapters: peft's open here with peft's scores, ours open in peft with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, make_bert, make_xlmr, words
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankery import CrossEncoder, InputError, LLMDecoder
from rankery.models.lora import add_adapters
from rankery.models.opening import open_reranker
from rankery.models.reranker import encode_pairs

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(6)]


def by_transformers(model: Any, tokenizer: Any) -> torch.Tensor:
    encoded = tokenizer(
        [query for query, _ in PAIRS], [document for _, document in PAIRS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(**encoded).logits.squeeze(-1)


def written_by_peft(base: Path, folder: Path, tokenizer: bool = True, labels: int = 1, **options: Any) -> torch.Tensor:
    """Adapters as another trainer saves them; their logits by peft."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], **options}
    model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return by_transformers(model, AutoTokenizer.from_pretrained(base))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_dora": True}, {"tokenizer": False}, {"labels": 3}, {"use_rslora": True}, {"target_modules": "all-linear"},
        {"rank_pattern": {"value": 2}, "alpha_pattern": {"query": 5}}, {"target_modules": ["word_embeddings", "dense"]},
    ],
)  # fmt: skip
def test_scores_are_those_of_peft(bert: Path, tmp_path: Path, options: dict) -> None:
    expected = written_by_peft(bert, tmp_path / "adapters", **options)
    reranker = open_reranker(tmp_path / "adapters")
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, rtol=1e-4, atol=1e-5)
    reranker.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(open_reranker(tmp_path / "again").compute_score(PAIRS), expected, rtol=1e-4, atol=1e-5)


def family(name: str, folder: Path) -> Path:
    """A tiny base encoder of a family, with a tokenizer of its kind."""
    bert_like = name in ("bert", "electra", "distilbert", "modernbert")
    (make_bert if bert_like else make_xlmr)(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if name == "distilbert":
        size = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    special = {
        "pad_token_id": 0 if bert_like else 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    more = {"embedding_size": 32} if name == "electra" else {} if bert_like else {"type_vocab_size": 1}
    config = AutoConfig.for_model(
        name, vocab_size=len(VOCAB), max_position_embeddings=130, initializer_range=0.3, **size, **special, **more
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "roberta", "camembert", "electra", "distilbert", "modernbert"])
def test_ours_open_in_peft_and_in_transformers(name: str, tmp_path: Path) -> None:
    """Heads of one layer and of several, with what else the base lacks; as the card says it is done."""
    base = family(name, tmp_path / "base")
    reranker = CrossEncoder.from_pretrained(base, seed=1, max_len=64)
    add_adapters(reranker.model, str(base), 4, 8, 0.0, "all-linear", seed=0)
    for parameter in reranker.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    reranker.save_pretrained(tmp_path / "adapters")
    expected = reranker.compute_score(PAIRS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapters")
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs = by_transformers(PeftModel.from_pretrained(whole, tmp_path / "adapters"), tokenizer)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)
    assert "PeftModel.from_pretrained" in (card := (tmp_path / "adapters" / "README.md").read_text())
    assert "sentence-transformers" not in card


@pytest.mark.parametrize("head", ["score", "yes_no"])
def test_decoders_of_peft(llama: Path, tmp_path: Path, head: str) -> None:
    kind, task = (
        (AutoModelForSequenceClassification, "SEQ_CLS") if head == "score" else (AutoModelForCausalLM, "CAUSAL_LM")
    )
    torch.manual_seed(0)
    model = kind.from_pretrained(llama, **({"num_labels": 2} if head == "score" else {}))
    model = get_peft_model(
        model, LoraConfig(task_type=task, r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapters")
    words = {} if head == "score" else {"yes_word": "y", "no_word": "n"}
    reranker = LLMDecoder.from_pretrained(tmp_path / "adapters", head=head, **words)
    assert reranker.num_labels == (2 if head == "score" else 1)
    for pair in PAIRS[:2]:
        ids = torch.tensor(encode_pairs([pair], reranker.tokenizer, reranker.template)[0][0][0])[None]
        logits = model.eval().base_model.model(input_ids=ids).logits.detach()[0]
        if head == "yes_no":
            yes, no = reranker.scorer.vocabulary.rows
            logits = logits[-1, yes] - logits[-1, no]
        torch.testing.assert_close(reranker.compute_score([pair])[0], logits, rtol=1e-4, atol=1e-5)
    if head == "score":
        assert open_reranker(tmp_path / "adapters").num_labels == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["lm_head"]}, r"adapters on the vocabulary head \(lm_head\)"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, r"lm_head.weight whole, which the base shares"),
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [0, 2]]}, r"sets layer_replication, which rankery does not apply"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, r"sets trainable_token_indices, which"),
    ],
)  # fmt: skip
def test_what_is_not_applied_is_named(llama: Path, tmp_path: Path, settings: dict, said: str) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), LoraConfig(task_type="CAUSAL_LM", **settings))
    model.save_pretrained(tmp_path / "adapters", save_embedding_layers=False)
    with pytest.raises(InputError, match=said):
        LLMDecoder.from_pretrained(tmp_path / "adapters", head="yes_no", yes_word="y", no_word="n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, r"adapters of kind 'IA3'; expected LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, r"sets megatron_config, which"),
        ({"base_model_name_or_path": None}, r"write where their base is now into adapter_config.json"),
        ({"base_model_name_or_path": "/no/such/place"}, r"'/no/such/place', which is not there; write where"),
        ({"bias": "all"}, r"sets bias, which"),
        ({"base_model_name_or_path": 3}, r"is no adapter configuration"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_applied(bert: Path, tmp_path: Path, change: dict, said: str) -> None:
    written_by_peft(bert, tmp_path / "adapters")
    file = tmp_path / "adapters" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    for opens in (CrossEncoder.from_pretrained, open_reranker):
        with pytest.raises(InputError, match=said):
            opens(tmp_path / "adapters")


def test_a_base_that_has_moved_is_named(tmp_path: Path) -> None:
    expected = written_by_peft(make_bert(tmp_path / "base"), tmp_path / "adapters")
    base = (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="write where their base is now"):
        open_reranker(tmp_path / "adapters")
    reranker = open_reranker(tmp_path / "adapters", base_model=str(base))
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, rtol=1e-4, atol=1e-5)
    reranker.save_pretrained(tmp_path / "again")  # knows where it was found
    assert open_reranker(tmp_path / "again").compute_score(PAIRS).equal(reranker.compute_score(PAIRS))
    base = base.rename(tmp_path / "moved_again")
    file = tmp_path / "again" / "adapter_config.json"  # what every verb opens
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(base)}))
    assert open_reranker(tmp_path / "again").compute_score(PAIRS).equal(reranker.compute_score(PAIRS))
    with pytest.raises(InputError, match="is no adapter directory: leave base_model out"):
        CrossEncoder.from_pretrained(base, base_model=str(base))
