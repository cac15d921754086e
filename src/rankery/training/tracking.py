"""What a run shows: metrics.jsonl, timings.jsonl and a tracker (tensorboard or wandb), continued when a run resumes; a progress bar.

Contract: metrics.jsonl has one JSON object an event, with `step`; a resumed run first cuts it to the bytes it had at its
checkpoint, so that it ends up as the uninterrupted run's. What depends on clock, machine or cut of the micro-batches goes to
timings.jsonl, which loses the steps that run again; nothing in it waits for an accelerator. What a tracker writes has the run's id in its name, by which it is found when the run is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from rankery.data.collate import Work
from rankery.models.folders import not_saved, write_whole

if TYPE_CHECKING:
    from rankery.training.run import Run

METRICS_FILE, TIMINGS_FILE = "metrics.jsonl", "timings.jsonl"


class Tracker:
    """Logs on the main process."""

    def __init__(self, folder: Path, log_with: str, run_id: str, step: int, metrics_bytes: int, config: dict[str, Any]):
        path = folder / METRICS_FILE
        path.touch()
        os.truncate(path, min(metrics_bytes, path.stat().st_size))
        self.file = path.open("ab")
        self.timings = _timings_until(folder / TIMINGS_FILE, step).open("ab")
        self.board = self.wandb = None
        if log_with == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(folder / "tensorboard"), purge_step=step + 1 if step else 0, filename_suffix=f".{run_id}"
            )
        elif log_with == "wandb":
            import wandb

            self.wandb = wandb.init(project="rankery", id=run_id, resume="allow", dir=str(folder), config=config)

    def log(self, step: int, values: dict[str, float], clocked: dict[str, float] | None = None) -> None:
        """Logs values at a step; `clocked` ones go to timings.jsonl.

        Raises:
            InputError: the disk is full; half a line is cut when the run resumes.
        """
        for file, row in ((self.file, values), (self.timings, clocked)):
            try:
                if row:
                    file.write(json.dumps({"step": step, **row}).encode() + b"\n")
                    file.flush()
            except OSError as error:
                raise not_saved(Path(file.name), error) from error
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
        self.timings.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _timings_until(path: Path, step: int) -> Path:
    """The file without what is about to run again, and without half a line of a killed run."""
    kept = [f"{json.dumps(row)}\n" for row in read_rows(path) if row["step"] <= step]
    write_whole(path, "".join(kept))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl or timings.jsonl; none where the file is absent."""
    rows: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def remove_traces(folder: Path, run_id: str) -> None:
    """Deletes metrics.jsonl, timings.jsonl and what the trackers wrote of a run; what else is in their folders stays."""
    for name in (METRICS_FILE, TIMINGS_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"tensorboard/events.out.tfevents.*.{run_id}"):
        path.unlink()
    for path in folder.glob(f"wandb/*run-*-{run_id}"):
        shutil.rmtree(path)
    for path in (folder / "wandb" / name for name in ("latest-run", "debug.log", "debug-internal.log")):
        if path.is_symlink() and not path.exists():
            path.unlink()
    for name in ("tensorboard", "wandb"):
        with suppress(OSError):
            (folder / name).rmdir()


class Progress:
    """A bar on terminals, one line an epoch elsewhere; on the main process."""

    def __init__(self, run: Run, first: int):
        self.run, self.step, self.pairs, self.begun = run, first, 0, time.perf_counter()
        self.loss, self.summed = 0.0, 0  # since the last epoch's line
        self._start_lap()
        self.bar = tqdm(
            total=run.steps, initial=first, unit="step", disable=not (run.engine.is_main and sys.stderr.isatty())
        )

    def update(self, loss: float, lr: float, pairs: int, works: Sequence[Work]) -> None:
        """A step of so many pairs on all processes, of which this one ran `works`."""
        self.step, self.pairs = self.step + 1, self.pairs + pairs
        self.lap_pairs += pairs
        for work in works:
            self.lap_computed += sum(batch.input_ids.numel() for batch in work.batches)
            self.lap_real += int(self.run.plan.lengths[work.pairs].sum()) if work.weight else 0
        self.loss, self.summed = self.loss + loss, self.summed + 1
        self.bar.update(1)
        self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {self.rate():.1f} pairs/s", refresh=False)
        per_epoch = self.run.plan.steps_per_epoch
        if self.step % per_epoch == 0:
            if self.bar.disable:
                mean = self.loss / self.summed
                self.run.say(f"epoch {self.step // per_epoch}: loss {mean:.4f}, lr {lr:.2e}, {self.rate():.1f} pairs/s")
            self.loss, self.summed = 0.0, 0

    def lap(self) -> dict[str, float]:
        """Since the last lap: pairs a second, and the share of this process's tokens that is padding; memory at the most so far."""
        seconds = time.perf_counter() - self.lap_begun
        values = {
            "pairs_per_second": self.lap_pairs / max(seconds, 1e-9),
            "padding": max(0.0, 1 - self.lap_real / max(self.lap_computed, 1)),
            "memory_mb": peak_memory_mb(self.run.engine.device),
        }
        self._start_lap()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What takes time and is no training: evaluations, checkpoints."""
        begun = time.perf_counter()
        yield
        self.lap_begun += time.perf_counter() - begun

    def _start_lap(self) -> None:
        self.lap_begun = time.perf_counter()
        self.lap_pairs = self.lap_real = self.lap_computed = 0

    def rate(self) -> float:
        """Pairs a second since the start."""
        return self.pairs / (time.perf_counter() - self.begun)

    def close(self) -> None:
        self.bar.close()


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process had so far: tensors on a CUDA device, else resident memory (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def check_tracker(log_with: str) -> str | None:
    """A problem with the wanted tracker, before anything is written; asks nobody on the network."""
    package = None if log_with == "none" else log_with
    if package and find_spec(package) is None:
        return f"log_with is {log_with}, but {package} is not installed; install it: pip install {package}"
    if log_with == "wandb" and not _wandb_can_start():
        return (
            "log_with is wandb, but nobody is logged in here; run `wandb login` or set WANDB_API_KEY, or set WANDB_MODE=offline "
            "and run `wandb sync` later"
        )
    return None


def _wandb_can_start() -> bool:
    """Whether there are credentials where wandb looks for them, or the mode wants none."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings  # of environment and settings files
    known = settings.api_key or getattr(settings, "identity_token_file", None) or get_netrc_auth(settings.base_url)
    return settings.mode in ("offline", "dryrun", "disabled") or bool(known)
