"""Pairs laid end to end as one row: where each begins, what they share, and which of them attend together.

Contract: every real token is computed once, in every layer; what the documents of a query have in common before them (a
decoder's prompt and query) is laid out once, as a trunk, if asked for. Only attention sees pairs as rows again: pairs of about one
length form a chunk, padded to its longest; where a kernel takes the row as it lies, chunks are never made. Cost: index arrays
of a micro-batch. Rejected: a call for every pair (hundreds of small kernels a layer), and one mask over the whole row (work that
grows with the square of the micro-batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch

from rankery.data.plan import cut_points

ROWS_SEARCHED = 256  # a search over thousands takes a hundred milliseconds
# Shapes: B pairs, N tokens of the row, M places in all chunks (padding included), T places of a chunk's row.


@dataclass(frozen=True)
class Chunk:
    """Pieces that attend at once, as rows."""

    lengths: tuple[int, ...]  # of each row
    width: int  # of the longest
    trunk: int | None = None  # which trunk its tokens see before their own

    @property
    def places(self) -> int:
        return len(self.lengths) * self.width


@dataclass(frozen=True, eq=False)
class Rows:
    """The pieces of a packed row as rows of chunks."""

    chunks: tuple[Chunk, ...]
    token: torch.Tensor  # [M] which token stands in each place; any in padding
    place: torch.Tensor  # [N] where each token stands
    padding: torch.Tensor  # [places without a token] which they are
    lengths: torch.Tensor  # [rows of all chunks]

    def to(self, device: torch.device) -> Rows:
        return replace(self, **_moved(self, device))


@dataclass(frozen=True, eq=False)
class Packing:
    """The layout of a packed row: the trunks, then each pair's own tokens; these are its pieces."""

    trunks: tuple[tuple[int, int], ...]  # (a pair that begins with it, tokens)
    start: tuple[int, ...]  # [B] tokens of each pair that its trunk holds
    pieces: np.ndarray  # [pieces] tokens of each
    before: np.ndarray  # [pieces] index of the trunk that its tokens see before their own; -1: none
    position_ids: torch.Tensor  # [1, N], restarting at each pair
    first: torch.Tensor  # [B] index of each pair's first own token
    last: torch.Tensor  # [B] index of each pair's last token
    bounds: torch.Tensor  # [pieces + 1] int32, where each begins, and the end
    longest: int  # piece
    masks: dict[object, torch.Tensor | None] = field(default_factory=dict)  # attention masks, made by the first layer

    @cached_property
    def rows(self) -> Rows:
        """Made when first asked for, where the other tensors are."""
        return _rows_of(self.pieces, self.before).to(self.position_ids.device)

    def to(self, device: torch.device) -> Packing:
        moved = replace(self, **_moved(self, device), masks={})
        if "rows" in self.__dict__:
            moved.__dict__["rows"] = self.rows.to(device)
        return moved


def _moved(layout: Rows | Packing, device: torch.device) -> dict[str, torch.Tensor]:
    tensors = {f.name: getattr(layout, f.name) for f in fields(layout)}
    return {name: upload(value, device) for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; a copy to a GPU runs beside what the GPU and the host do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def packing_of(
    lengths: Sequence[int], heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
) -> Packing:
    """The layout of pairs in this order.

    Args:
        lengths: tokens of each pair, at least 1.
        heads: tokens of each pair before its document, where pairs of one query and one head begin alike; None: share nothing.
        queries: index of each pair's query, with `heads`.
    """
    of_trunk, trunks = _shared(lengths, heads, queries)
    trunk_lengths = np.array([length for _, length in trunks], dtype=np.int64)
    start: np.ndarray = np.append(trunk_lengths, 0)[of_trunk]  # -1: no trunk, 0 tokens
    own = np.asarray(lengths, dtype=np.int64) - start
    pieces = np.concatenate([trunk_lengths, own])
    begin = np.cumsum(pieces) - pieces
    at = np.concatenate([np.zeros(len(trunks), dtype=np.int64), start])  # position of each piece's first token
    return Packing(
        trunks=trunks,
        start=tuple(start.tolist()),
        pieces=pieces,
        before=np.concatenate([np.full(len(trunks), -1, dtype=np.int64), of_trunk]),
        position_ids=torch.from_numpy(np.arange(int(pieces.sum())) + np.repeat(at - begin, pieces))[None],
        first=torch.from_numpy(begin[len(trunks) :]),
        last=torch.from_numpy((begin + pieces - 1)[len(trunks) :]),
        bounds=torch.from_numpy(np.append(begin, pieces.sum()).astype(np.int32)),
        longest=int(pieces.max()),
    )


def _rows_of(pieces: np.ndarray, before: np.ndarray) -> Rows:
    """Pieces that see the same trunk, by length, in the chunks that compute fewest places."""
    begin = np.cumsum(pieces) - pieces
    chunks: list[Chunk] = []
    token: list[np.ndarray] = []
    for trunk in np.unique(before):
        members = np.flatnonzero(before == trunk)
        by_length = members[np.argsort(-pieces[members], kind="stable")]
        for rows in np.split(by_length, chunk_points(pieces[by_length], int(pieces.sum()))):
            chunk = Chunk(tuple(pieces[rows].tolist()), int(pieces[rows[0]]), int(trunk) if trunk >= 0 else None)
            across = np.arange(chunk.width)
            token.append(np.where(across < pieces[rows, None], begin[rows, None] + across, -1).ravel())
            chunks.append(chunk)
    tokens = np.concatenate(token)
    real = np.flatnonzero(tokens >= 0)
    place: np.ndarray = np.empty(int(pieces.sum()), dtype=np.int64)
    place[tokens[real]] = real
    return Rows(
        chunks=tuple(chunks),
        token=torch.from_numpy(np.maximum(tokens, 0)),
        place=torch.from_numpy(place),
        padding=torch.from_numpy(np.flatnonzero(tokens < 0)),
        lengths=torch.tensor([length for chunk in chunks for length in chunk.lengths]),
    )


def chunk_points(lengths: np.ndarray, most: int) -> np.ndarray:
    """Where to cut rows, sorted by falling length, so that computed places plus overheads are fewest.

    Many rows are searched by length: those of one length stay together, which may cost a chunk more.

    Args:
        lengths: tokens of each row.
        most: places of a chunk, padding included.
    """
    if len(lengths) <= ROWS_SEARCHED:
        return np.array(cut_points(np.ones(len(lengths), dtype=np.int64), lengths, most), dtype=np.int64)
    falling, counts = np.unique(-lengths, return_counts=True)
    points = cut_points(counts, -falling, most)
    return np.cumsum(counts)[np.array(points, dtype=np.int64) - 1]


def _shared(
    lengths: Sequence[int], heads: Sequence[int] | None, queries: Sequence[int] | None
) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """(the trunk of each pair, -1 for none; the trunks). A pair keeps a token of its own, the one that is scored."""
    of_trunk: np.ndarray = np.full(len(lengths), -1, dtype=np.int64)
    if heads is None or queries is None:
        return of_trunk, ()
    alike: dict[tuple[int, int], list[int]] = {}
    for pair, (length, head, query) in enumerate(zip(lengths, heads, queries, strict=True)):
        alike.setdefault((query, min(head, length - 1)), []).append(pair)
    trunks: list[tuple[int, int]] = []
    for (_, head), pairs in alike.items():
        if len(pairs) > 1 and head > 0:
            of_trunk[pairs] = len(trunks)
            trunks.append((pairs[0], head))
    return of_trunk, tuple(trunks)
