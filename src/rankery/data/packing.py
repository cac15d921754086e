"""Pairs laid end to end as one row: where each begins, and which of them attend together.

Contract: every real token is computed once, in every layer; only attention, which is within a pair, sees the pairs as rows again:
pairs of about one length form a chunk, padded to its longest. Cost: index arrays of a micro-batch. Rejected: a call for every pair
(hundreds of small kernels a layer), and one mask over the whole row (work that grows with the square of the micro-batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from rankery.data.plan import cut_points

# Shapes: B pairs, N tokens of all, M places in all chunks (padding included), T places of a chunk's row.


@dataclass(frozen=True)
class Chunk:
    """Pairs that attend at once, as rows."""

    lengths: tuple[int, ...]  # of each row
    width: int  # of the longest

    @property
    def places(self) -> int:
        return len(self.lengths) * self.width


@dataclass(frozen=True, eq=False)
class Packing:
    """The layout of a packed row."""

    position_ids: torch.Tensor  # [1, N], restarting at each pair
    first: torch.Tensor  # [B] index of each pair's first token
    last: torch.Tensor  # [B] index of each pair's last token
    token: torch.Tensor  # [M] which token stands in each place; any in padding
    place: torch.Tensor  # [N] where each token stands
    padding: torch.Tensor  # [places without a token] which they are
    chunks: tuple[Chunk, ...]
    masks: dict[object, torch.Tensor | None] = field(default_factory=dict)  # attention masks, made by the first layer

    def to(self, device: torch.device) -> Packing:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved, masks={})


def packing_of(lengths: Sequence[int]) -> Packing:
    """The layout of pairs of these lengths, each at least 1, in this order."""
    sizes = np.asarray(lengths, dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    by_length = np.argsort(-sizes, kind="stable")
    ones: np.ndarray = np.ones(len(sizes), dtype=np.int64)
    chunks: list[Chunk] = []
    token: list[np.ndarray] = []
    for rows in np.split(by_length, cut_points(ones, sizes[by_length], int(sizes.sum()))):
        chunk = Chunk(tuple(sizes[rows].tolist()), int(sizes[rows[0]]))
        across = np.arange(chunk.width)
        token.append(np.where(across < sizes[rows, None], first[rows, None] + across, -1).ravel())
        chunks.append(chunk)
    tokens = np.concatenate(token)
    real = np.flatnonzero(tokens >= 0)
    place: np.ndarray = np.empty(int(sizes.sum()), dtype=np.int64)
    place[tokens[real]] = real
    return Packing(
        position_ids=torch.from_numpy(np.arange(len(place)) - np.repeat(first, sizes))[None],
        first=torch.from_numpy(first),
        last=torch.from_numpy(first + sizes - 1),
        token=torch.from_numpy(np.maximum(tokens, 0)),
        place=torch.from_numpy(place),
        padding=torch.from_numpy(np.flatnonzero(tokens < 0)),
        chunks=tuple(chunks),
    )
