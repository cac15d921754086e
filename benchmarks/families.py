"""Every family of the installed transformers that can score a pair: does rankery load it, score as it does, train it, save it?

    python benchmarks/families.py --output docs/families.md

Each class is built tiny and random, saved, opened by rankery, and compared with transformers' own forward pass, one pair at a time.
Each family runs in a child that may fail or be killed; --results keeps rows, so that a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tiny_families import WORDS, build, composed, families

PAIRS = [
    ("sun moon", "rain"), ("river lake", " ".join(WORDS[:20] * 9)), ("sun moon", " ".join(WORDS[:14])), ("hill", "stone sand tree"),
    ("bird", ""), ("sun moon", " ".join(WORDS[5:19] * 3)), ("fern moss", " ".join(WORDS[:9] * 5)), ("rose", "rose"),
]  # fmt: skip


@dataclass
class Row:
    """What was found of one family."""

    family: str
    kind: str  # encoder or decoder
    loads: str = "yes"
    layout: str = ""
    difference: float | None = None  # largest, of logits, from transformers one pair at a time
    trains: str = ""
    saved: str = ""
    note: str = ""
    seconds: float = 0.0


def opened(folder: Path, reading: str) -> Any:
    from rankery import CrossEncoder, LLMDecoder

    common: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "seed": 0}
    if reading == "first":
        return CrossEncoder.from_pretrained(folder, **common)
    # What ends the prompt is no pad, and the words are those of the tiny vocabulary.
    words: dict[str, Any] = {"yes_word": "yes", "no_word": "no"} if reading == "yes_no" else {}
    prompt: dict[str, Any] = {
        "query_format": "query : {}",
        "document_format": "document : {}",
        "seq": " ",
        "special_token": "[SEP]",
    }
    return LLMDecoder.from_pretrained(folder, head=reading, **prompt, **words, **common)


@torch.no_grad()
def by_transformers(folder: Path, reranker: Any, reading: str) -> torch.Tensor:
    """Scores of the pairs by transformers' own class, one at a time, [pairs]."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from rankery.models.reranker import encode_pairs

    auto = AutoModelForCausalLM if reading == "yes_no" else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    if reading == "score":
        model.config.get_text_config().pad_token_id = reranker.template.pad_token_id
    rows, _, _ = encode_pairs(PAIRS, reranker.tokenizer, reranker.template)
    scores = []
    for ids, types in rows:
        options: dict[str, Any] = {} if types is None else {"token_type_ids": torch.from_numpy(types)[None]}
        if reading != "first":
            options["use_cache"] = False
        batch = torch.from_numpy(ids)[None]
        logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), **options).logits
        if reading == "yes_no":
            yes, no = reranker.scorer.vocabulary.rows
            logits = logits[:, -1, yes] - logits[:, -1, no]
        scores.append(logits.reshape(-1)[:1])
    return torch.cat(scores)


def one_step(reranker: Any) -> str:
    """Whether a small step against the gradient of a loss lowers it, in the layout of training."""
    from rankery.data.collate import pack, pad
    from rankery.models.budget import set_attention
    from rankery.models.reranker import encode_pairs

    layout, scorer = reranker.layout, reranker.scorer
    set_attention(reranker.model, torch.device("cpu"), torch.float32, layout in ("packed", "shared"))
    rows, heads, queries = encode_pairs(PAIRS, reranker.tokenizer, reranker.template)
    if layout == "by_length":
        batches = [pad([row], 0) for row in rows]
    elif layout == "padded":
        batches = [pad(rows, reranker.template.pad_token_id)]
    else:
        batches = [pack(rows, heads.tolist(), queries.tolist()) if layout == "shared" else pack(rows)]
    targets = torch.linspace(0, 1, len(PAIRS))

    def loss() -> torch.Tensor:
        logits = torch.cat([scorer(*batch.arguments).reshape(-1) for batch in batches])
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)

    scorer.eval()
    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in scorer.parameters() if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in gradients]).norm())
    if not norm < float("inf"):
        return "gradient not finite"
    with torch.no_grad():
        for parameter in scorer.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 / max(norm, 1e-9) * parameter.grad
        after = loss()
    return "yes" if float(after) < float(before) else f"no: {float(before):.6f} to {float(after):.6f}"


def examine(kind: str, which: str) -> Row:
    """All columns of a family; what fails is named and ends its row."""
    row, begun, stage = Row(kind, which), time.perf_counter(), "is not built"
    if composed(kind):
        return Row(
            kind,
            which,
            "not tried",
            note="made of several models, for images or sounds too; its text model is a family of its own, if it has one",
        )
    try:
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            folder = Path(place) / "base"
            reading = build(kind, which == "decoder", folder)
            stage = "refused"
            reranker = opened(folder, reading)
            stage = "fails"
            row.layout = reranker.layout
            scores = reranker.compute_score(PAIRS)
            row.difference = float((scores - by_transformers(folder, reranker, reading)).abs().max())
            saved = Path(place) / "saved"
            reranker.save_pretrained(saved)
            again = opened_again(saved)
            apart = max(
                float((again.compute_score(PAIRS) - scores).abs().max()),
                float((by_transformers(saved, again, reading) - scores).abs().max()),
            )
            row.saved = "yes" if apart <= 1e-4 else f"apart by {apart:.1g}"
            row.trains = one_step(reranker)
            row.note = "; ".join(
                sorted({said(str(w.message)) for w in caught if w.category is UserWarning and ours(w)})
            )
    except Exception as error:  # a family may fail in any way; the table says how
        row.loads = stage if stage != "fails" else "yes"
        row.note = said(str(error)) or type(error).__name__
        if stage == "fails":
            row.note = "fails: " + row.note
    row.seconds = round(time.perf_counter() - begun, 1)
    return row


