"""Scoring changes nothing that others see, and others change no score: threads share one model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import WORDS, make_bert, make_decoder
from test_packing import rows, scorer_of

from rankery import CrossEncoder, LLMDecoder
from rankery.data.collate import pad
from rankery.models.budget import set_attention
from rankery.models.loading import loading
from rankery.models.reranker import Reranker
from rankery.models.view import scoring_view

PAIRS = [(WORDS[i % 7], " ".join(WORDS[: i % 11 + 1])) for i in range(33)]


@pytest.fixture(scope="module", params=[CrossEncoder, LLMDecoder])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tmp_path_factory.mktemp("threads")
    if request.param is CrossEncoder:
        base, dropout = make_bert(folder), {"hidden_dropout": 0.5, "attention_dropout": 0.5}
    else:
        base, dropout = make_decoder(folder), {"attention_dropout": 0.5}
    return request.param.from_pretrained(base, 1, seed=0, **dropout)  # type: ignore[no-any-return]


def state(reranker: Reranker) -> Any:
    """What others see of a model."""
    modules = {name: (module.training, id(module)) for name, module in reranker.scorer.named_modules()}
    weights = {name: (id(x), x._version) for name, x in reranker.scorer.state_dict(keep_vars=True).items()}
    return modules, weights, reranker.model.config._attn_implementation, reranker.model.config.to_dict()


def test_eight_threads_score_a_model_in_training_mode(reranker: Reranker) -> None:
    expected = reranker.compute_score(PAIRS)
    reranker.scorer.train()
    reranker.model.base_model.eval()  # a mode of its own inside
    before = state(reranker)
    with ThreadPoolExecutor(8) as threads:
        results = [x.result() for x in [threads.submit(reranker.compute_score, PAIRS) for _ in range(24)]]
    assert all(torch.equal(scores, expected) for scores in results)
    assert state(reranker) == before
    reranker.scorer.train()
    with pytest.raises(RuntimeError, match="injected"), reranker.scorer.register_forward_pre_hook(fail):
        reranker.compute_score(PAIRS)
    assert all(module.training for module in reranker.scorer.modules())
    reranker.scorer.eval()


def fail(module: Any, arguments: Any) -> None:
    raise RuntimeError("injected")


def test_a_training_goes_on_beside_it(reranker: Reranker) -> None:
    """A training in bf16 has another attention than scoring in fp32; dropout stays on in one and off in the other."""
    set_attention(reranker.model, torch.device("cpu"), torch.bfloat16, True)
    reranker.scorer.train()
    expected = reranker.compute_score(PAIRS)
    ids, mask = torch.randint(5, 20, (4, 9)), torch.ones(4, 9, dtype=torch.int64)
    with ThreadPoolExecutor(1) as threads:
        scoring = threads.submit(lambda: [reranker.compute_score(PAIRS) for _ in range(5)])
        drawn = [reranker.scorer(ids, mask) for _ in range(20)]
        assert all(torch.equal(scores, expected) for scores in scoring.result())
    assert len({tuple(logits.tolist()) for logits in drawn}) == 20, "a step ran without dropout"
    assert reranker.model.config._attn_implementation == "packed_eager"
    reranker.eval()
    set_attention(reranker.model, torch.device("cpu"), torch.float32, True)


def test_weights_are_seen_as_they_are(reranker: Reranker) -> None:
    reranker.scorer.train()
    before = reranker.compute_score(PAIRS)
    weight = next(
        p for name, p in reranker.scorer.named_parameters() if "q_proj.weight" in name or "query.weight" in name
    )
    with torch.no_grad():
        weight.mul_(2)
    changed = reranker.compute_score(PAIRS)
    with torch.no_grad():
        weight.mul_(0.5)
    assert not torch.allclose(before, changed)
    reranker.eval()


def test_nothing_is_copied_for_a_model_that_only_scores(reranker: Reranker) -> None:
    assert scoring_view(reranker.scorer, torch.device("cpu"), torch.float32, True) is reranker.scorer


def test_two_that_load_at_once_leave_transformers_as_it_was() -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    before = logging.get_verbosity()
    first, second = loading("a model"), loading("another")
    first.__enter__()
    second.__enter__()
    assert logging.get_verbosity() == logging.ERROR
    first.__exit__(None, None, None)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    second.__exit__(None, None, None)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (before, True)


def test_frequencies_that_follow_the_longest_sequence() -> None:
    """Rotary frequencies of long-context decoders are rewritten by each forward pass: every thread has its own."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    scorer = scorer_of("llama", "sdpa", rope_parameters=rope, max_position_embeddings=128)
    short, long = (
        pad([row for row in rows() if chosen(len(row[0]))], 1) for chosen in (lambda n: n < 16, lambda n: n > 16)
    )
    view, other = (scoring_view(scorer, torch.device("cpu"), torch.float32, False) for _ in range(2))
    before = {name: x.clone() for name, x in scorer.named_buffers()}
    expected = view(*short.arguments)
    other(*long.arguments)
    assert torch.equal(view.model.model.rotary_emb.inv_freq, scorer.model.model.rotary_emb.inv_freq)
    assert torch.equal(view(*short.arguments), expected)
    assert all(torch.equal(x, before[name]) for name, x in scorer.named_buffers())
