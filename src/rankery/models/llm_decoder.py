"""LLM-decoder rerankers: a prompt around query and document, scored at its last token.

Contract: `head: score` is a plain Hugging Face sequence-classification directory, `head: yes_no` a plain causal language
model; each scores alike in transformers on the same ids. The last token is found by length, so pad ids mean nothing to us;
for transformers, which searches for the pad id, a directory never has a pad that its prompt ends in. Rejected: padding to
the left, which moves positions and wants masks everywhere.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rankery.data.template import PairTemplate, Prompt, prompt_template
from rankery.data.tokens import Reading as TextReading
from rankery.data.tokens import tokenize
from rankery.errors import InputError, check_whole
from rankery.models.calibration import read_calibration
from rankery.models.contract import PROBES, check_arguments, check_contract, check_reading, read_contract
from rankery.models.foreign import check_foreign
from rankery.models.gguf import find_gguf, load_gguf
from rankery.models.loading import (
    REPORTED,
    check_decoder,
    check_family,
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
)
from rankery.models.lora import Source, find_source, labels_of_adapters, load_adapters
from rankery.models.prompts import Reading, resolve_prompt
from rankery.models.reranker import Reranker, encode_pairs
from rankery.models.scorer import LastTokenScorer, YesNoScorer
from rankery.models.sizes import check_size
from rankery.models.threads import in_own_thread

# Tokens that families keep free; one of them may pad.
RESERVED = re.compile(r"reserved|unused|extra|fim_|_pad|<pad>|\[pad\]", re.IGNORECASE)
NEW_PAD = "<|rankery_pad|>"


class LLMDecoder(Reranker):
    """A reranker made from an LLM decoder."""

    model_type = "llm_decoder"
    scored_token = "last"
    scorer: LastTokenScorer

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: PairTemplate,
        labels: tuple[float, float] = (0.0, 1.0),
        prompt: Prompt | None = None,
        reading: Reading | None = None,
    ):
        self.prompt, self.reading = prompt or Prompt(), reading or Reading()
        yes_no = self.reading.head == "yes_no"
        scorer = YesNoScorer(model, word_ids(tokenizer, self.reading)) if yes_no else LastTokenScorer(model)
        super().__init__(scorer.eval(), tokenizer, template, labels)

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        num_labels: int | None = None,
        query_format: str | None = None,
        document_format: str | None = None,
        seq: str | None = None,
        special_token: str | None = None,
        *,
        prefix: str | None = None,
        document_first: bool | None = None,
        special_tokens_in_text: TextReading | None = None,
        head: str | None = None,
        yes_word: str | None = None,
        no_word: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        max_len: int | None = None,
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
    ) -> LLMDecoder:
        """Loads a reranker, or a base LLM (with a new, small head, or asked for yes or no).

        The input is prefix + query_format(query) + seq + document_format(document) + special_token; with document_first, query
        and document in their formats change places. What is None is as saved, else as in the preset `prompt`, else "query: {}", "document: {}", " " and "</s>" for a score head, and a plain
        question for yes and no.

        Args:
            model_name_or_path: folder, name on the model hub, or a GGUF file.
            num_labels: logits of a score head; None: as saved, 1 for a base model.
            query_format: text around the query, `{}` is the query.
            document_format: same for the document.
            seq: between the two.
            special_token: ends the input; one or several tokens.
            prefix: before both: system and instruction texts.
            document_first: the document, then the query.
            special_tokens_in_text: `literal`: queries and documents that spell control tokens (<|im_end|>) are read as any text, and
                cannot close the prompt; `parse`: they are read as these tokens. None: as saved (parse where nothing is said), else
                literal where the prompt has control tokens of turns. An argument goes before what was saved.
            head: `score`, a trained head, or `yes_no`: logit(yes_word) - logit(no_word) of the next token.
            yes_word: one token; with a leading space where the prompt does not end in one.
            no_word: same; "": the logit of yes_word alone.
            prompt: preset, `qwen3-reranker` or `bge-reranker-v2-gemma`.
            instruction: the task, for a preset that has a place for it.
            max_len: tokens of a pair at most; None: as saved, else what the model takes, 512 at most.
            device: None: the accelerator if there is one, else the CPU.
            dtype: torch dtype or its name; None: float32 on CPUs, bfloat16 on accelerators that compute in it.
            seed: makes the new head of a base model reproducible.
            verify: score the contract's probes and compare; False skips it.
            trust_remote_code: run model code that the checkpoint brings along.
            revision: branch, tag or commit on the hub.
            cache_dir: folder of downloads.
            hidden_dropout: dropout on hidden states in training; None: the model's own.
            attention_dropout: same on attention probabilities.
            load_in_4bit: keep linear layers in 4 bits (NF4), through bitsandbytes.
            base_model: of a folder of adapters, where their base is now; None: where their configuration says.

        Raises:
            InputError: no such model, arguments that contradict the contract, a prompt that cannot be built, words that are
                not one token each, or scores that contradict the contract.
        """
        name = os.path.expanduser(model_name_or_path)
        contract = read_contract(Path(name))
        texts: dict[str, Any] = {
            "query_format": query_format, "document_format": document_format, "seq": seq, "special_token": special_token,
            "prefix": prefix, "document_first": document_first, "head": head, "yes_word": yes_word, "no_word": no_word,
        }  # fmt: skip
        if contract is None:
            shown, reading = resolve_prompt(prompt, instruction, texts, {})
        else:
            if prompt is not None or instruction is not None:
                texts = {
                    k: v for part in resolve_prompt(prompt, instruction, texts, {}) for k, v in asdict(part).items()
                }
            wanted = {**texts, "num_labels": num_labels, "max_len": max_len, "model_type": cls.model_type}
            check_arguments(contract, wanted, name)
            shown, reading = resolve_prompt(None, None, {}, contract)
        check_whole("num_labels", num_labels)
        if reading.head == "yes_no" and num_labels not in (None, 1):
            raise InputError(f"num_labels is {num_labels}; a yes_no head gives one score: expected 1")
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        hub = {"trust_remote_code": trust_remote_code, "revision": revision, "cache_dir": cache_dir}
        dropout, quantized = (hidden_dropout, attention_dropout), four_bit(load_in_4bit, device)
        saved = contract or {}
        with loading(name):
            source = find_source(name, hub, base_model)
            if contract is None:
                given = (query_format, document_format, seq, special_token, prefix, prompt)
                check_foreign(source.base, is_asked=any(text is not None for text in given))
            labels_wanted = num_labels or (saved.get("num_labels") if reading.head == "score" else None)
            if source.base != name and reading.head == "score":
                labels_wanted = labels_wanted or labels_of_adapters(Path(name))
            model, tokenizer = in_own_thread(_load, source, reading.head, labels_wanted, seed, quantized, dropout)
            check_tokenizer(name, tokenizer, model.config)
            length = choose_max_len(max_len, saved.get("max_len"), position_limit(model), tokenizer, name)
            reads = special_tokens_in_text or saved.get("special_tokens_in_text")
            template = prompt_template(tokenizer, length, shown, _pad(model, tokenizer, shown), check_reading(reads))
            labels = (saved.get("min_label", 0.0), saved.get("max_label", 1.0))
            if source.base != name:
                load_adapters(model, Path(name), source.base, source.base_hub["revision"])
            reranker = cls(model, tokenizer, template, labels, shown, reading)
            in_own_thread(reranker.to, device, dtype)
            reranker.cache_dir = cache_dir
            if contract is None:
                in_own_thread(check_head, reranker, name)
                in_own_thread(reranker.try_out)
            else:
                reranker.calibration = read_calibration(contract, name)
                check_contract(contract, reranker, name, verify)
        return reranker

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **asdict(self.prompt), **asdict(self.reading)}


@torch.inference_mode()
def check_head(reranker: LLMDecoder, name: str) -> None:
    """A yes/no head must read what the model's own forward computes: families scale and cap their logits in many ways.

    Raises:
        InputError: it does not.
    """
    if not isinstance(reranker.scorer, YesNoScorer):
        return
    ((ids, _),), *_ = encode_pairs([PROBES[3]], reranker.tokenizer, reranker.template)
    batch = torch.from_numpy(ids)[None].to(reranker.device)
    logits = reranker.model(batch, use_cache=False).logits[:, -1, reranker.scorer.vocabulary.rows].float()
    expected = float((logits[:, :1] - logits[:, 1:] if logits.shape[1] == 2 else logits).squeeze())
    got = float(reranker.scorer(batch, torch.ones_like(batch)).float().squeeze())
    if not abs(got - expected) <= 0.05 * max(1.0, float(logits.abs().max())):
        raise InputError(
            f"{name}: a {type(reranker.model).__name__} turns its hidden states into logits in a way that rankery does not know "
            f"(yes/no score {got:g}, by the model itself {expected:g}); use head=score"
        )


def word_ids(tokenizer: Any, reading: Reading) -> tuple[int, ...]:
    """Ids of the words that are read, one token each.

    Raises:
        InputError: a word of no or several tokens.
    """
    words = [word for word in (reading.yes_word, reading.no_word) if word]
    pieces = tokenize(tokenizer, words)
    problems = [
        f"{word!r} is {len(ids)} tokens ({', '.join(map(repr, tokenizer.convert_ids_to_tokens(ids)))}); yes_word and no_word are "
        "one token each: choose another word, with a leading space or without"
        for word, ids in zip(words, pieces, strict=True)
        if len(ids) != 1
    ]
    if not reading.yes_word:
        problems.append("yes_word is empty; expected a word of one token")
    if len(pieces) == 2 and pieces[0] == pieces[1]:
        problems.append(f"yes_word {reading.yes_word!r} and no_word {reading.no_word!r} are the same token")
    if problems:
        raise InputError(problems)
    return tuple(ids[0] for ids in pieces)


def _auto_class(head: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head == "yes_no" else AutoModelForSequenceClassification


def _load(
    source: Source,
    head: str,
    num_labels: int | None,
    seed: int | None,
    quantized: dict[str, Any],
    dropout: tuple[float | None, ...],
) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, hub name or GGUF file, in fp32."""
    from transformers import AutoTokenizer

    name = source.base
    with loading(name):
        folder, gguf = find_gguf(name)
        if gguf:
            if quantized:
                raise InputError(
                    f"load_in_4bit: {name!r} is a GGUF file, which is unpacked; name the model's own folder instead"
                )
            model, tokenizer = load_gguf(folder, gguf, _auto_class(head), num_labels or 1, dropout)
            is_reranker = False
        else:
            model, is_reranker = _load_model(source, head, num_labels, quantized, dropout)
            tokenizer = None
        if source.tokenizer != name or tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, **source.tokenizer_hub)
    if head == "score":
        if not isinstance(getattr(model, "score", None), torch.nn.Linear):
            raise InputError(f"model_name_or_path is {name!r}, a {type(model).__name__}; expected an LLM decoder")
        if not is_reranker:
            # Final norms make hidden states large: a small head starts near even odds.
            torch.manual_seed(0 if seed is None else seed)
            torch.nn.init.normal_(model.score.weight, std=1.0 / model.score.in_features)
    return model, tokenizer


