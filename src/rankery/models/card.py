"""The model card (README.md of a saved model): what it was trained on, how, how good it is, how to use it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankery.models.llm_decoder import LLMDecoder

if TYPE_CHECKING:
    from rankery.config import TrainConfig
    from rankery.models.reranker import Reranker


LITERAL = "Where a query or document spells control tokens, rankery reads them as any text (`special_tokens_in_text: literal`); "


@dataclass(frozen=True)
class Outcome:
    """What training made of what it started from: validation metrics of both (none without validation data), the one that the
    verdict is by (None: all would be the same whatever the model), and whether the head was random before."""

    before: dict[str, float]
    after: dict[str, float]
    judged_by: str | None
    new_head: bool
    is_flat: bool = False  # the model gives documents of a query (nearly) one score


def model_card(config: TrainConfig, reranker: Reranker, outcome: Outcome, step: int, data: str) -> str:
    """Markdown with the metadata block that model hubs read.

    Args:
        config: of the training.
        reranker: the model.
        outcome: what the training brought.
        step: that the model is of.
        data: the summary of the data sets.
    """
    before, after = outcome.before, outcome.after
    rows = "\n".join(f"| {key} | {before.get(key, math.nan):.4f} | {value:.4f} |" for key, value in after.items())
    table = f"| metric on {config.val_dataset} | before training | after |\n|---|---|---|\n{rows}\n\n" if after else ""
    table += f"{verdict(outcome)}."
    base = config.model_name_or_path
    on_hub = None if Path(base).expanduser().exists() else base  # a hub takes no path of somebody's disk
    shown = (
        "max_len",
        "loss_type",
        "epochs",
        "lr",
        "batch_size",
        "gradient_accumulation_steps",
        "warmup_proportion",
        "seed",
        "mixed_precision",
    )
    settings = "\n".join(f"| {key} | {getattr(config, key)} |" for key in shown)
    about = f"""Trained for {step} steps on {config.train_dataset} (labels {config.min_label:g} to {config.max_label:g}).

```
{data}
```

{table}

| setting | value |
|---|---|
{settings}

"""
    return _card(
        reranker, f"Reranker fine-tuned from {on_hub or Path(base).expanduser().resolve().name}", on_hub, about
    )


def verdict(outcome: Outcome) -> str:
    """Whether training has made the model better, by the metric that judges it; a model that orders nothing is called that."""
    if outcome.is_flat:
        return (
            "The model orders NOTHING: it gives all documents of a query (nearly) one score; keep what you had, and try a smaller "
            "lr, more data or another loss_type"
        )
    if not (outcome.before and outcome.after):
        return "Without val_dataset nobody has measured whether the model is better than what it started from"
    name = outcome.judged_by
    if name is None:
        return (
            "The validation data cannot say whether the model is better than what it started from: every order of its documents is "
            "worth the same, and the loss finds nothing to learn there"
        )
    old, new = outcome.before[name], outcome.after[name]
    better = new < old if name == "loss" else new > old
    start = "what it started from" + (", which had a new head and ordered by chance" if outcome.new_head else "")
    advice = "" if better else "; keep what you had, or try another lr, more epochs or more data"
    return f"The model is {'better' if better else 'NOT better'} than {start}: {name} {old:.4f} before training, {new:.4f} after{advice}"


def plain_card(reranker: Reranker) -> str:
    """The card of a model that rankery saves without having trained it: how it is used."""
    return _card(reranker, "Reranker", None, "")


def _card(reranker: Reranker, title: str, base: str | None, about: str) -> str:
    cls = type(reranker).__name__
    elsewhere = _decoder_elsewhere(reranker) if isinstance(reranker, LLMDecoder) else _encoder_elsewhere(reranker)
    base_line = f"base_model: {base}\n" if base else ""
    return f"""---
library_name: transformers
pipeline_tag: text-ranking
{base_line}tags: [reranker, cross-encoder, rankery]
---

# {title}

```python
from rankery import {cls}
reranker = {cls}.from_pretrained("path/of/this/folder")
print(reranker.rerank("my query", ["one document", "another document"]))
```

{about}Pairs are cut to {reranker.template.max_len} tokens: the document first, the query only where it would leave the document less
than half of the room. {elsewhere}
`rankery.json` holds golden scores.
"""


def _encoder_elsewhere(reranker: Reranker) -> str:
    template = reranker.template
    plain = (template.query_format, template.document_format) == ("{}", "{}")
    formatted = (
        ""
        if plain
        else f" Give them the query as `{template.query_format}` and the document as `{template.document_format}`."
    )
    if template.document_first:
        formatted += " The document is the first text of the pair, the query the second."
    if template.special_tokens_in_text == "literal":
        formatted += f"\n{LITERAL}other programs read them as control tokens."
    return (
        "transformers (AutoModelForSequenceClassification) and sentence-transformers (CrossEncoder) give the same\n"
        f"logits for pairs within that length; of longer ones they cut the longer text first, whichever it is.{formatted}"
    )


def _decoder_elsewhere(reranker: LLMDecoder) -> str:
    """Code that scores with transformers alone; the pieces are tokenised apart, as in training."""
    prompt, template = reranker.prompt, reranker.template
    texts = [
        f"{prompt.query_format!r}.replace('{{}}', 'my query')",
        f"{prompt.document_format!r}.replace('{{}}', 'one document')",
    ]
    first, second = reversed(texts) if prompt.document_first else texts
    pieces = ", ".join([first, repr(prompt.seq), second, repr(prompt.special_token)])
    literally = (
        f" {LITERAL}these lines read them as control tokens." if template.special_tokens_in_text == "literal" else ""
    )
    if reranker.reading.head == "score":
        auto, read = "AutoModelForSequenceClassification", "print(float(model(ids).logits[0, 0]))"
    else:
        words = reranker.scorer.vocabulary.rows  # type: ignore[union-attr]
        auto = "AutoModelForCausalLM"
        no = f" - logits[{words[1]}]" if len(words) == 2 else ""
        read = f"logits = model(ids).logits[0, -1]\nprint(float(logits[{words[0]}]{no}))"
    return f"""With transformers alone, for a pair that fits:

```python
import torch
from transformers import {auto}, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
model = {auto}.from_pretrained("path/of/this/folder", dtype="float32")
pieces = [{pieces}]
ids = {list(template.prefix)} + [i for text in pieces for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
ids = torch.tensor([ids])
{read}
```

{"The score is the logit of the next token" if reranker.reading.head == "yes_no" else "The score is read at the last token"}.{literally}
"""
