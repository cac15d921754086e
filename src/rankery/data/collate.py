"""Planned pair indices -> `Batch`: tensors that a model takes.

Contract: rows are in the order asked for; padding goes right, is masked, and is never scored. Cost: a copy of the ids.
The place for packing (no padding at all): a second collate beside `collate`, chosen by the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rankery.data.encoding import EncodedPairs
from rankery.data.plan import Plan

# Shapes: B pairs, T tokens of the longest (rounded up to a multiple on accelerators).


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    input_ids: torch.Tensor  # [B, T] int64
    attention_mask: torch.Tensor  # [B, T] int64, 1 for real tokens
    token_type_ids: torch.Tensor | None  # [B, T] int64
    targets: torch.Tensor | None  # [B] float32 in [0, 1]
    pairs: tuple[int, ...]  # [B] indices into the data, for messages and scattering
    weight: float = 1.0  # 0: runs to keep processes in step, adds nothing

    def model_inputs(self) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    def to(self, device: torch.device) -> Batch:
        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        inputs = (self.input_ids.to(device, non_blocking=True), self.attention_mask.to(device, non_blocking=True))
        return Batch(*inputs, move(self.token_type_ids), move(self.targets), self.pairs, self.weight)


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


def collate(data: EncodedPairs, pairs: np.ndarray, weight: float = 1.0, multiple: int = 1) -> Batch:
    """The batch of some pairs of the data."""
    tensors = pad([data.build(int(pair)) for pair in pairs], data.template.pad_token_id, multiple)
    targets = torch.from_numpy(data.targets(pairs))
    return Batch(*tensors, targets, tuple(map(int, pairs)), weight)


class StepBatches(torch.utils.data.Dataset[list[Batch]]):
    """Item n: what one process runs in step n of the plan. A map, so that workers may prefetch and a run may resume."""

    def __init__(self, data: EncodedPairs, plan: Plan, process: int, multiple: int):
        self.data, self.plan, self.process, self.multiple = data, plan, process, multiple

    def __getitem__(self, number: int) -> list[Batch]:
        mine = self.plan.step(number).micro_batches[self.process]
        return [collate(self.data, batch.examples, batch.weight, self.multiple) for batch in mine]
