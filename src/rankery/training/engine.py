"""Processes, device, precision and reductions; with launch.py the only modules that know accelerate.

Contract: `start_engine` finds out what the launcher asked for and refuses to run as anything less. One process and DDP share
a path: local backward passes without communication, then one exchange of summed fp32 gradients, so that a failed step can be
repeated by all. FSDP2 reduces each micro-batch, in fp32; DeepSpeed has a module of its own. Cost: an exchange a step, not
overlapped with the backward pass. Rejected: torch's DDP wrapper, whose overlapped exchange cannot be taken back when one
process runs out of memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rankery.config import TrainConfig
from rankery.errors import InputError
from rankery.lifeline import end_with_parent
from rankery.training.launch import asked_kind, asked_processes, launch_problems, shard_on_cpu
from rankery.training.optim import build_optimizer, gradient_norm

T = TypeVar("T")
EXCHANGE_ELEMENTS = 1 << 24  # gradients are exchanged in flat pieces of 64 MiB
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def start_engine(config: TrainConfig) -> Engine:
    """Joins the processes that the launcher started, as what it asked for.

    Raises:
        InputError: a launch that contradicts the configuration or cannot be honoured here.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    problems = launch_problems(
        config.mixed_precision,
        devices,
        config.gradient_accumulation_steps,
        config.max_grad_norm,
        config.gradient_checkpointing,
    )
    if problems:
        raise InputError(problems, shared=True)
    kind, asked = asked_kind(), asked_processes()
    if config.load_in_4bit and kind not in ("single", "ddp"):
        raise InputError(
            f"load_in_4bit is true, but {kind} cannot shard 4-bit weights; use one process or ddp, or leave it out",
            shared=True,
        )
    if not devices and kind not in ("single", "ddp"):
        shard_on_cpu(kind)
    end_with_parent()
    from accelerate import PartialState

    # Tokenising on the main process may take long: the others wait for it.
    patience: dict[str, Any] = {"timeout": timedelta(hours=6)} if kind != "single" else {}
    state = PartialState(cpu=not devices and kind in ("single", "ddp"), **patience)
    if state.num_processes != asked:
        raise InputError(
            f"the launcher asked for {asked} processes, but training would run on {state.num_processes}; "
            "expected all of them to join: check num_processes and the devices, or use config/ddp.yaml"
        )
    if kind.startswith("zero"):
        from rankery.training.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(state, kind, config.mixed_precision)
    return Engine(state, kind, config.mixed_precision)


