"""Opens a reranker of either kind from its path alone: what `rankery evaluate`, `rerank` and `export` do."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from rankery.errors import InputError, NewHeadWarning
from rankery.models.contract import read_contract
from rankery.models.gguf import find_gguf
from rankery.models.loading import has_classifier, is_decoder_family, loading
from rankery.models.lora import adapter_settings, find_source
from rankery.models.reranker import Reranker


def open_reranker(model: str | Path, prompt: str | None = None, **options: Any) -> Reranker:
    """The reranker that a folder holds, or a hub name or GGUF file stands for.

    A folder that rankery saved says what it is. Of others, a causal language model is asked for yes or no (`prompt` names the
    preset to ask with), any other model scores with its classification head.

    Args:
        model: folder, hub name or GGUF file.
        prompt: preset, as for `LLMDecoder.from_pretrained`.
        options: as for `from_pretrained`.

    Raises:
        InputError: as `from_pretrained`; a prompt for a model that is no decoder; a base encoder, whose head would be random.
    """
    from rankery.models.cross_encoder import CrossEncoder
    from rankery.models.llm_decoder import LLMDecoder

    name = os.path.expanduser(model)
    contract = read_contract(Path(name))
    if contract is not None:
        is_decoder, head = contract["model_type"] == LLMDecoder.model_type, None
    else:
        is_decoder, head = decoder_kind(name, _of_hub(options), options.get("base_model"))
    if is_decoder:
        return LLMDecoder.from_pretrained(name, prompt=prompt, head=head, **options)
    if prompt is not None:
        raise InputError(f"prompt is {prompt!r}, but {name} is an encoder, which takes none")
    with warnings.catch_warnings():
        warnings.simplefilter("error", NewHeadWarning)
        try:
            return CrossEncoder.from_pretrained(name, **options)
        except NewHeadWarning as warning:
            raise InputError(str(warning)) from None


def takes_prompt(model: str | Path, **options: Any) -> bool:
    """Whether it is a decoder that rankery has not saved, with a prompt of its own; `options` as for `open_reranker`."""
    name = os.path.expanduser(model)
    return read_contract(Path(name)) is None and decoder_kind(name, _of_hub(options), options.get("base_model"))[0]


def _of_hub(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ("trust_remote_code", "revision", "cache_dir")}


def check_model(model: str | Path, **options: Any) -> None:
    """Whether something is there that `open_reranker` may open; reads no weights.

    Raises:
        InputError: as `open_reranker`, for what the configuration shows.
    """
    name = os.path.expanduser(model)
    if read_contract(Path(name)) is None:
        decoder_kind(name, _of_hub(options), options.get("base_model"))


def decoder_kind(name: str, hub: dict[str, Any], base_model: str | None = None) -> tuple[bool, str | None]:
    """(whether a model without a contract is a decoder, the head it has to be read with)."""
    from transformers import AutoConfig

    with loading(name):
        base, base_hub, *_ = find_source(name, {"trust_remote_code": False, **hub}, base_model)
        settings = adapter_settings(Path(name))
        brings_head = settings is not None and settings.get("task_type") == "SEQ_CLS"
        if find_gguf(base)[1]:
            return True, "score" if brings_head else "yes_no"
        with loading(base):
            config = AutoConfig.from_pretrained(base, **base_hub)
    if not is_decoder_family(config):
        return False, None
    return True, "score" if brings_head or has_classifier(config) else "yes_no"
