"""Writes docs/configuration.md from the fields of `TrainConfig`, so that the page cannot say anything else than the program.

Run it after a change of rankery/config.py: python docs/make_configuration.py. Rejected: a table written by hand.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rankery.config import ALIASES, TrainConfig

PAGE = Path(__file__).with_name("configuration.md")
SECTIONS = {  # first key of each section
    "model_name_or_path": "Model",
    "train_dataset": "Data",
    "output_dir": "Training",
    "eval_steps": "Evaluation, saving, logging",
}
HEAD = """# Configuration

Written by docs/make_configuration.py from rankery/config.py; a test compares the two.

A configuration is a YAML file of `key: value` lines, for example config/training_bert.yaml. Keys on the command line
(`rankery train --config FILE lr=3e-5 epochs=3`) or in Python (`rankery.train(FILE, lr=3e-5, epochs=3)`) replace those of
the file; keys given nowhere have the defaults below. An empty value means the default (of best_metric: none). Unknown keys and values of
another type are errors, all reported at once, before anything is written. The resolved configuration is saved as
`config.yaml` in output_dir; `rankery train --config` on that file, with another output_dir, runs the same again.
Words that YAML readers disagree on (`yes`, `on`, `1:30`, `010`, `1_000`, dates) are texts, so a key that wants a number refuses them;
no key may stand twice, at any depth, and a file stands for 10,000 values at most, aliases counted as often as they are used.

One optimiser update sees `batch_size` x `gradient_accumulation_steps` x processes pairs. How they are cut into
micro-batches (`token_budget`) changes speed and memory, and of the result rounding only (with dropout on, also the masks).
"""
TAIL = """
## Environment variables

| variable | meaning |
|---|---|
| `RANKERY_CACHE` | folder of tokenised data, where dataset_cache_dir is empty |
| `RANKERY_KEEP_BLOCKS=0` | leaves glibc's memory allocator as it is (by default freed large blocks are kept: faster on CPUs) |
| `RANKERY_CPU_ENGINES=1` | lets the sharded launch files run on CPUs, for tests; without it they stop and name config/ddp.yaml |
"""


def page() -> str:
    """The whole page, Markdown."""
    blocks = [HEAD]
    other_names = {name: alias for alias, name in ALIASES.items()}
    for key, field in TrainConfig.model_fields.items():
        if key in SECTIONS:
            blocks.append(f"\n## {SECTIONS[key]}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        also = f" (also named `{other_names[key]}`)" if key in other_names else ""
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        assert field.description, f"{key} has no description"
        blocks.append(f"| `{key}` | {_type(field.annotation)} | {default} | {field.description}{also} |\n")
    return "".join([*blocks, TAIL])


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f'`"{value}"`' if isinstance(value, str) and value in ("", "{}") else f"{value}"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is list:
        return f"list of {_plain(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict:
        return "mapping of {}s to {}s".format(*map(_plain, get_args(annotation)))
    return _plain(annotation)


def _plain(kind: type) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[kind]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
