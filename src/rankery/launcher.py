"""`rankery train --processes N --engine E`: what `accelerate launch` with one of the shipped launch files does.

Contract: the command is run again in N processes by accelerate's launcher; its exit status is ours. The launch files in config/
are these settings with comments (a test compares them), and an installed package needs none. Rejected: starting processes
ourselves; accelerate and torchrun know how to end all when one fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankery.errors import InputError

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


def launch(processes: int, engine: str, words: Sequence[str]) -> int:
    """Runs `rankery` with `words` in several processes of this machine; returns the exit status.

    Raises:
        InputError: DeepSpeed is asked for and not installed, which accelerate would say in a traceback.
    """
    import yaml

    if engine.startswith("zero") and find_spec("deepspeed") is None:
        raise InputError(
            f"--engine is {engine}, but DeepSpeed is not installed: pip install 'rankery[deepspeed]', or use --engine ddp or fsdp"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.yaml"
        file.write_text(yaml.safe_dump({**COMMON, **ENGINES[engine], "num_processes": processes}))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
        command += ["--main_process_port", "0", "--module", "rankery.cli", *words]  # port 0: any that is free
        return subprocess.run(command).returncode
