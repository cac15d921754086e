"""`rankery train --processes N --engine E`: what `accelerate launch` with one of the shipped launch files does.

Contract: the command is run again in N processes by accelerate's launcher; its exit status is ours, a signal that asks us to stop
ends them all, and none outlives us or the launcher, however we die. The launch files in config/ are these settings with comments (a test compares them), and an installed package
needs none. Rejected: starting processes ourselves; accelerate and torchrun know how to end all when one fails.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankery.errors import InputError
from rankery.lifeline import PARENT, end_with_parent

COMMON = {
    "compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "main_training_function": "main",
    "rdzv_backend": "static", "same_network": True, "use_cpu": False,
}  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"distributed_type": "MULTI_GPU"},
    "fsdp": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_offload_params": False,
        },
    },
    **{
        f"zero{stage}": {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {"deepspeed_multinode_launcher": "standard", "zero_stage": stage},
        }
        for stage in range(4)
    },
}


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def launch(processes: int, engine: str, words: Sequence[str]) -> int:
    """Runs `rankery` with `words` in several processes of this machine; returns the exit status.

    Raises:
        InputError: DeepSpeed is asked for and not installed, which accelerate would say in a traceback.
        KeyboardInterrupt: after all of them have ended.
    """
    import yaml

    from rankery.models.folders import write_whole

    if engine.startswith("zero") and find_spec("deepspeed") is None:
        raise InputError(
            f"--engine is {engine}, but DeepSpeed is not installed: pip install 'rankery[deepspeed]', or use --engine ddp or fsdp"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.yaml"
        write_whole(file, yaml.safe_dump({**COMMON, **ENGINES[engine], "num_processes": processes}))
        start = (
            "import sys; sys.path[:] = filter(None, sys.path); "  # without the current folder: see start.py
            "from rankery.launcher import accelerate_launch; accelerate_launch()"
        )
        command = [sys.executable, "-c", start, "--config_file", str(file)]
        command += [
            "--main_process_port",
            "0",
            str(Path(__file__).with_name("start.py")),
            *words,
        ]  # port 0: any that is free
        here = {PARENT: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        return _run_to_the_end(command, {**threads(processes, usable_cores()), **os.environ, **here})


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(processes: int, cores: int) -> dict[str, str]:
    """The environment by which processes share the cores. torchrun would give each one thread, however many cores there are."""
    return {"OMP_NUM_THREADS": str(max(1, cores // processes))}


def accelerate_launch() -> None:
    """accelerate's launcher with this program's arguments; ends with the status of the process that failed first.

    That process has said why: the launcher's own traceback, which says nothing more, is left out.
    """
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # for the processes that it starts
    try:
        main()
    except ChildFailedError as error:
        process, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            sys.exit(failure.exitcode)
        print(f"error: process {process} was ended by signal {-failure.exitcode}", file=sys.stderr)
        sys.exit(128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _run_to_the_end(command: list[str], environment: dict[str, str] | None = None) -> int:
    """Exit status of a launcher; 128 + the number of the signal that stopped us, after all processes have ended.

    The launcher leads a group of its own, so that a terminal's Ctrl-C reaches it once, from us: asked twice, it would leave its
    processes behind. It is always asked by SIGTERM, which lets its processes end without a word each.
    """
    received: list[int] = []
    launcher: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: object) -> None:
        received.append(number)
        if launcher is not None and len(received) == 1:
            _end(launcher)

    # A signal that is ignored, as under nohup, stays so.
    handled = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        launcher = subprocess.Popen(command, start_new_session=True, env=environment)
        if received:  # while it was being started
            _end(launcher)
        status = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if status < 0 and not received:
        print(f"error: the launcher was ended by signal {-status}", file=sys.stderr)
    return 128 + received[0] if received else status if status >= 0 else 128 - status


def _end(launcher: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGTERM)