def ours(warning: Any) -> bool:
    """Whether rankery says it."""
    return any(mark in str(warning.message) for mark in ("one length at a time", "bfloat16 here", "packed pairs score"))


def opened_again(folder: Path) -> Any:
    from rankery.models.opening import open_reranker

    return open_reranker(folder, device="cpu", dtype=torch.float32)


def said(text: str) -> str:
    """A message without the place of this trial, short enough for a table."""
    text = " ".join(text.replace("|", "/").split())
    text = re.sub(r"\S*/tmp\S*?: ", "", text)
    for mark in ("it could not be loaded: ", ".tmp-saved-"):
        text = text.partition(mark)[2] or text
    text = text.partition("; expected a model that")[0].partition("; pairs run one length")[0]
    return text if len(text) <= 140 else f"{text[:137]}..."


def child(kind: str, which: str, pipe: Any) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pipe.send(asdict(examine(kind, which)))


def all_rows(chosen: Iterable[tuple[str, str]], results: Path | None, limit: float) -> list[Row]:
    """Rows of families; those in `results` are taken from there. A family has `limit` seconds."""
    known = {}
    if results is not None and results.exists():
        known = {row["family"]: Row(**row) for row in map(json.loads, results.read_text().splitlines())}
    context = multiprocessing.get_context("fork")  # torch and transformers are imported once
    rows = []
    for kind, which in chosen:
        row = known.get(kind)
        if row is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(kind, which, theirs))
            process.start()
            theirs.close()
            row = Row(kind, which, "fails", note=f"no answer within {limit:.0f} seconds")
            try:
                if ours.poll(limit):
                    row = Row(**ours.recv())
            except EOFError:
                row.note = "the process ended"
            process.kill()
            process.join()
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
        print(
            f"{row.family:24} {row.loads:10} {row.layout:10} {row.difference} {row.trains:8} {row.saved:6} {row.note}",
            flush=True,
        )
        rows.append(row)
    return rows


def preload() -> None:
    """What every family needs, imported before the children begin."""
    import sentence_transformers  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    from rankery.models import card, cross_encoder, export, llm_decoder, opening  # noqa: F401

    transformers.utils.logging.disable_progress_bar()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="*", help="only these")
    parser.add_argument("--output", type=Path, help="page to write")
    parser.add_argument("--results", type=Path, help="JSON lines of families that are done")
    parser.add_argument("--seconds", type=float, default=60, help="a family has at most")
    arguments = parser.parse_args()
    preload()
    chosen = [(kind, which) for kind, which in families() if not arguments.family or kind in arguments.family]
    rows = all_rows(chosen, arguments.results, arguments.seconds)
    if arguments.output:
        arguments.output.write_text(page(rows), encoding="utf-8")


PAGE = """# Families of transformers

Written by `python benchmarks/families.py --output docs/families.md`: each encoder and decoder class of the installed transformers
that can score a pair, built tiny with random weights, saved, and opened by rankery.

- **layout**: how its pairs go through it. *packed*: end to end, without padding; *shared*: also the query of several documents once;
  *padded* to one length; *by length*: only pairs of one length together, because padding or a longer neighbour changes a score
  (rankery says so in a warning; in training, the first message names it). Code that came with a checkpoint is never packed.
- **difference**: the largest, of the scores of eight pairs of 3 to 200 tokens at once, from transformers' own class given one pair at a
  time.
- **trains**: a small step against the gradient lowers the loss, in that layout.
- **saved**: the folder that rankery writes, opened by rankery and by transformers, scores the same (within 1e-4).
- **refused**: rankery says in one sentence why it does not take the model.

No class differs by more than {limit:g} without a word at load ({bad} do). A class of transformers that is not in this table is tried when
it is loaded: four short pairs, scored alone, padded and packed; the widest layout that agrees is taken.

```python
from rankery import CrossEncoder

reranker = CrossEncoder.from_pretrained("path/of/a/model")
print(reranker.layout)  # packed, shared, padded or by_length
```

{counts}

{machine}

| family | kind | loads | layout | difference | trains | saved | note |
|---|---|---|---|---|---|---|---|
{rows}
"""
LIMIT = 1e-4


def page(rows: list[Row]) -> str:
    """The table as a page of the documentation, the families that load first."""
    from machine import machine

    loads = [row for row in rows if row.loads == "yes" and row.difference is not None]
    layouts = {name: sum(row.layout == name for row in loads) for name in ("packed", "shared", "padded", "by_length")}
    counts = f"Of {len(rows)} families {len(loads)} load and score: " + ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in layouts.items()
    )
    bad = sum(row.difference > LIMIT for row in loads if row.difference is not None)
    lines = [
        f"| {row.family} | {row.kind} | {row.loads} | {row.layout.replace('_', ' ')} | "
        f"{'' if row.difference is None else format(row.difference, '.1g')} | {row.trains} | {row.saved} | {row.note} |"
        for row in sorted(rows, key=lambda row: (row not in loads, row.loads, row.family))
    ]
    return PAGE.format(
        limit=LIMIT, bad=bad or "none", counts=f"{counts}.", machine=f"{machine()}.", rows="\n".join(lines)
    )


if __name__ == "__main__":
    main()
