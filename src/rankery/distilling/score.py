"""`rankery.score`: models and data -> teacher scores as training data.

Contract: the teachers' numbers and the places are checked before a model is opened; the scoring itself, which goes on where it was
stopped, is teacher.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankery.arguments import checked
from rankery.data.files import check_outside, expand_paths
from rankery.distilling.parts import is_delivered
from rankery.distilling.teacher import Teacher, check_output, checked_pairs, score_file
from rankery.errors import InputError
from rankery.models.opening import open_reranker, takes_prompt
from rankery.processes import Group


@checked
def score(
    models: str | Path | Sequence[str | Path],
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    prompt: str | Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_len: int | None = None,
    trust_remote_code: bool = False,
    store: str | Path | None = None,
    keep_lists: bool = False,
    overwrite: bool = False,
    group: Group | None = None,
) -> Path:
    """Scores every (query, document) of the data and writes the distillation format to `output`; returns it.

    A run that was stopped goes on where it was, and the output is byte for byte that of one that was not.

    Args:
        models: folder, hub name or GGUF file of the teacher; several are averaged, in logit space.
        data: JSONL of any accepted form, or {"query", "documents"} lines; files or globs.
        output: file to write; it appears when all is done.
        weights: one number above 0 for each model; None: all count alike.
        temperatures: what each model's logits are divided by; None: 1.
        prompt: preset to ask language models with that rankery has not saved, as for `LLMDecoder.from_pretrained`; or one for each
            model, "none" for those that take none.
        device: as for `from_pretrained`.
        dtype: same.
        max_len: same; tokens of a pair at most, of models that rankery has not saved (None: 512).
        trust_remote_code: same.
        store: file that keeps logits by content, for other data sets and runs.
        keep_lists: write documents of `neg` apart, with `neg_scores`, for a false_negative_margin; else `pos` holds all.
        overwrite: replace `output` if it is there.
        group: the processes that share the work; None: this one alone.

    Raises:
        InputError: data or models that cannot be read, wrong weights or temperatures, an output that is there or among the data,
            half a run of other data or teachers, a score that is not finite.
    """
    named = [models] if isinstance(models, (str, Path)) else list(models)
    check_shares(len(named), weights, temperatures)
    check_prompts(len(named), prompt)
    paths, group = expand_paths(data), group or Group()
    if group.process == 0:
        check_output(Path(output), paths, overwrite or is_delivered(Path(output)))
        check_outside(Path(output), named)
    pairs = checked_pairs(paths, keep_lists)
    options = {"device": device, "dtype": dtype, "max_len": max_len, "trust_remote_code": trust_remote_code}
    teachers = open_teachers(named, weights, temperatures, prompt, **options)
    return score_file(
        teachers, paths, Path(output), keep_lists=keep_lists, overwrite=overwrite, store=Path(store) if store else None,
        process=group.process, processes=group.processes, meet=group.meet, pairs=pairs,
    )  # fmt: skip


def check_shares(models: int, weights: Sequence[float] | None, temperatures: Sequence[float] | None) -> None:
    """Whether there is one number above 0 for each model.

    Raises:
        InputError: there is not.
    """
    for name, values in (("weight", weights), ("temperature", temperatures)):
        if values is not None and (len(values) != models or not all(0 < value < math.inf for value in values)):
            raise InputError(f"{name} is {list(values)}; expected one number above 0 for each of {models} models")


def open_teachers(
    models: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    prompt: str | Sequence[str] | None = None,
    **options: Any,
) -> list[Teacher]:
    """The models as teachers; prompts as for `score`, `options` as for `open_reranker`."""
    ones = [1.0] * len(models)
    prompts = _prompts(models, prompt, **options)
    return [
        Teacher(open_reranker(model, asked, **options), weight, temperature, str(model))
        for model, asked, weight, temperature in zip(
            models, prompts, weights or ones, temperatures or ones, strict=True
        )
    ]


def check_prompts(models: int, prompt: str | Sequence[str] | None) -> None:
    """Whether there is one prompt, or one for each model.

    Raises:
        InputError: there is not.
    """
    if prompt is not None and not isinstance(prompt, str) and len(prompt) not in (1, models):
        raise InputError(
            f'prompt is {list(prompt)}; expected one, or one for each of {models} models ("none" for those that take none)'
        )


def _prompts(models: Sequence[str | Path], prompt: str | Sequence[str] | None, **options: Any) -> list[str | None]:
    """The prompt of each model. One for several is for those that take one; where none does, opening says so."""
    if prompt is None:
        return [None] * len(models)
    if not isinstance(prompt, str) and len(prompt) == len(models) > 1:
        return [None if one == "none" else one for one in prompt]
    (one,) = [prompt] if isinstance(prompt, str) else prompt
    takes = [len(models) == 1 or takes_prompt(model, **options) for model in models]
    return [one if taken or not any(takes) else None for taken in takes]
