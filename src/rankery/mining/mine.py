"""`rankery mine`: queries with positives, and a corpus -> training data with hard negatives.

    queries, corpus --retrievers--> what each found --select--> candidates --teacher--> negatives --> lines

Contract: the same input, models and seed write the same bytes; the output appears when all is done, or not at all. Cost: index or
embeddings of the corpus; then a search a query, and with a teacher about one forward pass for each negative and each positive.
Rejected: a teacher's scores of the whole window, of which most would decide nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankery.arguments import checked
from rankery.data.files import check_outside, expand_paths, written_whole
from rankery.data.records import LabelRange, check_records
from rankery.errors import InputError, option
from rankery.mining.judge import Judge
from rankery.mining.progress import shown
from rankery.mining.rows import Query, distinct, mined_line, read_corpus, read_queries
from rankery.mining.select import Candidate, Found, Rules, accepted, candidates, plain

if TYPE_CHECKING:
    from rankery.mining.retrievers import Retriever

QUERIES_AT_ONCE = 256  # searched, judged and written together
GIVEN = ("keep", "drop", "mine")
PICK = ("random", "top")


@dataclass
class Mined:
    """What was mined; as text, the summary that the command prints."""

    output: Path
    queries: int
    documents: int  # of the corpus
    negatives: Counter[str] = field(default_factory=Counter)  # by retriever
    left_out: Counter[str] = field(default_factory=Counter)  # "forbidden", "margin", "teacher"
    short: int = 0  # queries that got fewer negatives than asked for
    without_positive: int = 0  # queries that are left as they are
    flat_teacher: bool = False  # it gave all pairs (nearly) one score

    def __str__(self) -> str:
        total = self.negatives.total()
        asked = self.queries - self.without_positive
        parts = ", ".join(f"{name} {count:,}" for name, count in self.negatives.items())
        lines = [
            f"corpus: {self.documents:,} documents",
            f"mined {total:,} negatives for {asked:,} queries, {total / max(asked, 1):.2f} a query ({parts or 'none'})",
            f"left out: {self.left_out['forbidden']:,} labelled already, {self.left_out['margin']:,} by the margin, "
            f"{self.left_out['teacher']:,} by the teacher",
        ]
        if self.flat_teacher:
            lines.append("the teacher judged NOTHING: it gives all pairs (nearly) one score; choose another")
        if self.short:
            lines.append(f"{self.short:,} queries got fewer than asked for: nothing else was left between the ranks")
        if self.without_positive:
            lines.append(f"{self.without_positive:,} queries have no relevant document and stay as they are")
        return "\n".join([*lines, f"wrote {self.output}"])


@checked
def mine(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    corpus: str | Path | Sequence[str | Path] | None = None,
    by: str | Sequence[str] = "bm25",
    negatives: int = 7,
    ranks: tuple[int, int] = (10, 100),
    pick: str = "random",
    margin: float | None = None,
    teacher: str | Path | None = None,
    teacher_margin: float = 0.0,
    store: str | Path | None = None,
    given: str = "keep",
    min_label: float = 0.0,
    relevant_above: float | None = None,
    query_prefix: str = "",
    document_prefix: str = "",
    seed: int = 42,
    overwrite: bool = False,
    prompt: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Mined:
    """Writes the data with hard negatives to `output`; returns what was mined.

    Args:
        data: JSONL of any accepted form with positives; files or globs.
        output: file to write; packed where it ends in .gz.
        corpus: JSONL of documents; None: all documents of the data.
        by: retrievers, which take turns: bm25, folders or hub names of embedding models.
        negatives: how many to mine for each query.
        ranks: first and last place in a retriever's list that a negative may have.
        pick: which of them: "random" (seeded), or "top", the best first.
        margin: negatives score below the query's best positive by this share of its score, in the retriever's scores.
        teacher: reranker that judges candidates; None: nobody.
        teacher_margin: candidates that it scores above the query's best positive less this, in [0, 1], are left out.
        store: file that keeps the teacher's scores by content (see `rankery score`).
        given: what becomes of labelled documents that are not relevant: "keep" them, "drop" them, or drop them and let them be
            mined ("mine").
        min_label: label of `neg` without scores, and of mined negatives among scores.
        relevant_above: documents with a label above it are positives; None: min_label.
        query_prefix: put before queries for embedding models.
        document_prefix: put before documents for embedding models.
        seed: of the random picks.
        overwrite: replace `output` if it is there.
        prompt: preset to ask a teacher with that rankery has not saved.
        dtype: of the teacher.
        device: of all models; None: the accelerator, if there is one.

    Raises:
        InputError: anything wrong with arguments, data, corpus or models, before anything is written.
    """
    from rankery.distilling.teacher import check_output

    by = [by] if isinstance(by, str) else list(by)
    rules = _rules(ranks, margin, pick, seed)
    relevant_above = min_label if relevant_above is None else relevant_above
    teachers_own = {"teacher_margin": teacher_margin or None, "store": store, "prompt": prompt, "dtype": dtype}
    _check(by, negatives, teacher, teacher_margin, teachers_own, given, min_label, relevant_above)
    if (query_prefix or document_prefix) and set(by) == {"bm25"}:
        raise InputError(f"query_prefix and document_prefix are for embedding models; expected one in {option('by')}")
    paths = expand_paths(data)
    corpus_paths = [] if corpus is None else expand_paths(corpus)
    output = Path(output)
    check_output(output, [*paths, *corpus_paths], overwrite)
    check_outside(output, [teacher] if teacher else [])
    check_records(paths, LabelRange(min_label, max(1.0, min_label + 1), strict=False))
    queries = read_queries(paths, min_label, relevant_above, given == "keep")
    documents = read_corpus(corpus_paths) if corpus_paths else _own_documents(queries)
    if not documents:
        raise InputError("the corpus has no document that is not blank; expected some")
    judge = Judge(teacher, teacher_margin, store, prompt, dtype, device) if teacher else None
    retrievers = _retrievers(by, documents, query_prefix, document_prefix, device)
    mined = Mined(output, len(queries), len(documents))
    forbidden = _forbidden(queries, relevant_only=given == "mine")
    blocks = (queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE))
    with written_whole(output) as file:
        for block in shown(blocks, len(queries), "mining", "queries", QUERIES_AT_ONCE):
            chosen = _mine_block(block, documents, retrievers, forbidden, rules, negatives, judge, mined)
            for query, found in zip(block, chosen, strict=True):
                texts = [documents[one.document] for one in found]
                file.write(mined_line(query, texts, [f"{one.source}:{one.rank}" for one in found], min_label))
    if judge is not None:
        mined.flat_teacher = judge.is_flat
        judge.close()
    return mined


def _rules(ranks: tuple[int, int], margin: float | None, pick: str, seed: int) -> Rules:
    """
    Raises:
        InputError: values that make no rules.
    """
    problems = []
    first, last = ranks
    if not 1 <= first <= last:
        problems.append(f"ranks is {first}-{last}; expected the first and the last rank, from 1: 10-100")
    if margin is not None and not 0 <= margin < 1:
        problems.append(f"margin is {margin}; expected a share of the positive's score, from 0 to below 1")
    if pick not in PICK:
        problems.append(f"pick is {pick!r}; expected one of {', '.join(PICK)}")
    if seed < 0:
        problems.append(f"seed is {seed}; expected 0 or more")
    if problems:
        raise InputError(problems)
    return Rules(first, last, margin, pick == "random", seed)


def _check(
    by: Sequence[str],
    negatives: int,
    teacher: str | Path | None,
    teacher_margin: float,
    teachers_own: dict[str, Any],
    given: str,
    min_label: float,
    relevant_above: float,
) -> None:
    """
    Raises:
        InputError: arguments that say nothing, or nothing together.
    """
    problems = []
    if not by or len(set(by)) < len(by):
        problems.append(f"by is {', '.join(by) or 'empty'}; expected bm25, embedding models or both, each once")
    if negatives < 1:
        problems.append(f"negatives is {negatives}; expected at least 1")
    if given not in GIVEN:
        problems.append(f"given is {given!r}; expected one of {', '.join(GIVEN)}")
    if not math.isfinite(teacher_margin) or not -1 <= teacher_margin <= 1:
        problems.append(f"teacher_margin is {teacher_margin}; expected a difference of scores in [0, 1]: -1 to 1")
    if not math.isfinite(min_label):
        problems.append(f"min_label is {min_label}; expected a finite number")
    elif not min_label <= relevant_above < math.inf:
        problems.append(f"relevant_above is {relevant_above:g}; expected a number from min_label ({min_label:g})")
    if teacher is None:
        problems += [f"{name} is set, but no teacher is" for name, value in teachers_own.items() if value is not None]
    if problems:
        raise InputError(problems)


def _own_documents(queries: Sequence[Query]) -> list[str]:
    return distinct([text for query in queries for text in (*query.relevant, *query.others)])


def _retrievers(
    by: Sequence[str], documents: Sequence[str], query_prefix: str, document_prefix: str, device: str | None
) -> dict[str, Retriever]:
    """Retrievers by the name that negatives carry; models are opened before anything is indexed."""
    from rankery.mining.retrievers import BM25, Bm25Retriever, EmbeddingRetriever, Encoder

    encoders = {name: Encoder(name, query_prefix, document_prefix, device) for name in by if name != BM25}
    named: dict[str, Retriever] = {}
    for name in by:
        short = name if name == BM25 else Path(name).name
        short = short if short not in named else f"{short}-{len(named) + 1}"
        named[short] = EmbeddingRetriever(documents, encoders[name]) if name in encoders else Bm25Retriever(documents)
    return named


def _forbidden(queries: Sequence[Query], relevant_only: bool) -> dict[str, set[str]]:
    """For each query's plain text, the plain texts that are none of its negatives: of all lines that ask the same."""
    forbidden: dict[str, set[str]] = {}
    for query in queries:
        texts = query.relevant if relevant_only else [*query.relevant, *query.others]
        forbidden.setdefault(plain(query.text), {plain(query.text)}).update(map(plain, texts))
    return forbidden


