"""`rankery train --processes`, launch files, several machines: what starts processes, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, launch, run_python

from rankery import InputError, launcher
from rankery.cli import main
from rankery.launcher import COMMON, ENGINES
from rankery.training.launch import asked_kind, launch_problems

FILES = {
    "ddp": "ddp.yaml",
    "fsdp": "default_fsdp.yaml",
    **{f"zero{n}": f"deepspeed/deepspeed_zero{n}.yaml" for n in range(4)},
}


ZERO_FILES = [f"config/deepspeed/deepspeed_zero{stage}.yaml" for stage in (1, 3)]


@pytest.mark.parametrize("engine", ENGINES)
def test_launch_files_are_what_the_command_does(engine: str) -> None:
    shipped = yaml.safe_load((ROOT / "config" / FILES[engine]).read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        for key in ("fsdp_transformer_layer_cls_to_wrap", "offload_optimizer_device", "offload_param_device"):
            shipped.get(section, {}).pop(key, None)  # hints for the reader, and defaults
    assert shipped == {**COMMON, **ENGINES[engine], "num_processes": 2}


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_processes_without_a_launcher(config: dict, llama: Path, engine: str) -> None:
    settings = {**config, "model_type": "llm_decoder", "model_name_or_path": llama, "epochs": 1, "batch_size": 4}
    words = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-m", "rankery.cli", "train", "--processes", "2", "--engine", engine, *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "RANKERY_CPU_ENGINES": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"engine {engine}, 2 processes" in done.stdout
    assert (Path(config["output_dir"]) / "model" / "rankery.json").is_file()


@pytest.mark.parametrize(
    ("number", "status", "processes"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM, "2"),
        (signal.SIGINT, 130, "2"),
        (signal.SIGTERM, 128 + signal.SIGTERM, "1"),
    ],
)
def test_a_stopped_launch_leaves_no_process(config: dict, number: int, status: int, processes: str) -> None:
    """The signal goes to the command alone, as from a scheduler or `kill`."""
    words = [f"{key}={value}" for key, value in {**config, "epochs": 10000}.items()]
    command = [
        sys.executable, "-m", "rankery.cli", "train", "--processes", processes, "--engine", "ddp", *words
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where tests run in the background of a shell, SIGINT is ignored, and by their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any("tokens a step" in line for line in process.stdout), process.stderr
        tree = psutil.Process(process.pid).children(recursive=True)
        assert len(tree) > int(processes)  # the launcher, and what it started
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert (said.count("interrupted; resume=true goes on") == 1) == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(tree, timeout=5)
    assert not alive
    assert not [
        child for child in psutil.process_iter(["cmdline"]) if config["output_dir"] in str(child.info["cmdline"])
    ]


def test_a_launch_that_is_stopped_while_it_starts() -> None:
    code = (
        "import os, signal, subprocess, sys, time\n"
        "from rankery import launcher\n"
        "class Late(subprocess.Popen):\n"
        "    def __init__(self, *rest, **options):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        super().__init__(*rest, **options)\n"
        "subprocess.Popen = Late\n"
        "sys.exit(launcher._run_to_the_end([sys.executable, '-c', 'import time; time.sleep(60)']))"
    )
    begun = time.monotonic()
    assert run_python(code).returncode == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 50


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not one thread each, which torchrun would give them; what the user has set stays."""
    assert [launcher.threads(n, 16)["OMP_NUM_THREADS"] for n in (1, 2, 3, 32)] == ["16", "8", "5", "1"]
    code = f"import os; open({str(tmp_path / 'seen')!r}, 'a').write(os.environ['OMP_NUM_THREADS'] + ' ')"
    original = launcher._run_to_the_end

    def instead(command: list[str], environment: dict[str, str]) -> int:
        return original([sys.executable, "-c", code], environment)

    monkeypatch.setattr(launcher, "_run_to_the_end", instead)
    monkeypatch.setattr(launcher, "usable_cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launcher.launch(3, "ddp", ["train"]) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert launcher.launch(3, "ddp", ["train"]) == 0
    assert (tmp_path / "seen").read_text() == "4 2 "


def test_a_launcher_within_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "--processes", "2", "model_name_or_path=x"]) == 2
    assert "a launcher runs this already; leave them out" in capsys.readouterr().err
    monkeypatch.delenv("LOCAL_RANK")
    assert main(["train", "--processes", "0"]) == 2