class Engine:
    """What really runs: `kind` is single, ddp, fsdp2, or zero0 to zero3 (in a subclass)."""

    def __init__(self, state: Any, kind: str, precision: str):
        self.kind, self.precision = kind, precision
        self.device: torch.device = state.device
        self.processes: int = state.num_processes
        self.process: int = state.process_index
        self.is_main: bool = state.is_main_process
        # Processes talk on the host too, where nothing waits for devices.
        self.hosts = dist.new_group(backend="gloo") if self.processes > 1 and self.device.type != "cpu" else None
        # True, on the device, once a loss or gradient was not finite: nothing is updated from then on.
        self.held = torch.tensor(False, device=self.device)
        # Loss scaling for fp16; does nothing otherwise.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def sharded(self) -> bool:
        """Whether a backward pass communicates, so that a failed one cannot be repeated."""
        return self.kind not in ("single", "ddp")

    def prepare(self, scorer: torch.nn.Module, config: TrainConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The model on its device, equal on all processes (or sharded over them), and its optimiser."""
        if self.kind == "fsdp2":
            _shard(scorer, self.precision, self.device)
        else:
            scorer.to(self.device)
            if self.kind == "ddp":
                for tensor in [*scorer.parameters(), *scorer.buffers()]:
                    dist.broadcast(tensor.data, src=0)
        return scorer, build_optimizer(scorer, config, fused=not self.sharded)

    def autocast(self) -> AbstractContextManager[Any]:
        """Computation in the configured precision; weights stay fp32."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Backward pass of a micro-batch's share of the step's loss; `is_last`: of the step."""
        scale = self.processes if self.kind == "fsdp2" else 1  # FSDP2 reduces to a mean
        self.scaler.scale(loss * scale).backward()

    def update(
        self, optimizer: torch.optim.Optimizer, max_grad_norm: float, loss: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """(gradient norm before clipping, whether the weights were updated if `loss` and norm are finite).

        Where they are not, nothing is updated, now and later: fused optimisers look at the flag on the device, the others wait
        for it. Under fp16 only a loss that is not finite is meant, an overflow of gradients lowers the loss scale.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.exchange_gradients(parameters)
        self.scaler.unscale_(optimizer)
        norm = gradient_norm(parameters)
        if self.scaler.is_enabled() or self.sharded:
            overflow = self.scaler.is_enabled() and not torch.isfinite(norm)
            self.held = self.held | ~torch.isfinite(loss)
            if overflow:  # the norm is that of all processes, so all of them skip the update
                self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
            elif not torch.isfinite(norm):
                self.held = torch.ones_like(self.held)
            if overflow or self.held:
                return norm, False
        else:
            assert optimizer.defaults["fused"], "only fused optimisers look at found_inf"
            self.held = self.held | ~torch.isfinite(loss) | ~torch.isfinite(norm)
            optimizer.found_inf = self.held.float()  # type: ignore[attr-defined]
        if max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return norm, True

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

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process; sharded ones never ask, they stop at once."""
        if self.processes == 1 or self.sharded:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.hosts)
        return bool(flags)

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

    def everywhere(self, work: Callable[[], T]) -> T:
        """Runs work on every process; an error on any of them is raised on all."""
        result: Any = None
        error: Any = None
        try:
            result = work()
        except (ValueError, OSError) as caught:
            error = caught
        failed = next((found for found in self.gather(error) if found is not None), None)
        if failed is not None:
            failed.shared = True
            raise failed
        return result

    def model_state(self, model: torch.nn.Module, trained_only: bool) -> dict[str, torch.Tensor]:
        """Full fp32 weights on the main process, empty on others; all processes call it.

        `trained_only`: without the frozen ones.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        if self.kind != "fsdp2":
            frozen = {
                name for name, parameter in model.named_parameters() if trained_only and not parameter.requires_grad
            }
            return {name: t for name, t in model.state_dict().items() if name not in frozen} if self.is_main else {}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
        full = get_model_state_dict(model, options=options)
        return {name: tensor.clone() for name, tensor in full.items()}  # gathered ones may be views of padded storage

    def optimizer_state(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """What this process has to keep of the optimiser, by "parameter|state": all of it on the main process, nothing on
        the others. All processes call it."""
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
        """Takes back what `optimizer_state` gave the main process."""
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


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Around what no smaller micro-batch makes smaller: weights, gradients and the optimiser's state.

    Raises:
        InputError: an accelerator's memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory for {what}, whatever the token_budget (weights, gradients and AdamW's state take 16 bytes for each "
            "trained weight); train fewer of them (lora_rank), share them among more processes (config/default_fsdp.yaml or "
            "DeepSpeed, which can offload them to the CPU's memory too: see docs/engines.md), or choose a smaller base"
        ) from error


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


def _shard(scorer: torch.nn.Module, precision: str, device: torch.device) -> None:
    """FSDP2, in place: a unit for each of the model's repeated layers, one for the rest. Options are the launch file's.

    Communicated and computed in the configured precision, reduced in fp32; outputs are fp32.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    layers = repeated_layers(scorer)
    named, found = os.environ.pop("FSDP_TRANSFORMER_CLS_TO_WRAP", ""), type(layers[0]).__name__
    if named and found not in named.split(",") and os.environ.get("RANK", "0") == "0":
        print(f"note: the launch file wraps {named}; this model is made of {found}, which is wrapped instead")
    launched = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    computed = None if precision == "no" else DTYPES[precision]
    layer_policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    root_policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32, output_dtype=torch.float32)
    options: dict[str, Any] = {}
    if launched.cpu_offload:
        options["offload_policy"] = launched.cpu_offload
    scorer.to(device)
    for layer in layers:
        fully_shard(layer, mp_policy=layer_policy, reshard_after_forward=launched.reshard_after_forward, **options)
    fully_shard(scorer, mp_policy=root_policy, **options)


def repeated_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's longest stack of layers."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    return list(max(stacks, key=lambda stack: len(list(stack))))
