"""From what a scan kept to findings: which rows of which table mean what.

Contract: each function gives a finding with the places of a few examples, or None; nothing is read again here but a few lines
for texts. What matters for a training's result `matters`; the rest is a note. Cost: a look at every row of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rankery.checking.doubts import Doubts
from rankery.checking.lengths import Lengths
from rankery.checking.near import Candidates, Kind, Look, NearPairs
from rankery.checking.places import Files
from rankery.checking.report import Example, Finding
from rankery.checking.scan import Scan
from rankery.checking.tables import Table, common
from rankery.checking.texts import SCRIPTS
from rankery.data.records import LabelRange

SHOWN = 3
NAMES = 5  # control tokens in a message
TEXT = 80  # characters of an example's text
CUT_MATTERS = 0.1  # share of relevant pairs that are cut
MIXED = 0.005  # share of texts in another script that is worth a note
# A finding, the places of its examples, and which texts they show: query, document.
Draft = tuple[Finding, Sequence[tuple[int, ...]], str]


def draft(scan: Scan, against: Scan | None, lengths: Lengths | None) -> list[Draft]:
    """Findings that need no text to be read again."""
    drafts = [
        *_of_lines(scan),
        *_of_pairs(scan),
        *_of_queries(scan),
        *of_doubts(scan.doubts, "the scores in the data"),
        *_of_texts(scan),
    ]
    if lengths is not None and lengths.cut:
        drafts.append((_cut(lengths, scan.is_soft), [], ""))
    if against is not None:
        drafts += _leaks(scan, against)
    return drafts


def _finding(
    kind: str, matters: bool, count: float, of: float, what: str, advice: str = "", is_estimate: bool = False
) -> Finding:
    return Finding(kind, matters, round(count), round(of), what, advice, is_estimate)


def _of_lines(scan: Scan) -> Iterator[Draft]:
    for kind, tally, of in (
        ("query", scan.empty_queries, scan.lines),
        ("document", scan.empty_documents, scan.pair_count),
    ):
        if tally.count:
            what = "queries are empty" if kind == "query" else "documents are empty"
            places = [(place,) for place in tally.places[:SHOWN]]
            yield _finding(f"empty_{kind}", True, tally.count, of, what, "--fix leaves them out"), places, "query"
    yield from _of_control_tokens(scan)
    low, high = scan.label_ends
    if scan.labels_outside:
        what = f"labels are outside {scan.labels.min_label:g} to {scan.labels.max_label:g}"
        # In full: a rounded limit would refuse the label itself.
        wanted = [repr(end).removesuffix(".0") for end in label_range(low, high, scan.labels)]
        advice = f"train with min_label={wanted[0]} max_label={wanted[1]}"
        yield _finding("label_range", False, scan.labels_outside, scan.pair_count, what, advice), [], ""
    middle = sum(number for label, number in scan.label_counts.items() if low < label < high)
    if middle and all(float(label).is_integer() for label in scan.label_counts):
        what = f"documents have grades between {low:g} and {high:g}, of {len(scan.label_counts)} in all"
        advice = "listwise_ce and listwise_kl learn each grade against the lower ones; listwise_grades=top: a query's highest alone"
        yield _finding("grades", False, middle, scan.pair_count, what, advice), [], ""
    plain = scan.shapes["pos"]
    if plain and len(scan.shapes) > 1 and high > 1 and not scan.labels.strict:
        what = "lines list documents without labels, among lines with labels above 1"
        advice = "their pos counts as max_label: give every line its labels"
        yield _finding("mixed_labels", True, plain, scan.lines, what, advice), [], ""


def _of_control_tokens(scan: Scan) -> Iterator[Draft]:
    """Texts that spell control tokens, which a model reads as such unless it reads texts literally."""
    names = ", ".join(name for name, _ in scan.control_names.most_common(NAMES))
    for kind, several, of in (("query", "queries", scan.lines), ("document", "documents", scan.pair_count)):
        tally = scan.control[kind]
        if tally.count and scan.lengths is not None:
            literal = scan.lengths.template.special_tokens_in_text == "literal"
            what = f"{several} spell control tokens of the model's tokenizer ({names}), which it reads as "
            what += "any text" if literal else "these tokens"
            advice = "" if literal else "train or load with special_tokens_in_text=literal to read them as any text"
            places = [(place,) for place in tally.places[:SHOWN]]
            yield _finding(f"control_tokens_{kind}", not literal, tally.count, of, what, advice), places, kind


def label_range(low: float, high: float, expected: LabelRange) -> tuple[float, float]:
    """(min_label, max_label) that labels want: those expected, or where labels are outside, or all at one end, theirs."""
    return min(low, expected.min_label), high if high <= expected.min_label else max(high, expected.max_label)


def _of_pairs(scan: Scan) -> Iterator[Draft]:
    rows, scale = scan.pairs.whole(), scan.pairs.scale
    same = (rows["times"] > 1) & (rows["low"] == rows["high"])
    differ = rows["low"] < rows["high"]
    opposite = differ & (rows["low"] <= scan.relevant_above) & (rows["high"] > scan.relevant_above) & (not scan.is_soft)
    again = int((rows["times"][same].astype(np.int64) - 1).sum())
    for kind, chosen, count, what, advice in (
        ("repeated_document", same, again, "documents come again for the same query, with the same label", "--fix keeps the first"),
        ("contradiction", opposite, int(opposite.sum()), "documents are both relevant and not relevant to the same query", "--fix keeps them as relevant"),
        ("different_labels", differ & ~opposite, int((differ & ~opposite).sum()), "documents have different labels for the same query", "--fix keeps the highest"),
    ):  # fmt: skip
        if count:
            finding = _finding(kind, True, count * scale, scan.pair_count, what, advice, scale > 1)
            yield finding, _spans(rows, chosen), "query document"
    documents = scan.documents.whole()
    shared = documents["query_low"] != documents["query_high"]
    if shared.any():
        count, of = int(shared.sum()) * scan.documents.scale, len(shared) * scan.documents.scale
        what = "different documents are listed for several queries"
        yield _finding("shared_document", False, count, of, what, "", scan.documents.scale > 1), [], ""


def _of_queries(scan: Scan) -> Iterator[Draft]:
    rows, scale = scan.queries.whole(), scan.queries.scale
    of = len(rows["key"]) * scale
    lists: np.ndarray = rows["lists"].astype(np.int64)
    again = lists > 1
    if again.any():
        count = int((lists[again] - 1).sum()) * scale
        what, advice = "lines hold a query that an earlier line has", "--fix puts a query's documents into one line"
        finding = _finding("duplicate_query", True, count, scan.lines, what, advice, scale > 1)
        yield finding, _spans(rows, again), "query"
    answered = np.isfinite(rows["low"])
    alike = rows["low"] == rows["high"]
    above = rows["low"] > scan.relevant_above
    kinds = [
        ("no_positive", True, rows["high"] <= scan.relevant_above, "queries have no relevant document", "metrics pass over them; add one, or leave them out"),
        ("no_negative", True, above & alike, "queries have relevant documents only, all of one label", "there is nothing to rank; add others, or set --relevant-above"),
        ("all_relevant", False, above & ~alike, "queries have relevant documents only, of several labels", ""),
    ]  # fmt: skip
    if scan.is_soft:
        kinds = [("one_score", True, alike, "queries have documents of one score only", "there is nothing to rank")]
    for kind, matters, chosen, what, advice in kinds:
        chosen = chosen & answered
        if chosen.any():
            finding = _finding(kind, matters, int(chosen.sum()) * scale, of, what, advice, scale > 1)
            yield finding, [(int(place),) for place in np.sort(rows["first"][chosen])[:SHOWN]], "query"


def of_doubts(doubts: Doubts, judge: str, suffix: str = "") -> Iterator[Draft]:
    """Findings of what a teacher in the data, or a model, doubts."""
    for kind, tally, judged, what in (
        ("false_negative", doubts.negatives, "negatives", "documents that are not relevant score above every relevant one of their query"),
        ("wrong_positive", doubts.positives, "positives", "relevant documents score below the median of their query's others"),
    ):  # fmt: skip
        if tally.count:
            advice = "labels that are probably wrong: look at some"
            if kind == "false_negative" and not suffix:
                advice += "; false_negative_margin=0 leaves these out of a training"
            finding = _finding(
                f"{kind}{suffix}", True, tally.count, doubts.judged[judged], f"{what}, by {judge}", advice
            )
            yield finding, [(place,) for place in tally.places[:SHOWN]], "query document"


def _of_texts(scan: Scan) -> Iterator[Draft]:
    for kind, counts in scan.scripts.items():
        total = int(counts[2:].sum())
        names = [SCRIPTS[i] for i in np.argsort(-counts, kind="stable") if i > 1 and counts[i] > MIXED * total]
        if len(names) > 1:
            rare = total - int(counts[2:].max())
            what = f"{kind} are not in {names[0]} but in other scripts, as {', '.join(names[1:])}"
            yield _finding(f"mixed_scripts_{kind}", False, rare, total, what), [], ""
    if scan.crossing.count:
        what = f"{'' if scan.is_soft else 'relevant '}documents are in another script than their query"
        places = [(place,) for place in scan.crossing.places[:SHOWN]]
        yield _finding("other_script", False, scan.crossing.count, scan.pair_count, what), places, "query document"


def _cut(lengths: Lengths, is_soft: bool) -> Finding:
    what = f"{'' if is_soft else 'relevant '}pairs are cut at {lengths.max_len} tokens"
    if lengths.queries_cut:
        what += f", {lengths.queries_cut:,} of them in the query"
    advice = f"max_len={lengths.whole_99} leaves 99% of them whole"
    matters = lengths.cut > CUT_MATTERS * lengths.positives
    return _finding("cut_positive", matters, lengths.cut, lengths.positives, what, advice, not lengths.by)


def _leaks(scan: Scan, against: Scan) -> Iterator[Draft]:
    for kind, table, matters, what, shown in (
        ("leaked_query", "queries", True, "queries of the other files are in the data", "query"),
        ("leaked_pair", "pairs", True, "pairs of the other files are in the data", "query document"),
        ("leaked_document", "documents", False, "different documents of the other files are in the data", ""),
    ):
        ours, theirs = getattr(scan, table), getattr(against, table)
        here, there, scale = common(ours, theirs)
        if len(here):
            of = len(theirs.whole()["key"]) * theirs.scale
            advice = "--fix leaves lines with such queries out of the data" if matters else ""
            both = zip(ours.whole()["first"][here].tolist(), theirs.whole()["first"][there].tolist(), strict=True)
            places = sorted(both, key=lambda pair: pair[1])[:SHOWN] if shown else []
            yield _finding(kind, matters, len(here) * scale, of, what, advice, scale > 1), places, shown


def near_drafts(scan: Scan, found: dict[str, NearPairs], against: Scan | None) -> Iterator[Draft]:
    """Findings of nearly equal texts, once compared; `found` by the names of `near_candidates`."""

    def distinct(scan: Scan, table: str) -> int:
        kept: Table = getattr(scan, table)
        return len(kept.whole()["key"]) * kept.scale

    kinds = {
        "near_query": (False, distinct(scan, "queries"), "different queries are nearly equal to an earlier one", "query"),
        "near_document": (False, distinct(scan, "documents"), "different documents are nearly equal to an earlier one", "document"),
        "near_contradiction": (True, scan.pair_count, "documents that are not relevant are nearly equal to a relevant one of their query", "document"),
    }  # fmt: skip
    if against is not None:
        kinds["near_leaked_query"] = (True, distinct(against, "queries"), "different queries of the other files are nearly equal to one of the data", "query")  # fmt: skip
        kinds["near_leaked_document"] = (False, distinct(against, "documents"), "different documents of the other files are nearly equal to one of the data", "document")  # fmt: skip
    for kind, (matters, of, what, shown) in kinds.items():
        if found[kind].pairs and not (kind == "near_contradiction" and scan.is_soft):
            advice = "probably relevant too: look at some" if kind == "near_contradiction" else ""
            finding = _finding(kind, matters, found[kind].count, of, what, advice, found[kind].is_estimate)
            yield finding, list(found[kind].pairs[:SHOWN]), shown


def compare(
    files: Files, labels: LabelRange, candidates: dict[str, Candidates], kinds: Mapping[str, Kind]
) -> dict[str, NearPairs]:
    """Reads the candidates' texts again and compares them."""
    looks: dict[str, dict[int, Look]] = {name: {} for name in candidates}
    wanted: dict[int, list[str]] = {}
    for name, those in candidates.items():
        for place in those.places():
            wanted.setdefault(place, []).append(name)
    for place, record, index in files.visit(wanted, labels):
        for name in wanted[place]:
            text = record.query if name.endswith("query") else record.documents[index]
            looks[name][place] = Look(text, kinds[name])
    return {name: those.compared(looks[name]) for name, those in candidates.items()}