def test_bad_keys_are_said_once_and_launch_nothing(config: dict) -> None:
    words = [f"{key}={value}" for key, value in {**config, "learning_rate": 1}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "rankery.cli", "train", "--processes", "2", *words],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: command line: unknown key learning_rate; did you mean lr?\n"


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("RANKERY_CPU_ENGINES", "1")
    assert asked_kind() == "zero3"
    assert launch_problems("no", 0, 1, 1.0) == []
    monkeypatch.setattr("rankery.training.launch.find_spec", lambda name: None)
    (problem,) = launch_problems("no", 0, 1, 1.0)
    assert "which is not installed: pip install 'rankery[deepspeed]'" in problem


def test_deepspeed_that_is_not_installed_is_said_before_the_launch(config: dict) -> None:
    code = (
        "import sys\n"
        "sys.modules['deepspeed'] = None\n"
        "from rankery.cli import main\n"
        "sys.exit(main(['train', '--processes', '2', '--engine', 'zero1', *sys.argv[1:]]))"
    )
    done = run_python(code, *(f"{key}={value}" for key, value in config.items()))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --engine is zero1, but DeepSpeed is not installed: pip install")
    assert len(done.stderr.splitlines()) == 1


def test_deepspeed_files_that_decide_what_the_configuration_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ds.json"
    settings = {"zero_optimization": {"stage": 1}, "gradient_clipping": 0.5, "bf16": {"enabled": True}, "optimizer": {}}
    file.write_text(json.dumps({**settings, "gradient_accumulation_steps": "auto"}))
    for name, value in (("USE_DEEPSPEED", "true"), ("DEEPSPEED_CONFIG_FILE", str(file))):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("RANKERY_CPU_ENGINES", "1")
    assert asked_kind() == "zero1"
    text = "\n".join(launch_problems("no", 0, 1, 1.0))
    for expected in (
        "max_grad_norm is 1 in the configuration but 0.5",
        "mixed_precision is no",
        "has optimizer, which",
    ):
        assert expected in text
    (problem,) = launch_problems("bf16", 0, 1, 0.5)
    assert "has optimizer" in problem
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    (problem,) = launch_problems("fp16", 8, 1, 1.0)
    assert "DeepSpeed trains in bf16 or no here" in problem


def test_defaults_that_a_deepspeed_launch_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate passes the same values for a file that says nothing: they count where it tells that the file names them."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "zero_stage,deepspeed_multinode_launcher")
    assert launch_problems("bf16", 8, 4, 1.0) == []
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "zero_stage,gradient_accumulation_steps,mixed_precision")
    assert launch_problems("no", 8, 1, 1.0) == []
    precision, accumulation = launch_problems("bf16", 8, 4, 1.0)
    assert "mixed_precision is bf16 in the configuration but no in the launch file" in precision
    assert "gradient_accumulation_steps is 4 in the configuration but 1" in accumulation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch_file", "named"), [("config/ddp.yaml", False), ("config/deepspeed/deepspeed_zero1.yaml", True)]
)
def test_what_accelerate_tells_of_a_launch_file(config: dict, tmp_path: Path, launch_file: str, named: bool) -> None:
    """What docs/engines.md says of `mixed_precision: no`."""
    (tmp_path / "file.yaml").write_text((ROOT / launch_file).read_text() + "mixed_precision: 'no'\n")
    words = [f"{key}={value}" for key, value in {**config, "mixed_precision": "bf16", "epochs": 1}.items()]
    done = launch(str(tmp_path / "file.yaml"), *words, RANKERY_CPU_ENGINES="1")
    assert ("mixed_precision is bf16 in the configuration but no in the launch file" in done.stderr) == named
    assert (done.returncode == 0) != named


