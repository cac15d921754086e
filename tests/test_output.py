"""The output folder: files that a run did not write survive it, and a folder of somebody else is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rankery import InputError, train
from rankery.models.folders import remove
from rankery.training import loop


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_in_a_checkpoint_outlive_it(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put there while the run goes on, by somebody who looks at a checkpoint before it is rotated away."""
    original = loop.train_step
    checkpoints = Path(config["output_dir"]) / "checkpoints"
    mine = ("notes.txt", "model/notes.txt", "evaluation/metrics.json")

    def watched(run, number, batches):
        if number == 7:
            for name in mine:
                path = checkpoints / "checkpoint_6" / name
                path.parent.mkdir(exist_ok=True)
                path.write_text("mine")
        return original(run, number, batches)

    monkeypatch.setattr(loop, "train_step", watched)
    train(config, num_max_checkpoints=1)
    assert listed(checkpoints / "checkpoint_6") == set(mine)
    monkeypatch.setattr(loop, "train_step", original)
    train(config, overwrite=True)  # writes a checkpoint_6 again
    assert listed(checkpoints / "checkpoint_6") > {*mine, "state.json", "model/model.safetensors"}
    assert {(checkpoints / "checkpoint_6" / name).read_text() for name in mine} == {"mine"}


def test_removal_of_a_damaged_checkpoint_and_a_killed_removal(config: dict) -> None:
    folder = train(config).parent
    (folder / "checkpoints" / "checkpoint_6" / "state.json").write_text("{")
    remove(folder / "checkpoints" / "checkpoint_6")
    assert not (folder / "checkpoints" / "checkpoint_6").exists()
    (folder / "checkpoints" / "checkpoint_12" / "notes.txt").write_text("mine")
    (folder / "checkpoints" / "checkpoint_12").rename(folder / "checkpoints" / ".old-checkpoint_12")
    train(config, resume=True)
    assert (folder / "checkpoints" / "checkpoint_12" / "notes.txt").read_text() == "mine"
    assert not (folder / "checkpoints" / ".old-checkpoint_12").exists()


def test_replaced_runs_leave_what_lies_beside_their_logs(config: dict) -> None:
    folder = train(config, log_with="tensorboard", epochs=1).parent
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    (events,) = (folder / "tensorboard").iterdir()
    assert events.name.endswith(f".{run_id}")
    mine = ["tensorboard/notes.txt", "tensorboard/events.out.tfevents.1.host.2.3", "wandb/sweep.yaml"]
    (folder / "wandb" / f"offline-run-20260101_000000-{run_id}").mkdir(parents=True)
    for name in mine:
        (folder / name).write_text("mine")
    train(config, log_with="none", epochs=1, overwrite=True)
    assert listed(folder / "tensorboard") | listed(folder / "wandb") == {Path(name).name for name in mine}
    assert [path.name for path in (folder / "wandb").iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is no JSON object"),
        ('{"command": "python train.py"}', "no valid run_id, data, batch, config"),
        ('{"run_id": "a", "data": "b", "batch": 8, "config": {}}', "no valid run_id, data"),
        (f'{{"run_id": "*", "data": ["{"a" * 32}"], "batch": 8, "config": {{}}}}', "no valid run_id"),
    ],
)
def test_a_run_file_of_something_else(config: dict, flag: str, content: str, reason: str) -> None:
    folder = Path(config["output_dir"])
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text(content)
    (folder / "model" / "weights").write_text("mine")
    with pytest.raises(InputError, match=r"run.json: is not what rankery writes there") as caught:
        train({**config, flag: True})
    assert len(caught.value.problems) == 1
    assert reason in caught.value.problems[0]
    assert listed(folder) == {"run.json", "model/weights"}


def test_overwriting_what_is_about_to_be_read(config: dict, tmp_path: Path) -> None:
    folder = train(config, epochs=1).parent
    before = listed(folder)
    (tmp_path / "link").symlink_to(folder / "checkpoints" / "checkpoint_6" / "model")
    for base in (folder / "model", tmp_path / "link"):
        with pytest.raises(InputError, match=r"model_name_or_path is .*, which overwrite=true would delete"):
            train(config, epochs=1, overwrite=True, model_name_or_path=str(base))
    shutil.copy(config["train_dataset"], folder / "checkpoints")
    with pytest.raises(InputError, match=r"a data file is .*train.jsonl, which overwrite=true would delete"):
        train(config, epochs=1, overwrite=True, train_dataset=str(folder / "checkpoints" / "train.jsonl"))
    assert listed(folder) == before | {"checkpoints/train.jsonl"}
    (folder / "train.jsonl").write_bytes(Path(config["train_dataset"]).read_bytes())  # beside the run: it stays
    train(config, epochs=1, overwrite=True, train_dataset=str(folder / "train.jsonl"))


def test_the_two_files_say_the_same(config: dict) -> None:
    folder = train(config, epochs=1, lr_groups={"classifier": 1e-3}).parent
    assert (
        yaml.safe_load((folder / "config.yaml").read_text()) == json.loads((folder / "run.json").read_text())["config"]
    )


def test_a_list_of_files_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside.txt"
    model.mkdir()
    outside.write_text("mine")
    (model / "weights").write_text("")
    (model / "rankery.json").write_text(json.dumps({"files": ["../outside.txt", str(outside), ".", 3, "weights"]}))
    remove(model)
    assert outside.read_text() == "mine"
    assert not model.exists()
