"""Run folders under attack: two writers, damage, links, hostile names, models that appear; what is told, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import FUZZ, ROOT, make_data, run_python
from mutations_run import Mutation, run_mutations, run_verdict
from safetensors.torch import load

from rankery import InputError, locks, train
from rankery.cli import main
from rankery.config import load_config
from rankery.data.files import named, written_whole
from rankery.locks import FolderLock, hold_folder, is_abandoned
from rankery.models.folders import files_in, write_whole
from rankery.sealed import Schema, read_sealed, sealed
from rankery.training import loop, output, run, tracking
from rankery.training.comparison import compare
from rankery.training.tuned import read_tuned, write_tuned


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "model.safetensors").read_bytes())  # in memory: the file may be cut short


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Stop(BaseException):
    """As if killed."""


@pytest.fixture(scope="module")
def unfinished(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A run that was killed when all was trained and nothing published: best_6 and checkpoint_12 are there, and differ."""
    home = tmp_path_factory.mktemp("unfinished")
    config = {
        "model_name_or_path": str(bert), "max_len": 48, "train_dataset": str(make_data(home / "train.jsonl")),
        "val_dataset": str(make_data(home / "val.jsonl", 6, offset=40)), "output_dir": str(home / "out"), "lr": 3e-2,
        "batch_size": 8, "epochs": 2, "log_interval": 1, "log_with": "none", "seed": 1, "best_metric": "loss",
        "warmup_proportion": 0,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*_: object) -> None:
            raise Stop

        original, losses = loop.evaluate, iter((1.0, 0.5, 0.7))

        def measured(*arguments: object) -> tuple[dict[str, float], bool]:
            metrics, flat = original(*arguments)
            return {**metrics, "loss": next(losses)}, flat

        patch.setattr(loop, "evaluate", measured)
        patch.setattr(loop, "_write_final", stopped)
        with pytest.raises(Stop):
            train(config)
    (best,) = (home / "out" / "checkpoints").glob("best_*")
    assert best.name == "best_6"
    return config


def copied(unfinished: dict, tmp_path: Path) -> dict:
    return {
        **unfinished,
        "output_dir": str(shutil.copytree(unfinished["output_dir"], tmp_path / "copy")),
        "resume": True,
    }


