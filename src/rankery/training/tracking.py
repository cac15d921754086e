"""What a run shows: metrics.jsonl, timings.jsonl and a tracker (tensorboard or wandb), continued when a run resumes; a progress bar.

Contract: metrics.jsonl has one JSON object an event, with `step`; a resumed run first cuts it to the bytes it had at its
checkpoint, so that it ends up as the uninterrupted run's, and says where it has been changed. A tracker that fails is left out,
and costs no run. What depends on clock, machine or cut of the micro-batches goes to
timings.jsonl, which loses the steps that run again; nothing in it waits for an accelerator. What a tracker writes has the run's id in its name, by which it is found when the run is replaced.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Logs on the main process.

    Args:
        folder: of the run.
        log_with: as in the configuration.
        run_id: of the run.
        state: of the checkpoint that it goes on from.
        config: of the run, for the tracker.
        say: is given what went wrong and stops nothing.
    """

    def __init__(
        self, folder: Path, log_with: str, run_id: str, state: Mapping[str, Any], config: dict[str, Any],
        say: Callable[[str], None],
    ):  # fmt: skip
        self.say = say
        self.check = _metrics_until(folder / METRICS_FILE, state, say)  # CRC-32 of the file
        self.file = (folder / METRICS_FILE).open("ab")
        self.timings = _timings_until(folder / TIMINGS_FILE, state["step"]).open("ab")
        self.board = self.wandb = None
        if log_with == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=state["step"] + 1 if state["step"] else 0,
                filename_suffix=f".{run_id}",
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
                    line = json.dumps({"step": step, **row}).encode() + b"\n"
                    file.write(line)
                    file.flush()
                    self.check = zlib.crc32(line, self.check) if file is self.file else self.check
            except OSError as error:
                raise not_saved(Path(file.name), error) from error
        try:
            for key, value in {**values, **(clocked or {})}.items():
                if self.board is not None:
                    self.board.add_scalar(key, value, step)
            if self.wandb is not None:
                self.wandb.log({**values, **(clocked or {})}, step=step)
        except Exception as error:  # whatever a tracker meets, the run goes on
            self._leave_out(error)

    def position(self) -> dict[str, int]:
        """How much of metrics.jsonl there is so far, on the disk: its bytes and their CRC-32, as a checkpoint keeps them."""
        os.fsync(self.file.fileno())
        return {"metrics_bytes": self.file.tell(), "metrics_check": self.check}

    def close(self) -> None:
        self.file.close()
        self.timings.close()
        try:
            if self.board is not None:
                self.board.close()
            if self.wandb is not None:
                self.wandb.finish()
        except Exception as error:
            self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        name = "tensorboard" if self.board is not None else "wandb"
        self.board = self.wandb = None
        self.say(
            f"note: {name} failed and is left out from here ({type(error).__name__}: {error!s:.200}); the run goes on"
        )


def _metrics_until(path: Path, state: Mapping[str, Any], say: Callable[[str], None]) -> int:
    """Cuts metrics.jsonl to what it was at a checkpoint; returns its CRC-32. Where it has been changed since, what is left of it."""
    path.touch()
    with path.open("r+b") as file:
        kept = file.read(state["metrics_bytes"])
        check = zlib.crc32(kept)
        file.truncate(len(kept))
    expected = state.get("metrics_check")
    if len(kept) == state["metrics_bytes"] and expected in (None, check):
        return check
    rows = [f"{json.dumps(row)}\n" for row in read_rows(path) if row["step"] <= state["step"]]
    say(f"note: {path} was changed since the checkpoint; it goes on with the {len(rows)} lines that can be read")
    write_whole(path, "".join(rows))
    return zlib.crc32("".join(rows).encode())


def _timings_until(path: Path, step: int) -> Path:
    """The file without what is about to run again, and without half a line of a killed run."""
    kept = [f"{json.dumps(row)}\n" for row in read_rows(path) if row["step"] <= step]
    write_whole(path, "".join(kept))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl or timings.jsonl: a step and numbers; none where the file is absent."""
    rows: list[dict[str, Any] | None] = []
    with suppress(FileNotFoundError):
        rows = [_row(line) for line in path.read_bytes().split(b"\n")]
    return [row for row in rows if row is not None]


def damaged_lines(path: Path) -> list[int]:
    """Numbers of the lines that `read_rows` leaves out; what stands behind the last line end, a run may be writing."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [number for number, line in enumerate(lines, 1) if line.strip() and _row(line) is None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and _is_step(row.get("step")) and all(map(_is_number, row.values()))
    return row if whole else None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    """Whether it can be drawn, or is a float that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not isinstance(value, int) or abs(value) < 1 << 53


def remove_traces(folder: Path, run_id: str) -> None:
    """Deletes metrics.jsonl, timings.jsonl and what the trackers wrote of a run; what else is in their folders stays."""
    for name in (METRICS_FILE, TIMINGS_FILE):
        (folder / name).unlink(missing_ok=True)
    named = glob.escape(run_id)
    for path in folder.glob(f"tensorboard/events.out.tfevents.*.{named}"):
        path.unlink()
    for path in folder.glob(f"wandb/*run-*-{named}"):
        if not path.is_symlink():
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
