"""`rankery distil`: a teacher scores, a student learns its scores, and a table says what was kept and at what cost.

Contract: the same student is trained twice, on the labels and on the teacher's scores, with the same settings unless told; all
are measured on the same held-out queries, which neither training saw. Everything is checked before the teacher scores, and every
step goes on where a stopped run was. Cost: two trainings, one scoring of the training data, four of the held-out data; the student
is opened twice more, for the checks. Rejected: a table without the student trained on labels, which cannot say whether a teacher
was worth it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rankery.arguments import checked
from rankery.config import TrainConfig
from rankery.data.files import content_digest, expand_paths
from rankery.data.records import LabelRange, check_records, read_records
from rankery.distilling.launched import check_processes, score_launched, train_launched
from rankery.distilling.measured import KEPT, HeldOut, Measured, comparison, measure, plain
from rankery.distilling.parts import write_whole
from rankery.distilling.score import check_prompts, check_shares, open_teachers
from rankery.distilling.store import teacher_digest
from rankery.distilling.students import STUDENTS, check_students, student_configs
from rankery.distilling.teacher import Teacher, fingerprint, score_file
from rankery.errors import InputError, option
from rankery.evaluation.baselines import bm25_scores, random_scores
from rankery.evaluation.information import constant_value, why_constant
from rankery.evaluation.runs import pairs_of
from rankery.locks import LOCK_FILE, FolderLock
from rankery.models.folders import CONTRACT_FILE
from rankery.models.opening import check_model
from rankery.sealed import Schema, read_sealed, sealed
from rankery.training.output import read_run
from rankery.training.run import train

SCORED_FILE, MARK_FILE = "teacher_scores.jsonl", "distil.json"


@checked
def distil(
    teacher: str | Path | Sequence[str | Path] | None,
    student: str | Path,
    data: str | Path | Sequence[str | Path],
    val: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    scores: str | Path | Sequence[str | Path] = (),
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    prompt: str | Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    processes: int = 1,
) -> str:
    """Scores `data` with the teacher, trains the student on labels and on scores, compares; returns the table.

    Args:
        teacher: model folder, hub name or GGUF file; several are averaged, as by `rankery.score`. None: `scores` alone.
        student: base model of both trainings.
        data: training files with labels.
        val: held-out files with labels, that only the comparison reads.
        output: folder; a run that was stopped goes on there.
        scores: files with a teacher's scores of the training data, where they are there already; `teacher` is then only measured.
        weights: one number above 0 for each teacher; None: all count alike.
        temperatures: what each teacher's logits are divided by; None: 1.
        prompt: preset for teachers that rankery has not saved, or one for each, as for `rankery.score`.
        device: of whatever is scored and measured, as for `from_pretrained`; trainings choose theirs as `train` does.
        dtype: same.
        config: YAML file with settings of both trainings.
        overrides: settings that replace them; `labels.KEY` and `distilled.KEY` are for one of the two.
        store: file that keeps teacher scores by content.
        processes: on this machine, that score and train together; this one measures.

    Raises:
        InputError: anything wrong with data, models or settings, before anything is written.
        ChildProcessError: one of several processes failed, and has said why.
    """
    check_processes(processes)
    teachers = [teacher] if isinstance(teacher, str | Path) else list(teacher or ())
    _check_source(teachers, scores, prompt, store)
    check_shares(len(teachers), weights, temperatures)
    check_prompts(len(teachers), prompt)
    paths, output = expand_paths(data), Path(output)
    scored = expand_paths(scores) if scores else [output / SCORED_FILE]
    configs = student_configs(str(student), config, overrides or {}, {"labels": paths, "distilled": scored}, output)
    labels = LabelRange(configs["labels"].min_label, configs["labels"].max_label)
    check_records(expand_paths(val), labels)
    check_records(paths, labels)
    for name in teachers:
        check_model(name)
    check_students(configs, paths, processes)
    held_out = HeldOut(
        list(read_records(expand_paths(val), labels)), labels.min_label, configs["labels"].relevant_above
    )
    _check_relevant(held_out, val)
    opens = partial(open_teachers, teachers, weights, temperatures, prompt, device=device, dtype=dtype)
    opened = opens()
    if scores:
        made_of: dict[str, Any] = {"data": content_digest(paths), "scores": content_digest(scored)}
    else:
        made_of = fingerprint(paths, opened, [teacher_digest(one.reranker) for one in opened])
    with FolderLock(output) as lock:
        _claim(output, made_of, lock)

        def score() -> None:
            if processes == 1:
                score_file(opened, paths, scored[0], store=Path(store) if store else None)
                return
            opened.clear()  # the processes open their own, and need the memory
            score_launched(
                processes, paths, scored[0], model=teachers, weight=weights, temperature=temperatures, prompt=prompt,
                device=device, dtype=dtype, store=store,
            )  # fmt: skip

        if not scores:
            _scored(output, teachers, score)
        return _compared(output, held_out, configs, processes, opened, opens if teachers else None, device, dtype)


def _scored(output: Path, teachers: Sequence[str | Path], score: Callable[[], object]) -> None:
    """The teacher's scores, made or as they were made.

    Raises:
        InputError: they have changed since.
    """
    file, mark = output / SCORED_FILE, read_mark(output)
    if file.is_file():
        if mark["scored"] not in (None, content_digest([file])):
            raise InputError(f"{file}: has changed since it was written; bring it back, or delete it to score again")
        return
    print(f"1/4 {', '.join(map(str, teachers))}: scores of the training data", flush=True)
    score()
    write_whole(output / MARK_FILE, sealed({**mark, "scored": content_digest([file])}).encode())


def _compared(
    output: Path, held_out: HeldOut, configs: Mapping[str, TrainConfig], processes: int, opened: list[Teacher],
    opens: Callable[[], list[Teacher]] | None, device: str | None, dtype: str | None,
) -> str:  # fmt: skip
    """Both trainings, and the table; `opened`: the teachers, or none if they have to be opened again."""
    student = configs["labels"].model_name_or_path
    rows = {
        "random order": Measured(held_out.by_query(random_scores(held_out.records))),
        "BM25": Measured(held_out.by_query(bm25_scores(held_out.records))),
    }
    if opens:
        rows["teacher"] = measure(opened or opens(), held_out)
    opened.clear()
    for step, (kind, name) in enumerate(STUDENTS.items(), 2):
        print(f"{step}/4 {name}: {student}", flush=True)
        _train(configs[kind], processes)
        rows[name] = measure(open_teachers([output / kind / "model"], device=device, dtype=dtype), held_out)
    print("4/4 comparison\n", flush=True)
    table = comparison(rows)
    write_whole(output / "comparison.json", f"{json.dumps(plain(rows), indent=1)}\n".encode())
    return table


def _train(config: TrainConfig, processes: int) -> None:
    """Trains, or goes on where a training was stopped; nothing where one is done."""
    folder = Path(config.output_dir)
    if (folder / "model" / CONTRACT_FILE).is_file():
        return
    config = config.model_copy(update={"resume": read_run(folder) is not None})
    if processes == 1:
        train(config)
    else:
        train_launched(processes, config)


def _check_source(teachers: Sequence[str | Path], scores: object, prompt: object, store: str | Path | None) -> None:
    """Whether it is said where the teacher's scores come from, and nothing that is not used.

    Raises:
        InputError: it is not.
    """
    if not teachers and not scores:
        raise InputError(
            f"neither a teacher nor scores are given; expected {option('teacher')}, or {option('scores')} with a file of them"
        )
    if prompt and not teachers:
        raise InputError(f"prompt is {prompt!r}, but no teacher is asked; leave it out, or name {option('teacher')}")
    if store and scores:
        raise InputError(f"store is {store}, but the scores are given; leave one of them out")


def _check_relevant(held_out: HeldOut, val: str | Path | Sequence[str | Path]) -> None:
    """Whether held-out queries can tell systems apart.

    Raises:
        InputError: no document of any is relevant, or every order of them is worth the same.
    """
    above = held_out.min_label if held_out.relevant_above is None else held_out.relevant_above
    if not any(max(record.labels) > above for record in held_out.records):
        raise InputError(
            f"{', '.join(map(str, expand_paths(val)))}: no document has a label above {above:g}, so no system could find "
            "a relevant one; expected at least one"
        )
    pairs = pairs_of(held_out.records)
    value = constant_value(pairs, KEPT, min_label=held_out.min_label, relevant_above=held_out.relevant_above)
    if value is not None:
        raise InputError(
            f"{', '.join(map(str, expand_paths(val)))}: {KEPT} is {value:.4f} whatever the order of the documents, so no system could be "
            f"better than another: {why_constant(pairs, above)}"
        )


class Mark(Schema):
    """distil.json: what the teacher's scores are made of, and once they are there, their digest."""

    data: str
    scored: str | None = None