DAMAGE = {
    "weights cut short": lambda best: os.truncate(best / "model.safetensors", 3000),
    "one bit": lambda best: flip(best / "model.safetensors", -9),
    "contract": lambda best: flip(best / "rankery.json", 0),
    "no tokenizer": lambda best: (best / "tokenizer.json").unlink(),
    "other weights": lambda best: shutil.copy(best.parent / "checkpoint_12/model/model.safetensors", best),
    "a link": lambda best: relink(best / "model.safetensors"),
    "an adapter": lambda best: (best / "adapter_config.json").write_text("{}"),
}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def relink(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_best_model_is_never_published(
    unfinished: dict, tmp_path: Path, capsys: pytest.CaptureFixture, what: str
) -> None:
    config = copied(unfinished, tmp_path)
    folder = Path(config["output_dir"])
    last = weights(folder / "checkpoints/checkpoint_12/model")
    best = weights(folder / "checkpoints/best_6")
    DAMAGE[what](folder / "checkpoints/best_6")
    if what in ("contract", "an adapter"):  # no contract, or what rankery did not write there
        with pytest.raises(InputError, match="best_6"):
            train(config)
        assert not (folder / "model").exists()
    else:
        train(config)
        assert re.search(r"note: .*best_6 is damaged \(.*\); the last model is saved instead", capsys.readouterr().out)
        assert same(weights(folder / "model"), last)
        assert not same(last, best)
    assert (folder / "checkpoints/best_6").is_dir()


def test_a_whole_best_model_is_published(unfinished: dict, tmp_path: Path) -> None:
    config = copied(unfinished, tmp_path)
    best = weights(Path(config["output_dir"]) / "checkpoints/best_6")
    assert same(weights(train(config)), best)


@pytest.mark.parametrize("kind", ["empty", "model", "file"])
def test_a_model_that_appears_during_the_run_costs_nothing(
    config: dict, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever it is, it stays, the trained model is kept beside it, and the run fails."""
    folder = Path(config["output_dir"])
    original = loop.train_step

    def watched(run, number, batches):
        if number == 10:
            if kind == "model":
                shutil.copytree(folder / "checkpoints/checkpoint_6/model", folder / "model")
            elif kind == "file":
                (folder / "model").write_text("mine")
            else:
                (folder / "model").mkdir()
        return original(run, number, batches)

    monkeypatch.setattr(loop, "train_step", watched)
    with pytest.raises(
        InputError, match=r"model: has appeared since the run began.* is kept in .*/last_12: move"
    ) as caught:
        train(config, val_dataset=None)
    assert len(caught.value.problems) == 1
    assert (folder / "checkpoints/last_12/model.safetensors").is_file()
    kept = weights(folder / "checkpoints/last_12")
    assert (folder / "model").exists()
    monkeypatch.setattr(loop, "train_step", original)
    if kind != "file":
        with pytest.raises(InputError, match="model is not what this run has put there"):
            train(config, val_dataset=None, resume=True)
    (folder / "model").rename(folder / "moved")
    assert same(weights(train(config, val_dataset=None, resume=True)), kept)


def test_nothing_is_deleted_or_written_through_a_link(config: dict, tmp_path: Path) -> None:
    folder = train(config, epochs=1).parent
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("mine")
    (outside / "metrics.jsonl").write_text("mine")
    for name in ("checkpoints", "model", "tensorboard", "metrics.jsonl"):
        place, moved = folder / name, folder / f"moved-{name}"
        if place.exists():
            place.rename(moved)
        place.symlink_to(outside / name if name == "metrics.jsonl" else outside)
        for changes in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=rf"{name} is a link, where rankery writes and deletes"):
                train(config, epochs=1, **changes)
        place.unlink()
        if moved.exists():
            moved.rename(place)
    checkpoint = folder / "checkpoints/checkpoint_6"
    (checkpoint / "linked").symlink_to(outside)
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(
        json.dumps({**state, "files": {"linked/thesis.txt": [4, 0], "../../x": [1, 1]}})
    )
    (folder / "x").write_text("mine")
    train(config, epochs=1, overwrite=True)
    assert (folder / "x").read_text() == (outside / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("run_id", ["*", "../../x", "", "0" * 11, "0" * 13, 7, None])
def test_an_id_that_no_run_has_deletes_nothing(config: dict, run_id: object) -> None:
    folder = train(config, epochs=1, log_with="tensorboard").parent
    theirs = folder / "tensorboard/events.out.tfevents.1.host.2.0123456789ab"
    theirs.write_text("another run's")
    content = read_sealed(folder / "run.json", Schema)
    (folder / "run.json").write_text(sealed({**content, "run_id": run_id}))
    before = files_in(folder)
    for changes in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=r"run.json: is not what rankery writes there \(no valid run_id\)"):
            train(config, epochs=1, log_with="tensorboard", **changes)
    assert files_in(folder) == before
    for pattern in ("*", "?" * 12, "[0-9a-f]" * 12):  # were it read all the same
        tracking.remove_traces(folder, pattern)
    assert theirs.read_text() == "another run's"


def test_one_process_writes_at_a_time(config: dict) -> None:
    """The lock is another process's; it ends with it, by SIGKILL too, and is not what a forked worker holds."""
    folder = train(config, epochs=1, num_workers=1).parent
    assert not (folder / ".lock").exists()
    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom rankery.locks import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.take()\n"
        "if os.fork():\n    print('held', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        children = psutil.Process(holder.pid).children()
        for changes in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(
                InputError, match=rf"is in use by process {holder.pid} on \S+, since .*; wait until"
            ) as caught:
                train(config, epochs=1, **changes)
            assert len(caught.value.problems) == 1
        assert {name: (folder / name).stat().st_mtime_ns for name in files_in(folder) if name != ".lock"} == before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    try:
        assert children[0].is_running()
        train(config, epochs=1, overwrite=True)
        assert not (folder / ".lock").exists()
    finally:
        children[0].kill()


def test_of_two_that_start_in_one_new_folder_one_goes_on(
    config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts, and ends, while the first tokenises."""
    original, models = run.prepare_data, []

    def overtaken(*arguments: object) -> dict:
        monkeypatch.setattr(run, "prepare_data", original)
        models.append(train(config, seed=2))
        return original(*arguments)

    monkeypatch.setattr(run, "prepare_data", overtaken)
    with pytest.raises(InputError, match="was taken by another run meanwhile"):
        train(config)
    alone = train(config, seed=2, output_dir=str(tmp_path / "alone"))
    assert same(weights(models[0]), weights(alone))
    assert (models[0].parent / "metrics.jsonl").read_text() == (alone.parent / "metrics.jsonl").read_text()


def test_locks(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock, FolderLock(tmp_path) as other:
        lock.take()
        lock.take()
        with pytest.raises(InputError, match=rf"is in use by process {os.getpid()} on "):
            other.take()
        lock.release()
        other.take()
        assert other.is_taken
    assert not list(tmp_path.iterdir())
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        FolderLock(tmp_path).take()
    assert not (tmp_path / "elsewhere").exists()
    held = hold_folder(tmp_path)
    assert held is not None
    assert not is_abandoned(tmp_path)
    os.close(held)
    assert is_abandoned(tmp_path)


def test_a_file_system_without_locks(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs there begin, go on and are replaced as ever."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    for changes in ({}, {"resume": True}, {"overwrite": True}):
        folder = train(config, epochs=1, **changes).parent
        assert not (folder / ".lock").exists()


def test_sealed_files_tell_every_change(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    content = {"a": 1, "b": [0.1, None, "é"], "nan": float("inf"), "d": {"2": 3}}
    file.write_text(sealed(content))
    assert read_sealed(file, Schema) == content
    text = file.read_text()
    for other in (
        text.replace("0.1", "0.2"),
        text.replace('"a"', '"c"'),
        text[:-1],
        text[:-1] + ', "e": 1}',
        "[" * 99999,
        "3",
    ):
        file.write_text(other)
        with pytest.raises(ValueError, match=r"changed|Expecting|nested|object|delimiter"):
            read_sealed(file, Schema)
    file.unlink()
    os.mkfifo(file)  # which nobody ever writes to
    with pytest.raises(ValueError, match="no regular file"):
        read_sealed(file, Schema)


def test_metrics_that_were_changed_are_said_and_stop_nothing(
    unfinished: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = copied(unfinished, tmp_path)
    file = Path(config["output_dir"]) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"loss"', '"loss')
    file.write_text("".join(lines))
    with pytest.raises(InputError, match=r"metrics.jsonl:3: is no line of a run \(1 such lines\)"):
        compare([config["output_dir"], unfinished["output_dir"]])
    best = weights(Path(config["output_dir"]) / "checkpoints/best_6")
    assert same(weights(train(config)), best)
    assert re.search(rf"note: .*metrics.jsonl was changed .* {len(lines) - 1} lines", capsys.readouterr().out)
    assert file.read_text() == "".join(lines[:2] + lines[3:])


def test_budgets_that_were_changed(config: dict, tmp_path: Path) -> None:
    """A measured one is measured again; the one that a run came down to is an error."""
    file = tmp_path / "token_budgets.json"
    write_tuned(file, "a", 512)
    write_tuned(file, "b", 1024)
    assert read_tuned(file) == {"a": 512, "b": 1024}
    file.write_text(file.read_text().replace("512", "513"))
    assert read_tuned(file) == {}
    for value in (0, -1, True, 1 << 40, 0.5, "512", None):
        file.write_text(json.dumps({"a": value, "b": 512}))  # of an older rankery
        assert read_tuned(file) == {"b": 512}
    folder = train(config, epochs=1).parent
    lowered = folder / "checkpoints/token_budget"
    output.lower_token_budget(folder, 64)
    parsed = load_config({**config, "resume": True, "epochs": 1})
    assert output.token_budget(parsed, {}) == 64
    for content in ("64", "x", "", '{"token_budget": 0}', lowered.read_text().replace("64", "640000")):
        lowered.write_text(content)
        with pytest.raises(InputError, match=r"checkpoints/token_budget: cannot be read \(.*\); delete it, or set"):
            output.token_budget(parsed, {})


def test_a_tracker_that_fails_costs_no_run(
    config: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert (train(config, log_with="tensorboard") / "rankery.json").is_file()
    assert capsys.readouterr().out.count("note: tensorboard failed and is left out from here (OSError: [Errno 28]") == 1


def test_sigterm_is_an_end_like_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """What is half written is cleared away, and the shell learns what it was."""
    left = []

    def stopped(*_: object, **__: object) -> None:
        try:
            with written_whole(tmp_path / "x"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        finally:
            left.extend(tmp_path.iterdir())

    monkeypatch.setattr("rankery.distilling.score.score", stopped)
    assert main(["score", "--model", "m", "--data", "d", "--output", "o"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM; the same command goes on where it was\n"
    assert not left
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_sigterm_says_what_it_stopped(config: dict) -> None:
    words = [f"{key}={value}" for key, value in {**config, "epochs": 10000, "save_steps": 3}.items()]
    command = [sys.executable, "-m", "rankery.cli", "train", *words]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("step 6:" in line for line in process.stdout), process.stderr
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    folder = Path(config["output_dir"])
    assert re.fullmatch(
        rf"stopped by SIGTERM: the training in {folder}; resume=true goes on from checkpoint_\d+\n", said
    )
    assert not [path for path in folder.rglob(".*") if path.name != ".metrics"]


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Killed, so that it cannot tell anybody; both ways: the kernel's, and the thread that looks."""
    for way in ("", "import rankery.lifeline; rankery.lifeline.sys = type('', (), {'platform': 'other'})\n"):
        child = (
            f"import os, time\n{way}from rankery.lifeline import end_with_parent\nend_with_parent()\n"
            "print(os.getpid(), flush=True)\ntime.sleep(60)"
        )
        parent = (
            "import os, subprocess, sys, time\n"
            f"subprocess.Popen([sys.executable, '-c', {child!r}], env={{**os.environ, 'RANKERY_PARENT': str(os.getpid())}})\n"
            "time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            number = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - begun < 10
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["command", "launcher", "first process"])
def test_nothing_outlives_a_killed_launch(config: dict, victim: str) -> None:
    words = [f"{key}={value}" for key, value in {**config, "epochs": 10000, "batch_size": 4, "save_steps": 5}.items()]
    command = [sys.executable, "-m", "rankery.cli", "train", "--processes", "2", *words]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("epoch 1:" in line for line in process.stdout), process.stderr
        launcher = psutil.Process(process.pid).children()[0]
        tree = [launcher, *launcher.children(recursive=True)]
        workers = [child for child in launcher.children(recursive=True) if "start.py" in " ".join(child.cmdline())]
        {"command": process, "launcher": launcher, "first process": workers[0]}[victim].send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive
    metrics = Path(config["output_dir"]) / "metrics.jsonl"
    size = metrics.stat().st_size
    time.sleep(0.5)
    assert metrics.stat().st_size == size
    again = run_python(
        "import sys; from rankery.cli import main; sys.exit(main(['train', '--processes', '2', *sys.argv[1:]]))",
        *[word for word in words if not word.startswith("log_interval=")],
        "resume=true", "log_interval=100000", "patience=1", "eval_steps=1",
    )  # fmt: skip
    assert "resume: patience was None" in again.stderr  # it is asked for, and refused for that alone


def test_errors_of_a_full_disk_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses what is written, as a full disk does, and names nothing."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode, **options: original(Path("/dev/full"), *mode, **options))
    page, run_file = tmp_path / "page.html", tmp_path / "run.trec"
    with pytest.raises(OSError, match=rf"No space left on device: '{page}'"):
        write_whole(page, "x")
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{run_file}'"),
        named(run_file),
        run_file.open("w") as file,
    ):
        file.write("x")
    with pytest.raises(InputError, match=rf"{page}: could not be written: .*No space"), written_whole(page) as whole:
        whole.write(b"x")
    with pytest.raises(FileNotFoundError, match="elsewhere"), named(page):
        os.stat(tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def mutations(unfinished: dict) -> list[Mutation]:
    return run_mutations(Path(unfinished["output_dir"]), seed=19, count=10 * FUZZ)


@pytest.mark.fuzz
@pytest.mark.parametrize("number", range(10 * FUZZ))
def test_mutations_of_a_run_folder(unfinished: dict, mutations: list[Mutation], tmp_path: Path, number: int) -> None:
    """A few of those that fuzzing tries: told in one line, or the weights of the run that nobody touched."""
    folder = Path(unfinished["output_dir"])
    best, last = weights(folder / "checkpoints/best_6"), weights(folder / "checkpoints/checkpoint_12/model")

    def right(model: Path, said: str) -> bool:
        other = "the last model is saved instead" in said or "resumed after step 12" not in said  # evaluated anew
        return same(weights(model), best) or (other and same(weights(model), last))

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert run_verdict(unfinished, copy, mutations[number], right, folder) == "", mutations[number].name


@pytest.mark.slow
def test_a_few_random_kills() -> None:
    """`make soak` has 200."""
    command = [sys.executable, "tests/soak.py", "--kills", "8", "--seed", "3", "--only", "saves", "finish"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ kills, 0 differences", done.stdout, re.M)


def test_what_killed_writings_leave_goes(unfinished: dict, tmp_path: Path) -> None:
    """safetensors' own temporary file beside the checkpoints, and that of a contract in the published model."""
    settings = copied(unfinished, tmp_path)
    out = Path(settings["output_dir"])
    (out / "checkpoints" / ".tmpEnbR2o").write_bytes(b"half")
    model = train(settings)
    contract = json.loads((model / "rankery.json").read_text())
    bare = {**contract, "probes": [], "golden": [], "tolerance": {}}
    (model / "rankery.json").write_text(json.dumps({key: value for key, value in bare.items() if key != "digest"}))
    (model / ".tmp-rankery.json-430").write_text("{")
    train(settings)
    assert not list(out.rglob(".tmp*"))
    assert json.loads((model / "rankery.json").read_text())["golden"] == contract["golden"]
