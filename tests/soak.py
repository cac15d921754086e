"""Random kills of trainings of every kind: each resumed run has to end with the bytes of the one that nobody killed.

    python tests/soak.py [--kills 200] [--seed 0] [--only encoder lora ...]

Half of the kills come at a random time, half at a random operation of the file system (before or after it), so that saves and the
finish get their share. Cost: about a second a kill, ten with two processes; Linux and macOS. A kill is SIGKILL, of any process
where there are two. Rejected: kills at chosen places alone, which are those that somebody has thought of.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
import torch
from conftest import ROOT, make_bert, make_data, make_decoder

OPERATIONS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
KILLS_A_RUN = 5
# What differs from a plain encoder.
CASES: dict[str, dict[str, Any]] = {
    "encoder": {},
    "saves": {"save_steps": 1, "num_max_checkpoints": 1},
    "finish": {"epochs": 1, "save_dtype": "bf16", "best_metric": "loss"},
    "groups": {"loss_type": "listwise_ce", "batch_size": 4},
    "decoder": {"model_type": "llm_decoder"},
    "lora": {"model_type": "llm_decoder", "lora_rank": 2, "lora_alpha": 4},
    "adapter": {"lora_rank": 2, "lora_merge": False, "lora_alpha": 4},
    "two processes": {"batch_size": 4, "save_steps": 2},
}


def main(argv: list[str] | None = None) -> int:
    """Says each difference; the number of differences is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args(argv)
    rng, differences, total, begun = random.Random(arguments.seed), 0, 0, time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["RANKERY_CACHE"] = f"{home}/cache"
        base = configuration(Path(home))
        shares = {name: 1 if name == "two processes" else 3 for name in arguments.only}
        for name, share in shares.items():
            wanted = max(1, round(arguments.kills * share / sum(shares.values())))
            kills, runs, different = soak(Path(home), name, {**base(name), **CASES[name]}, wanted, rng)
            total, differences = total + kills, differences + different
            print(f"{name}: {kills} kills in {runs} runs, {different} differences", flush=True)
    print(f"{total} kills, {differences} differences, {time.monotonic() - begun:.0f} s, seed {arguments.seed}")
    return differences


def configuration(home: Path) -> Callable[[str], dict[str, Any]]:
    """The plain encoder's, by name of the case: the decoder's have another base."""
    bert, llama = make_bert(home / "bert"), make_decoder(home / "llama")
    data, val = make_data(home / "train.jsonl"), make_data(home / "val.jsonl", 6, offset=40)
    plain = {
        "max_len": 48, "train_dataset": str(data), "val_dataset": str(val), "lr": 1e-3, "batch_size": 8, "epochs": 2,
        "log_interval": 1, "log_with": "none", "seed": 1,
    }  # fmt: skip
    return lambda name: {**plain, "model_name_or_path": str(llama if name in ("decoder", "lora") else bert)}


def soak(home: Path, name: str, config: dict[str, Any], wanted: int, rng: random.Random) -> tuple[int, int, int]:
    """(kills, runs, runs that ended otherwise than the one that nobody killed)."""
    place = home / name.replace(" ", "-")
    place.mkdir()
    start = launched if name == "two processes" else forked
    begun = time.monotonic()
    whole = place / "whole"
    assert start({**config, "output_dir": str(whole)}, place / "log", None)
    seconds, operations = time.monotonic() - begun, int((place / "log.operations").read_text())
    kills = runs = different = 0
    while kills < wanted:
        runs += 1
        settings = {**config, "output_dir": str(place / str(runs)), "resume": True}
        for _ in range(KILLS_A_RUN):
            by_time = rng.random() < 0.5 or start is launched
            moment = ("time", rng.uniform(0, seconds)) if by_time else ("operation", rng.randint(1, 2 * operations))
            if start(settings, place / "log", moment, rng):
                break
            kills += 1
        problem = "" if start(settings, place / "log", None) else "ended with an error"
        if problem or (problem := difference(whole, place / str(runs))):
            different += 1
            print(f"DIFFERENCE: {name}, run {runs}: {problem}\n{(place / 'log').read_text()[-2000:]}", flush=True)
    return kills, runs, different


def difference(whole: Path, other: Path) -> str:
    """What differs in the final model or the metrics; "" where nothing does. Nothing half written may be left."""
    weights = sorted(path.name for path in (whole / "model").glob("*.safetensors"))
    for name in (*(f"model/{weight}" for weight in weights), "metrics.jsonl"):
        if not (other / name).is_file() or (whole / name).read_bytes() != (other / name).read_bytes():
            return f"{name} differs"
    left = [str(path.relative_to(other)) for path in other.rglob(".*")]
    return f"{', '.join(left)} left behind" if left else ""


def forked(
    config: dict[str, Any], log: Path, moment: tuple[str, float] | None, rng: random.Random | None = None
) -> bool:
    """Trains in a fork of this process, which has everything imported; whether it came to its end before it was killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            count = watch(int(moment[1]) if moment and moment[0] == "operation" else 0)
            from rankery import train

            train(config)
            log.with_name("log.operations").write_text(str(count[0]))
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    if moment and moment[0] == "time":
        time.sleep(moment[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if moment is None or not os.WIFSIGNALED(status):
        return status == 0
    return False


def watch(last: int) -> list[int]:
    """Counts operations of the file system; kills this process around the one whose double number, or one less, is `last`."""
    count = [0]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **options: Any) -> Any:
            count[0] += 1
            if last == 2 * count[0] - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*given, **options)
            if last == 2 * count[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return instead

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return count


def launched(
    config: dict[str, Any], log: Path, moment: tuple[str, float] | None, rng: random.Random | None = None
) -> bool:
    """Trains in two processes; kills any of the command, its launcher and the two."""
    words = [f"{key}={value}" for key, value in config.items()]
    command = [sys.executable, "-m", "rankery.cli", "train", "--processes", "2", *words]
    log.with_name("log.operations").write_text("0")
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        tree: list[psutil.Process] = []
        if moment and rng:
            time.sleep(moment[1])
            try:
                command_itself = psutil.Process(process.pid)
                tree = [command_itself, *command_itself.children(recursive=True)]
                rng.choice(tree).kill()
            except psutil.NoSuchProcess:
                pass
        process.wait()
        psutil.wait_procs(tree, timeout=30)
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(min(main(), 100))
