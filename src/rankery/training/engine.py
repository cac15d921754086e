"""Processes, device, precision and reductions; the only module that imports accelerate.

Contract: `start` finds out what the launcher asked for and refuses to run as anything less. One process and DDP share a path:
local backward passes without communication, then one exchange of summed fp32 gradients, so that a failed step can be
repeated by all. FSDP2 reduces each micro-batch, in fp32. Cost: an exchange a step, not overlapped with the backward pass.
Rejected: torch's DDP wrapper, whose overlapped exchange cannot be taken back when one process runs out of memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rankery.errors import InputError

T = TypeVar("T")
EXCHANGE_ELEMENTS = 1 << 24  # gradients are exchanged in flat pieces of 64 MiB
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """What really runs: `kind` is single, ddp or fsdp2."""

    def __init__(self, accelerator: Any, kind: str, precision: str):
        self.accelerator, self.kind, self.precision = accelerator, kind, precision
        self.device: torch.device = accelerator.device
        self.processes: int = accelerator.num_processes
        self.process: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process

    @classmethod
    def start(
        cls,
        precision: str,
        layer_class: Callable[[], str],
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float = 0.0,
    ) -> Engine:
        """Joins the processes that the launcher started.

        Args:
            precision: no, bf16 or fp16.
            gradient_accumulation_steps: of the configuration; like precision and max_grad_norm, compared with the launch file's.
            layer_class: gives the name of the model's layer class, which FSDP2 wraps.

        Raises:
            InputError: a launch that contradicts the configuration or cannot be honoured here.
        """
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        problems = _launch_problems(precision, sharded, devices, gradient_accumulation_steps, max_grad_norm)
        if problems:
            raise InputError(problems)
        if not devices and sharded:
            _shard_on_cpu()
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState

        plugin = _fsdp_plugin(precision, layer_class()) if sharded else None
        # Tokenising on the main process may take long: the others wait for it.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
        on_cpu = not devices and not sharded
        # Another library's accelerator in this process may have another precision; ours is decided here.
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="no", cpu=on_cpu, fsdp_plugin=plugin, kwargs_handlers=[patience])
        if accelerator.num_processes != asked:
            raise InputError(
                f"the launcher asked for {asked} processes, but training would run on {accelerator.num_processes}; "
                "expected all of them to join: check num_processes and the devices, or use config/ddp.yaml"
            )
        kind = "fsdp2" if sharded else "ddp" if asked > 1 else "single"
        return cls(accelerator, kind, precision)

    @property
    def sharded(self) -> bool:
        return self.kind == "fsdp2"

    @property
    def loss_scale(self) -> float:
        """What a local loss is multiplied by, so that the reduced gradient is the sum over processes."""
        return float(self.processes) if self.sharded else 1.0  # FSDP2 reduces to a mean

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on its device, equal on all processes (or sharded over them)."""
        if self.sharded:
            from accelerate.utils import fsdp2_prepare_model

            return fsdp2_prepare_model(self.accelerator, model)
        model.to(self.device)
        if self.kind == "ddp":
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        """Computation in the configured precision; weights stay fp32."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def exchange_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """DDP: gradients become their sum over processes, in fp32. FSDP2 has reduced them in the backward pass."""
        if self.kind != "ddp":
            return
        piece: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            piece.append(parameter.grad)
            if sum(grad.numel() for grad in piece) >= EXCHANGE_ELEMENTS:
                _sum_in_place(piece)
                piece = []
        if piece:
            _sum_in_place(piece)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over processes."""
        if self.processes > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of processes."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """Runs work on the main process; all get its result, or raise its error."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (ValueError, OSError) as error:
                outcome[1] = error
        if self.processes > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            outcome[1].shared = True
            raise outcome[1]
        return outcome[0]

    def model_state(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Full fp32 weights on the main process, empty on others; all processes call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        if not self.sharded:
            return model.state_dict() if self.is_main else {}
        full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        return {name: tensor.clone() for name, tensor in full.items()}  # gathered ones may be views of padded storage

    def optimizer_state(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """Full optimiser state on the main process, by "parameter|state"; all processes call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
        return {
            f"{name}|{kind}": torch.as_tensor(value).detach().cpu().clone()
            for name, entry in state.items()
            for kind, value in entry.items()
            if value is not None
        }

    def load_optimizer_state(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]
    ) -> None:
        """Takes back what `optimizer_state` gave; every process holds the full state."""
        if not saved:
            return
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        state: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in saved.items():
            name, kind = key.rsplit("|", 1)
            state.setdefault(name, {})[kind] = value
        groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=options)


def leave() -> None:
    """Ends a launched process whose work is done; returns only where there is one process.

    All wait for each other, so that none closes connections that another still uses, and end at once: in the orderly way
    out, gloo's threads abort the program now and then, and the launcher calls a finished training failed.
    """
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _sum_in_place(tensors: list[torch.Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def _launch_problems(
    precision: str, sharded: bool, devices: int, gradient_accumulation_steps: int, max_grad_norm: float
) -> list[str]:
    """What the launcher's environment, the configuration and this machine's accelerators disagree on."""
    problems = []
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < devices < local:
        problems.append(
            f"the launcher starts {local} processes on this machine, which has {devices} accelerators; expected one for each: "
            "set num_processes in the launch file, or CUDA_VISIBLE_DEVICES"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        problems.append(
            f"mixed_precision is {precision} in the configuration but {launched} in the launch file; expected one of them: "
            "leave it out of the launch file"
        )
    for name, key, configured in (
        ("GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", gradient_accumulation_steps),
        ("GRADIENT_CLIPPING", "max_grad_norm", max_grad_norm),
    ):
        value = os.environ.get(f"ACCELERATE_{name}", "1")  # 1 is what accelerate says when the file says nothing
        if value not in ("1", "none", "auto") and float(value) != configured:
            problems.append(
                f"{key} is {configured:g} in the configuration but {value} ({name.lower()}) in the launch file; expected one of "
                "them: leave it out of the launch file"
            )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        problems.append(
            "the launch file asks for DeepSpeed; this release trains with DDP and FSDP2: use config/ddp.yaml"
        )
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        problems.append(
            "the launch file asks for FSDP version 1; expected fsdp_version: 2, as in config/default_fsdp.yaml"
        )
    if sharded and not devices and os.environ.get("RANKERY_CPU_ENGINES") != "1":
        problems.append(
            "the launch file asks for FSDP, but there is no accelerator; use config/ddp.yaml on CPUs "
            "(RANKERY_CPU_ENGINES=1 shards on CPUs for tests)"
        )
    if precision == "fp16" and not devices:
        problems.append(
            "mixed_precision is fp16, but there is no accelerator and CPUs compute fp16 badly; use bf16 or no"
        )
    return problems


def _shard_on_cpu() -> None:
    """Lets accelerate shard on CPUs, for tests: it would silently train undistributed otherwise."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

    def gloo(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = gloo


def _fsdp_plugin(precision: str, layer_class: str) -> Any:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    if named and layer_class not in named.split(","):
        if os.environ.get("RANK", "0") == "0":
            print(f"note: the launch file wraps {named}; this model is made of {layer_class}, which is wrapped instead")
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = layer_class
    # Communicated and computed in the configured precision, reduced in fp32.
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == "no" else DTYPES[precision], reduce_dtype=torch.float32
    )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[layer_class],
        mixed_precision_policy=policy,
        cpu_ram_efficient_loading=False,
    )
