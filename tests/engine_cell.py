"""One cell of the exactness matrix: what every process of a launch runs, and what is asked of the outcome.

    python tests/engine_cell.py check FOLDER COLUMN PRECISION     under a launcher, or alone: the reference
    python tests/engine_cell.py kill  FOLDER COLUMN PRECISION     dies by SIGKILL in the middle of a save

engine_table.py runs every cell into docs/engines.md (`make engines`), test_engines.py as tests.

Columns: encoder, decoder, decoder with LoRA, all tiny and random. A check trains three updates with plain SGD (an adaptive
optimiser hides wrong scales), three with AdamW, then two epochs with dropout that are resumed in the middle of an epoch, at
its end, and from the killed run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAUNCH_FILES = {
    "ddp": "config/ddp.yaml",
    "fsdp2": "config/default_fsdp.yaml",
    **{f"zero{stage}": f"config/deepspeed/deepspeed_zero{stage}.yaml" for stage in range(4)},
}
COLUMNS = ("encoder", "decoder", "decoder with LoRA")
PRECISIONS = ("no", "bf16")
KILLED_AT = 4
# How far from one process, by precision: losses and gradient norms, relative; weights after SGD, the largest difference; weights
# after AdamW, the mean one (where a gradient is 0 but for rounding, AdamW makes whole steps of the rounding). bf16 has 8 bits.
TOLERANCE = {"no": (1e-4, 1e-5, 1e-5), "bf16": (6e-2, 5e-3, 5e-4)}
EXACT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "token_budget": 60}
SGD = {"optimizer": "sgd", "lr": 0.05, "warmup_proportion": 0, "max_grad_norm": 0.1}
RELOADED = {"no": 1e-4, "bf16": 6e-2}  # validation logits of the final folder, relative to the largest, 1 at least
ADAM = {"lr": 1e-3, "warmup_proportion": 0, "max_grad_norm": 0.5}
DROPOUT = {"attention_dropout": 0.1, "lr": 1e-3, "epochs": 2, "save_steps": 1, "num_max_checkpoints": 99}


def settings(folder: Path, column: str, precision: str) -> dict[str, Any]:
    """24 pairs, 8 a step on however many processes: 3 steps an epoch, whose micro-batches differ in number."""
    is_encoder = column == "encoder"
    common: dict[str, Any] = {
        "model_name_or_path": str(folder / ("bert" if is_encoder else "llama")),
        "model_type": "bert_encoder" if is_encoder else "llm_decoder", "max_len": 48, "epochs": 1, "seed": 1,
        "train_dataset": str(folder / "train.jsonl"), "mixed_precision": precision, "log_interval": 1, "log_with": "none",
        "batch_size": 8 // int(os.environ.get("WORLD_SIZE", "1")), "dataset_cache_dir": str(folder / "cache"),
    }  # fmt: skip
    return common | ({"lora_rank": 4} if "LoRA" in column else {})


def check(folder: Path, own: Path, column: str, precision: str) -> None:
    """Runs all trainings of a cell into `own`."""
    from rankery import train
    from rankery.training import validation

    base = settings(folder, column, precision)
    train(base, **EXACT, **SGD, output_dir=str(own / "sgd"))
    original = validation.validation_logits
    keep_validation_logits(own)
    train(base, **EXACT, **ADAM, val_dataset=str(folder / "val.jsonl"), best_metric=None, output_dir=str(own / "adam"))
    validation.validation_logits = original  # runs without validation data end with a look at training data
    train(base, **DROPOUT, output_dir=str(own / "whole"))
    for step in (2, 3):  # in the middle of an epoch, at its end
        cut = own / f"cut_{step}"
        on_main_process(lambda cut=cut, step=step: cut_back(own / "whole", cut, step))
        train(base, **DROPOUT, output_dir=str(cut), resume=True)
    if (own / "killed").is_dir():
        train(base, **DROPOUT, output_dir=str(own / "killed"), resume=True)


def keep_validation_logits(own: Path) -> None:
    """What the newest evaluation computed goes to own/logits.npy: at the end of a run, the final model as it is in memory."""
    import numpy as np

    from rankery.training import validation

    original = validation.validation_logits

    def kept(*arguments: Any) -> Any:
        logits = original(*arguments)
        if os.environ.get("RANK", "0") == "0":
            np.save(own / "logits.npy", logits.numpy())
        return logits

    validation.validation_logits = kept


def on_main_process(work: Any) -> None:
    import torch.distributed as dist

    if os.environ.get("RANK", "0") == "0":
        work()
    if dist.is_initialized():
        dist.barrier()


def cut_back(whole: Path, cut: Path, step: int) -> None:
    """What a run leaves that was interrupted after a step."""
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    for path in (cut / "checkpoints").glob("*_*"):
        if int(path.name.rsplit("_", 1)[1]) > step:
            shutil.rmtree(path)


def kill(folder: Path, own: Path, column: str, precision: str) -> None:
    """Trains until a checkpoint is half written."""
    from rankery import train
    from rankery.training import checkpoint

    original = checkpoint._measure

    def deadly(path: Path) -> list[int]:
        if f".tmp-checkpoint_{KILLED_AT}" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path)

    checkpoint._measure = deadly
    train(settings(folder, column, precision), **DROPOUT, output_dir=str(own / "killed"))


@dataclass(frozen=True)
class Outcome:
    """What a cell showed."""

    gradients: float  # largest relative difference of a loss or gradient norm from one process
    sgd_weights: float  # largest absolute difference of a weight after SGD
    adam_weights: float  # mean absolute difference of the weights after AdamW
    reloads: float  # how far validation logits of the final folder are from those of the model in memory, relative
    resumed_exactly: bool  # bit for bit, in mid-epoch, at an epoch's end and after SIGKILL in a save
    resumed_weights: float  # largest difference of a resumed run's weights

    def equal(self, precision: str) -> bool:
        measured = (self.gradients, self.sgd_weights, self.adam_weights)
        return self.reloads <= RELOADED[precision] and all(
            value <= most for value, most in zip(measured, TOLERANCE[precision], strict=True)
        )


def compare(own: Path, reference: Path) -> Outcome:
    import numpy as np
    import torch

    from rankery.models.opening import open_reranker

    gradients = max(differ(numbers(own / run), numbers(reference / run)) for run in ("sgd", "adam"))
    resumed = [own / name for name in ("cut_2", "cut_3", "killed")]
    missing = [path.name for path in resumed if not (path / "model").is_dir()]
    assert not missing, f"not resumed: {missing}"
    rows = [json.loads(line) for line in (own.parent / "val.jsonl").open()]
    pairs = [(row["query"], document) for row in rows for document in [*row["pos"], *row["neg"]]]
    in_memory = torch.from_numpy(np.load(own / "logits.npy"))
    scores = open_reranker(own / "adam" / "model").compute_score(pairs)  # checks the golden scores of the contract too
    return Outcome(
        gradients=gradients,
        sgd_weights=distance(own / "sgd", reference / "sgd"),
        adam_weights=distance(own / "adam", reference / "adam", mean=True),
        reloads=float((scores - in_memory).abs().max() / in_memory.abs().max().clamp(min=1)),
        resumed_exactly=all(
            distance(path, own / "whole") == 0.0
            and (path / "metrics.jsonl").read_text() == (own / "whole" / "metrics.jsonl").read_text()
            for path in resumed
        ),
        resumed_weights=max(distance(path, own / "whole") for path in resumed),
    )


def numbers(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row[key] for row in rows for key in ("loss", "grad_norm") if key in row]


def differ(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) == 6
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def distance(a: Path, b: Path, mean: bool = False) -> float:
    """Largest or mean absolute difference of two final models' weights."""
    import torch
    from safetensors.torch import load_file

    left, right = (load_file(path / "model" / "model.safetensors") for path in (a, b))
    assert left.keys() == right.keys()
    differences = torch.cat([(left[name].float() - right[name].float()).abs().flatten() for name in left])
    return float(differences.mean() if mean else differences.max())


