"""Folders that another program saved with a prompt, head or pooling of its own: used as they say, or refused by name.

Contract: rankery scores what config.json describes, with its own prompt. Where sentence-transformers' modules.json, or its settings,
say that scores are made otherwise, that is never overridden in silence: a language model's prompt may be named by the user (a preset
or formats), anything else is an error with the way out. Rejected: guessing a prompt out of a chat template, whose rendering depends
on the texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankery.errors import InputError

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"


def check_foreign(name: str, is_asked: bool) -> None:
    """Whether a local folder without a contract can be scored by its config.json alone.

    Args:
        name: folder; anything else passes.
        is_asked: the user names how a language model is asked, which takes the place of the folder's own prompt.

    Raises:
        InputError: the folder makes its scores otherwise.
    """
    folder = Path(name)
    kinds = [kind for kind in _modules(folder) if kind != "Transformer"]
    settings = _read(folder / SETTINGS, dict)
    if settings.get("model_type") != "CrossEncoder" and "LogitScore" not in kinds:
        return  # an embedding model's modules and prompts make embeddings; as a base it is its Transformer alone
    if kinds == ["LogitScore"]:
        if not is_asked:
            raise InputError(
                f"{name}: brings a prompt of its own ({MODULES} names LogitScore, with a chat template); rankery would ask it otherwise: "
                "name a preset (--prompt, prompt=...), or the texts of its template (prefix, query_format, seq, document_format, "
                "special_token, yes_word, no_word)"
            )
        kinds = []
    if kinds:
        raise InputError(
            f"{name}: makes its scores by modules of its own ({', '.join(kinds)[:80]} in {MODULES}), which rankery would leave out; "
            "expected a model whose config.json is all: score it with sentence-transformers, or train from its base"
        )
    prompts = settings.get("prompts") or {}
    if not is_asked and any(prompts.values() if isinstance(prompts, dict) else [prompts]):
        raise InputError(
            f"{name}: brings prompts of its own ({SETTINGS}), which rankery would leave out; write them into query_format and "
            "document_format, or take them out of the file"
        )


def _modules(folder: Path) -> list[str]:
    """Names of the module classes of a sentence-transformers folder, in order; empty where it is none."""
    listed = _read(folder / MODULES, list)
    return [str(entry.get("type", "")).rpartition(".")[2] for entry in listed if isinstance(entry, dict)]


def _read(file: Path, kind: type) -> Any:
    if not file.is_file():
        return kind()
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, kind):
        raise InputError(f"{file}: is no JSON {'list' if kind is list else 'object'}; restore the file as saved")
    return said
