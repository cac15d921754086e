"""Two real processes on this machine's CPUs (gloo), launched as users do: equal to one process, and never hanging."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import VOCAB, launch, launch_script, make_data, run_python, start_launch, write_rows
from safetensors.torch import load_file, save_file

from rankery import CrossEncoder, train
from rankery.training.launch import launch_problems

EXACT = {
    "hidden_dropout": 0,
    "attention_dropout": 0,
    "optimizer": "sgd",
    "lr": 0.05,
    "max_grad_norm": 0.1,
    "token_budget": 60,
}


def arguments(config: dict) -> list[str]:
    return [f"{key}={value}" for key, value in config.items()]


def norms(folder: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return torch.tensor([[row["grad_norm"], row["loss"]] for row in rows if "grad_norm" in row])


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns(config: dict, tmp_path: Path, engine: str) -> None:
    """The same examples a step, gradients before clipping, weights after plain SGD, and metrics."""
    # 33 pairs: the last step is one example on two processes.
    odd = str(make_data(tmp_path / "odd.jsonl", 11, 3))
    exact = {**config, **EXACT, "train_dataset": odd, "best_metric": ""}
    one = train(exact, output_dir=str(tmp_path / "one"), best_metric=None).parent
    two = tmp_path / "two"
    file = "config/ddp.yaml" if engine == "ddp" else "config/default_fsdp.yaml"
    settings = {**exact, "batch_size": config["batch_size"] // 2, "output_dir": str(two)}
    done = launch(file, *arguments(settings), RANKERY_CPU_ENGINES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"engine {engine}, 2 processes" in done.stdout
    torch.testing.assert_close(norms(one), norms(two), rtol=1e-4, atol=1e-6)
    a, b = load_file(one / "model" / "model.safetensors"), load_file(two / "model" / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    assert CrossEncoder.from_pretrained(two / "model").compute_score([("sun", "sea")]).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_resumed_run_is_the_uninterrupted_run(config: dict, tmp_path: Path, engine: str) -> None:
    """Bit for bit, dropout on, from the middle of an epoch."""
    file = "config/ddp.yaml" if engine == "ddp" else "config/default_fsdp.yaml"
    settings = {**config, "batch_size": 4, "save_steps": 3, "num_max_checkpoints": 9, "best_metric": ""}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = launch(file, *arguments({**settings, "output_dir": whole}), RANKERY_CPU_ENGINES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    for path in (cut / "checkpoints").glob("*_*"):
        if int(path.name.split("_")[1]) > 3:
            shutil.rmtree(path)
    done = launch(file, *arguments({**settings, "output_dir": cut, "resume": True}), RANKERY_CPU_ENGINES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed after step 3" in done.stdout
    a, b = load_file(whole / "model" / "model.safetensors"), load_file(cut / "model" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_killed_at_random_moments_ends_as_uninterrupted(config: dict, tmp_path: Path) -> None:
    """SIGKILL of the launcher and both processes, during saves too: every step is saved, so most moments are within one."""
    settings = {**config, "batch_size": 4, "save_steps": 1, "epochs": 4, "best_metric": ""}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = launch("config/ddp.yaml", *arguments({**settings, "output_dir": whole}))
    assert done.returncode == 0, done.stdout + done.stderr
    kills = 0
    for attempt in range(8):
        with start_launch("config/ddp.yaml", *arguments({**settings, "output_dir": killed, "resume": True})) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "tokens a step" in line:
                    break
            time.sleep(0.3 + 0.17 * attempt)
            if process.poll() is None and kills < 3:
                launcher = psutil.Process(process.pid)
                for part in [launcher, *launcher.children(recursive=True)]:
                    part.kill()
                kills += 1
            process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 1
    a, b = load_file(whole / "model" / "model.safetensors"), load_file(killed / "model" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()


SPY = """
import json, os, sys
from torch.distributed.tensor import DTensor
from rankery.training import engine
original = engine.gradient_norm
def spied(parameters):
    seen = {
        "weights": sorted({str(p.dtype) for p in parameters}), "gradients": sorted({str(p.grad.dtype) for p in parameters}),
        "sharded": sum(isinstance(p, DTensor) for p in parameters), "parameters": len(parameters),
        "here": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters),
        "all": sum(p.numel() for p in parameters),
    }
    open(os.environ["SEEN"] + os.environ["RANK"], "w").write(json.dumps(seen))
    return original(parameters)
