"""report.html of an evaluation: who is better, by how much, at what cost, for which queries.

Contract: the figures are those of the tables and files (output.py); texts are shown where they are known. Cost: at most EXAMPLES
queries with their best documents for each pair of systems, whatever the size of the data.
"""

from __future__ import annotations

import numpy as np

from rankery.calibrating.measures import BINS, binned, expected_calibration_error
from rankery.calibrating.page import reliability_diagram
from rankery.evaluation.comparison import Comparison
from rankery.evaluation.output import cost_rows, difference_rows, missing_notes, test_note
from rankery.report.charts import Point, bar_chart, histogram, scatter
from rankery.report.page import (
    Html,
    Section,
    columns,
    details,
    element,
    facts,
    heading,
    join,
    page,
    paragraph,
    passage,
    table,
)

EXAMPLES = 5  # queries shown of each kind
SHOWN_DOCUMENTS = 5  # of each system
SHOWN_CHARACTERS = 1500  # of a document
HISTOGRAM_BINS = 30
TINY = 1e-37  # zeros that were written with distinct scores are below it


def report(result: Comparison) -> str:
    """The whole file."""
    several = len(result.names) > 1
    sections = [Section("summary", "Summary", _summary(result))]
    if several and cost_rows(result):
        sections.append(Section("speed", "Quality and speed", _speed(result)))
    if result.slices:
        sections.append(Section("slices", "Slices", _slices(result)))
    sections.append(Section("queries", "Wins and losses" if several else "Queries", _queries(result)))
    sections.append(Section("scores", "Scores", _scores(result)))
    title = "Evaluation of " + (result.names[0] if not several else f"{len(result.names)} systems")
    return page(
        title,
        sections,
        lead="Measures are ir-measures', of TREC files: those beside this page, and those that were given.",
    )


def _summary(result: Comparison) -> Html:
    measured = result.measured
    first = result.measures[0]
    means = result.means()
    best = max(result.names, key=lambda name: means[name][first])
    known: list[tuple[str, object]] = [
        ("queries", len(measured.queries)),
        ("documents a query", f"{measured.candidates.max(0).mean():,.1f}"),
    ]
    if result.level:
        known.append(("relevant a query", f"{measured.relevant.mean():,.1f}"))
    shown = facts([*known, (f"best {first}", best)])
    rows: list[list[object]] = []
    columns_ = list(dict.fromkeys(name for row in means.values() for name in row))
    for name in result.names:
        rows.append([name, *(means[name].get(measure) for measure in columns_)])
    parts: list[object] = [shown, table("Means over queries", ["", *columns_], rows)]
    parts.append(
        table(
            "95% bootstrap intervals of the means",
            ["", *result.measures],
            [
                [name, *(f"{low:.4f} to {high:.4f}" for low, high in result.intervals[i].tolist())]
                for i, name in enumerate(result.names)
            ],
            numeric=range(1, len(result.measures) + 1),
        )
    )
    if len(result.names) > 1:
        rows = [
            [name, measure, f"{d.mean:+.4f}", "{:+.4f} to {:+.4f}".format(*d.interval), f"{d.p:.4f}", f"{d.p_holm:.4f}"]
            for name, measure, d in difference_rows(result)
        ]
        head = ["", "measure", "difference", "95% interval", "p", "p (Holm)"]
        parts.append(table(f"Differences to {result.names[result.reference]}", head, rows, numeric=range(2, 6)))
        parts.append(paragraph(f"{test_note(result)}.", note=True))
    notes = missing_notes(result)
    if result.unanswered:
        notes.append(f"{result.unanswered} queries have no relevant document and count 0")
    return join(*parts, *(paragraph(f"{note}.", note=True) for note in notes))


def _speed(result: Comparison) -> Html:
    first = result.measures[0]
    means = result.means()
    points = [
        Point(name, speed, means[name][first])
        for i, name in enumerate(result.names)
        if (speed := result.pairs_per_second(i)) is not None
    ]
    chart = scatter(
        f"{first} against speed",
        "Up is better, right is faster; speed on a logarithmic scale.",
        points,
        "pairs a second, on this machine",
        first,
        log_x=True,
    )
    rows = [
        [name, round(_float(speed)), weights, None if size is None else round(_float(size))]
        for name, speed, weights, size in cost_rows(result)
    ]
    return join(chart, table("What scoring cost", ["", "pairs/s", "parameters", "MB of weights"], rows))


def _slices(result: Comparison) -> Html:
    first = result.measures[0]
    rows: list[list[object]] = []
    for part in result.slices:
        means = result.measured.values[:, 0, part.queries].mean(1).tolist()
        rows.append([part.dimension, part.label, int(part.queries.sum()), *means])
    charts = []
    for dimension in dict.fromkeys(part.dimension for part in result.slices):
        parts = [part for part in result.slices if part.dimension == dimension]
        bars = {
            name: [float(result.measured.values[i, 0, part.queries].mean()) for part in parts]
            for i, name in enumerate(result.names)
        }
        charts.append(bar_chart(dimension, f"{first} of its slices.", [part.label for part in parts], bars, first))
    note = "Numbers are cut into parts of about equal size. Small slices say little: look at the number of queries."
    head = ["dimension", "slice", "queries", *result.names]
    return join(paragraph(note, note=True), table(f"{first} by slice", head, rows), columns(*charts))