def read_mark(output: Path) -> dict[str, Any]:
    """What distil.json of a distillation's folder says.

    Raises:
        InputError: it is damaged.
    """
    try:
        return read_sealed(output / MARK_FILE, Mark)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{output / MARK_FILE}: is not what rankery writes there ({error}); restore it, or choose another output"
        ) from error


def _claim(output: Path, made_of: Mapping[str, object], lock: FolderLock) -> None:
    """Makes the folder, or takes up one whose scores were begun with the same data and teacher, or are the same.

    Raises:
        InputError: another distillation, one that goes on, or something else, is there.
    """
    if output.is_file() or (output.is_dir() and not (output / MARK_FILE).is_file() and _taken(output)):
        raise InputError(f"output is {output}, which is not empty; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    lock.take()
    if not (output / MARK_FILE).is_file():
        write_whole(output / MARK_FILE, sealed(made_of).encode())
    if {**read_mark(output), "scored": None} != {**json.loads(json.dumps(made_of)), "scored": None}:
        raise InputError(
            f"output is {output}, which holds a distillation of other data or another teacher's scores; choose another folder"
        )


def _taken(output: Path) -> bool:
    """Whether a folder holds more than what is left of a process that was killed while it made it its own."""
    return any(path.name != LOCK_FILE and not path.name.startswith(f".tmp-{MARK_FILE}-") for path in output.iterdir())
