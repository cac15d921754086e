"""What turns a reranker's scores into probabilities of relevance; kept in the model's contract.

Contract: a calibration is a map that never falls, from a score (the logit; with several labels the logit of the expected grade) to
the probability that a document's label is above `relevant_above`. It changes no score and no order, only what a score means. It
is an addition to the contract: a contract without one, or one that an older rankery reads, scores as before, so the format
version stays. Cost: one pass over the scores. Rejected: putting slope and intercept into the model's head, which would change
golden scores and has no place for isotonic regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankery.errors import InputError, shown
from rankery.models.contract_schema import DIGEST, digest_of
from rankery.models.folders import CONTRACT_FILE, STATE_FILE, write_whole
from rankery.models.scorer import expected_grade

# What each kind keeps: one number, two numbers, or the ends of the steps.
PARAMETERS = {"temperature": ("temperature",), "platt": ("slope", "intercept"), "isotonic": ("scores", "probabilities")}
SURE = 1e-6  # an expected grade nearer than this to 0 or 1 counts as so near
ADVICE = "remove it from the file, and run rankery calibrate again"


@dataclass(frozen=True)
class Calibration:
    """Probability of relevance from a score.

    temperature: sigmoid(score / temperature) (Guo et al. 2017). platt: sigmoid(slope * score + intercept) (Platt 1999).
    isotonic: `probabilities` at `scores`, linear between (Zadrozny and Elkan 2002).
    """

    kind: str
    parameters: Mapping[str, Any]
    relevant_above: float = 0.0  # a document is relevant if its label is above
    about: Mapping[str, Any] = field(default_factory=dict)  # what it was fitted on and how good it is; for people

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Scores [P] -> probabilities of relevance [P] float64."""
        from scipy.special import expit

        scores = np.asarray(scores, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(scores, self.parameters["scores"], self.parameters["probabilities"])
        slope = 1 / self.parameters["temperature"] if self.kind == "temperature" else self.parameters["slope"]
        probabilities: np.ndarray = expit(slope * scores + self.parameters.get("intercept", 0.0))
        return probabilities

    def to_dict(self) -> dict[str, Any]:
        """As the contract keeps it, with its digest."""
        said = {"kind": self.kind, **self.parameters, "relevant_above": self.relevant_above, "about": dict(self.about)}
        return {**said, DIGEST: digest_of(said)}


def evidence(logits: torch.Tensor) -> torch.Tensor:
    """What a calibration is a map of, [P]: the logit, or with several labels ([P, labels]) the logit of the expected grade."""
    return torch.logit(expected_grade(logits), eps=SURE) if logits.dim() == 2 else logits


def probabilities(calibration: Calibration | None, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of relevance [P] fp32 of logits as a reranker computes them."""
    assert calibration is not None
    return torch.from_numpy(calibration.probabilities(evidence(logits).numpy())).float()


def check_scale(calibration: Calibration | None, calibrated: bool, normalize: bool) -> None:
    """Whether scores can be had as they are asked for.

    Raises:
        InputError: they are to be two things, or probabilities of a model without a calibration.
    """
    for name, value in (("normalize", normalize), ("calibrated", calibrated)):
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name} is {shown(value)}; expected True or False")
    if calibrated and normalize:
        raise InputError("normalize and calibrated are both set; expected one: a sigmoid, or a measured probability")
    if calibrated and calibration is None:
        raise InputError(
            "the model has no calibration, so its scores are no probabilities; fit one on data that training has not seen: "
            "rankery calibrate --model DIR --data FILE"
        )


def read_calibration(contract: Mapping[str, Any], name: str) -> Calibration | None:
    """The calibration of a contract; None where there is none.

    Raises:
        InputError: one that is damaged, or of a kind that this rankery does not know.
    """
    kept = contract.get("calibration")
    if kept is None:
        return None
    where = f"{name}: the calibration in {CONTRACT_FILE}"
    kind = kept.get("kind") if isinstance(kept, dict) else None
    if not isinstance(kind, str) or kind not in PARAMETERS:
        raise InputError(
            f"{where} is of kind {kind!r:.80}; expected one of {', '.join(PARAMETERS)}: update rankery, or {ADVICE}"
        )
    parameters = {key: kept.get(key) for key in PARAMETERS[kind]}
    problem = _problem(kind, parameters, kept.get("relevant_above"))
    if not problem and kept.get(DIGEST) not in (None, digest_of(kept)):
        problem = "it was changed since it was fitted"
    if problem:
        raise InputError(f"{where} is damaged: {problem}; restore the file, or {ADVICE}")
    about = kept.get("about")
    return Calibration(kind, parameters, float(kept["relevant_above"]), about if isinstance(about, dict) else {})


def _problem(kind: str, parameters: Mapping[str, Any], relevant_above: Any) -> str:
    """What is wrong with kept values; "" where nothing is."""
    if not _is_number(relevant_above):
        return f"relevant_above is {relevant_above!r}, expected a number"
    if kind != "isotonic":
        bad = [key for key, value in parameters.items() if not _is_number(value) or (key != "intercept" and value <= 0)]
        return f"{', '.join(bad)} is no number, or not above 0" if bad else ""
    rows = list(parameters.values())
    if not all(isinstance(row, list) and row and all(map(_is_number, row)) for row in rows):
        return "scores and probabilities are no lists of numbers"
    scores, probabilities = map(np.asarray, rows)
    rising = len(scores) == len(probabilities) and (np.diff(scores) > 0).all() and (np.diff(probabilities) >= 0).all()
    return "" if rising and 0 <= probabilities[0] <= probabilities[-1] <= 1 else "its steps do not rise from 0 to 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_place(folder: Path, overwrite: bool) -> None:
    """Whether a model folder can take a calibration; reads the contract, nothing else.

    Raises:
        InputError: no contract there, a calibration that nobody said to replace, or a model that must stay as it is.
    """
    from rankery.models.contract import read_contract

    contract = read_contract(folder)
    if contract is None:
        raise InputError(
            f"{folder}: holds no {CONTRACT_FILE}, which a calibration is kept in; save the model with rankery first "
            "(from_pretrained, then save_pretrained)"
        )
    if (folder.resolve().parent / STATE_FILE).is_file():
        raise InputError(
            f"{folder}: belongs to a checkpoint, which a run can only go on from while it stays as it is; calibrate the final "
            "model, or a copy of this one"
        )
    if contract.get("calibration") is not None and not overwrite:
        raise InputError(f"{folder}: has a calibration; --overwrite (overwrite=True) replaces it")


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Puts a calibration into the contract of a model folder; all else in it, golden scores too, stays as it was."""
    from rankery.models.contract import contract_text, read_contract

    contract = read_contract(folder)
    assert contract is not None
    contract["calibration"] = calibration.to_dict()
    write_whole(folder / CONTRACT_FILE, contract_text(contract))
