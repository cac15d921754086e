"""What a check found: problems of lines, findings, and what the data holds, as objects, JSON and text.

Contract: `status` is 2 where lines or files cannot be read, 1 where a finding matters, else 0. A count is exact unless it says
"about"; examples name file and line. Rejected: a score for the whole data set, which nobody could act on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rankery.checking.lengths import Lengths

PROBLEMS_KEPT = 100_000


@dataclass(frozen=True)
class Example:
    """Where a finding shows: `file:line` of each of its texts, and the texts, shortened."""

    where: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One kind of finding: how many, of how many, what it is and what to do."""

    kind: str
    matters: bool
    count: int
    of: int
    what: str
    advice: str
    is_estimate: bool = False
    examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float:
        return self.count / max(1, self.of)


@dataclass
class Report:
    """The result of `rankery.check`."""

    files: list[str]
    against: list[str]
    lines: int = 0
    queries: int = 0
    pairs: int = 0
    documents: int = 0  # different ones
    scale: int = 1  # above 1: more texts than were kept; counts that say so are estimates from one in so many
    shapes: dict[str, int] = field(default_factory=dict)  # form of a line -> lines
    labels: list[tuple[str, int]] = field(default_factory=list)  # label, or range of scores -> pairs
    scripts: dict[str, dict[str, int]] = field(default_factory=dict)  # queries, documents -> script -> texts
    lengths: Lengths | None = None
    problems: list[str] = field(default_factory=list)  # the first PROBLEMS_KEPT
    problem_count: int = 0
    findings: list[Finding] = field(default_factory=list)
    fixed: dict[str, Any] | None = None  # what --fix changed

    @property
    def status(self) -> int:
        """2: lines that cannot be read; 1: findings that matter; 0: neither."""
        return 2 if self.problem_count else int(any(finding.matters for finding in self.findings))

    def finding(self, kind: str) -> Finding | None:
        """The finding of a kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for entry, finding in zip(found["findings"], self.findings, strict=True):
            entry["share"] = finding.share
        return {"status": self.status, **found}

    def __str__(self) -> str:
        return "\n".join(self.text())

    def text(self) -> Iterable[str]:
        """Lines to print, without the problems."""
        yield (
            f"{', '.join(self.files)}: {self.lines:,} lines, {self.queries:,} queries, {self.pairs:,} pairs, "
            f"{self.documents:,} different documents{' (about)' if self.scale > 1 else ''}"
        )
        if self.scale > 1:
            yield (
                f'more texts than --max-texts keeps: figures with "about" are from one text in {self.scale}, and nearly equal '
                "texts may have been missed"
            )
        yield f"labels: {', '.join(f'{label}: {count:,}' for label, count in self.labels)}"
        for kind, counts in self.scripts.items():
            yield f"scripts of {kind}: {', '.join(f'{name} {share}' for name, share in _shares(counts))}"
        if self.lengths is not None:
            yield from length_lines(self.lengths)
        for finding in sorted(self.findings, key=lambda finding: not finding.matters):
            yield ""
            yield from finding_lines(finding)
        if self.problem_count:
            yield f"\n{self.problem_count:,} problems in lines that cannot be read"
        matter = sum(finding.matters for finding in self.findings)
        yield f"\n{matter} findings that matter, {len(self.findings) - matter} notes"
        if self.fixed is not None:
            yield ""
            yield from fix_lines(self.fixed)


def finding_lines(finding: Finding) -> Iterable[str]:
    """A finding as text: its figure, what to do, examples."""
    mark = "!" if finding.matters else "-"
    yield f"{mark} {counted(finding)} {finding.what}"
    if finding.advice:
        yield f"    {finding.advice}"
    for example in finding.examples:
        yield f"    {' and '.join(example.where)}: {' | '.join(example.texts)}"


def counted(finding: Finding) -> str:
    """`about 12 of 240 (5.0%)`."""
    about = "about " if finding.is_estimate else ""
    return f"{about}{finding.count:,} of {finding.of:,} ({percent(finding.share)})"


def percent(share: float) -> str:
    """`5.1%`, `0.03%`, `100%`."""
    return f"{100 * share:.3g}%" if share >= 0.1 else f"{100 * share:.2g}%"


def length_lines(lengths: Lengths) -> Iterable[str]:
    """Lengths as text."""
    by = f"by the tokenizer of {lengths.by}, of " if lengths.by else "a rough count; --model counts exactly"
    of = f"{lengths.positives:,} {'drawn ' if lengths.is_sample else ''}relevant pairs" if lengths.by else ""
    yield f"tokens ({by}{of}): half of the texts have at most, 90%, 99%, all"
    for kind, (half, most, nearly, all_) in lengths.quantiles.items():
        name = "relevant pairs, joined" if kind == "positives" else kind
        yield f"  {name}: {half:,}, {most:,}, {nearly:,}, {all_:,}"


def fix_lines(fixed: dict[str, Any]) -> Iterable[str]:
    """What was written, and every kind of change with its number."""
    yield f"{fixed['output']}: {fixed['lines']:,} lines, {fixed['pairs']:,} pairs"
    for change, count in fixed["changes"].items():
        yield f"  {change}: {count:,}"
    if len(fixed["log"]) > 0:
        yield "  (--json lists them with their lines)"
    if not fixed["changes"]:
        yield "  nothing had to be changed"


def _shares(counts: dict[str, int]) -> list[tuple[str, str]]:
    total = max(1, sum(counts.values()))
    return [(name, percent(count / total)) for name, count in sorted(counts.items(), key=lambda item: -item[1])]
