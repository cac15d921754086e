"""What a run has left in its folder: configuration, curves, metrics; and curves as charts.

Contract: reads run.json, metrics.jsonl and timings.jsonl, of runs that go on too; writes nothing. Cost: the files, which have a line
for each log_interval. Rejected: reading a tracker's files, which differ by tracker and may be elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankery.errors import InputError
from rankery.report.charts import Line, line_chart
from rankery.report.page import Html, columns
from rankery.training.criterion import wanted_metric
from rankery.training.output import RUN_FILE, read_run
from rankery.training.tracking import METRICS_FILE, TIMINGS_FILE, damaged_lines, read_rows

VALIDATION = "val/"
# Key: (title, unit, values that the axis includes).
KNOWN: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "loss": ("Training loss", "loss", ()),
    "val/loss": ("Validation loss", "loss", ()),
    "lr": ("Learning rate", "learning rate", (0.0,)),
    "grad_norm": ("Gradient norm before clipping", "norm", (0.0,)),
    "pairs_per_second": ("Speed of training", "pairs a second", (0.0,)),
    "padding": ("Padding", "share of tokens", (0.0, 0.1)),
    "memory_mb": ("Memory, the most so far", "MB", (0.0,)),
}
LOSSES = ("loss", "val/loss")


@dataclass(frozen=True)
class History:
    """A run as its folder tells it; rows are in the order in which they were written, metrics first."""

    name: str
    folder: Path
    run: dict[str, Any]  # run.json
    rows: list[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        return self.run["config"]

    def line(self, key: str, name: str) -> Line:
        """The curve of a key over steps."""
        points = [(row["step"], row[key]) for row in self.rows if key in row]
        return Line(name, [float(step) for step, _ in points], [float(value) for _, value in points])

    def keys(self) -> list[str]:
        """What has a curve: losses, validation metrics, then how it ran."""
        found = dict.fromkeys(key for row in self.rows for key in row if key not in ("step", "epoch"))
        metrics = [key for key in found if key.startswith(VALIDATION) and key not in LOSSES]
        ran = [key for key in KNOWN if key in found and key not in LOSSES]
        return [*[key for key in LOSSES if key in found], *metrics, *ran]

    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if any(key.startswith(VALIDATION) for key in row)]

    def final(self) -> dict[str, float]:
        """Validation metrics of the model that the run keeps: the first of the best by what chose it, else the last; empty without
        any."""
        after = [row for row in self.evaluations() if row["step"] > 0]
        if not after:
            return {}
        # Runs of an older rankery do not say what chose.
        name = self.run.get("chosen_by", wanted_metric(self.config.get("best_metric", "auto")))
        measured = [row for row in after if f"{VALIDATION}{name}" in row]
        sign = -1 if name == "loss" else 1
        chosen = max(measured, key=lambda row: sign * row[f"{VALIDATION}{name}"]) if measured else after[-1]
        return {key.removeprefix(VALIDATION): chosen[key] for key in chosen if key.startswith(VALIDATION)}

    def mean(self, key: str) -> float | None:
        """Mean of a curve; None where there is none."""
        values = self.line(key, "").y
        return sum(values) / len(values) if values else None

    @property
    def steps(self) -> int:
        return max((row["step"] for row in self.rows), default=0)


def read_history(folder: Path, name: str) -> History:
    """A run's history.

    Raises:
        InputError: no run owns the folder; its files are damaged.
    """
    run = read_run(folder)
    if run is None:
        raise InputError(
            f"{folder}: holds no {RUN_FILE}; expected the output_dir of a training (the folder that model/ is in)"
        )
    files = [folder / METRICS_FILE, folder / TIMINGS_FILE]
    damaged = [(file, lines) for file in files if (lines := damaged_lines(file))]
    if damaged:
        raise InputError(
            [
                f"{file}:{lines[0]}: is no line of a run ({len(lines)} such lines); restore the file, or delete the line"
                for file, lines in damaged
            ]
        )
    return History(name, folder, run, [row for file in files for row in read_rows(file)])


def own_curves(history: History) -> Html:
    """One run: losses in one chart, validation metrics in one, then how it ran."""
    keys = history.keys()
    metrics = [key for key in keys if key.startswith(VALIDATION) and key not in LOSSES]
    losses = [key for key in keys if key in LOSSES]
    names = {"loss": "training", "val/loss": "validation"}
    charts = [_chart("Loss", "loss", [history.line(key, names[key]) for key in losses])]
    if metrics:
        lines = [history.line(key, key.removeprefix(VALIDATION)) for key in metrics]
        charts.append(_chart("Ranking of the validation data", "metric", lines))
    charts += [
        _chart(KNOWN[key][0], KNOWN[key][1], [history.line(key, KNOWN[key][0])], KNOWN[key][2])
        for key in keys
        if key in KNOWN and key not in LOSSES
    ]
    return columns(*charts)


def shared_curves(histories: Sequence[History]) -> Html:
    """Several runs: a chart for each key, a line for each run that has it."""
    charts = []
    for key in merged(history.keys() for history in histories):
        title, unit, include = KNOWN.get(key, (key.removeprefix(VALIDATION), "metric", ()))
        lines = [history.line(key, history.name) for history in histories]
        charts.append(_chart(title, unit, [line for line in lines if line.x], include))
    return columns(*charts)


def _chart(title: str, unit: str, lines: Sequence[Line], include: Sequence[float] = ()) -> Html:
    last = "; ".join(f"{line.name}: {line.y[-1]:.4g}" if len(lines) > 1 else f"{line.y[-1]:.4g}" for line in lines)
    return line_chart(title, f"At the end {last}.", lines, "step", unit, include_y=include)


def merged(lists: Iterable[Sequence[str]]) -> list[str]:
    """All names, each once; those of the first list first, others after the one that they follow in theirs."""
    found: list[str] = []
    for names in lists:
        at = 0
        for name in names:
            if name in found:
                at = found.index(name) + 1
            else:
                found.insert(at, name)
                at += 1
    return found
