"""`rankery.calibrate`: a reranker and labelled data -> probabilities, measured on held-out queries, kept with the model.

Contract: data, model and places are checked before a pair is scored; the model's contract is written last, as a whole. The data
should be new to the model: scores of what it was trained on are too good. Cost: one forward pass a pair.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from rankery.arguments import checked
from rankery.calibrating.fit import best_fit, fitted_without, folds_of, held_out
from rankery.calibrating.measures import highest_precision, precision_and_recall, threshold
from rankery.calibrating.page import calibration_page
from rankery.calibrating.report import Calibrated, Cut, Judged, summary
from rankery.data.files import check_new_file, expand_paths, written_whole
from rankery.data.finite import check_finite
from rankery.data.records import MAX_COLLECTED, LabelRange, QueryRecord, check_records, pair_place, read_records
from rankery.errors import InputError, option
from rankery.evaluation.runs import gains, pairs_of
from rankery.models.calibration import Calibration, check_place, evidence, write_calibration
from rankery.models.folders import CONTRACT_FILE


@checked
def calibrate(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    precision: float | None = None,
    recall: float | None = None,
    min_label: float | None = None,
    relevant_above: float | None = None,
    html: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 42,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
) -> Calibrated:
    """Fits a calibration, puts it into the model's contract; returns what was measured.

    Args:
        model: folder of a model that rankery saved.
        data: labelled JSONL that the model was not trained on; files or globs.
        precision: find the threshold that reaches it with the most recall.
        recall: find the highest threshold that reaches it.
        min_label: label of what is not relevant; None: the model's own.
        relevant_above: documents with labels above it are relevant; None: min_label.
        html: also write what was measured as a page, with reliability before and after.
        overwrite: replace a calibration, and a page, that is there.
        seed: deals queries to folds, and draws the intervals.
        device: as for `from_pretrained`.
        dtype: same.
        batch_size: as for `compute_score`.

    Raises:
        InputError: wrong data or numbers, a folder that takes no calibration, data without relevant and other documents, or scores
            that do not rise with relevance.
    """
    from rankery.models.opening import open_reranker

    wanted = {name: value for name, value in (("precision", precision), ("recall", recall)) if value is not None}
    _check_numbers(wanted, {"min_label": min_label, "relevant_above": relevant_above}, seed)
    folder = Path(model).expanduser()
    check_place(folder, overwrite)
    check_new_file(folder / CONTRACT_FILE, overwrite=True)
    paths = expand_paths(data)
    if html is not None:
        check_new_file(Path(html), overwrite)
        inputs = [*paths, *(path for path in folder.iterdir() if path.suffix != ".html")]
        if Path(html).exists() and any(path.samefile(html) for path in inputs):
            raise InputError(f"{html}: is input; choose another place for the page")
    reranker = open_reranker(folder, device=device, dtype=dtype)
    low, high = reranker.labels
    min_label = low if min_label is None else min_label
    above = min_label if relevant_above is None else relevant_above
    labels = LabelRange(min_label=min_label, max_label=max(high, min_label + 1), strict=False)
    check_records(paths, labels)
    records = list(read_records(paths, labels))
    _check_labels(records, labels, relevant_above is not None)
    if relevant_above is None and gains(pairs_of(records), min_label).is_soft:
        raise InputError(
            f"the labels are scores; expected {option('relevant_above')}: from which on documents are relevant"
        )
    relevant, query, fold = _judgements(records, above, seed)
    pairs = [(record.query, document) for record in records for document in record.documents]
    logits = reranker.compute_score(pairs, batch_size, show_progress=sys.stderr.isatty(), finite=False)
    check_finite(logits, partial(pair_place, records), folder)
    scores = evidence(logits).numpy().astype(np.float64)
    calibration, judged, cuts = calibrated(scores, relevant, query, fold, wanted, seed)
    about = summary(judged, cuts, [path.name for path in paths])
    calibration = replace(calibration, relevant_above=above, about=about)
    result = Calibrated(calibration.kind, calibration.parameters, above, **about)
    with ExitStack() as stack:
        if html is not None:
            file = stack.enter_context(written_whole(Path(html)))
            page = calibration_page("/".join(folder.resolve().parts[-2:]), result, judged)
            file.write(page.encode("utf-8", "backslashreplace"))  # a path that is no UTF-8
        write_calibration(folder, calibration)  # the page appears once it is written
    return result


def calibrated(
    scores: np.ndarray,
    relevant: np.ndarray,
    query: np.ndarray,
    fold: np.ndarray,
    wanted: Mapping[str, float],
    seed: int,
) -> tuple[Calibration, Judged, list[Cut]]:
    """(the calibration of all pairs, what it says of held-out ones, thresholds) from scores, relevance, query and fold [P].

    Raises:
        InputError: scores that do not rise with relevance.
    """
    calibration = best_fit(scores, relevant, fold)
    final = _shown(calibration, scores)
    if not final.max() - final.min() > 1e-6:
        raise InputError(
            "the model's scores do not rise with relevance on this data, so no probability can be read from them; check the labels "
            "(min_label, relevant_above), and evaluate the model first"
        )
    fits = fitted_without(best_fit, scores, relevant, fold)
    before = Calibration("temperature", {"temperature": 1.0}).probabilities(scores)
    judged = Judged(scores, relevant, query, fold, before, held_out(fits, scores, fold))
    return calibration, judged, [_cut(name, least, final, fits, judged, seed) for name, least in wanted.items()]


def _check_numbers(wanted: Mapping[str, float], labels: Mapping[str, float | None], seed: int) -> None:
    problems = [
        f"{name} is {value}; expected a number above 0 and up to 1"
        for name, value in wanted.items()
        if not 0 < value <= 1
    ]
    problems += [
        f"{name} is {value}; expected a finite number"
        for name, value in labels.items()
        if value is not None and not math.isfinite(value)
    ]
    if seed < 0:
        problems.append(f"seed is {seed}; expected 0 or more")
    if problems:
        raise InputError(problems)


def _check_labels(records: Sequence[QueryRecord], labels: LabelRange, has_threshold: bool) -> None:
    """Labels outside the model's range mean something else than its own do; above it only a threshold says what.

    Raises:
        InputError: all of them.
    """
    highest = math.inf if has_threshold else labels.max_label
    problems = (
        f"{record.path}:{line}: label is {label:g}; expected a number from {labels.min_label:g} to {highest:g}, as the model has learnt; "
        f"set {option('min_label')} to the lowest, and {option('relevant_above')} to the one from which documents are relevant"
        for record in records
        for line, label in zip(record.lines, record.labels, strict=True)
        if not labels.min_label <= label <= highest
    )
    if first := list(islice(problems, MAX_COLLECTED)):
        raise InputError(list(dict.fromkeys(first)))


def _judgements(records: Sequence[QueryRecord], above: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(relevance, text of the query, fold) of each pair.

    Raises:
        InputError: too few queries, or documents of one sort only.
    """
    relevant = np.array([label > above for record in records for label in record.labels])
    query = np.array([record.query for record in records for _ in record.documents], dtype=object)
    fold = folds_of(query.tolist(), seed)
    if relevant.all() or not relevant.any():
        which = "every" if relevant.all() else "no"
        raise InputError(
            f"{which} document has a label above {above:g}; expected relevant and other ones: check {option('min_label')} and {option('relevant_above')}"
        )
    return relevant, query, fold


def _cut(
    wanted: str, least: float, final: np.ndarray, fits: Mapping[int, Calibration], judged: Judged, seed: int
) -> Cut:
    """The threshold on all queries, and what thresholds give that were chosen without the query that they judge."""
    taken: np.ndarray = np.zeros(len(final), dtype=bool)
    for held, calibration in fits.items():
        inside, outside = judged.fold == held, judged.fold != held
        at = threshold(wanted, least, _shown(calibration, judged.scores[outside]), judged.relevant[outside])
        taken[inside] = _shown(calibration, judged.scores[inside]) >= (math.inf if at is None else at)
    at = threshold(wanted, least, final, judged.relevant)
    there = final >= (math.inf if at is None else at)
    achieved = [precision_and_recall(mask, judged.relevant, judged.query, seed) for mask in (there, taken)]
    size = int(there.sum()), len(np.unique(judged.query[there]))
    return Cut(wanted, least, at, highest_precision(final, judged.relevant), size, *achieved)


def _shown(calibration: Calibration, scores: np.ndarray) -> np.ndarray:
    """Probabilities as users get them, in fp32: a threshold has to lie between two that are different there."""
    return calibration.probabilities(scores).astype(np.float32)
