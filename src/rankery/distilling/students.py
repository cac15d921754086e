"""The two trainings of a distillation: their settings, and whether they can be what was asked for.

Contract: both train the same base with the same settings unless told, one on the labels, the other on a teacher's scores; what is
wrong with either is said at once, with its name where the other is right. Rejected: a configuration of our own for both, which
would be a second list of keys to keep.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rankery.config import TrainConfig, load_config
from rankery.config_yaml import read_yaml
from rankery.data.files import text_hash
from rankery.data.records import ANY_LABEL, read_records
from rankery.errors import InputError, option
from rankery.training.output import RUN_FILE, changed_keys, read_run
from rankery.training.run import rehearsal

T = TypeVar("T")
STUDENTS = {"labels": "student, labels", "distilled": "student, distilled"}
# What holds unless the file or the command line says something else; what a training learns from differs.
SETTINGS: dict[str, Any] = {"best_metric": None, "save_on_epoch_end": True, "num_max_checkpoints": 1}
LOSSES = {"labels": "listwise_ce", "distilled": "listwise_kl"}
OF_SCORES = {"min_label": 0.0, "max_label": 1.0, "relevant_above": None}  # whatever the labels are like
DECIDED = ("train_dataset", "output_dir", "model_name_or_path", "resume", "overwrite")


def student_configs(
    student: str,
    config: str | Path | None,
    overrides: Mapping[str, Any],
    files: Mapping[str, Sequence[Path]],
    output: Path,
) -> dict[str, TrainConfig]:
    """The configuration of each training: our defaults, then the file, then overrides: KEY for both, KIND.KEY for one.

    Args:
        student: base model of both.
        config: YAML file.
        overrides: keys that replace those of the file.
        files: what each learns from.
        output: folder of both.

    Raises:
        InputError: everything that is wrong with either; a key that a distillation decides.
    """
    prefixes = tuple(f"{kind}." for kind in STUDENTS)
    common = {key: value for key, value in overrides.items() if not key.startswith(prefixes)}
    if decided := [key for key in overrides if key.rpartition(".")[2] in DECIDED]:
        raise InputError([f"{key} is set, but rankery distil decides it; leave it out" for key in decided])
    named = set(read_yaml(Path(config))[0]) if config else set()

    def configured(kind: str) -> TrainConfig:
        defaults = {**SETTINGS, "loss_type": LOSSES[kind]}
        own = {key.removeprefix(f"{kind}."): value for key, value in overrides.items() if key.startswith(f"{kind}.")}
        values = {key: value for key, value in defaults.items() if key not in named} | common
        values |= OF_SCORES if kind == "distilled" else {}
        values |= {"train_dataset": list(map(str, files[kind])), "output_dir": str(output / kind)}
        values |= {"model_name_or_path": student, "resume": False, "overwrite": False}
        return load_config(config, values | own)

    configs = for_both(configured)
    labels, distilled = configs["labels"], configs["distilled"]
    ranges = [(one.min_label, one.max_label) for one in (labels, distilled)]
    if ranges[0] != ranges[1] and distilled.val_dataset and distilled.val_dataset == labels.val_dataset:
        raise InputError(
            f"val_dataset is set for both trainings, but its labels are from {ranges[0][0]:g} to {ranges[0][1]:g}, and the distilled "
            f"student's scores from {ranges[1][0]:g} to {ranges[1][1]:g}, which its val_dataset is read by too; use "
            "labels.val_dataset=FILE, and distilled.val_dataset=FILE for a file with scores"
        )
    return configs


def for_both(work: Callable[[str], T]) -> dict[str, T]:
    """The work's result for each kind of student.

    Raises:
        InputError: what is wrong for either; once, and without a name, where it is wrong for both.
    """
    results: dict[str, T] = {}
    problems: dict[str, list[str]] = {}  # the kinds for which each is one
    for kind in STUDENTS:
        try:
            results[kind] = work(kind)
        except InputError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(kind)
    if problems:
        raise InputError(
            [
                f"{STUDENTS[kinds[0]]}: {problem} ({kinds[0]}.KEY=VALUE is for this training alone)"
                if len(kinds) == 1
                else problem
                for problem, kinds in problems.items()
            ]
        )
    return results


def check_students(configs: Mapping[str, TrainConfig], data: Sequence[Path], processes: int) -> None:
    """Whether both can be trained; writes nothing that stays, but tokens into the cache.

    A training that has begun has to be asked for as it was then. Of the others everything is built that a first step needs; where
    the teacher's scores are not there yet, of scores that stand in for them.

    Raises:
        InputError: everything that has changed, or is wrong with either.
    """
    begun = {kind: read_run(Path(config.output_dir)) for kind, config in configs.items()}
    changed = [
        f"{STUDENTS[kind]}: {change}; keep it, or choose another {option('output')}"
        for kind, run in begun.items()
        if run is not None
        for change in _changes(configs[kind], run, processes)
    ]
    if changed:
        raise InputError(changed)
    with tempfile.TemporaryDirectory() as folder:
        for_both(lambda kind: None if begun[kind] else _rehearse(configs[kind], data, Path(folder)))


def _changes(config: TrainConfig, run: dict[str, Any], processes: int) -> list[str]:
    """What of a training is not as in the run that it would go on with, or take the model of."""
    changes = {key: (repr(old), repr(new)) for key, (old, new) in changed_keys(config, run).items()}
    if not config.val_dataset:
        changes.pop("relevant_above", None)  # only the comparison reads it
    step = config.batch_size * config.gradient_accumulation_steps * processes
    if step != run["batch"]:
        changes["batch_size x gradient_accumulation_steps x processes"] = (str(run["batch"]), str(step))
    file = Path(config.output_dir) / RUN_FILE
    return [f"{key} was {old} in {file}, got {new}" for key, (old, new) in changes.items()]


def _rehearse(config: TrainConfig, data: Sequence[Path], folder: Path) -> None:
    stand_in, changes = folder / "scores.jsonl", {}
    if not all(Path(file).is_file() for file in config.train_dataset):
        _write_stand_in(data, stand_in)
        changes = {"train_dataset": str(stand_in), "dataset_cache_dir": str(folder)}
    try:
        with rehearsal(config, **changes):
            pass
    except InputError as error:
        place = re.compile(rf"{re.escape(str(stand_in))}(:\d+)?")
        raise InputError([place.sub("the teacher's scores", problem) for problem in error.problems]) from None


def _write_stand_in(data: Sequence[Path], file: Path) -> None:
    """Scores as a teacher gives them, of the query with the most documents: enough to learn from if any query is."""
    apart = Counter(text_hash(record.query) for record in read_records(data, ANY_LABEL) if record.is_pair_line)
    query = apart.most_common(1)[0][0] if apart else None
    largest: Sequence[str] = []
    of_query: list[str] = []
    for record in read_records(data, ANY_LABEL):
        if not record.is_pair_line:
            largest = max(largest, record.documents, key=len)
        elif text_hash(record.query) == query:
            of_query += record.documents
    largest = max(largest, of_query, key=len)
    scores = np.linspace(0, 1, len(largest) + 2)[1:-1].tolist()
    file.write_text(json.dumps({"query": "the largest group's", "pos": largest, "pos_scores": scores}) + "\n")