def _queries(result: Comparison) -> Html:
    first = result.measures[0]
    values = result.measured.values[:, 0]
    if len(result.names) == 1:
        worst = np.argsort(values[0], kind="stable")[:EXAMPLES].tolist()
        examples = [_example(result, query, [0]) for query in worst]
        return join(heading(f"Lowest {first}"), *examples)
    reference = result.reference
    rows: list[list[object]] = []
    parts: list[object] = []
    for i, name in enumerate(result.names):
        if i == reference:
            continue
        less = values[i] - values[reference]
        rows.append([name, int((less > 0).sum()), int((less == 0).sum()), int((less < 0).sum())])
        order = np.argsort(less, kind="stable")
        for title, chosen in (
            (f"{name} wins", [q for q in order[::-1][:EXAMPLES] if less[q] > 0]),
            (f"{name} loses", [q for q in order[:EXAMPLES] if less[q] < 0]),
        ):
            if chosen:
                parts.append(heading(f"{title} against {result.names[reference]}"))
                parts += [_example(result, int(query), [i, reference]) for query in chosen]
    count = table(f"Queries by {first} against {result.names[reference]}", ["", "better", "equal", "worse"], rows)
    return join(count, *parts)


def _example(result: Comparison, query: int, systems: list[int]) -> Html:
    """A query with the best documents of one or two systems, folded."""
    name = result.measured.queries[query]
    text = result.texts.query(name)
    values = [f"{result.names[i]} {result.measured.values[i, 0, query]:.3f}" for i in systems]
    summary = f"{text if text is not None else name} ({result.measures[0]}: {', '.join(values)})"
    return details(summary, columns(*[_best(result, name, i) for i in systems]))


def _best(result: Comparison, query: str, system: int) -> Html:
    assert result.qrels is not None
    judged = result.qrels[query]
    ranked = sorted(result.runs[system][query].items(), key=lambda item: item[::-1], reverse=True)  # as trec_eval does
    parts: list[object] = [element("p", element("strong", result.names[system]))]
    for place, (document, score) in enumerate(ranked[:SHOWN_DOCUMENTS], 1):
        text = result.texts.document(document)
        parts.append(
            paragraph(
                f"{place}. {_judgement(result, judged.get(document))}, score {score if abs(score) > TINY else 0:.4g}",
                note=True,
            )
        )
        parts.append(passage(document if text is None else _short(text)))
    rest = [place for place, (document, _) in enumerate(ranked, 1) if judged.get(document, 0) >= max(result.level, 1)]
    lower = [str(place) for place in rest if place > SHOWN_DOCUMENTS]
    if result.level and lower:
        parts.append(paragraph(f"Relevant ones further down, at place {', '.join(lower[:10])}.", note=True))
    return join(*parts)


def _judgement(result: Comparison, relevance: float | None) -> str:
    if relevance is None:
        return "not judged"
    if not result.level:
        return f"gain {relevance:.0f}"
    word = "relevant" if relevance >= result.level else "not relevant"
    return f"{word} ({relevance:.0f})" if relevance > result.level else word


def _scores(result: Comparison) -> Html:
    if not result.level:
        return paragraph("Labels are scores: without a threshold (--relevant-above) no document is relevant or not.")
    charts: list[Html] = []
    diagrams: list[Html] = []
    errors: list[list[object]] = []
    for i, name in enumerate(result.names):
        scores, relevant = result.measured.sample[i]
        if not len(scores):
            continue
        low, high = scores.min(), scores.max()
        edges = np.linspace(low, max(high, low + 1e-6 * max(1.0, abs(low))), HISTOGRAM_BINS + 1)
        counts = {
            "relevant": np.histogram(scores[relevant], edges)[0].tolist(),
            "others": np.histogram(scores[~relevant], edges)[0].tolist(),
        }
        about = "Share of each kind; the less they overlap, the better."
        charts.append(histogram(f"Scores of {name}", about, edges.tolist(), counts, "score"))
        if result.systems[i].kind != "baseline":
            read = _read_as_probabilities(result, i)
            diagrams.append(reliability_diagram(f"Reliability of {name}", read, relevant))
            errors += [[name, how, expected_calibration_error(binned(p, relevant))] for how, p in read.items()]
    parts: list[object] = [columns(*charts)]
    if errors:
        head = ["", "read as probabilities", f"ECE ({BINS} bins of equal mass)"]
        parts += [columns(*diagrams), table("Expected calibration error", head, errors)]
        note = "A ranking needs no calibration; `rankery calibrate` makes a model's scores probabilities."
        parts.append(paragraph(note, note=True))
    return join(*parts)


def _read_as_probabilities(result: Comparison, system: int) -> dict[str, np.ndarray]:
    """How a system's sampled scores may be read -> probabilities, [P] each."""
    scores, _ = result.measured.sample[system]
    inside = scores.min() >= 0 and scores.max() <= 1
    read = {"score" if inside else "sigmoid of the score": probabilities(scores)}
    scored = result.scored.get(system)
    if scored is not None and scored.calibrated is not None:
        read["calibrated"] = scored.calibrated(scores)
    return read


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Scores as they are where all lie in [0, 1], else their sigmoid, [P] float64."""
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
    return found


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