def _mine_block(
    block: Sequence[Query],
    documents: Sequence[str],
    retrievers: dict[str, Retriever],
    forbidden: dict[str, set[str]],
    rules: Rules,
    negatives: int,
    judge: Judge | None,
    mined: Mined,
) -> list[list[Candidate]]:
    """The negatives of each query of a block; counts them in `mined`."""
    asked = [query for query in block if query.relevant]
    mined.without_positive += len(block) - len(asked)
    if not asked:
        return [[] for _ in block]
    texts = None if rules.margin is None else [query.relevant for query in asked]
    searches = [one.search([query.text for query in asked], rules.last, texts) for one in retrievers.values()]
    orders = []
    for query, *found in zip(asked, *searches, strict=True):
        by_name: dict[str, Found] = dict(zip(retrievers, found, strict=True))
        forbidden_here = forbidden[plain(query.text)]
        orders.append(candidates(query.text, by_name, documents.__getitem__, forbidden_here, rules, mined.left_out))
    if judge is None:
        chosen = [order[:negatives] for order in orders]
    else:
        chosen = accepted(orders, negatives, judge.of(asked, documents, mined.left_out))
    for row in chosen:
        mined.negatives.update(one.source for one in row)
        mined.short += len(row) < negatives
    in_order = iter(chosen)
    return [next(in_order) if query.relevant else [] for query in block]