def _load_model(
    source: Source, head: str, num_labels: int | None, quantized: dict[str, Any], dropout: tuple[float | None, ...]
) -> tuple[Any, bool]:
    """(model of a folder or hub name, whether it brings a score head)."""
    from transformers import AutoConfig

    name = source.base
    config = AutoConfig.from_pretrained(name, **source.base_hub)
    check_decoder(name, config)
    is_reranker = has_classifier(config)
    if is_reranker and head == "yes_no":
        raise InputError(
            f"model_name_or_path is {name!r}, a classification model; a yes_no head wants a language model"
        )
    set_dropout(config, *dropout)
    if head == "score":
        check_family(name, config)
        config.num_labels = choose_labels(name, config, num_labels)
    check_size(name, lambda: _auto_class(head).from_config(config, trust_remote_code=False))
    model, report = _auto_class(head).from_pretrained(name, config=config, **REPORTED, **source.base_hub, **quantized)
    model.new_weights = new_weights(name, model, report, is_reranker or head == "yes_no")
    return model, is_reranker


def _pad(model: Any, tokenizer: Any, prompt: Prompt) -> int:
    """A pad id that the prompt does not end in; set in model and tokenizer, which get a new row if none is free."""
    # Its last piece of any tokens, with empty texts in it: what a short input ends in.
    first, second = prompt.formats
    pieces = (prompt.special_token, second, prompt.seq, first)
    ends = next((ids[-1:] for ids in tokenize(tokenizer, [piece.replace("{}", "") for piece in pieces]) if ids), [])
    pad = tokenizer.pad_token_id
    if pad is None or [pad] == ends:
        specials = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *ends}
        rows = model.get_input_embeddings().num_embeddings
        free = [
            (index, token.content)
            for index, token in sorted(tokenizer.added_tokens_decoder.items())
            if index not in specials and index < rows and RESERVED.search(token.content)
        ]
        tokenizer.pad_token = free[0][1] if free else NEW_PAD
        if not free:
            tokenizer.add_special_tokens({"pad_token": NEW_PAD})
        pad = tokenizer.pad_token_id
    if pad >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = pad
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = pad
    return int(pad)
