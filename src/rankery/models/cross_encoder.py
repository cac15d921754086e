"""BERT-like rerankers: query and document in one sequence, scored by a classification head.

Contract: any transformers encoder with a sequence-classification class and a fast tokenizer; a folder that rankery saved
needs nothing but its path, and is checked against its contract. Rejected: a model class of our own around the encoder,
which other libraries could not load.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rankery.data.template import pair_template
from rankery.data.tokens import Reading as TextReading
from rankery.errors import check_whole
from rankery.models.calibration import read_calibration
from rankery.models.contract import check_arguments, check_contract, check_reading, read_contract
from rankery.models.foreign import check_foreign
from rankery.models.loading import (
    REPORTED,
    check_encoder,
    check_tokenizer,
    choose_device,
    choose_dtype,
    choose_labels,
    choose_max_len,
    four_bit,
    has_classifier,
    loading,
    new_weights,
    position_limit,
    set_dropout,
    warn_of_new_head,
)
from rankery.models.lora import Source, find_source, labels_of_adapters, load_adapters
from rankery.models.reranker import Reranker
from rankery.models.scorer import Scorer
from rankery.models.sizes import check_size
from rankery.models.threads import in_own_thread


class CrossEncoder(Reranker):
    """A BERT-like reranker."""

    model_type = "bert_encoder"
    scored_token = "first"

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        num_labels: int | None = None,
        *,
        max_len: int | None = None,
        query_format: str | None = None,
        document_format: str | None = None,
        document_first: bool | None = None,
        special_tokens_in_text: TextReading | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        seed: int | None = None,
        verify: bool = True,
        trust_remote_code: bool = False,
        revision: str | None = None,
        cache_dir: str | None = None,
        hidden_dropout: float | None = None,
        attention_dropout: float | None = None,
        load_in_4bit: bool = False,
        base_model: str | None = None,
    ) -> CrossEncoder:
        """Loads a reranker, or a base encoder with a new head.

        Args:
            model_name_or_path: folder, or name on the model hub.
            num_labels: logits; None: as saved, 1 for a base model.
            max_len: tokens of a pair at most; None: as saved, else what the model takes, 512 at most.
            query_format: text around the query (`{}`); None: as saved, else the query alone.
            document_format: same for the document.
            document_first: the document is the first text of the pair, the query the second; None: as saved, else False.
            special_tokens_in_text: `literal`: queries and documents that spell control tokens ([SEP], <s>) are read as any text;
                `parse`: they are read as these tokens. None: as saved, else parse. An argument goes before what was saved.
            device: None: the accelerator if there is one, else the CPU.
            dtype: torch dtype or its name; None: float32 on CPUs, bfloat16 on accelerators that compute in it.
            seed: makes the new head of a base model reproducible; None: a new head is warned of.
            verify: score the contract's probes and compare; False skips it.
            trust_remote_code: run model code that the checkpoint brings along.
            revision: branch, tag or commit on the hub.
            cache_dir: folder of downloads.
            hidden_dropout: dropout on hidden states in training; None: the model's own.
            attention_dropout: same on attention probabilities.
            load_in_4bit: keep linear layers in 4 bits (NF4), through bitsandbytes.
            base_model: of a folder of adapters, where their base is now; None: where their configuration says.

        Raises:
            InputError: no such model, one that is a decoder, arguments that contradict the contract, or scores that do.
        """
        model_name_or_path = os.path.expanduser(model_name_or_path)
        contract = read_contract(Path(model_name_or_path))
        wanted: dict[str, Any] = {"query_format": query_format, "document_format": document_format}
        wanted |= {"num_labels": num_labels, "document_first": document_first}
        check_arguments(contract, {**wanted, "max_len": max_len, "model_type": cls.model_type}, model_name_or_path)
        hub = {"trust_remote_code": trust_remote_code, "revision": revision, "cache_dir": cache_dir}
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        if seed is not None:
            torch.manual_seed(seed)
        check_whole("num_labels", num_labels)
        num_labels = num_labels or (contract or {}).get("num_labels")
        with loading(model_name_or_path):
            source = find_source(model_name_or_path, hub, base_model)
            if contract is None:
                check_foreign(source.base, is_asked=bool(query_format or document_format))
            dropout, quantized = (hidden_dropout, attention_dropout), four_bit(load_in_4bit, device)
            model, tokenizer = in_own_thread(_load, model_name_or_path, source, num_labels, quantized, dropout)
            if seed is None:
                warn_of_new_head(model_name_or_path, model)
            saved = contract or {}
            template = pair_template(
                tokenizer,
                choose_max_len(max_len, saved.get("max_len"), position_limit(model), tokenizer, model_name_or_path),
                query_format or saved.get("query_format", "{}"),
                document_format or saved.get("document_format", "{}"),
                uses_token_types=(getattr(model.config, "type_vocab_size", 0) or 0) > 1,
                document_first=saved.get("document_first", False) if document_first is None else document_first,
                special_tokens_in_text=check_reading(special_tokens_in_text or saved.get("special_tokens_in_text"))
                or "parse",
            )
            labels = (saved.get("min_label", 0.0), saved.get("max_label", 1.0))
            reranker = cls(Scorer(model).eval(), tokenizer, template, labels)
            in_own_thread(reranker.to, device, dtype)
            reranker.cache_dir = cache_dir
            if contract is None:
                in_own_thread(reranker.try_out)
            else:
                reranker.calibration = read_calibration(contract, model_name_or_path)
                check_contract(contract, reranker, model_name_or_path, verify)
        return reranker


def _load(
    name: str,
    source: Source,
    num_labels: int | None,
    quantized: dict[str, Any],
    dropout: tuple[float | None, float | None],
) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or hub name, in fp32."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    base = source.base
    with loading(base):
        config = AutoConfig.from_pretrained(base, **source.base_hub)
        check_encoder(base, config)
        if base != name and not has_classifier(config):
            num_labels = num_labels or labels_of_adapters(Path(name))
        config.num_labels = choose_labels(base, config, num_labels)
        set_dropout(config, *dropout)
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, **source.tokenizer_hub)
        check_size(base, lambda: AutoModelForSequenceClassification.from_config(config, trust_remote_code=False))
        model, report = AutoModelForSequenceClassification.from_pretrained(
            base, config=config, **REPORTED, **source.base_hub, **quantized
        )
        model.new_weights = new_weights(base, model, report, has_classifier(config))
        if base != name:
            load_adapters(model, Path(name), base, source.base_hub["revision"])
    check_tokenizer(name, tokenizer, config)
    return model, tokenizer
