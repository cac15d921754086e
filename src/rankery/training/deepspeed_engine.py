"""DeepSpeed: ZeRO stages 0 to 3, as one more engine.

Contract: the launch file says the stage and what is offloaded; everything that changes the maths is ours: the micro-batch size
means nothing (one boundary a step, told explicitly), clipping is the configuration's, gradients accumulate and travel in
fp32. bf16 keeps fp32 masters, sharded; final weights are gathered from them; the resume state is what each process holds.
Cost: resumption needs as many processes as before. Rejected: DeepSpeed's own checkpoints, which are pickles.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rankery.config import TrainConfig
from rankery.errors import InputError
from rankery.training.engine import DTYPES, Engine
from rankery.training.optim import build_optimizer

# Where the optimisers of the stages keep this process's fp32 masters.
MASTERS = (
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat",
)


class DeepSpeedEngine(Engine):
    """ZeRO: parameters, gradients and optimiser state sharded as far as the stage says."""

    deepspeed: Any

    def __init__(self, state: Any, kind: str, precision: str):
        super().__init__(state, kind, precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)  # DeepSpeed scales itself

    @property
    def stage(self) -> int:
        return int(self.kind.removeprefix("zero"))

    def prepare(self, scorer: torch.nn.Module, config: TrainConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module=r"torch\.distributed"
        )  # of calls that it makes
        optimizer = build_optimizer(scorer, config, fused=False)
        settings = self._settings(config)
        whole = _lost_in_half(scorer, DTYPES[self.precision]) if self.stage > 0 else {}
        self.deepspeed, wrapped, _, _ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=settings)
        for name, parameter in scorer.named_parameters():
            if name in whole:  # DeepSpeed makes its fp32 masters of weights that it has rounded before
                self._set_master(parameter, whole[name].to(self.device))
        return self.deepspeed, wrapped

    def _set_master(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
            return
        # Cut into equal parts, the last ones padded: a bias of one value leaves most processes nothing but padding.
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.processes - value.numel()))
        safe_set_local_fp32_param(parameter, padded[size * self.process : size * (self.process + 1)])

    def _settings(self, config: TrainConfig) -> dict[str, Any]:
        """DeepSpeed's configuration: the launch file's, under what the training configuration decides."""
        from accelerate import DeepSpeedPlugin

        # accelerate reads the launch file; what it makes of precision, clipping and accumulation is replaced.
        launched = dict(DeepSpeedPlugin(zero3_init_flag=False).deepspeed_config)
        zero = {key: value for key, value in launched.get("zero_optimization", {}).items() if value != "auto"}
        for name in ("offload_optimizer", "offload_param"):
            if zero.get(name, {}).get("device", "none") == "none":
                zero.pop(name, None)
        kept = {
            key: value for key, value in launched.items() if key in ("activation_checkpointing", "aio", "comms_logger")
        }
        half = self.stage > 0 and self.precision != "no"
        return {
            **kept,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {**zero, "stage": self.stage, "overlap_comm": False},
            "bf16": {"enabled": half},
            # Stage 0 has no masters apart from the weights: they stay fp32, and computation is cast.
            "torch_autocast": {
                "enabled": self.stage == 0 and self.precision != "no",
                "dtype": "bfloat16",
            },
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 60,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the weights have the precision of the computation, or DeepSpeed casts

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        self.deepspeed.backward(loss * self.processes)  # DeepSpeed reduces to a mean

    def update(
        self, optimizer: torch.optim.Optimizer, max_grad_norm: float, loss: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        self.held = self.held | ~torch.isfinite(loss)
        if self.held:
            return torch.zeros((), device=self.device), False
        norm = None
        if self.stage == 0:
            gradients = [
                parameter.grad for parameter in self.deepspeed.module.parameters() if parameter.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(gradients)
        before = self.deepspeed.skipped_steps
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        norm = torch.as_tensor(norm, device=self.device)
        self.held = ~torch.isfinite(norm)
        return norm, self.deepspeed.skipped_steps == before

    def model_state(self, model: torch.nn.Module, trained_only: bool) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, tensor in self.deepspeed.module.state_dict(keep_vars=True).items():
            if trained_only and not tensor.requires_grad:
                continue
            full = safe_get_full_fp32_param(tensor) if isinstance(tensor, torch.nn.Parameter) else None
            if full is None and hasattr(tensor, "ds_id"):  # frozen: no masters, only the partitioned weight
                from deepspeed.zero import GatheredParameters

                with GatheredParameters([tensor]):
                    full = tensor.detach().float().clone()
            if self.is_main:
                full = tensor if full is None else full
                state[name] = (
                    full.detach().float().cpu().clone() if full.is_floating_point() else full.detach().cpu().clone()
                )
        return state

    def optimizer_state(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        return {
            f"{index}|{kind}": value.detach().cpu().reshape(-1).clone()
            for index, kinds in enumerate(self._held(optimizer))
            for kind, value in kinds.items()
        }

    def load_optimizer_state(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]
    ) -> None:
        base = getattr(optimizer, "optimizer", optimizer)
        for index, master in enumerate(self._masters(optimizer)):
            kinds = {key.split("|")[1]: value for key, value in saved.items() if key.split("|")[0] == str(index)}
            if kinds["master"].numel() != master.numel():
                raise InputError(
                    f"the checkpoint's optimiser state {index} has {kinds['master'].numel()} values, this run's {master.numel()}; "
                    "start as many processes with the same launch file as before",
                    shared=True,
                )
            master.data.copy_(kinds.pop("master").view_as(master))
            base.state[master] = {
                kind: value.view_as(master).to(master.device)
                if value.numel() == master.numel() and kind != "step"
                else value[0]
                for kind, value in kinds.items()
            }

    def _masters(self, optimizer: Any) -> list[torch.Tensor]:
        """This process's fp32 masters: flat partitions, or the parameters themselves where nothing is sharded."""
        for name in MASTERS:
            if hasattr(optimizer, name):
                return [part for part in getattr(optimizer, name) if part is not None]
        base = getattr(optimizer, "optimizer", optimizer)
        return [parameter for group in base.param_groups for parameter in group["params"]]

    def _held(self, optimizer: Any) -> list[dict[str, torch.Tensor]]:
        base = getattr(optimizer, "optimizer", optimizer)
        return [
            {"master": master, **{kind: torch.as_tensor(value) for kind, value in base.state.get(master, {}).items()}}
            for master in self._masters(optimizer)
        ]


def _lost_in_half(scorer: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies of the trained weights that half precision would round; none of a base that was saved in it, but its new head."""
    return {
        name: parameter.detach().clone()
        for name, parameter in scorer.named_parameters()
        if parameter.requires_grad and not torch.equal(parameter, parameter.to(dtype).float())
    }