def illustrated(drafts: Sequence[Draft], files: Files, labels: LabelRange) -> list[Finding]:
    """Findings with the texts of their examples."""
    wanted = {place for _, examples, _ in drafts for places in examples for place in places}
    texts = {
        place: {"query": record.query[: TEXT + 1], "document": record.documents[index][: TEXT + 1]}
        for place, record, index in files.visit(wanted, labels)
    }
    return [
        replace(finding, examples=tuple(_example(places, shown.split(), texts, files) for places in examples))
        for finding, examples, shown in drafts
    ]


def _example(places: Iterable[int], shown: list[str], texts: dict[int, dict[str, str]], files: Files) -> Example:
    where = dict.fromkeys("{}:{}".format(*files.where(place)) for place in places)
    shortened = dict.fromkeys(_short(texts[place][kind]) for kind in shown for place in places)
    return Example(tuple(where), tuple(shortened))


def _short(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))  # no terminal commands
    return line if len(text) <= TEXT else line[:TEXT] + "..."


def _spans(rows: dict[str, np.ndarray], chosen: np.ndarray) -> list[tuple[int, ...]]:
    """First and last place of a few rows."""
    at = np.flatnonzero(chosen)
    at = at[np.argsort(rows["first"][at])[:SHOWN]]
    return [(int(rows["first"][i]), int(rows["last"][i])) for i in at]
