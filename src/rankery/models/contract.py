"""A saved model directory is a contract: `rankery.json` says how it scores, and holds golden scores to prove it.

Contract of the contract: the directory is a plain Hugging Face directory (safetensors), whole or absent; what is beside the weights
(golden scores, the card) never costs them. Loading compares scores (golden.py) and digests (contract_schema.py), which tell what
probes cannot: a word they do not hold.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankery.data.template import PairTemplate
from rankery.errors import InputError, attempt
from rankery.models.contract_schema import ABSENT, DIGEST, changed_files, contract_problems, digest_of, file_digests
from rankery.models.folders import CONTRACT_FILE, files_in, write_whole, written_aside
from rankery.models.golden import NO_GOLDEN, golden_of, verify_golden
from rankery.models.golden import PROBES as PROBES
from rankery.models.lora import has_adapters, save_adapters, tied_weights

if TYPE_CHECKING:
    from rankery.models.reranker import Reranker

FORMAT_VERSION = 1


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
        version = contract["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InputError(
                f"{file}: has format version {version}; this rankery knows up to {FORMAT_VERSION}: update rankery"
            )
        problems = contract_problems(contract)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems = [f"{type(error).__name__}: {error!s:.80}"]
    if problems:
        raise InputError(
            f"{file}: is no rankery contract, or was changed ({'; '.join(problems)[:300]}); expected the file as saved: restore it, or "
            "save the model again"
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
    ours = {CONTRACT_FILE, *(name.split("/")[0] for name in contract["files"])} if contract else set()
    # What a killed writing of the contract leaves is ours too.
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in ours and not path.name.startswith(f".tmp-{CONTRACT_FILE}-")
    )


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
    if not verify:
        return
    if not getattr(reranker.model, "is_loaded_in_4bit", False):  # golden scores are of whole weights
        verify_golden(contract, reranker, name)
    if changed := changed_files(Path(name), contract):
        raise InputError(
            f"{name}: {', '.join(changed[:3])} changed since the model was saved, which its probes need not show; restore the files, or "
            "load with verify=False and save again if that is meant"
        )


def write_model_directory(
    folder: Path, reranker: Reranker, state: dict[str, torch.Tensor], card: str, golden: bool = True
) -> None:
    """Writes weights `state` (full tensors by name), config, tokenizer, card and contract as one whole.

    `golden`: with golden scores; a checkpoint does without, and `add_golden` makes a final model of it.

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
        _write_files(aside, reranker, state, card, golden)


def add_golden(folder: Path, reranker: Reranker) -> None:
    """Puts golden scores into a directory without any; `reranker` is of the same kind, its weights may be others."""
    for left in folder.glob(
        f".tmp-{CONTRACT_FILE}-*"
    ):  # by an attempt that was killed; the run's lock keeps others out
        left.unlink()
    contract = read_contract(folder)
    if contract is not None and not contract["probes"]:
        contract |= golden_of(reranker, folder, is_remote_code(reranker.model))
        whole = contract_text(contract)
        attempt(f"{folder}: has no golden scores", lambda: write_whole(folder / CONTRACT_FILE, whole), None)


def _write_files(aside: Path, reranker: Reranker, state: dict[str, torch.Tensor], card: str, golden: bool) -> None:
    model, tokenizer = reranker.model, deepcopy(reranker.tokenizer)
    tokenizer.model_max_length = reranker.template.max_len
    tokenizer.save_pretrained(aside)
    if has_adapters(model):
        save_adapters(model, state, aside)
    else:
        _write_whole_model(aside, reranker, state)
    (aside / "README.md").write_text(card, encoding="utf-8")
    (aside / CONTRACT_FILE).write_text(contract_text(_contract(reranker, aside, golden)), encoding="utf-8")


def contract_text(contract: dict[str, Any]) -> str:
    """A contract as its file holds it, with its own digest."""
    return json.dumps({**contract, DIGEST: digest_of(contract)}, ensure_ascii=False, indent=1)


def _write_whole_model(aside: Path, reranker: Reranker, state: dict[str, torch.Tensor]) -> None:
    model = reranker.model
    config = deepcopy(model.config)
    if is_remote_code(model):
        from transformers.dynamic_module_utils import custom_object_save

        what = f"{aside}: the code of the model could not be copied; copy it from where the model came from"
        attempt(what, lambda: custom_object_save(model, aside, config=config), None)
    if reranker.model_type == "bert_encoder":
        # sentence-transformers would apply a sigmoid to one label: our scores are logits.
        config.sentence_transformers = {"version": "5.1.0", "activation_fn": "torch.nn.modules.linear.Identity"}
    if reranker.scored_token == "last":
        # transformers looks for a decoder's last token by its pad. In encoders it may be where positions begin: theirs stays.
        config.pad_token_id = reranker.template.pad_token_id
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # the name that sharding gives the class
    config.dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    tied = tied_weights(model)
    _save_weights(aside, {name: tensor for name, tensor in state.items() if tied.get(name) not in state})
    config.save_pretrained(aside)


def _save_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """model.safetensors, or numbered parts with an index, as transformers reads them; shared tensors are stored once."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict({name: _whole(tensor) for name, tensor in state.items()}, folder, max_shard_size="20GB")


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is a part of a larger one, as of fused weights that transformers takes apart, as one of its own."""
    tensor = tensor.detach()
    is_part = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if is_part else tensor


def _contract(reranker: Reranker, folder: Path, golden: bool) -> dict[str, Any]:
    import transformers

    import rankery

    # Code that came with the checkpoint runs again only where the user has let it run before.
    proof = golden_of(reranker, folder, is_remote_code(reranker.model)) if golden else NO_GOLDEN
    calibration = reranker.calibration
    saved = calibration and attempt(f"{folder}: its calibration could not be copied", calibration.to_dict, None)
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
        **proof,
        "files": (files := files_in(folder)),
        "digests": file_digests(folder, files),
        **({"calibration": saved} if saved else {}),
    }


def is_remote_code(model: Any) -> bool:
    """Whether the model's class came with its checkpoint."""
    return any(cls.__module__.startswith("transformers_modules.") for cls in type(model).__mro__)
