"""A saved model directory is a contract: `rankery.json` says how it scores, and holds golden scores to prove it.

Contract of the contract: the directory is a plain Hugging Face directory (safetensors), whole or absent; golden logits are
computed from the directory as written, in fp32; each dtype's tolerance is measured at that moment. Loading compares. Cost:
eight short probes. Rejected: hashes of the files, which say that bytes are the same but not that scores are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankery.data.template import PairTemplate
from rankery.errors import InputError
from rankery.models.folders import CONTRACT_FILE, written_aside
from rankery.models.lora import has_adapters, save_adapters

if TYPE_CHECKING:
    from rankery.models.reranker import Pair, Reranker

FORMAT_VERSION = 1
CONTRACT_KEYS = (
    *("model_type", "num_labels", "max_len", "query_format", "document_format", "template", "min_label", "max_label"),
    *("probes", "golden", "tolerance", "files"),
)
# What a contract without these keys means: models saved before there were such keys.
ABSENT = {"special_tokens_in_text": "parse", "document_first": False}
# Short, of different lengths, so that a batch of them pads; swapped, empty and non-English ones among them.
PROBES = (
    ("how do plants make food", "Plants turn light, water and carbon dioxide into sugar; this is photosynthesis."),
    ("how do plants make food", "The train to the coast leaves at noon."),
    ("The train to the coast leaves at noon.", "how do plants make food"),
    ("capital of France", "Paris"),
    ("capital of France", "Paris is the capital of France, and its largest city, on the river Seine in the north."),
    ("月亮有多远", "月球与地球的平均距离约为三十八万公里。"),
    ("empty document", ""),
    ("3.14 * 2 = ?", "6.28"),
)
FLOAT32_TOLERANCE = 2e-4  # times the largest golden logit, 1 at least: other CPUs, kernels and devices
HALF_MARGIN = 4.0  # half-precision tolerance: this times the largest deviation measured when saving ...
HALF_FLOOR = 5e-3  # ... and no less than this


def read_contract(folder: Path) -> dict[str, Any] | None:
    """The contract of a model directory; None where there is none (a hub name, another library's model).

    Raises:
        InputError: a contract that cannot be read, or of a newer format; the folder of a training, not of its model.
    """
    file = folder / CONTRACT_FILE
    if not file.is_file():
        if (folder / "model" / CONTRACT_FILE).is_file() and not (folder / "config.json").exists():
            raise InputError(f"{folder}: is the folder of a training; expected that of its model, {folder / 'model'}")
        return None
    try:
        contract = json.loads(file.read_text(encoding="utf-8"))
        version = int(contract["format_version"])
        missing = [key for key in CONTRACT_KEYS if version <= FORMAT_VERSION and key not in contract]
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing, version = [repr(error)], 0
    if missing:
        raise InputError(
            f"{file}: is no rankery contract (missing: {', '.join(missing)}); expected the file as saved: save the model again"
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{file}: has format version {version}; this rankery knows up to {FORMAT_VERSION}: update rankery"
        )
    return {**ABSENT, **contract}


def check_reading(value: str | None) -> Any:
    """How control tokens in texts are read: `literal`, `parse`, or None for left open.

    Raises:
        InputError: something else.
    """
    if value not in (None, "literal", "parse"):
        raise InputError(f"special_tokens_in_text is {value!r}; expected literal or parse")
    return value


def foreign_files(folder: Path) -> list[str]:
    """Names in a model directory that rankery did not write there; all of them where there is no contract."""
    if not folder.is_dir():
        return []
    contract = read_contract(folder)
    ours = {CONTRACT_FILE, *contract["files"]} if contract else set()
    return sorted(path.name for path in folder.iterdir() if path.name not in ours)


def check_arguments(contract: dict[str, Any] | None, arguments: dict[str, Any], name: str) -> None:
    """Arguments that are given must be what the contract says.

    Raises:
        InputError: shows both.
    """
    shorter = {"max_len": ", or leave it out (compute_score's max_length shortens pairs)"}
    problems = [
        f"{name}: was trained with {key} {contract.get(key)!r}, got {value!r}; set {key} to that{shorter.get(key, '')}"
        for key, value in arguments.items()
        if contract is not None and value is not None and contract.get(key) != value
    ]
    if problems:
        raise InputError(problems)


def check_template(contract: dict[str, Any], template: PairTemplate, name: str) -> None:
    """The tokenizer must give the special ids and pad that the contract was saved with.

    Raises:
        InputError: shows both.
    """
    found = json.loads(json.dumps(template.to_dict()))
    problems = [
        f"{name}: the tokenizer gives {key} {found.get(key)}, but the model was saved with {value}; restore the tokenizer files"
        for key, value in contract["template"].items()
        if key != "special_tokens_in_text" and found.get(key) != value  # the user may choose another reading of texts
    ]
    if problems:
        raise InputError(problems)


def check_contract(contract: dict[str, Any], reranker: Reranker, name: str, verify: bool) -> None:
    """A loaded reranker must build its input, and with `verify` score, as its contract says.

    Raises:
        InputError: it does not.
    """
    check_template(contract, reranker.template, name)
    if verify and not getattr(reranker.model, "is_loaded_in_4bit", False):  # golden scores are of whole weights
        verify_golden(contract, reranker, name)


def padded_scores(reranker: Reranker, pairs: Sequence[Pair]) -> torch.Tensor:
    """Logits of pairs padded to one length: other programs pad, and what is wrong about a pad has to show here too."""
    before, reranker.packing = reranker.packing, "off"
    try:
        return reranker.compute_score(pairs, finite=False)
    finally:
        reranker.packing = before


def verify_golden(contract: dict[str, Any], reranker: Reranker, name: str) -> None:
    """Scores the probes and compares.

    Raises:
        InputError: a probe's logits differ by more than the tolerance for the model's dtype.
    """
    dtype = str(next(reranker.model.parameters()).dtype).removeprefix("torch.")
    tolerance = contract["tolerance"].get(dtype, contract["tolerance"]["float32"])
    pairs = [(probe["query"], probe["document"]) for probe in contract["probes"]]
    golden, got = torch.tensor(contract["golden"]), padded_scores(reranker, pairs)
    deviation = (got - golden).abs()
    if not bool((deviation <= tolerance).all()):
        worst = int(deviation.reshape(len(golden), -1).amax(dim=1).nan_to_num(nan=float("inf")).argmax())
        raise InputError(
            f"{name}: does not score as it was saved: probe {worst} gives {got[worst].tolist()}, expected "
            f"{golden[worst].tolist()} within {tolerance:g} ({dtype}); {_suspect(reranker)}"
        )


def _suspect(reranker: Reranker) -> str:
    """What has changed where scores have, and what to do about it."""
    if has_adapters(reranker.model):
        base = reranker.model.peft_config["default"].base_model_name_or_path
        return f"the base {base} or the adapters are not what they were: expected the base that these adapters were trained on"
    return "the weights, tokenizer or config were changed. Restore the files, or load with verify=False"


def write_model_directory(folder: Path, reranker: Reranker, state: dict[str, torch.Tensor], card: str) -> None:
    """Writes weights `state` (full tensors by name), config, tokenizer, card and contract as one whole.

    Raises:
        InputError: `folder` holds something that rankery did not save; or the disk is full or not writable.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another folder")
    if foreign := foreign_files(folder):
        raise InputError(
            f"{folder}: holds {', '.join(foreign[:5])}, not written by rankery; move it away, or choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(folder) as aside:
        _write_files(aside, reranker, state, card)


def _write_files(aside: Path, reranker: Reranker, state: dict[str, torch.Tensor], card: str) -> None:
    model, tokenizer = reranker.model, deepcopy(reranker.tokenizer)
    tokenizer.model_max_length = reranker.template.max_len
    tokenizer.save_pretrained(aside)
    if has_adapters(model):
        save_adapters(model, state, aside)
    else:
        _write_whole_model(aside, reranker, state)
    (aside / "README.md").write_text(card, encoding="utf-8")
    contract = _contract(reranker, aside)
    (aside / CONTRACT_FILE).write_text(json.dumps(contract, ensure_ascii=False, indent=1), encoding="utf-8")


def _write_whole_model(aside: Path, reranker: Reranker, state: dict[str, torch.Tensor]) -> None:
    model = reranker.model
    config = deepcopy(model.config)
    if is_remote_code(model):
        from transformers.dynamic_module_utils import custom_object_save

        custom_object_save(model, aside, config=config)
    if reranker.model_type == "bert_encoder":
        # sentence-transformers would apply a sigmoid to one label: our scores are logits.
        config.sentence_transformers = {"version": "5.1.0", "activation_fn": "torch.nn.modules.linear.Identity"}
    config.pad_token_id = reranker.template.pad_token_id
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # the name that sharding gives the class
    config.dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    tied = tied_weights(model)
    _save_weights(aside, {name: tensor for name, tensor in state.items() if tied.get(name) not in state})
    config.save_pretrained(aside)


def tied_weights(model: Any) -> dict[str, str]:
    """Weights that are others under a second name: the name that transformers leaves out of a directory -> the one it keeps.

    By name, since gathered and cast states hold them twice, and of tensors that share memory a choice would be made by chance.
    """
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _save_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """model.safetensors, or numbered parts with an index, as transformers reads them; shared tensors are stored once."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict({name: tensor.detach() for name, tensor in state.items()}, folder, max_shard_size="20GB")


def _contract(reranker: Reranker, folder: Path) -> dict[str, Any]:
    import transformers

    import rankery

    golden, tolerance = _golden(reranker, folder)
    return {
        "format_version": FORMAT_VERSION,
        "model_type": reranker.model_type,
        "num_labels": reranker.num_labels,
        "max_len": reranker.template.max_len,
        **reranker.settings(),
        "template": reranker.template.to_dict(),
        "scored_token": reranker.scored_token,
        "min_label": reranker.labels[0],
        "max_label": reranker.labels[1],
        "versions": {
            "rankery": rankery.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "probes": [{"query": query, "document": document} for query, document in PROBES],
        "golden": golden.tolist(),
        "tolerance": tolerance,
        "files": sorted(path.name for path in folder.iterdir()),
        **({} if reranker.calibration is None else {"calibration": reranker.calibration.to_dict()}),
    }


def _golden(reranker: Reranker, folder: Path) -> tuple[torch.Tensor, dict[str, float]]:
    """(fp32 logits of the probes from the directory, tolerance by dtype)."""
    # Code that came with the checkpoint runs again only where the user has let it run before.
    written = reranker.reopened(folder, trust_remote_code=is_remote_code(reranker.model))
    golden = padded_scores(written, PROBES)
    half = padded_scores(written.to(torch.bfloat16), PROBES)
    scale = max(1.0, float(golden.abs().max()))
    measured = float((half - golden).abs().max())
    half_tolerance = max(HALF_MARGIN * measured, HALF_FLOOR * scale)
    float32 = FLOAT32_TOLERANCE * scale
    return golden, {"float32": float32, "bfloat16": half_tolerance, "float16": half_tolerance}


def is_remote_code(model: Any) -> bool:
    """Whether the model's class came with its checkpoint."""
    return any(cls.__module__.startswith("transformers_modules.") for cls in type(model).__mro__)
