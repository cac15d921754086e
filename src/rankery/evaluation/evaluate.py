"""`rankery.evaluate`: models, baselines and runs on the same queries, as numbers, as a table, and as files.

    words --question--> input --systems--> scores --comparison--> numbers --output--> table, files, page

Contract: nothing is written before all input has been read, and all that can be seen of it is said before a model is opened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankery.arguments import checked
from rankery.errors import InputError, option
from rankery.evaluation.comparison import Comparison, Difference, compare
from rankery.evaluation.output import check_output, comparison_text, write_output
from rankery.evaluation.question import Question, check_question, read_input
from rankery.evaluation.systems import System, is_cosine, names_of, score_system
from rankery.processes import Group

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class SystemResult:
    """What was measured of a system."""

    metrics: dict[str, float]  # measure -> mean over queries
    interval: dict[str, tuple[float, float]]  # measure -> 95% bootstrap interval of the mean
    difference: dict[str, Difference]  # measure -> its mean less the reference's; nothing of the reference itself
    by_query: dict[str, np.ndarray]  # measure -> value of each query, [Q]
    pairs_per_s: float | None  # None of runs and of the random order
    parameters: int | None  # weights; None of what has none
    megabytes: float | None  # of the weights in memory


@dataclass(frozen=True)
class Evaluation:
    """Systems side by side on Q queries; as text, the tables that the command prints."""

    queries: list[str]  # [Q] names, as in the TREC files
    reference: str  # the system that differences are to
    systems: dict[str, SystemResult]  # by name, in the order in which they were named
    text: str

    def __str__(self) -> str:
        return self.text


@checked
def evaluate(
    models: Paths = (),
    baselines: Paths = (),
    runs: Paths = (),
    *,
    data: Paths = (),
    qrels: str | Path | None = None,
    queries: str | Path | None = None,
    documents: str | Path | None = None,
    measures: str | Sequence[str] = (),
    recall_at: Sequence[int] = (10,),
    reference: str | Path | None = None,
    min_label: float | None = None,
    relevant_above: float | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 42,
    prompt: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
) -> Evaluation:
    """Measures models, baselines and runs on labelled data, and how sure their differences are.

    Args:
        models: folders of rerankers.
        baselines: "random", "bm25", or folders of embedding models, whose cosine is measured.
        runs: TREC run files of any systems.
        data: labelled JSONL, files or globs; or else `qrels`.
        qrels: TREC judgements; the candidates are those of the first run.
        queries: texts for `qrels`: JSONL `{"id", "text"}`, or id and text with a tab between. Only models and baselines need them.
        documents: texts of documents, in the same form.
        measures: names by ir-measures, as a list or in one string; none: nDCG@10, MRR@10, MAP and Recall.
        recall_at: cut-offs of Recall without `measures`.
        reference: the system that differences are to, by its name or as it was given; None: the first model, else baseline, else run.
        min_label: label of what is not relevant, in `data` or `qrels`; gains begin there. None: the first model's (with `data`), else 0.
        relevant_above: documents with labels above it are relevant; None: min_label.
        output: folder for metrics.json, queries.csv, report.html and TREC files; files of an earlier call there are replaced.
        overwrite: replace other files of these names too.
        seed: breaks ties, draws samples.
        prompt: preset to ask a language model with that rankery has not saved.
        dtype: of models, and of embedding models; None: float32 on CPUs, and of embedding models.
        device: of models; None: the accelerator, if there is one.
        batch_size: as for `compute_score`.
        max_length: same.

    Raises:
        InputError: input that cannot be used, all that can be seen before models are opened at once.
    """
    kinds: Any = {"model": models, "baseline": baselines, "run": runs}
    systems = [System(kind, value) for kind, values in kinds.items() for value in _words(values)]
    question = Question(
        data=_words(data),
        measures=measures.split() if isinstance(measures, str) else measures,
        recall_at=recall_at, min_label=min_label, relevant_above=relevant_above, seed=seed,
        **{
            name: None if value is None else str(value)
            for name, value in {"qrels": qrels, "queries": queries, "documents": documents, "reference": reference}.items()
        },
    )  # fmt: skip
    result = evaluate_systems(
        systems, question, output=None if output is None else Path(output), overwrite=overwrite,
        prompt=prompt, dtype=dtype, device=device, batch_size=batch_size, max_length=max_length,
    )  # fmt: skip
    assert result is not None
    return result


def evaluate_systems(
    systems: Sequence[System],
    question: Question,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    group: Group | None = None,
    **options: Any,
) -> Evaluation | None:
    """`evaluate` of systems in any order, by all processes of a group; only the first has a result, and writes.

    `output` then holds evaluation.json, metrics.json, queries.csv, report.html, qrels.trec (not where judgements were given) and run.trec; with several
    systems, a file in runs/ for each that is no run. `options` are device, dtype, prompt, batch_size, max_length of models.

    Raises:
        InputError: as `evaluate`.
    """
    group = group or Group()
    names = names_of(systems)
    try:
        check_question(systems, question, names)
        unused = [name for name in ("prompt", "dtype", "max_length") if options.get(name) is not None]
        if any(map(is_cosine, systems)):
            unused = [name for name in unused if name != "dtype"]
        if unused and not any(system.kind == "model" for system in systems):
            raise InputError(
                f"{', '.join(unused)}: given, but for models alone; expected {option('model', 'models')} beside it, or nothing"
            )
        if output is not None and group.process == 0:
            check_output(output, systems, names, question, overwrite)
        given = read_input(systems, question)
    except InputError as error:
        raise InputError(error.problems, shared=True) from None  # all processes see the same
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scored = {
            i: score_system(system, given.candidates, group, seed=question.seed, options=options)
            for i, system in enumerate(systems)
            if system.kind != "run" and given.candidates is not None
        }
        if group.process:
            return None
        compared = compare(systems, names, question, given, scored, folder)
        result = _result(compared)
        if output is not None:
            write_output(output, compared, metrics_json(result))
        return result


def _result(compared: Comparison) -> Evaluation:
    systems = {}
    means = compared.means()
    for i, name in enumerate(compared.names):
        differences = zip(compared.measures, compared.differences[i], strict=True)
        scored = compared.scored.get(i)
        systems[name] = SystemResult(
            means[name],
            {measure: (low, high) for measure, (low, high) in zip(compared.measures, compared.intervals[i].tolist(), strict=True)},
            {measure: difference for measure, difference in differences if difference is not None},
            dict(zip(compared.measures, compared.measured.values[i], strict=True)),
            compared.pairs_per_second(i),
            scored.parameters if scored else None,
            scored.megabytes if scored else None,
        )  # fmt: skip
    reference = compared.names[compared.reference]
    return Evaluation(compared.measured.queries, reference, systems, comparison_text(compared))


def metrics_json(result: Evaluation) -> dict[str, Any]:
    """Of one system its means by measure; of several, means, intervals, differences and costs by system."""
    if len(result.systems) == 1:
        return next(iter(result.systems.values())).metrics
    rows = {
        name: {key: value for key, value in asdict(system).items() if key != "by_query" and value is not None}
        for name, system in result.systems.items()
    }
    return {"queries": len(result.queries), "reference": result.reference, "systems": rows}


def _words(values: Paths) -> list[str]:
    return [str(value) for value in ([values] if isinstance(values, str | Path) else values)]
