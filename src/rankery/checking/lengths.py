"""How long texts are in tokens, and what a length limit cuts: of all texts roughly, or of a sample by a model's own tokenizer.

Contract: a pair is cut as in training (`data/template.py`). With a model, POSITIVES relevant pairs, a sample by key, are tokenised
as the model would: shares are then exact to a percent or so (standard error at most .007). Without one, tokens are 1.3 a word
and 1 a character of Chinese, Japanese or Thai, of all texts. Memory: fixed. Rejected: tokenising everything, a minute for 100 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankery.data.template import PairTemplate, pair_template, prompt_template
from rankery.data.tokens import control_pattern, control_tokens, text_ids
from rankery.errors import InputError, option

POSITIVES = 5000
LONGEST = 1 << 16  # lengths beyond count as this one
DEFAULT_MAX_LEN = 512
QUANTILES = (0.5, 0.9, 0.99, 1.0)
TOKENISED_CHARACTERS = 100_000  # of a text, at most
KINDS: tuple[Literal["query", "document"], ...] = ("query", "document")


@dataclass(frozen=True)
class Lengths:
    """Tokens at the quantiles .5, .9, .99 and 1 of queries, documents and relevant pairs; what is cut."""

    by: str  # the model, or "" for the rough count
    max_len: int
    quantiles: dict[str, list[int]]
    positives: int  # looked at
    cut: int  # of these, not whole
    queries_cut: int  # of these, with less than the whole query
    is_sample: bool
    whole_99: int  # max_len that leaves 99% of the positives whole


class Measure:
    """Lengths of a data set, chunk by chunk."""

    def __init__(self, template: PairTemplate, tokenizer: Any = None, name: str = ""):
        self.template, self.tokenizer, self.name = template, tokenizer, name
        self.counts: dict[str, np.ndarray] = {
            kind: np.zeros(LONGEST + 1, dtype=np.int64) for kind in ("queries", "documents", "positives")
        }
        self.positives = self.cut = self.queries_cut = 0
        # Finds control tokens that a text spells; None without a model.
        self.control = None if tokenizer is None else control_pattern(list(control_tokens(tokenizer)))
        self.keys: np.ndarray = np.empty(0, dtype=np.uint64)
        self.sample: list[tuple[str, str]] = []

    def add_rough(self, queries: np.ndarray, documents: np.ndarray, owner: np.ndarray, relevant: np.ndarray) -> None:
        """Tokens of queries [Q] and documents [D], each document's query [D], and which are relevant [D]."""
        if self.tokenizer is None:
            self._count(queries, documents, queries[owner[relevant]], documents[relevant])

    def add_texts(self, keys: np.ndarray, pairs: Sequence[tuple[str, str]]) -> None:
        """Relevant pairs with their keys, [N]; the ones with the smallest keys stay."""
        if self.tokenizer is None or not len(keys):
            return
        self.positives += len(keys)
        limit = self.keys.max() if len(self.keys) >= POSITIVES else np.uint64(2**64 - 1)
        chosen = np.flatnonzero(keys <= limit)
        self.keys = np.concatenate([self.keys, keys[chosen]])
        self.sample += [
            (pairs[i][0][:TOKENISED_CHARACTERS], pairs[i][1][:TOKENISED_CHARACTERS]) for i in chosen.tolist()
        ]
        if len(self.keys) > POSITIVES:
            order = np.argsort(self.keys, kind="stable")[:POSITIVES]
            self.keys, self.sample = self.keys[order], [self.sample[i] for i in order]

    def result(self) -> Lengths:
        """What was measured; tokenises the sample."""
        seen = self.positives
        if self.tokenizer is not None:
            self.positives = 0
            queries, documents = (
                np.array([len(ids) for ids in text_ids(self.tokenizer, self.template, kind, texts)], dtype=np.int64)
                for kind, texts in zip(
                    KINDS, map(list, zip(*self.sample, strict=True)) if self.sample else ([], []), strict=True
                )
            )
            self._count(queries, documents, queries, documents)
        quantiles = {kind: [_quantile(counts, q) for q in QUANTILES] for kind, counts in self.counts.items()}
        return Lengths(
            self.name,
            self.template.max_len,
            quantiles,
            self.positives,
            self.cut,
            self.queries_cut,
            seen > self.positives,
            _quantile(self.counts["positives"], 0.99),
        )

    def _count(self, queries: np.ndarray, documents: np.ndarray, of_query: np.ndarray, of_document: np.ndarray) -> None:
        query_kept, document_kept = self.template.cut(of_query, of_document)
        whole = of_query + of_document + self.template.specials
        for kind, values in (("queries", queries), ("documents", documents), ("positives", whole)):
            self.counts[kind] += np.bincount(np.minimum(values, LONGEST), minlength=LONGEST + 1)
        self.positives += len(of_query)
        self.cut += int(((query_kept < of_query) | (document_kept < of_document)).sum())
        self.queries_cut += int((query_kept < of_query).sum())


def measure(model: str | None, max_len: int | None, prompt: str | None = None) -> Measure:
    """What measures lengths: by a model's tokenizer and template, or roughly.

    Args:
        model: folder or hub name; only its configuration and tokenizer are read.
        max_len: tokens of a pair; None: the model's, else 512.
        prompt: preset of a decoder that rankery has not saved.

    Raises:
        InputError: no such model, or no room for a pair.
    """
    if model is None:
        if prompt is not None:
            raise InputError(f"prompt is {prompt!r}, but no model is named; expected {option('model')} too")
        template = PairTemplate((0,), (0,), (0,), None, max_len or DEFAULT_MAX_LEN, 0)
        if template.room < 2:
            raise InputError(f"max_len is {max_len}; expected at least {template.specials + 2}")
        return Measure(template)
    template, tokenizer = _of_model(model, max_len, prompt)
    if template.room < 2:
        raise InputError(f"max_len is {max_len}; expected at least {template.specials + 2}, which {model} wants")
    return Measure(template, tokenizer, str(model))


def _of_model(name: str, max_len: int | None, preset: str | None) -> tuple[PairTemplate, Any]:
    from transformers import AutoConfig, AutoTokenizer

    from rankery.models.contract import read_contract
    from rankery.models.loading import loading
    from rankery.models.opening import decoder_kind
    from rankery.models.prompts import resolve_prompt

    contract = read_contract(Path(name))
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = None if contract else AutoConfig.from_pretrained(name).get_text_config()
    if contract is not None:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in contract["template"].items()
        }
        template = PairTemplate(**settings)
        return replace(template, max_len=max_len or template.max_len), tokenizer
    limit = getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_LEN
    length = max_len or min(DEFAULT_MAX_LEN, limit, tokenizer.model_max_length)
    is_decoder, head = decoder_kind(name, {})
    if not is_decoder:
        return pair_template(tokenizer, length), tokenizer
    shown, _ = resolve_prompt(preset, None, {"head": head}, {})
    return prompt_template(tokenizer, length, shown, tokenizer.pad_token_id or 0), tokenizer


def _quantile(counts: np.ndarray, share: float) -> int:
    """The smallest length that this share of the texts does not exceed."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, share * total[-1])) if total[-1] else 0
