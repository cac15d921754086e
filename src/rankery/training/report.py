"""report.html of a run: what came out, the curves, data, configuration and machine, on one page.

Contract: written when the model is in its place, as a whole; whatever goes wrong here is said and stops nothing. Cost: BM25 over the
validation data, 1 ms a query. Rejected: a page that grows during the training (trackers do that).
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from rankery.config import TrainConfig
from rankery.data.files import content_digest, expand_paths
from rankery.data.records import LabelRange, read_records
from rankery.evaluation.baselines import bm25_scores
from rankery.evaluation.metrics import ranking_metrics
from rankery.evaluation.runs import pairs_of
from rankery.models.card import Outcome, verdict
from rankery.models.folders import write_whole
from rankery.report.page import Html, Section, details, facts, join, page, paragraph, passage, table
from rankery.training.describe import describe
from rankery.training.history import own_curves, read_history
from rankery.training.output import REPORT_FILE
from rankery.training.run import Run


def write_report(run: Run, state: dict[str, Any], outcome: Outcome) -> None:
    """Writes the page; a failure is said, and the training is finished all the same."""
    try:
        path = run.folder / REPORT_FILE
        write_whole(path, report_page(run, state, outcome))
        run.say(f"report: {path}")
    except Exception as error:  # whatever it is, the model is there
        run.say(
            f"note: {REPORT_FILE} could not be written ({type(error).__name__}: {error}); the model is not affected"
        )


def report_page(run: Run, state: dict[str, Any], outcome: Outcome) -> str:
    """The whole file, of a run that is done, the state that it ended with, and what it brought."""
    config, history = run.config, read_history(run.folder, run.folder.name)
    sections = [
        Section("result", "Result", _result(run, state, outcome)),
        Section("curves", "Curves", own_curves(history)),
        Section("data", "Data and run", passage(describe(run))),
        Section("configuration", "Configuration", _configuration(config)),
        Section("environment", "Environment", facts(environment(run).items())),
    ]
    lead = f"A reranker from {config.model_name_or_path}, {state['step']} steps."
    return page(f"Training {run.folder.resolve().name}", sections, lead=lead)


def _result(run: Run, state: dict[str, Any], outcome: Outcome) -> Html:
    """The model beside what it started from and BM25, on the validation data."""
    config, after = run.config, outcome.after
    said = [
        paragraph(f"{verdict(outcome)}."),
        *([paragraph(f"N{run.criterion.note[1:]}.")] if run.criterion.note else []),
    ]
    if not after:
        return join(*said)
    rows = {"before training": outcome.before, "trained model": after}
    assert config.val_dataset is not None
    measured_on = f"Measured on {_named(config.val_dataset)}"
    if content_digest(expand_paths(config.val_dataset)) == run.val_digest:
        rows = {"BM25": bm25_metrics(config), **rows}
    else:
        measured_on += " as it was; the files have changed since the start, so BM25 is not measured on them"
    step = state["best_step"] or state["step"]
    return join(
        *said,
        table(
            f"Validation metrics; the model is of step {step}",
            ["", *after],
            [[name, *(metrics.get(key) for key in after)] for name, metrics in rows.items()],
        ),
        paragraph(f"{measured_on}.", note=True),
    )


def bm25_metrics(config: TrainConfig) -> dict[str, float]:
    """What BM25 reaches on the validation data, measured as the model is."""
    assert config.val_dataset is not None
    paths = expand_paths(config.val_dataset)
    records = list(read_records(paths, LabelRange(config.min_label, config.max_label)))
    return ranking_metrics(
        pairs_of(records),
        bm25_scores(records),
        min_label=config.min_label,
        recall_at=config.recall_at,
        seed=config.seed,
        relevant_above=config.relevant_above,
    )


def _named(dataset: Any) -> str:
    return dataset if isinstance(dataset, str) else ", ".join(dataset)


def _configuration(config: TrainConfig) -> Html:
    """Every key; those that the user has set are the first."""
    fields, values = type(config).model_fields, config.model_dump(exclude={"resume", "overwrite"})
    changed = [key for key, value in values.items() if value != fields[key].get_default(call_default_factory=True)]
    rest = [key for key in values if key not in changed]
    return join(
        table("Set for this run", ["key", "value"], [[key, _shown(values[key])] for key in changed]),
        details(
            f"{len(rest)} keys as by default",
            table("As by default", ["key", "value"], [[key, _shown(values[key])] for key in rest]),
        ),
    )


def _shown(value: Any) -> str | None:
    return None if value is None else str(value)


def environment(run: Run) -> dict[str, str]:
    """Machine and versions."""
    import torch
    import transformers

    import rankery

    device = run.engine.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {processor()}",
        "processes": str(run.engine.processes),
        "engine": run.engine.kind,
        "threads a process": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
        "Python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "rankery": rankery.__version__,
    }


def processor() -> str:
    """The CPU's name and how many the system has."""
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    except OSError:
        pass  # not a Linux
    return f"{name or platform.machine()}, {os.cpu_count()} cores"
