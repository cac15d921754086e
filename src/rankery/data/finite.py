"""Scores that are no finite numbers never rank: one check, one sentence, wherever scores are made.

Contract: an InputError names the first text that has such a score. Infinities count as NaN does: a model that gives one has
overflown, and two of them are a tie that means nothing. Rejected: NaN last with a warning, which hides a relevant document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rankery.errors import InputError, option


def check_finite(scores: Any, where: Callable[[int], str], scorer: object = "the model", shared: bool = False) -> None:
    """Whether all scores are finite numbers.

    Args:
        scores: [N] or [N, labels], numpy or torch on the CPU.
        where: says which text a row is of.
        scorer: what gave them, for the message.
        shared: all processes have these scores.

    Raises:
        InputError: some are not, with the first of them.
    """
    values = np.asarray(scores)
    if np.isfinite(values).all():
        return
    odd = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    raise InputError(
        f"{len(odd):,} of {len(values):,} scores of {scorer} are not finite, the first at {where(int(odd[0]))}; look at these "
        f"texts, else at the model's weights; a model in float16 may want bfloat16 or float32 ({option('dtype')})",
        shared=shared,
    )
