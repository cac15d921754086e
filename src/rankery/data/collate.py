"""Planned pair indices -> `Batch`: tensors that a model takes; and `Work`: batches whose logits one loss is computed over.

Contract: rows are in the order asked for; padding goes right, is masked, and is never scored. Cost: a copy of the ids.
The place for packing (no padding at all): a second collate beside `collate`, chosen by the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rankery.data.encoding import EncodedPairs
from rankery.data.plan import MicroBatch, Plan

# Shapes: B pairs, T tokens of the longest (rounded up to a multiple on accelerators).


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once."""

    input_ids: torch.Tensor  # [B, T] int64
    attention_mask: torch.Tensor  # [B, T] int64, 1 for real tokens
    token_type_ids: torch.Tensor | None  # [B, T] int64

    def to(self, device: torch.device) -> Batch:
        types = self.token_type_ids
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            None if types is None else types.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Work:
    """A micro-batch; one batch, unless its group is over the token budget."""

    batches: tuple[Batch, ...]
    targets: torch.Tensor  # [pairs of all batches] float32 in [0, 1]
    pairs: np.ndarray  # [same] indices into the data, for messages and seeds
    sizes: tuple[int, ...]  # pairs of each example
    weight: float = 1.0  # 0: runs to keep processes in step, adds nothing
    passes: int = 1  # to run on all processes; those beyond `batches` repeat the last and add nothing

    def to(self, device: torch.device) -> Work:
        """The same on a device; the batches of a large group stay where they are until they run."""
        batches = tuple(batch.to(device) for batch in self.batches) if len(self.batches) == 1 else self.batches
        return replace(self, batches=batches, targets=self.targets.to(device, non_blocking=True))


def pad(
    rows: Sequence[tuple[np.ndarray, np.ndarray | None]], pad_token_id: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(input_ids, attention_mask, token_type_ids or None), each [B, T], of rows of (ids, token types)."""
    width = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    input_ids: np.ndarray = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask: np.ndarray = np.zeros((len(rows), width), dtype=np.int64)
    types: np.ndarray = np.zeros((len(rows), width), dtype=np.int64)
    for i, (ids, row_types) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        if row_types is not None:
            types[i, : len(ids)] = row_types
    token_types = torch.from_numpy(types) if rows[0][1] is not None else None
    return torch.from_numpy(input_ids), torch.from_numpy(mask), token_types


def collate(data: EncodedPairs, pairs: np.ndarray, multiple: int = 1) -> Batch:
    """The batch of some pairs of the data."""
    return Batch(*pad([data.build(int(pair)) for pair in pairs], data.template.pad_token_id, multiple))


def work_of(data: EncodedPairs, micro_batch: MicroBatch, multiple: int = 1) -> Work:
    """A planned micro-batch as tensors."""
    return Work(
        tuple(collate(data, piece, multiple) for piece in micro_batch.pieces),
        torch.from_numpy(data.targets(micro_batch.pairs)),
        micro_batch.pairs,
        micro_batch.sizes,
        micro_batch.weight,
        micro_batch.passes,
    )


class StepBatches(torch.utils.data.Dataset[list[Work]]):
    """Item n: what one process runs in step n of the plan. A map, so that workers may prefetch and a run may resume."""

    def __init__(self, data: EncodedPairs, plan: Plan, process: int, multiple: int):
        self.data, self.plan, self.process, self.multiple = data, plan, process, multiple

    def __getitem__(self, number: int) -> list[Work]:
        mine = self.plan.step(number).micro_batches[self.process]
        return [work_of(self.data, micro_batch, self.multiple) for micro_batch in mine]
