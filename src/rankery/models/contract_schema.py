"""What a contract (rankery.json) must look like, and the digests that tell whether it or its folder was changed.

Contract: every key that loading reads has a type and a range, checked before anything is loaded; further keys are let through, so
that newer rankeries may add some. Digests are an addition: folders without them load as before. Cost: reading the folder's files
once more (about a second a gigabyte). Rejected: digests instead of golden scores, which say that bytes are the same but not that
scores are; golden scores alone, whose eight probes miss a damaged word or a window that only long pairs reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankery.models.folders import CONTRACT_FILE, regular_file

DIGEST, DIGESTS = "digest", "digests"  # of the contract itself, and of the folder's files
UNDIGESTED = ("README.md",)  # for people, who may change it
# What a contract without these keys means: models saved before there were such keys.
ABSENT = {"special_tokens_in_text": "parse", "document_first": False}
# What config.json says beside the scores: versions, names, how it is to be run elsewhere.
PASSING = (
    *("transformers_version", "dtype", "torch_dtype", "_name_or_path", "sentence_transformers", "id2label", "label2id"),
    *("base_model_name_or_path", "revision"),  # of adapters, whose base may move
    *("architectures", "use_cache", "problem_type", "auto_map", "attn_implementation", "_attn_implementation"),
)
TEXT_ENDS = (".json", ".txt", ".jinja", ".py")  # whose line ends a version control may change

Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]
Format = Annotated[str, Field(pattern=r"\{\}")]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)


class _Template(_Schema):
    prefix: list[TokenId]
    middle: list[TokenId]
    suffix: list[TokenId]
    token_types: list[TokenId] | None
    max_len: int
    pad_token_id: TokenId
    query_format: str
    document_format: str
    document_first: bool = False
    special_tokens_in_text: Literal["literal", "parse"] = "parse"


class _Probe(_Schema):
    query: str
    document: str


class Contract(_Schema):
    """rankery.json of format version 1."""

    format_version: Annotated[int, Field(ge=1)]
    model_type: Literal["bert_encoder", "llm_decoder"]
    num_labels: Annotated[int, Field(ge=1, le=10_000)]
    max_len: Annotated[int, Field(ge=1, le=100_000_000)]
    query_format: Format
    document_format: Format
    template: _Template
    min_label: Number
    max_label: Number
    probes: list[_Probe]
    golden: list[Number] | list[list[Number]]
    tolerance: dict[str, Annotated[Number, Field(gt=0)]]
    files: list[str]
    scored_token: str = ""
    seq: str = ""
    special_token: str = ""
    prefix: str = ""
    head: Literal["score", "yes_no"] = "score"
    yes_word: str = ""
    no_word: str = ""
    special_tokens_in_text: Literal["literal", "parse"] = "parse"
    document_first: bool = False
    versions: dict[str, str] = {}
    digests: dict[str, str] = {}

    @model_validator(mode="after")
    def _agrees(self) -> Contract:
        if not self.min_label < self.max_label:
            raise ValueError("min_label is not below max_label")
        if len(self.golden) != len(self.probes):
            raise ValueError(f"golden has {len(self.golden)} scores, probes has {len(self.probes)} pairs")
        if self.golden and "float32" not in self.tolerance:
            raise ValueError("tolerance has no float32")
        shapes = {len(row) if isinstance(row, list) else 1 for row in self.golden}
        if self.golden and shapes != {self.num_labels}:
            raise ValueError(f"golden has rows of {sorted(shapes)} scores, num_labels is {self.num_labels}")
        return self


def contract_problems(contract: Mapping[str, Any]) -> list[str]:
    """What is wrong with a contract of the known version, each with its key; empty where nothing is."""
    try:
        Contract.model_validate(dict(contract))
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ").replace("Value error, ", "")
            for each in error.errors()
        ]
    return []


def digest_of(said: Mapping[str, Any]) -> str:
    """Hash of all that JSON says but the hash itself, a calibration, which has its own: people may take it out, and keys that say
    what their absence does."""
    rest = {
        key: value
        for key, value in said.items()
        if key not in (DIGEST, "calibration") and value != ABSENT.get(key, ...)
    }
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Hash of each file by its name; of configurations, of what they say about scores."""
    return {name: _digest(path) for name in names if name not in UNDIGESTED and (path := regular_file(folder, name))}


def changed_files(folder: Path, contract: Mapping[str, Any]) -> list[str]:
    """Files of a model folder that are gone or not what they were when it was saved, the contract itself too.

    None where the contract has no digests: older rankeries saved it.
    """
    saved: dict[str, str] = contract.get(DIGESTS) or {}
    changed = [name for name, digest in saved.items() if file_digests(folder, [name]).get(name) != digest]
    is_whole = contract.get(DIGEST) in (None, digest_of(contract))
    return changed if is_whole else [CONTRACT_FILE, *changed]


def _digest(path: Path) -> str:
    if path.name in ("config.json", "adapter_config.json"):
        try:
            said = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in PASSING}
        except (ValueError, AttributeError, RecursionError):
            return "unreadable"
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if path.suffix in TEXT_ENDS:
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
