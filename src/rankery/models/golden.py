"""Golden scores: what a model gives for eight short pairs, kept beside it and compared when it is loaded.

Contract: fp32 logits, by the layout that production uses and by padding, which other programs do; each dtype's tolerance is measured
when they are made. They come last and cost no result: what cannot be computed is said and left out. Cost: the probes, at the end of
a training and not at its checkpoints, whose files have checksums; the folder is opened once more, except where the model is large
and its weights are in hand. Rejected: hashes of the files, which say that bytes are the same but not that scores are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankery.errors import InputError, attempt
from rankery.models.lora import has_adapters
from rankery.models.threads import in_own_thread

if TYPE_CHECKING:
    from rankery.models.reranker import Pair, Reranker

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
NO_GOLDEN: dict[str, Any] = {"probes": [], "golden": [], "tolerance": {}}
FLOAT32_TOLERANCE = 2e-4  # times the largest golden logit, 1 at least: other CPUs, kernels and devices
HALF_MARGIN = 4.0  # half-precision tolerance: this times the largest deviation measured when saving ...
HALF_FLOOR = 5e-3  # ... and no less than this
HALF_UNMEASURED = 0.1  # where the model does not run in half precision here
LARGE = 1_000_000_000  # parameters; below, a folder is opened again to see that it scores as the model in memory


def padded_scores(reranker: Reranker, pairs: Sequence[Pair]) -> torch.Tensor:
    """Logits of pairs padded to one length: other programs pad, and what is wrong about a pad has to show here too."""
    reranker.forced_layout = "padded"
    try:
        return reranker.compute_score(pairs, finite=False)
    finally:
        reranker.forced_layout = None


def verify_golden(contract: dict[str, Any], reranker: Reranker, name: str) -> None:
    """Scores the probes, as production does and padded, and compares; in a thread of its own, for servers that fork.

    Where padded pairs score as they were saved and packed ones do not, the model is padded from then on, and that is said.

    Raises:
        InputError: a probe's logits differ by more than the tolerance for the model's dtype.
    """
    if contract["probes"]:
        in_own_thread(_verify, contract, reranker, name)


def _verify(contract: dict[str, Any], reranker: Reranker, name: str) -> None:
    dtype = str(next(reranker.model.parameters()).dtype).removeprefix("torch.")
    tolerance = contract["tolerance"].get(dtype, contract["tolerance"]["float32"])
    pairs = [(probe["query"], probe["document"]) for probe in contract["probes"]]
    golden, got = torch.tensor(contract["golden"]), reranker.compute_score(pairs, finite=False)
    wrong = not _within(got, golden, tolerance)
    if reranker.layout != "padded" and (wrong or reranker.layout != "by_length"):
        padded = padded_scores(reranker, pairs)
        if wrong and _within(padded, golden, tolerance):
            # Folders of families that run by length may have been saved when they were padded.
            if reranker.layout != "by_length":
                reranker.family_layout = "padded"
                warnings.warn(f"{name}: packed pairs score otherwise than padded ones; they are padded", stacklevel=2)
            return
        got = got if wrong else padded
    if not _within(got, golden, tolerance):
        deviation = (got - golden).abs()
        worst = int(deviation.reshape(len(golden), -1).amax(dim=1).nan_to_num(nan=float("inf")).argmax())
        raise InputError(
            f"{name}: does not score as it was saved: probe {worst} gives {got[worst].tolist()}, expected "
            f"{golden[worst].tolist()} within {tolerance:g} ({dtype}); {_suspect(reranker)}"
        )


def _within(got: torch.Tensor, golden: torch.Tensor, tolerance: float) -> bool:
    return bool(((got - golden).abs() <= tolerance).all())


def _suspect(reranker: Reranker) -> str:
    """What has changed where scores have, and what to do about it."""
    if has_adapters(reranker.model):
        base = reranker.model.peft_config["default"].base_model_name_or_path
        return f"the base {base} or the adapters are not what they were: expected the base that these adapters were trained on"
    return "the weights, tokenizer or config were changed. Restore the files, or load with verify=False"


def golden_of(reranker: Reranker, folder: Path, trusted: bool) -> dict[str, Any]:
    """The contract's probes, golden scores and tolerances of a written folder; none, and a word about it, where that fails.

    Args:
        reranker: the model in memory.
        folder: as written from it, or from other weights of the same model.
        trusted: code that came with the checkpoint may run again.
    """
    what = f"{folder}: golden scores could not be computed, so that loading will not check them"
    return attempt(what, lambda: _golden(reranker, folder, trusted), NO_GOLDEN)


def _golden(reranker: Reranker, folder: Path, trusted: bool) -> dict[str, Any]:
    in_hand = _holds(reranker, folder)
    parameters = sum(parameter.numel() for parameter in reranker.model.parameters())
    scored = reranker if in_hand and parameters > LARGE else reranker.reopened(folder, trust_remote_code=trusted)
    golden = scored.compute_score(PROBES)
    scale = max(1.0, float(golden.abs().max()))
    float32 = FLOAT32_TOLERANCE * scale
    if scored.layout in ("packed", "shared"):
        padded = padded_scores(scored, PROBES)
        if not _within(golden, padded, float32):
            warnings.warn(f"{folder}: packed pairs score otherwise than padded ones; it will be padded", stacklevel=2)
            golden = padded
    if in_hand and scored is not reranker and not _within(reranker.compute_score(PROBES), golden, float32):
        warnings.warn(
            f"{folder}: scores otherwise than the model in memory that it was written from; expected the same: something of the "
            "model is not in its configuration, weights or tokenizer",
            stacklevel=2,
        )
    half = attempt(f"{folder}: does not score in bfloat16 here", lambda: _half_scores(scored, reranker), None)
    measured = float("nan") if half is None else float((half - golden).abs().max())
    unmeasured = not measured < float("inf")
    half_tolerance = HALF_UNMEASURED * scale if unmeasured else max(HALF_MARGIN * measured, HALF_FLOOR * scale)
    return {
        "probes": [{"query": query, "document": document} for query, document in PROBES],
        "golden": golden.tolist(),
        "tolerance": {"float32": float32, "bfloat16": half_tolerance, "float16": half_tolerance},
    }


def _half_scores(scored: Reranker, reranker: Reranker) -> torch.Tensor:
    if scored is reranker:  # somebody's model: its weights stay as they are
        with torch.autocast("cpu", torch.bfloat16):
            return scored.compute_score(PROBES)
    return scored.to(torch.bfloat16).compute_score(PROBES)


def _holds(reranker: Reranker, folder: Path) -> bool:
    """Whether a model in memory is whole, fp32, on the CPU, and has the very weights of a folder."""
    from safetensors import safe_open

    own = dict(reranker.model.named_parameters())
    if has_adapters(reranker.model) or any(
        type(p) is not torch.nn.Parameter or p.device.type != "cpu" or p.dtype != torch.float32 for p in own.values()
    ):
        return False
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            names = [name for name in stored.keys() if name in own]  # noqa: SIM118
            if not all(torch.equal(stored.get_tensor(name).float(), own[name].detach()) for name in names):
                return False
    return True
