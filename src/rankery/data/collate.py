"""Planned pair indices -> `Batch`: tensors that a model takes; and `Work`: batches whose logits one loss is computed over.

Contract: pairs are in the order asked for, packed into one row or padded to one length; padding goes right, is masked, and is
never scored. Cost: a copy of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rankery.data.encoding import EncodedPairs
from rankery.data.packing import Packing, packing_of, upload
from rankery.data.plan import Layout, MicroBatch, Plan

# Shapes: B pairs, T tokens of the longest (rounded up to a multiple on accelerators), N tokens of all pairs.
Row = tuple[np.ndarray, np.ndarray | None]  # ids and token types of a pair


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once."""

    input_ids: torch.Tensor  # [B, T] int64; packed: [1, N]
    attention_mask: torch.Tensor | None  # [B, T] int64, 1 for real tokens; packed: None
    token_type_ids: torch.Tensor | None  # as input_ids
    packing: Packing | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of a scorer's forward pass."""
        return self.input_ids, self.attention_mask, self.token_type_ids, self.packing

    def __len__(self) -> int:
        return len(self.input_ids if self.packing is None else self.packing.first)

    def to(self, device: torch.device) -> Batch:
        ids, mask, types = (x if x is None else upload(x, device) for x in self.arguments[:3])
        return Batch(ids, mask, types, self.packing and self.packing.to(device))


@dataclass(frozen=True)
class Work:
    """A micro-batch; one batch, unless its group is over the token budget."""

    batches: tuple[Batch, ...]
    targets: torch.Tensor  # [pairs of all batches, 2] float32, as `EncodedPairs.targets`
    pairs: np.ndarray  # [same] indices into the data, for messages and seeds
    sizes: tuple[int, ...]  # pairs of each example
    weight: float = 1.0  # 0: runs to keep processes in step, adds nothing
    passes: int = 1  # to run on all processes; those beyond `batches` repeat the last and add nothing

    def to(self, device: torch.device) -> Work:
        """The same on a device; the batches of a large group stay where they are until they run."""
        batches = tuple(batch.to(device) for batch in self.batches) if len(self.batches) == 1 else self.batches
        return replace(self, batches=batches, targets=upload(self.targets, device))


def pack(
    rows: Sequence[Row], heads: Sequence[int] | None = None, queries: Sequence[int] | None = None, chunked: bool = True
) -> Batch:
    """Pairs end to end, without padding; `heads` and `queries` as for `packing_of`.

    `chunked`: attention will want them as rows of chunks, which are laid out here; else where it asks for them after all.
    """
    packing = packing_of([len(ids) for ids, _ in rows], heads, queries)
    if chunked or packing.trunks:  # no kernel shares tokens
        _ = packing.rows

    def joined(which: int) -> torch.Tensor:
        trunks = [rows[pair][which][:length] for pair, length in packing.trunks]  # type: ignore[index]
        own = [row[which][start:] for row, start in zip(rows, packing.start, strict=True)]  # type: ignore[index]
        return torch.from_numpy(np.concatenate([*trunks, *own]).astype(np.int64))[None]

    return Batch(joined(0), None, None if rows[0][1] is None else joined(1), packing)


def pad(rows: Sequence[Row], pad_token_id: int, multiple: int = 1, most: int = 0) -> Batch:
    """Pairs as rows of one length, rounded up to a multiple, but not beyond `most`: a table of positions may end there."""
    longest = max(len(ids) for ids, _ in rows)
    width = max(longest, min(-(-longest // multiple) * multiple, most))
    input_ids: np.ndarray = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask: np.ndarray = np.zeros((len(rows), width), dtype=np.int64)
    types: np.ndarray = np.zeros((len(rows), width), dtype=np.int64)
    for i, (ids, row_types) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        if row_types is not None:
            types[i, : len(ids)] = row_types
    token_types = torch.from_numpy(types) if rows[0][1] is not None else None
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(mask), token_types)


def collate(data: EncodedPairs, pairs: np.ndarray, layout: Layout, multiple: int = 1, chunked: bool = True) -> Batch:
    """The batch of some pairs of the data; `multiple`: what padded lengths are rounded up to; `chunked` as for `pack`."""
    rows = [data.build(int(pair)) for pair in pairs]
    if layout in ("padded", "by_length"):
        return pad(rows, data.template.pad_token_id, multiple if layout == "padded" else 1, data.template.max_len)
    if layout == "packed":
        return pack(rows, chunked=chunked)
    return pack(rows, data.heads[pairs].tolist(), data.arrays["pair_query"][pairs].tolist())


def work_of(
    data: EncodedPairs, micro_batch: MicroBatch, layout: Layout, multiple: int = 1, chunked: bool = True
) -> Work:
    """A planned micro-batch as tensors."""
    return Work(
        tuple(collate(data, piece, layout, multiple, chunked) for piece in micro_batch.pieces),
        torch.from_numpy(data.targets(micro_batch.pairs)),
        micro_batch.pairs,
        micro_batch.sizes,
        micro_batch.weight,
        micro_batch.passes,
    )


class StepBatches(torch.utils.data.Dataset[list[Work]]):
    """Item n: what one process runs in step n of the plan. A map, so that workers may prefetch and a run may resume."""

    def __init__(self, data: EncodedPairs, plan: Plan, process: int, multiple: int, chunked: bool = True):
        self.data, self.plan, self.process, self.multiple, self.chunked = data, plan, process, multiple, chunked

    def __getitem__(self, number: int) -> list[Work]:
        mine = self.plan.step(number).micro_batches[self.process]
        return [work_of(self.data, micro_batch, self.plan.layout, self.multiple, self.chunked) for micro_batch in mine]
