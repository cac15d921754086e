"""Packed pairs: the layout, and logits and gradients equal to those of padded pairs in every family."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import VOCAB, WORDS, make_bert
from hypothesis import given
from hypothesis import strategies as st

from rankery import CrossEncoder
from rankery.data.collate import Batch, pack, pad
from rankery.data.packing import packing_of
from rankery.errors import InputError
from rankery.models.budget import set_attention
from rankery.models.layouts import DECODERS, ENCODERS, known_family
from rankery.models.packing import PREFIX
from rankery.models.scorer import LastTokenScorer, Scorer
from rankery.training.run import train

LENGTHS = [5, 30, 17, 31, 2, 9, 30, 1, 60]
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50,
    "num_labels": 1, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
ENCODER = {
    **SHAPE, "max_position_embeddings": 80, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DECODER = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
SETTINGS = {
    "electra": {**ENCODER, "embedding_size": 16},
    "distilbert": {
        "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50, "num_labels": 1, "pad_token_id": 1,
        "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
    },
    "modernbert": {**SHAPE, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16, "global_attn_every_n_layers": 2},
    "mistral": {**DECODER, "sliding_window": 8},
    "qwen2": {**DECODER, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {**DECODER, "sliding_window": 8},
}  # fmt: skip


def scorer_of(kind: str, inner: str, **changes: object) -> Scorer:
    settings = SETTINGS.get(kind, ENCODER if kind in ENCODERS else DECODER)
    config = transformers.AutoConfig.for_model(kind, **{**settings, **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=inner).eval()
    for parameter in model.parameters():  # large enough that attention says something
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return Scorer(model) if kind in ENCODERS else LastTokenScorer(model)


def rows() -> list:
    random = np.random.default_rng(0)
    return [(random.integers(4, 50, n), None) for n in LENGTHS]


def logits_and_gradients(scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scorer.zero_grad()
    logits = scorer(*batch.arguments)
    (logits * torch.linspace(-1, 1, len(LENGTHS))).sum().backward()
    gradients = {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("inner", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_packed_equals_padded(kind: str, inner: str) -> None:
    if kind == "gemma2" and inner == "sdpa":
        pytest.skip("its capped attention is plain products only")
    scorer = scorer_of(kind, inner)
    assert known_family(scorer.model) == kind
    expected, gradients = logits_and_gradients(scorer, pad(rows(), 1))
    assert expected.std() > 1e-3
    scorer.model.set_attn_implementation(PREFIX + inner)
    logits, packed = logits_and_gradients(scorer, pack(rows()))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert packed.keys() == gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            packed[name], gradient, atol=2e-6 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    again, _ = logits_and_gradients(scorer, pad(rows(), 1))
    assert torch.equal(again, expected), "padded pairs take another way where attention packs"


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_the_last_layer_computes_what_the_head_reads(kind: str) -> None:
    scorer = scorer_of(kind, "sdpa")
    seen: list[int] = []
    for layer in scorer.model.base_model.encoder.layer:
        layer.output.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2].numel()))
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    scorer(*pack(rows()).arguments)
    assert seen == [sum(LENGTHS), sum(LENGTHS), len(LENGTHS)]


def test_hooks_are_no_obstacle_to_export() -> None:
    """Padded pairs in transformers' own model, as somebody may export it."""
    model = scorer_of("bert", "sdpa").model
    ids = torch.randint(4, 50, (2, 9))
    exported = torch.export.export(model, (ids,), strict=True).module()
    torch.testing.assert_close(exported(ids).logits, model(ids).logits)


def test_a_neighbour_is_never_seen() -> None:
    scorer = scorer_of("bert", "eager")
    scorer.model.set_attn_implementation(PREFIX + "eager")
    changed = rows()
    changed[3] = (changed[3][0][::-1].copy(), None)
    before, after = scorer(*pack(rows()).arguments), scorer(*pack(changed).arguments)
    others = [i for i in range(len(LENGTHS)) if i != 3]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[3], after[3])