def make_material(folder: Path) -> None:
    """Models and data that all cells share."""
    from conftest import make_bert, make_data, make_decoder

    make_bert(folder / "bert")
    make_decoder(folder / "llama")
    make_data(folder / "train.jsonl", 8, 3)
    make_data(folder / "val.jsonl", 6, 3, offset=40)


def run_reference(folder: Path, column: str, precision: str) -> Path:
    own = folder / f"one process, {column}, {precision}"
    if not own.exists():
        own.mkdir()
        run([sys.executable, __file__, "check", str(folder), str(own), column, precision])
    return own


def run_cell(folder: Path, engine: str, column: str, precision: str) -> Outcome:
    """Two launches: one that is killed in a save, one that runs every check. `single` is one process, without a launcher."""
    reference = run_reference(folder, column, precision)
    own = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=folder))
    launch = [sys.executable]
    if engine != "single":
        launch += ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / LAUNCH_FILES[engine])]
        launch += ["--main_process_port", str(20000 + os.getpid() % 20000)]
    run([*launch, __file__, "kill", str(folder), str(own), column, precision], dies=True)
    assert not (own / "killed" / "model").exists()
    run([*launch, __file__, "check", str(folder), str(own), column, precision])
    return compare(own, reference)


def run(command: list[str], dies: bool = False) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANKERY_CPU_ENGINES": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == dies, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-20000:]}"


if __name__ == "__main__":
    what, place, mine, column_name, precision_name = sys.argv[1:]
    {"check": check, "kill": kill}[what](Path(place), Path(mine), column_name, precision_name)
    from rankery.training.engine import leave

    leave()