engine.gradient_norm = spied
from rankery.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_gradients_in_fp32_under_bf16_and_real_shards(config: dict, xlmr: Path, tmp_path: Path, engine: str) -> None:
    """What each process holds when gradients are reduced; an XLM-RoBERTa, under the launch file that names its layer."""
    script = tmp_path / "spy.py"
    script.write_text(SPY)
    words = arguments({**config, "model_name_or_path": xlmr, "mixed_precision": "bf16", "epochs": 1})
    file = "config/ddp.yaml" if engine == "ddp" else "config/xlmroberta_default_config.yaml"
    done = launch_script(str(script), file, *words, RANKERY_CPU_ENGINES="1", SEEN=str(tmp_path / "seen"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: the launch file wraps" not in done.stdout
    one, two = (json.loads((tmp_path / f"seen{process}").read_text()) for process in (0, 1))
    for seen in (one, two):
        assert seen["weights"] == seen["gradients"] == ["torch.float32"]
        assert seen["sharded"] == (seen["parameters"] if engine == "fsdp2" else 0)
    if engine == "fsdp2":
        assert one["here"] + two["here"] == one["all"]
        assert 0.4 < one["here"] / one["all"] < 0.6
    reranker = CrossEncoder.from_pretrained(Path(config["output_dir"]) / "model")
    assert reranker.compute_score([("sun", "sea")]).isfinite().all()


def test_loss_that_is_not_finite_stops_both_processes(config: dict, bert: Path, tmp_path: Path) -> None:
    """One process meets the bad pair: both stop before the update, one says which line it was."""
    broken = shutil.copytree(bert, tmp_path / "broken")
    state = load_file(bert / "model.safetensors")
    state["embeddings.word_embeddings.weight"][VOCAB.index("wolf")] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    rows = [{"query": "sun", "pos": ["sun sun"], "neg": ["sea"]}] * 3
    data = write_rows(tmp_path / "nan.jsonl", [*rows, {"query": "moon", "pos": ["wolf"], "neg": ["sea"]}])
    settings = {**config, "model_name_or_path": broken, "train_dataset": data, "val_dataset": ""}
    done = launch("config/ddp.yaml", *arguments(settings))
    assert done.returncode != 0
    assert done.stderr.count("nothing was updated. Examples: ") == 1
    assert "nan.jsonl:4" in done.stderr
    assert not (Path(config["output_dir"]) / "model").exists()


def test_one_example_on_two_processes(config: dict, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "one.jsonl", [{"query": "sun", "pos": ["moon"]}]))
    settings = {**config, "train_dataset": data, "val_dataset": data, "epochs": 1}
    done = launch("config/ddp.yaml", *arguments(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 step (1 epoch of 1)" in done.stdout


def test_out_of_memory_on_one_process_is_repeated_by_both(config: dict, tmp_path: Path) -> None:
    """An error injected on the second process only: both repeat the step, nothing hangs, the result is the same."""
    exact = {**config, **EXACT, "token_budget": 400, "batch_size": 4, "best_metric": "", "epochs": 1}
    script = tmp_path / "inject.py"
    script.write_text(
        "import os, sys, torch\n"
        "from rankery.models.scorer import Scorer\n"
        "original = Scorer.forward\n"
        "def limited(model, input_ids, *rest):\n"
        "    if os.environ['RANK'] == '1' and input_ids.numel() > 36:\n"
        "        raise torch.OutOfMemoryError('injected')\n"
        "    return original(model, input_ids, *rest)\n"
        "if os.environ.get('INJECT'):\n"
        "    Scorer.forward = limited\n"
        "from rankery.cli import main\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    calm, short = tmp_path / "calm", tmp_path / "short"
    done = launch_script(str(script), "config/ddp.yaml", *arguments({**exact, "output_dir": calm}))
    assert done.returncode == 0, done.stdout + done.stderr
    done = launch_script(str(script), "config/ddp.yaml", *arguments({**exact, "output_dir": short}), INJECT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory: the step is repeated" in done.stdout
    torch.testing.assert_close(norms(calm), norms(short), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_out_of_memory_when_sharded_stops_all_and_resumes(config: dict, tmp_path: Path, when: str) -> None:
    """Sharded processes cannot repeat a step: all stop, and the next start goes on with the budget that was named.

    Nor an evaluation; here the first one, before there is a checkpoint.
    """
    script = tmp_path / "inject.py"
    script.write_text(
        "import os, sys, torch\n"
        "from rankery.models.scorer import Scorer\n"
        "original, calls = Scorer.forward, [0]\n"
        "def limited(*arguments):\n"
        "    calls[0] += 1\n"
        "    if os.environ['RANK'] == '1' and calls[0] > int(os.environ['INJECT']):\n"
        "        raise torch.OutOfMemoryError('injected')\n"
        "    return original(*arguments)\n"
        "if os.environ.get('INJECT'):\n"
        "    Scorer.forward = limited\n"
        "from rankery.cli import main\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    validated, calls = ({"val_dataset": ""}, "4") if when == "training" else ({"best_metric": ""}, "0")
    words = [*arguments({**config, **validated, "save_steps": 1, "token_budget": 128})]
    environment = {"RANKERY_CPU_ENGINES": "1"}
    done = launch_script(str(script), "config/default_fsdp.yaml", *words, **environment, INJECT=calls)
    assert done.returncode != 0
    assert "process 1 ran out of memory at token_budget 128" in done.stderr
    assert "resume=true, which goes on with token_budget 64" in done.stderr
    done = launch_script(str(script), "config/default_fsdp.yaml", *words, "resume=true", **environment)
    assert done.returncode == 0, done.stderr
    assert "micro-batches of 64 tokens" in done.stdout


def test_launches_that_contradict(config: dict, tmp_path: Path) -> None:
    done = launch("config/default_fsdp.yaml", *arguments(config))
    assert done.returncode != 0
    assert "use config/ddp.yaml on CPUs" in done.stderr
    launch_file = tmp_path / "bf16.yaml"
    launch_file.write_text(Path("config/ddp.yaml").read_text() + "mixed_precision: bf16\n")
    done = launch(str(launch_file), *arguments(config))
    assert "mixed_precision is no in the configuration but bf16 in the launch file" in done.stderr
    assert not Path(config["output_dir"]).exists()


def test_fewer_processes_than_asked_for(config: dict) -> None:
    """Another library in this program has settled on one process before."""
    code = (
        "import os, sys; from accelerate import PartialState; PartialState(cpu=True); os.environ['WORLD_SIZE'] = '2'\n"
        "from rankery.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
    )
    done = run_python(code, *arguments(config))
    assert done.returncode == 2
    assert "asked for 2 processes, but training would run on 1" in done.stderr
    assert not Path(config["output_dir"]).exists()


def test_fewer_accelerators_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    (problem,) = launch_problems("no", 2, 1, 1.0)
    assert "starts 4 processes on this machine, which has 2 accelerators" in problem
    assert launch_problems("no", 4, 1, 1.0) == []
    assert launch_problems("no", 0, 1, 1.0) == []


def test_launch_files_that_decide_what_the_configuration_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, message in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps is 2 in the configuration but 4"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "max_grad_norm is 1 in the configuration but 0.5"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision is bf16 in the configuration but fp16"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            (problem,) = launch_problems("bf16", 1, 2, 1.0)
            assert message in problem
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    (problem,) = launch_problems("bf16", 1, 2, 1.0)
    assert "asks for FSDP version 1" in problem


def test_bad_data_stops_all_processes(config: dict, tmp_path: Path) -> None:
    bad = make_data(tmp_path / "bad.jsonl")
    bad.write_text(bad.read_text() + "not json\n")
    done = launch("config/ddp.yaml", *arguments({**config, "train_dataset": bad}))
    assert done.returncode != 0
    assert done.stderr.count("bad.jsonl:13: is not JSON") == 1