def test_decoder_made_into_an_encoder() -> None:
    scorer = scorer_of("qwen3", "sdpa", is_causal=False)
    expected = scorer(*pad(rows(), 1).arguments)
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    torch.testing.assert_close(scorer(*pack(rows()).arguments), expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing() -> None:
    scorer = scorer_of("bert", "sdpa")
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    scorer.train()
    expected = logits_and_gradients(scorer, pack(rows()))
    scorer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logits, gradients = logits_and_gradients(scorer, pack(rows()))
    assert torch.equal(logits, expected[0])
    assert all(torch.equal(gradient, expected[1][name]) for name, gradient in gradients.items())


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_layout(lengths: list[int]) -> None:
    packing = packing_of(lengths)
    total = sum(lengths)
    assert packing.position_ids.shape == (1, total)
    layout = packing.rows
    assert layout.token[layout.place].tolist() == list(range(total))
    assert sorted([*layout.place.tolist(), *layout.padding.tolist()]) == list(range(len(layout.token)))
    assert sum(chunk.places for chunk in layout.chunks) == len(layout.token)
    assert sorted(n for chunk in layout.chunks for n in chunk.lengths) == sorted(lengths)
    assert (packing.last - packing.first + 1).tolist() == lengths
    at = 0
    for chunk in layout.chunks:
        for length in chunk.lengths:  # a row is one pair from its first token on
            tokens = layout.token[at : at + length]
            assert packing.position_ids[0, tokens].tolist() == list(range(length))
            assert int(tokens[-1]) - int(tokens[0]) == length - 1
            at += chunk.width


def test_prediction_packs_and_threads_do_not_meet(tmp_path: Path) -> None:
    reranker = CrossEncoder.from_pretrained(make_bert(tmp_path / "base"), num_labels=1, seed=0)
    assert reranker.layout == "packed"
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, n)) for n in (1, 40, 3, 17, 17, 29)]
    pairs = [(query, text) for query in texts for text in texts]
    packed = reranker.compute_score(pairs)
    reranker.packing = "off"
    padded = reranker.compute_score(pairs)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    reranker.packing = "auto"
    results: dict[int, torch.Tensor] = {}

    def score(number: int) -> None:
        results[number] = reranker.compute_score(pairs)

    threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[number], packed) for number in range(4))


def test_families_that_cannot(tmp_path: Path, config: dict) -> None:
    mean = scorer_of("modernbert", "sdpa", classifier_pooling="mean")
    assert known_family(mean.model) is None
    set_attention(mean.model, torch.device("cpu"), torch.float32, packed=False)
    assert mean.model.config._attn_implementation == "sdpa"
    deberta = transformers.AutoConfig.for_model("deberta-v2", **{**ENCODER, "vocab_size": len(VOCAB)})
    transformers.AutoModel.from_config(deberta).save_pretrained(tmp_path / "deberta")
    transformers.AutoTokenizer.from_pretrained(config["model_name_or_path"]).save_pretrained(tmp_path / "deberta")
    with pytest.raises(InputError, match="packing is on, but models of type deberta-v2 cannot"):
        train(config, model_name_or_path=str(tmp_path / "deberta"), packing="on", max_len=32)


HEADS = [3, 12, 12, 12, 2, 12, 3, 1, 40]
QUERIES = [0, 1, 1, 1, 2, 2, 0, 3, 4]


def rows_of_queries() -> list:
    """As `rows`, but pairs of one query begin alike."""
    made = rows()
    for query in set(QUERIES):
        first, *others = (i for i, other in enumerate(QUERIES) if other == query)
        for i in others:
            shared = min(HEADS[first], HEADS[i], LENGTHS[first], LENGTHS[i])
            made[i][0][:shared] = made[first][0][:shared]
    return made


@pytest.mark.parametrize("inner", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_shared_query_equals_repeated_ones(kind: str, inner: str) -> None:
    if kind == "gemma2" and inner == "sdpa":
        pytest.skip("its capped attention is plain products only")
    scorer = scorer_of(kind, inner)
    scorer.model.set_attn_implementation(PREFIX + inner)
    expected, gradients = logits_and_gradients(scorer, pack(rows_of_queries()))
    shared = pack(rows_of_queries(), HEADS, QUERIES)
    assert shared.packing is not None
    assert shared.input_ids.shape[1] == sum(LENGTHS) - 12 - 12 - 3, "heads of queries 0 and 1 stand there once"
    logits, found = logits_and_gradients(scorer, shared)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            found[name], gradient, atol=2e-6 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=30))
def test_layout_of_shared_heads(pairs: list[tuple[int, int, int]]) -> None:
    lengths, heads, queries = (list(column) for column in zip(*pairs, strict=True))
    packing = packing_of(lengths, heads, queries)
    spared = sum(packing.start) - sum(length for _, length in packing.trunks)
    assert spared >= 0
    assert packing.position_ids.shape[1] == sum(lengths) - spared
    positions = packing.position_ids[0]
    for pair, (length, head, query) in enumerate(pairs):
        own = range(int(packing.first[pair]), int(packing.last[pair]) + 1)
        assert positions[list(own)].tolist() == list(range(packing.start[pair], length))
        if packing.start[pair]:
            trunk = next(owner for owner, n in packing.trunks if n == packing.start[pair] and queries[owner] == query)
            assert packing.start[pair] == min(head, length - 1) == min(heads[trunk], lengths[trunk] - 1)
