"""One accelerator, under eight minutes: first whether it is right, then how fast it is beside sentence-transformers.

    python benchmarks/gpu.py [--model DIR]

Checks: loading and scoring in fp32, bf16 and fp16 against golden scores written on the CPU; bf16 scores without ties; equal
gradients whatever the cut; packed equal to padded; torch's variable-length kernel really called, after scoring and in training,
for encoders and decoders; lengths never rounded beyond a table of positions; bf16 and fp16 near fp32; an overflow in fp16 skips the
update; a real out-of-memory error is repeated at half the budget; scoring beside training; 4-bit weights, where bitsandbytes and
peft are installed; FSDP2 and, where deepspeed is, ZeRO 1 to 3 on one device equal to no engine; decoders with both heads. Exit
status 1 if a check fails. Without an accelerator it says so and stops; `--cpu --tiny` runs all that CPUs can, with a stand-in for
the kernel and a tiny model, to try the script itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from machine import machine
from train_speed import ours, sentence_transformers
from work import BATCH, Work, write

from rankery import CrossEncoder, LLMDecoder
from rankery.config import load_config
from rankery.demo_data import base_model_path, docstring_pairs
from rankery.models import budget, varlen
from rankery.models.contract import PROBES
from rankery.training import loop
from rankery.training.engine import start_engine
from rankery.training.optim import lr_factor, set_lr
from rankery.training.run import Run, build
from rankery.training.step import settle, train_step

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tests' tiny models and their stand-in for the kernel
STEPS = 4


def main() -> int:
    from conftest import make_bert
    from cpu_kernel import cpu_kernel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="base model; default: the demo's")
    parser.add_argument("--cpu", action="store_true", help="try the script without an accelerator")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, and no timings")
    parser.add_argument("--only", nargs="+", help="names of checks")
    parser.add_argument("--pairs", type=int, default=4096, help="pairs of the timings")
    arguments = parser.parse_args()
    has_device = torch.accelerator.is_available()
    if not has_device and not arguments.cpu:
        print("no accelerator here; --cpu runs what CPUs can", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(machine(), torch.cuda.get_device_name() if torch.cuda.is_available() else "", flush=True)
    failures = 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = (
            make_bert(folder / "bert", max_position_embeddings=512)
            if arguments.tiny
            else arguments.model or base_model_path()
        )
        if not has_device:
            stack.enter_context(cpu_kernel())
            budget.attention_for = lambda device, dtype: "sdpa"  # as on GPUs
        data = write(docstring_pairs(BATCH * STEPS, seed=3), folder)
        bench = Bench(model, data, folder)
        for check in (check for check in CHECKS if check.__name__ in (arguments.only or check.__name__)):
            try:
                said, good = check(bench), True
            except Exception as error:  # the checks after it say something too
                said, good = f"{type(error).__name__}: {error}", False
            failures += not good
            print(f"{'ok  ' if good else 'FAIL'} {check.__name__}: {said}", flush=True)
        if not (arguments.tiny or arguments.only):
            speed(model, arguments.pairs, has_device)
    return 1 if failures else 0


class Bench:
    """Short runs of one model on one file, by plain SGD without dropout, so that rounding is all that differs."""

    def __init__(self, model: Path, data: Path, folder: Path):
        self.model, self.data, self.folder, self.runs = model, data, folder, 0

    def settings(self, **changes: Any) -> dict[str, Any]:
        self.runs += 1
        return {
            "model_name_or_path": str(self.model), "train_dataset": str(self.data), "output_dir": f"{self.folder}/run{self.runs}",
            "dataset_cache_dir": f"{self.folder}/cache", "batch_size": BATCH, "lr": 0.01, "optimizer": "sgd",
            "hidden_dropout": 0.0, "attention_dropout": 0.0, "log_with": "none", "warmup_proportion": 0.0, **changes,
        }  # fmt: skip

    def build(self, **changes: Any) -> Run:
        config = load_config(self.settings(**changes))
        run = build(config, start_engine(config))
        run.model.train()
        return run

    def steps(self, run: Run) -> torch.Tensor:
        """(loss, gradient norm) of each step, [STEPS, 2], at the learning rates that the loop would set."""
        found = []
        for number, batches in loop._steps(run, 0):
            set_lr(run.optimizer, lr_factor(number, run.steps, run.config.warmup_proportion))
            found.append(settle(run, train_step(run, number, batches)))
        return torch.tensor(found)


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(((left - right).abs() / right.abs().clamp(min=1e-3)).max())


def golden_scores(bench: Bench) -> str:
    CrossEncoder.from_pretrained(bench.model, seed=0, device="cpu").save_pretrained(bench.folder / "saved")
    golden = CrossEncoder.from_pretrained(bench.folder / "saved", device="cpu").compute_score(PROBES)
    said = []
    for dtype in ("float32", "bfloat16", *(["float16"] if torch.accelerator.is_available() else [])):
        scores = CrossEncoder.from_pretrained(bench.folder / "saved", dtype=dtype).compute_score(PROBES)  # verifies too
        said.append(f"{dtype} {float((scores - golden).abs().max()):.1e}")
    return f"largest deviation from the CPU's logits: {', '.join(said)}"


def cuts(bench: Bench) -> str:
    one, many = (bench.steps(bench.build(token_budget=budget)) for budget in (1 << 17, 1024))
    difference = largest_difference(one, many)
    assert difference < 2e-3, f"losses and gradient norms differ by {difference:.1e} between cuts"
    return f"losses and gradient norms of one micro-batch and of many differ by {difference:.1e}"


def packed(bench: Bench) -> str:
    """Packed pairs beside padded ones; in half precision through torch's variable-length kernel."""
    said = []
    for precision, most in (("no", 2e-3), ("bf16", 0.05)):
        on, off = (bench.steps(bench.build(packing=way, mixed_precision=precision)) for way in ("on", "off"))
        difference = largest_difference(on, off)
        assert difference < most, f"{precision}: losses and gradient norms differ by {difference:.1e}"
        said.append(f"{precision} {difference:.1e}")
    return f"losses and gradient norms beside padded pairs: {', '.join(said)}"


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Gives a function: how often the kernel was called since it was last asked, trials left out."""
    original = varlen.kernel()
    assert original is not None, f"torch {torch.__version__} has no variable-length attention"
    calls: list[int] = []

    @wraps(original)
    def function(*args: Any, **options: Any) -> Any:
        calls.append(len(args[0]))
        return original(*args, **options)

    def since() -> int:
        made = sum(tokens != TRIAL for tokens in calls)
        calls.clear()
        return made

    kept, varlen.kernel = varlen.kernel, lambda: function  # type: ignore[assignment]
    varlen._usable.cache_clear()
    try:
        yield since
    finally:
        varlen.kernel = kept
        varlen._usable.cache_clear()


TRIAL = 15  # tokens of the comparison that the kernel is tried with


def kernel(bench: Bench) -> str:
    """The kernel is called, for encoders and decoders: in scoring, which comes first in its process, and in training."""
    from conftest import make_decoder

    base = make_decoder(bench.folder / "kernel", width=128, positions=512)
    said = []
    for model, kind in ((bench.model, CrossEncoder), (base, LLMDecoder)):
        pairs = [(f"query {i}", f"document {i} of some") for i in range(40)]  # none shares its query
        with counted() as since:
            reranker = kind.from_pretrained(model, 1, seed=0, dtype="bfloat16")
            scores, scored = reranker.compute_score(pairs), since()
            assert scored, f"{kind.__name__}: scoring never called the kernel"
            settings = {"model_name_or_path": str(model), "model_type": kind.model_type, "mixed_precision": "bf16"}
            bench.steps(bench.build(**settings))
            trained = since()
            assert trained, f"{kind.__name__}: training under autocast never called the kernel"
        whole = kind.from_pretrained(model, 1, seed=0, dtype="float32").compute_score(pairs)
        difference = float((scores - whole).abs().max()) / max(1.0, float(whole.abs().max()))
        assert difference < 0.1, f"{kind.__name__}: scores of the kernel differ from fp32's by {difference:.1e}"
        said.append(f"{kind.__name__} {scored} calls scoring, {trained} training, {difference:.1e} from fp32")
    return "; ".join(said)


def order(bench: Bench) -> str:
    """Documents of one query share no logit in half precision."""
    pairs = list(dict.fromkeys((query, document) for query, document, _ in docstring_pairs(600, seed=5)))
    reranker = CrossEncoder.from_pretrained(bench.model, seed=0, dtype="bfloat16")
    scores = reranker.compute_score(pairs)
    tied, would = (len(pairs) - len(x.unique()) for x in (scores, scores.bfloat16()))
    assert tied <= would // 20, f"{tied} of {len(pairs)} documents share their score in bf16"
    return f"{tied} of {len(pairs)} documents share a score in bf16, {would} would if logits were rounded"


def positions(bench: Bench) -> str:
    """A table of 21 positions, which 8 does not divide: an index beyond it kills the process on a GPU."""
    from conftest import make_bert

    base = make_bert(bench.folder / "short", max_position_embeddings=21)
    reranker = CrossEncoder.from_pretrained(base, seed=0, dtype="float32")
    reranker.packing = "off"
    pairs = [("sun moon", "star " * (i % 40 + 1)) for i in range(60)]
    expected = CrossEncoder.from_pretrained(base, seed=0, device="cpu").compute_score(pairs)
    difference = float((reranker.compute_score(pairs) - expected).abs().max())
    assert difference < 1e-2, f"scores differ by {difference:.1e} from the CPU's"
    return f"padded to 21 positions, {difference:.1e} from the CPU's scores"


def beside_training(bench: Bench) -> str:
    """Threads score a model whose modules train."""
    reranker = CrossEncoder.from_pretrained(bench.model, seed=0)
    pairs = [(query, document) for query, document, _ in docstring_pairs(200, seed=6)]
    expected = reranker.compute_score(pairs)
    reranker.scorer.train()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(reranker.compute_score, [pairs] * 8))
    difference = max(float((scores - expected).abs().max()) for scores in found)
    assert difference < 1e-2, f"scores of eight threads differ by {difference:.1e}"
    assert all(module.training for module in reranker.scorer.modules()), "scoring left the model in another mode"
    return f"scores of eight threads differ by {difference:.1e}"


def four_bits(bench: Bench) -> str:
    if not all(importlib.util.find_spec(name) for name in ("bitsandbytes", "peft")):
        return "left out: needs bitsandbytes and peft"
    run = bench.build(load_in_4bit=True, lora_rank=4, mixed_precision="bf16")
    places = {parameter.device.type for parameter in run.model.parameters()}
    assert places == {run.engine.device.type}, f"weights are on {places}"
    losses = bench.steps(run)[:, 0]
    assert bool(losses.isfinite().all()), f"losses {losses.tolist()}"
    return f"an encoder trained, losses {losses[0]:.3f} to {losses[-1]:.3f}"


def half_precisions(bench: Bench) -> str:
    full = bench.steps(bench.build())
    said = []
    for precision in ("bf16", *(["fp16"] if torch.accelerator.is_available() else [])):
        difference = largest_difference(bench.steps(bench.build(mixed_precision=precision))[:, :1], full[:, :1])
        assert difference < 0.05, f"{precision} losses differ from fp32 by {difference:.1e}"
        said.append(f"{precision} {difference:.1e}")
    return f"losses beside fp32: {', '.join(said)}"


def overflow(bench: Bench) -> str:
    if not torch.accelerator.is_available():
        return "left out: fp16 needs an accelerator"
    run = bench.build(mixed_precision="fp16")
    before = next(run.model.parameters()).detach().clone()
    run.engine.scaler = torch.amp.GradScaler(run.engine.device.type, init_scale=2.0**40)  # no gradient survives this
    number, batches = next(loop._steps(run, 0))
    assert not train_step(run, number, batches).updated, "an overflow was counted as an update"
    assert torch.equal(before, next(run.model.parameters())), "an overflow changed the weights"
    return f"an overflow changed nothing and brought the loss scale to {run.engine.scaler.get_scale():.0f}"


def out_of_memory(bench: Bench) -> str:
    if not torch.cuda.is_available():
        return "left out: needs a GPU"
    calm = bench.steps(bench.build(token_budget=1024))
    run = bench.build(token_budget=1 << 17)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 30)) / total)
    try:
        short = bench.steps(run)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.plan.budget < 1 << 17, "1 GiB was enough: no error happened"
    difference = largest_difference(short, calm)
    assert difference < 2e-3, f"losses and gradient norms differ by {difference:.1e} after the error"
    return f"went on with {run.plan.budget} tokens; losses and gradient norms differ by {difference:.1e}"


def decoders(bench: Bench) -> str:
    """Tiny random families, both heads: scores of every dtype against golden ones written on the CPU (loading compares)."""
    from conftest import FAMILIES, make_decoder

    said = []
    for family in FAMILIES:
        base = make_decoder(bench.folder / family, family, width=128)
        heads: tuple[dict[str, Any], ...] = ({}, {"head": "yes_no", "yes_word": "y", "no_word": "n"})
        for head in heads:
            saved = bench.folder / f"{family}-{len(head)}"
            LLMDecoder.from_pretrained(base, seed=0, device="cpu", **head).save_pretrained(saved)
            golden = LLMDecoder.from_pretrained(saved, device="cpu").compute_score(PROBES)
            for dtype in ("float32", "bfloat16"):
                scores = LLMDecoder.from_pretrained(saved, dtype=dtype).compute_score(PROBES)
                said.append(float((scores - golden).abs().max()))
    return f"{len(said)} loads within their contracts' tolerances, largest deviation {max(said):.1e}"


def sharded(bench: Bench) -> str:
    files = {"FSDP2": "config/default_fsdp.yaml"}
    if importlib.util.find_spec("deepspeed"):
        files |= {f"ZeRO {stage}": f"config/deepspeed/deepspeed_zero{stage}.yaml" for stage in (1, 2, 3)}
    said = []
    for precision in ("no", "bf16"):
        plain = bench.steps(bench.build(mixed_precision=precision))
        for name, file in files.items():
            difference = largest_difference(launched(bench, file, precision), plain)
            assert difference < (2e-3 if precision == "no" else 0.1), (
                f"{name}, {precision}: differs from no engine by {difference:.1e}"
            )
            said.append(f"{name} {precision} {difference:.1e}")
    return f"on one device beside no engine: {', '.join(said)}"


def launched(bench: Bench, file: str, precision: str) -> torch.Tensor:
    """(loss, gradient norm) of each step of one process under a launch file."""
    settings = bench.settings(mixed_precision=precision, log_interval=1)
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / file), "--num_processes", "1",
        str(ROOT / "train_reranker.py"), *words,
    ]  # fmt: skip
    environment = {**os.environ, "RANKERY_CPU_ENGINES": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-1500:]
    rows = [json.loads(line) for line in (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[row["loss"], row["grad_norm"]] for row in rows if "grad_norm" in row])


CHECKS = (
    *(golden_scores, decoders, kernel, order, positions, packed, cuts, half_precisions, overflow, out_of_memory),
    *(beside_training, four_bits, sharded),
)


def speed(model: Path, pairs: int, has_device: bool) -> None:
    """Training and prediction in bf16, medians of three rounds in turns."""
    from sentence_transformers import CrossEncoder as Peer

    rows = docstring_pairs(pairs, seed=4)
    job = Work("docstrings", 512, rows)
    texts = [(query, document) for query, document, _ in rows]
    device = "cuda" if has_device else "cpu"
    mine = CrossEncoder.from_pretrained(model, seed=0, dtype="bfloat16")
    other = Peer(str(model), num_labels=1, max_length=512, device=device, model_kwargs={"dtype": torch.bfloat16})
    systems: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "training, bf16": (
            lambda: ours(job, "bf16", model),
            lambda: sentence_transformers(job, True, model),
        ),
        "prediction, bf16": (
            lambda: seconds(lambda: mine.compute_score(texts)),
            lambda: seconds(lambda: other.predict(texts, batch_size=128, show_progress_bar=False)),
        ),
    }
    for name, (first, second) in systems.items():
        times = [(first(), second()) for _ in range(4)][1:]  # the first is a warm-up
        left, right = (statistics.median(pairs / time for time in column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        print(
            f"{name}: rankery {left:.0f} pairs/s, sentence-transformers {right:.0f} pairs/s, ratio {ratio:.2f}",
            flush=True,
        )


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