def test_launch_files_that_ask_for_what_does_not_happen(config: dict, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "config/default_fsdp.yaml").read_text())
    settings["fsdp_config"]["fsdp_activation_checkpointing"] = True
    settings["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(settings))
    words = [f"{key}={value}" for key, value in config.items()]
    done = launch(str(tmp_path / "file.yaml"), *words, RANKERY_CPU_ENGINES="1")
    assert done.returncode != 0
    assert (
        "gradient_checkpointing is false in the configuration but fsdp_activation_checkpointing is true" in done.stderr
    )
    assert "dynamo_backend is INDUCTOR in the launch file, but rankery compiles no model" in done.stderr
    assert not Path(config["output_dir"]).exists()


def test_checkpointing_that_both_files_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_ACTIVATION_CHECKPOINTING"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launch_problems("no", 8, 1, 1.0, gradient_checkpointing=True) == []


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_deepspeed_file_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ds.json"
    if content is not None:
        file.write_text(content)
    for name, value in (("USE_DEEPSPEED", "true"), ("DEEPSPEED_CONFIG_FILE", str(file))):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(InputError, match=f"deepspeed_config_file of the launch file is {file}; it cannot be read"):
        launch_problems("no", 0, 1, 1.0)


def test_deepspeed_on_cpus_is_refused(config: dict) -> None:
    done = launch("config/deepspeed/deepspeed_zero2.yaml", *(f"{key}={value}" for key, value in config.items()))
    assert done.returncode != 0
    assert "the launch file asks for DeepSpeed, but there is no accelerator; use config/ddp.yaml on CPUs" in done.stderr
    assert not Path(config["output_dir"]).exists()


def start_machine(rank: int, launch_file: str, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command that docs/engines.md has for each of two machines, with a process each."""
    port = str(21000 + os.getpid() % 20000)
    launcher = [
        "accelerate.commands.launch", "--config_file", launch_file, "--num_machines", "2", "--num_processes", "2",
        "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", port,
    ]  # fmt: skip
    if launch_file == "torchrun":
        launcher = [
            "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d",
            "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "training",
        ]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "RANKERY_CPU_ENGINES": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "train_reranker.py", *words],
        cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launch_file", ["config/ddp.yaml", "config/deepspeed/deepspeed_zero1.yaml", "torchrun"])
def test_two_machines_on_one_host_meet(config: dict, launch_file: str) -> None:
    words = [f"{key}={value}" for key, value in {**config, "batch_size": 4, "epochs": 1}.items()]
    machines = [start_machine(rank, launch_file, words) for rank in (0, 1)]
    outputs = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert ", 2 processes" in outputs[0][0]
    assert (Path(config["output_dir"]) / "model" / "rankery.json").is_file()


def test_machines_with_a_cache_folder_each(config: dict, tmp_path: Path) -> None:
    """The first process tokenises for all: the other one does not find it, and both end."""
    words = [f"{key}={value}" for key, value in config.items()]
    machines = [
        start_machine(rank, "config/ddp.yaml", words, RANKERY_CACHE=str(tmp_path / f"cache{rank}")) for rank in (0, 1)
    ]
    outputs = [machine.communicate(timeout=300) for machine in machines]
    assert all(machine.returncode for machine in machines)
    said = "".join(err for _, err in outputs)
    message = rf"error: dataset_cache_dir is {tmp_path}/cache1, where \S+ does not find what .* a folder that all machines see"
    assert len(re.findall(message, said)) == 1, said
    assert "FileNotFoundError" not in said
    assert not Path(config["output_dir"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("launch_file", ["config/ddp.yaml", "config/default_fsdp.yaml", *ZERO_FILES])
def test_activations_offloaded_under_every_engine(config: dict, tmp_path: Path, launch_file: str) -> None:
    metrics = []
    for offloaded in ("false", "true"):
        own = {"batch_size": 4, "epochs": 1, "activation_offload": offloaded, "output_dir": tmp_path / offloaded}
        words = [f"{key}={value}" for key, value in {**config, **own}.items()]
        done = launch(launch_file, *words, RANKERY_CPU_ENGINES="1")
        assert done.returncode == 0, done.stdout + done.stderr
        metrics.append((tmp_path / offloaded / "metrics.jsonl").read_text())
    assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_state_learns_the_same(config: dict, tmp_path: Path, stage: int) -> None:
    """Optimiser state (and with ZeRO 3 weights) in the CPU's memory, as the launch file's comments say."""
    text = (ROOT / f"config/deepspeed/deepspeed_zero{stage}.yaml").read_text()
    (tmp_path / "offload.yaml").write_text(text.replace("_device: none", "_device: cpu"))
    exact = {**config, "batch_size": 4, "epochs": 1, "hidden_dropout": 0, "attention_dropout": 0, "best_metric": ""}
    losses = []
    for name, file in (
        ("kept", f"config/deepspeed/deepspeed_zero{stage}.yaml"),
        ("offloaded", tmp_path / "offload.yaml"),
    ):
        words = [f"{key}={value}" for key, value in {**exact, "output_dir": tmp_path / name}.items()]
        done = launch(str(file), *words, RANKERY_CPU_ENGINES="1")
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        losses.append([row[key] for row in rows for key in ("loss", "grad_norm") if key in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
