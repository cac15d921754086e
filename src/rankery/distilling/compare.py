"""`rankery distil`: a teacher scores, a student learns its scores, and a table says what was kept and at what cost.

Contract: the same student is trained twice, on the labels and on the teacher's scores, with the same settings unless told; all
are measured on the same held-out queries, which neither training saw. Every step goes on where a stopped run was. Cost: two
trainings, one scoring of the training data, four of the held-out data. Rejected: a table without the student trained on labels,
which cannot say whether a teacher was worth it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankery.data.files import expand_paths
from rankery.data.records import LabelRange, QueryRecord, check_records, read_records
from rankery.distilling.store import teacher_digest
from rankery.distilling.students import STUDENTS, check_students, student_configs
from rankery.distilling.teacher import Teacher, fingerprint, score_file, write_whole
from rankery.errors import InputError
from rankery.evaluation.baselines import bm25_scores, random_scores
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of
from rankery.models.opening import check_model, open_reranker
from rankery.models.reranker import Reranker

SCORED_FILE, MARK_FILE = "teacher_scores.jsonl", "distil.json"
KEPT = "nDCG@10"  # the metric that the share kept is told in


@dataclass(frozen=True)
class HeldOut:
    """The queries that systems are compared on, and which of their labels count as relevant."""

    records: Sequence[QueryRecord]
    min_label: float
    relevant_above: float | None

    def by_query(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of scores [P]: name -> value of each query, [Q]."""
        return per_query_metrics(
            pairs_of(self.records), scores, min_label=self.min_label, relevant_above=self.relevant_above
        )


@dataclass(frozen=True)
class Measured:
    """One system on the held-out queries."""

    metrics: Mapping[str, np.ndarray]  # name -> value of each query, [Q]
    parameters: int = 0
    pairs_per_second: float = 0.0


def distil(
    teacher: str | Path,
    student: str | Path,
    data: str | Path | Sequence[str | Path],
    val: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    prompt: str | None = None,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
) -> str:
    """Scores `data` with the teacher, trains the student on labels and on scores, compares; returns the table.

    Args:
        teacher: model folder, hub name or GGUF file.
        student: base model of both trainings.
        data: training files with labels.
        val: held-out files with labels, that only the comparison reads.
        output: folder; a run that was stopped goes on there.
        prompt: preset for a teacher that rankery has not saved.
        config: YAML file with settings of both trainings.
        overrides: settings that replace them; `labels.KEY` and `distilled.KEY` are for one of the two.
        store: file that keeps teacher scores by content.

    Raises:
        InputError: anything wrong with data, models or settings, before anything is written.
    """
    from rankery.training.run import train

    paths, output = expand_paths(data), Path(output)
    scored = output / SCORED_FILE
    configs = student_configs(str(student), config, overrides or {}, paths, scored, output)
    labels = LabelRange(configs["labels"].min_label, configs["labels"].max_label)
    check_records(expand_paths(val), labels)
    check_records(paths, labels)
    check_model(teacher)
    check_students(configs, paths)
    held_out = HeldOut(
        list(read_records(expand_paths(val), labels)), labels.min_label, configs["labels"].relevant_above
    )
    scorer = open_reranker(teacher, prompt)
    _claim(output, fingerprint(paths, [Teacher(scorer)], [teacher_digest(scorer)]))
    if not scored.is_file():
        print(f"1/4 {teacher} scores the training data", flush=True)
        score_file([Teacher(scorer)], paths, scored, store=Path(store) if store else None)
    rows = {
        "random order": Measured(held_out.by_query(random_scores(held_out.records))),
        "BM25": Measured(held_out.by_query(bm25_scores(held_out.records))),
        "teacher": measure(scorer, held_out),
    }
    del scorer
    for step, (kind, name) in enumerate(STUDENTS.items(), 2):
        print(f"{step}/4 {name}: {student}", flush=True)
        folder = output / kind / "model"
        if not folder.is_dir():
            folder = train(configs[kind], resume=(output / kind / "run.json").is_file())
        rows[name] = measure(open_reranker(folder), held_out)
    print("4/4 comparison\n", flush=True)
    table = comparison(rows)
    (output / "comparison.json").write_text(json.dumps(_plain(rows), indent=1) + "\n")
    return table


def _claim(output: Path, made_of: Mapping[str, object]) -> None:
    """Makes the folder, or takes up one whose scores were begun with the same data and teacher.

    Raises:
        InputError: another distillation, or something else, is there.
    """
    mark = output / MARK_FILE
    if mark.is_file():
        if json.loads(mark.read_text()) != made_of:
            raise InputError(
                f"output is {output}, which holds a distillation of other data or another teacher; choose another folder"
            )
        return
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"output is {output}, which is not empty; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(mark, json.dumps(made_of).encode())


def measure(reranker: Reranker, held_out: HeldOut) -> Measured:
    """Quality on the queries, size, and speed of that scoring (the first few pairs warm up)."""
    pairs = [(record.query, document) for record in held_out.records for document in record.documents]
    reranker.compute_score(pairs[:32])
    begun = time.perf_counter()
    logits = reranker.compute_score(pairs, show_progress=sys.stderr.isatty())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    rate = len(pairs) / (time.perf_counter() - begun)
    parameters = sum(parameter.numel() for parameter in reranker.model.parameters())
    return Measured(held_out.by_query(reranker.rank_scores(logits).numpy()), parameters, rate)


def comparison(rows: Mapping[str, Measured]) -> str:
    """The table, and what it says of the distilled student, as text."""
    means = {
        name: {key: float(np.nanmean(values)) for key, values in row.metrics.items()} for name, row in rows.items()
    }
    lines = [metrics_table(means), ""]
    for name, row in rows.items():
        if row.parameters:
            lines.append(f"{name}: {row.parameters / 1e6:.1f} M parameters, {row.pairs_per_second:.0f} pairs/s here")
    teacher, labelled, distilled = (rows[name] for name in ("teacher", *STUDENTS.values()))
    share = means[STUDENTS["distilled"]][KEPT] / means["teacher"][KEPT]
    lines.append(
        f"\nthe distilled student keeps {share:.1%} of the teacher's {KEPT}, with 1/{teacher.parameters / distilled.parameters:.1f} "
        f"of its parameters, at {distilled.pairs_per_second / teacher.pairs_per_second:.1f} times its speed"
    )
    for key in (KEPT, "MAP"):
        if key in distilled.metrics:
            difference = distilled.metrics[key] - labelled.metrics[key]
            low, high = bootstrap_interval(difference, 0)
            lines.append(
                f"distilled - labels: {key} {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f} (bootstrap over queries)"
            )
    return "\n".join(lines)


def _plain(rows: Mapping[str, Measured]) -> dict[str, Any]:
    return {
        name: {
            "metrics": {key: float(np.nanmean(values)) for key, values in row.metrics.items()},
            "parameters": row.parameters,
            "pairs_per_second": row.pairs_per_second,
        }
        for name, row in rows.items()
    }
