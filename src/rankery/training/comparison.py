"""`rankery compare`: trainings side by side: configurations that differ, final metrics, and their curves on one page.

Contract: reads the folders of runs, finished or not, and writes nothing but the page. Cost: the runs' metrics files. Rejected: a
ranking of the runs, which is one metric's opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankery.arguments import checked
from rankery.data.files import check_new_file
from rankery.errors import InputError
from rankery.evaluation.metrics import aligned
from rankery.models.folders import write_whole
from rankery.report.page import Html, Section, join, page, paragraph, table
from rankery.training.history import History, merged, read_history, shared_curves

PLACES = ("output_dir",)  # differ always, and change nothing
MEASURES = {"pairs_per_second": "pairs/s", "padding": "padding", "memory_mb": "memory, MB"}
MEASURED = ("min_label", "relevant_above")  # what metrics mean
Table = tuple[list[str], list[list[Any]]]  # names of the columns, rows


@checked
def compare(runs: Sequence[str | Path], output: str | Path | None = None, overwrite: bool = False) -> str:
    """Trainings side by side, as text; the page with their curves goes to `output`.

    Args:
        runs: output folders of trainings.
        output: HTML file; None: no page.
        overwrite: replace a page that is there.

    Raises:
        InputError: fewer than two runs, folders without a run, or a page that cannot be written.
    """
    if output is not None:
        check_new_file(Path(output), overwrite)
    histories = read_histories(runs)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(output), comparison_page(histories))
    parts = [note for note in notes(histories) if note]
    parts += [_text("differs", differences(histories)), _text("run", results(histories))]
    return "\n\n".join(parts)


def read_histories(runs: Sequence[str | Path]) -> list[History]:
    """The runs by short names that are all different.

    Raises:
        InputError: fewer than two runs, one twice, or folders without a run; all of them.
    """
    folders = [Path(run).expanduser() for run in runs]
    problems = [f"{len(folders)} run is named; expected two or more"] if len(folders) < 2 else []
    resolved = [folder.resolve() for folder in folders]
    problems += [f"{folder} is named twice" for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]
    short = [folder.name for folder in resolved]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    histories = []
    for folder, name in zip(folders, names, strict=True):
        try:
            histories.append(read_history(folder, name))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return histories


def differences(histories: Sequence[History]) -> Table:
    """Keys of the configuration whose values are not the same in all runs; one column a run."""
    keys = merged(list(history.config) for history in histories)
    rows = []
    for key in keys:
        values = [history.config.get(key) for history in histories]
        if key not in PLACES and any(value != values[0] for value in values):
            rows.append([key, *("-" if value is None else str(value) for value in values)])
    return ["", *(history.name for history in histories)], rows


def results(histories: Sequence[History]) -> Table:
    """Final validation metrics, and how each ran (means over the training; memory at the most)."""
    finals = [history.final() for history in histories]
    names = merged(list(final) for final in finals)
    rows = []
    for history, final in zip(histories, finals, strict=True):
        ran = [history.mean(key) for key in ("pairs_per_second", "padding")]
        memory = max(history.line("memory_mb", "").y, default=None)
        rows.append([history.name, history.steps, *(final.get(name) for name in names), *ran, memory])
    return ["", "steps", *names, *MEASURES.values()], rows


def notes(histories: Sequence[History]) -> list[str]:
    """What to know before metrics are compared."""
    differ = {
        key for key in (*MEASURED, "loss_type") if len({str(history.config.get(key)) for history in histories}) > 1
    }
    measured = ", ".join(key for key in MEASURED if key in differ)
    open_ended = [history.name for history in histories if not (history.folder / "model").is_dir()]
    return [
        _data_note([history for history in histories if history.config.get("val_dataset")]),
        f"the runs have different {measured}: their metrics do not compare" if measured else "",
        "the runs have different loss_type: their losses do not compare" if "loss_type" in differ else "",
        f"not finished: {', '.join(open_ended)}" if open_ended else "",
    ]


def _data_note(histories: Sequence[History]) -> str:
    """Whether runs with validation data had the same; empty where they had."""
    digests = {history.run.get("val_digest") for history in histories}
    names = {str(history.config["val_dataset"]) for history in histories}
    # Runs of an older rankery keep the name of the tokenised data alone, which depends on the model too.
    tokenised = {tuple(history.run["data"][1:]) for history in histories}
    is_known = None not in digests
    if (is_known and len(digests) > 1) or (not is_known and len(names) > 1):
        return "the runs were validated on different data: their metrics do not compare"
    if not is_known and len(tokenised) > 1:
        return (
            "an older rankery did not keep what the validation data held, so nobody knows whether it was the same: compare the models "
            "with `rankery evaluate`"
        )
    return ""


def comparison_page(histories: Sequence[History]) -> str:
    """The whole file."""
    head, rows = differences(histories)
    configuration: Html = (
        table("Keys that differ", head, rows) if rows else paragraph("The configurations are the same.")
    )
    sections = [
        Section(
            "result",
            "Result",
            join(
                *(paragraph(f"{note[0].upper()}{note[1:]}.") for note in notes(histories) if note),
                _results_table(histories),
            ),
        ),
        Section("configuration", "Configuration", configuration),
        Section("curves", "Curves", shared_curves(histories)),
    ]
    return page(f"{len(histories)} trainings", sections, lead=", ".join(history.name for history in histories))


def _results_table(histories: Sequence[History]) -> Html:
    head, rows = results(histories)
    cells = [[row[0], *(None if cell is None else _cell(cell) for cell in row[1:])] for row in rows]
    return table(
        "Validation metrics of the models that the runs keep, and how they ran",
        head,
        cells,
        numeric=range(1, len(head)),
    )


def _text(name: str, content: Table) -> str:
    (_, *head), rows = content
    if not rows:
        return "the configurations are the same"
    return aligned([[name, *head], *([_cell(cell) for cell in row] for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}"
