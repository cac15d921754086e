"""What a launcher asked for, read from the environment it left, and what this machine can honour.

Contract: pure functions of environment and arguments, but for `shard_on_cpu`. A launch that would train as something less,
or otherwise than the configuration says, is a list of problems before anything starts.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankery.errors import InputError

TRUE = "true"


def asked_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def asked_kind() -> str:
    """single, ddp, fsdp2 or zero0 to zero3."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == TRUE:
        return f"zero{zero_stage()}"
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == TRUE:
        return "fsdp2"
    return "ddp" if asked_processes() > 1 else "single"


def zero_stage() -> int:
    file, settings = deepspeed_file()
    if file:
        return int(settings.get("zero_optimization", {}).get("stage", 0))
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))  # accelerate's default


def deepspeed_file() -> tuple[str, dict[str, Any]]:
    """(path, content) of the JSON file that the launch file names; ("", {}) where it names none.

    Raises:
        InputError: no such file, or not JSON.
    """
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        return "", {}
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        settings = error
    if not isinstance(settings, dict):
        raise InputError(
            f"deepspeed_config_file of the launch file is {file}; it cannot be read ({settings!s:.200}): expected DeepSpeed's "
            "settings as JSON, a path from where the command is started",
            shared=True,
        )
    return file, settings


def launch_problems(
    precision: str,
    devices: int,
    gradient_accumulation_steps: int,
    max_grad_norm: float,
    gradient_checkpointing: bool = False,
) -> list[str]:
    """What the launcher's environment, the configuration and this machine's accelerators disagree on."""
    problems = []
    kind = asked_kind()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < devices < local:
        problems.append(
            f"the launcher starts {local} processes on this machine, which has {devices} accelerators; expected one for each: "
            "set num_processes in the launch file, or CUDA_VISIBLE_DEVICES"
        )
    problems += _contradictions(precision, gradient_accumulation_steps, max_grad_norm, gradient_checkpointing)
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        problems.append(
            "the launch file asks for DeepSpeed, which is not installed: pip install 'rankery[deepspeed]', or use config/ddp.yaml"
        )
    if kind == "fsdp2" and os.environ.get("FSDP_VERSION", "1") != "2":
        problems.append(
            "the launch file asks for FSDP version 1; expected fsdp_version: 2, as in config/default_fsdp.yaml"
        )
    if kind not in ("single", "ddp") and not devices and os.environ.get("RANKERY_CPU_ENGINES") != "1":
        problems.append(
            f"the launch file asks for {'FSDP' if kind == 'fsdp2' else 'DeepSpeed'}, but there is no accelerator; use config/ddp.yaml on CPUs "
            "(RANKERY_CPU_ENGINES=1 shards on CPUs for tests)"
        )
    if kind.startswith("zero"):
        problems += _deepspeed_problems(precision, gradient_accumulation_steps, max_grad_norm)
    if precision == "fp16" and not devices:
        problems.append(
            "mixed_precision is fp16, but there is no accelerator and CPUs compute fp16 badly; use bf16 or no"
        )
    return problems


def _contradictions(
    precision: str, gradient_accumulation_steps: int, max_grad_norm: float, gradient_checkpointing: bool
) -> list[str]:
    """What the launch file says otherwise than the configuration, as far as accelerate hands it on."""
    problems = []
    # accelerate passes its defaults where the file says nothing; under DeepSpeed it tells what the file names.
    named = os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != precision and (launched != "no" or "mixed_precision" in named):
        problems.append(
            f"mixed_precision is {precision} in the configuration but {launched} in the launch file; expected one of them: "
            "leave it out of the launch file"
        )
    for name, key, configured in (
        ("GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", gradient_accumulation_steps),
        ("GRADIENT_CLIPPING", "max_grad_norm", max_grad_norm),
    ):
        value = os.environ.get(f"ACCELERATE_{name}", "auto")
        is_said = value != "1" or name.lower() in named
        if is_said and value not in ("none", "auto") and float(value) != configured:
            problems.append(
                f"{key} is {configured:g} in the configuration but {value} ({name.lower()}) in the launch file; expected one of "
                "them: leave it out of the launch file"
            )
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING") == TRUE and not gradient_checkpointing:
        problems.append(
            "gradient_checkpointing is false in the configuration but fsdp_activation_checkpointing is true in the launch file; "
            "expected one of them: leave it out of the launch file, and set gradient_checkpointing=true if it is wanted"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        problems.append(
            f"dynamo_backend is {compiler} in the launch file, but rankery compiles no model; expected no: leave it out there"
        )
    return problems


def _deepspeed_problems(precision: str, gradient_accumulation_steps: int, max_grad_norm: float) -> list[str]:
    """What a DeepSpeed launch cannot do here, and what its own JSON file decides that the configuration decides."""
    problems = []
    if precision == "fp16":
        problems.append(
            "mixed_precision is fp16; DeepSpeed trains in bf16 or no here (its loss scale is in no checkpoint of ours): use bf16, or DDP"
        )
    file, settings = deepspeed_file()
    for key, name, configured in (
        ("gradient_clipping", "max_grad_norm", max_grad_norm),
        ("gradient_accumulation_steps", "gradient_accumulation_steps", gradient_accumulation_steps),
    ):
        if settings.get(key, "auto") not in ("auto", configured):
            problems.append(
                f"{name} is {configured:g} in the configuration but {settings[key]} ({key}) in {file}; leave it out there"
            )
    for key, value in (("bf16", "bf16"), ("fp16", "fp16")):
        if settings.get(key, {}).get("enabled") is True and precision != value:
            problems.append(
                f"mixed_precision is {precision} in the configuration but {value} in {file}; leave it out there"
            )
    problems += [
        f"{file} has {key}, which the training configuration decides; leave it out there"
        for key in ("optimizer", "scheduler")
        if key in settings
    ]
    return problems


def shard_on_cpu(kind: str) -> None:
    """Lets accelerate shard on CPUs, for tests: it would silently train undistributed otherwise."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"

    def gloo(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = gloo
    if kind.startswith("zero"):
        # DeepSpeed would compile sums in shared memory first; a build that was killed leaves a lock that everybody waits for.
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False
