"""metrics.jsonl and a tracker (tensorboard or wandb), cut back and continued when a run resumes.

Contract: metrics.jsonl has one JSON object an event, with `step`; a resumed run first cuts it to the bytes it had at its
checkpoint, so that it ends up as the uninterrupted run's. Values that depend on the clock go to the tracker only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Logs on the main process."""

    def __init__(self, folder: Path, log_with: str, run_id: str, step: int, metrics_bytes: int, config: dict[str, Any]):
        path = folder / METRICS_FILE
        path.touch()
        os.truncate(path, min(metrics_bytes, path.stat().st_size))
        self.file = path.open("ab")
        self.board = self.wandb = None
        if log_with == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        elif log_with == "wandb":
            import wandb

            self.wandb = wandb.init(project="rankery", id=run_id, resume="allow", dir=str(folder), config=config)

    def log(self, step: int, values: dict[str, float], clocked: dict[str, float] | None = None) -> None:
        """Logs values at a step; `clocked` ones (rates, times) do not go to metrics.jsonl."""
        self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self.file.flush()
        for key, value in {**values, **(clocked or {})}.items():
            if self.board is not None:
                self.board.add_scalar(key, value, step)
        if self.wandb is not None:
            self.wandb.log({**values, **(clocked or {})}, step=step)

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, on the disk."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def check_tracker(log_with: str) -> str | None:
    """A problem with the wanted tracker, before anything is written."""
    from importlib.util import find_spec

    package = {"wandb": "wandb", "tensorboard": "tensorboard"}.get(log_with)
    if package and find_spec(package) is None:
        return f"log_with is {log_with}, but {package} is not installed; install it: pip install {package}"
    return None
