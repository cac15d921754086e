"""A report as a page: findings with their examples, labels, lengths, scripts, problems. The figures are those of the text."""

from __future__ import annotations

from pathlib import Path

from rankery.checking.lengths import QUANTILES, Lengths
from rankery.checking.report import Finding, Report, counted, fix_lines, percent
from rankery.report.charts import bar_chart
from rankery.report.page import Html, Section, details, element, facts, join, page, paragraph, passage, table

SHOWN_PROBLEMS = 1000


def check_page(report: Report) -> str:
    """The whole file."""
    matter = [finding for finding in report.findings if finding.matters]
    notes = [finding for finding in report.findings if not finding.matters]
    sections = [Section("summary", "Summary", _summary(report))]
    if report.problem_count:
        sections.append(Section("problems", "Lines that cannot be read", _problems(report)))
    for anchor, title, findings in (("findings", "Findings that matter", matter), ("notes", "Notes", notes)):
        if findings:
            sections.append(Section(anchor, title, _findings(title, findings)))
    sections += [
        Section("labels", "Labels", _labels(report)),
        Section("texts", "Texts", _texts(report)),
    ]
    if report.fixed is not None:
        sections.append(Section("cleaned", "Cleaned file", join(*map(paragraph, fix_lines(report.fixed)))))
    names = ", ".join(Path(name).name for name in report.files)
    return page(f"Check of {names}", sections, lead="What is in the data, and what is wrong with it.")


def _summary(report: Report) -> Html:
    rows: list[tuple[object, object]] = [
        ("lines", report.lines),
        ("queries", report.queries),
        ("pairs", report.pairs),
        ("different documents", report.documents),
        ("problems of lines", report.problem_count),
        ("findings that matter", sum(finding.matters for finding in report.findings)),
    ]
    sampled = f'Figures with "about" are from one text in {report.scale}.' if report.scale > 1 else ""
    named = [
        f"Data: {', '.join(report.files)}.",
        f"Against: {', '.join(report.against)}." if report.against else "",
        sampled,
    ]
    return join(facts(rows), *[paragraph(line, note=True) for line in named if line])


def _problems(report: Report) -> Html:
    shown = report.problems[:SHOWN_PROBLEMS]
    listed = element("ul", *[element("li", problem) for problem in shown])
    left = report.problem_count - len(shown)
    more = [paragraph(f"... and {left:,} more", note=True)] if left else []
    return join(details(f"{report.problem_count:,} problems", listed, *more, open_=report.problem_count <= 20))


def _findings(title: str, findings: list[Finding]) -> Html:
    rows = [[finding.what, counted(finding), finding.advice or None] for finding in findings]
    examples = [
        details(finding.what, *[_example(example.where, example.texts) for example in finding.examples])
        for finding in findings
        if finding.examples
    ]
    return join(table(title, ["what", "how many", "what to do"], rows), *examples)


def _example(where: tuple[str, ...], texts: tuple[str, ...]) -> Html:
    return join(paragraph(" and ".join(where), note=True), *map(passage, texts))


def _labels(report: Report) -> Html:
    if not report.labels:
        return paragraph("No labels.")
    names = [name for name, _ in report.labels]
    return bar_chart(
        "Pairs by label", f"{report.pairs:,} pairs.", names, {"pairs": [n for _, n in report.labels]}, "pairs"
    )


def _texts(report: Report) -> Html:
    parts = []
    for kind, counts in report.scripts.items():
        total = max(1, sum(counts.values()))
        rows = [
            [name, count, percent(count / total)] for name, count in sorted(counts.items(), key=lambda item: -item[1])
        ]
        parts.append(table(f"Scripts of {kind}", ["script", "texts", "share"], rows))
    if report.lengths is not None:
        parts.append(_lengths(report.lengths))
    return join(*parts)


def _lengths(lengths: Lengths) -> Html:
    by = f"by {Path(lengths.by).name}'s tokenizer" if lengths.by else "a rough count"
    head = ["texts", *[percent(quantile) for quantile in QUANTILES]]
    rows = [["relevant pairs" if kind == "positives" else kind, *values] for kind, values in lengths.quantiles.items()]
    cut = f"{lengths.cut:,} of {lengths.positives:,} relevant pairs are cut at {lengths.max_len} tokens."
    return join(table(f"Tokens that so many texts do not exceed, {by}", head, rows), paragraph(cut, note=True))
