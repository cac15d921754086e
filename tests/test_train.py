"""Training end to end on a tiny model: what is learnt, what is written, what a resumed run is equal to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, VOCAB, make_data, marked, run_python, words, write_rows
from safetensors.torch import load_file, save_file
from transformers import MPNetConfig, MPNetModel

from rankery import CrossEncoder, InputError, train
from rankery.config import dump_config, load_config
from rankery.models.scorer import Scorer
from rankery.sealed import read_sealed, sealed
from rankery.training import engine, loop, offload
from rankery.training.checkpoint import State


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_runs(left: Path, right: Path) -> None:
    a, b = weights(left / "model"), weights(right / "model")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()


def test_learns_and_writes_what_the_contract_says(config: dict) -> None:
    folder = train(config, epochs=12, hidden_dropout=0.0, attention_dropout=0.0)  # what it learns hangs on no mask
    assert folder == Path(config["output_dir"]) / "model"
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    before, after = rows[0], [row for row in rows if "val/loss" in row][-1]
    assert before["step"] == 0
    assert after["val/loss"] < before["val/loss"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 12 * 6  # 48 pairs, 8 a step, every update logged
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert {"val/nDCG@10", "val/MRR@10", "val/MAP", "val/Recall@10"} <= after.keys()
    assert sorted(path.name for path in (folder.parent / "checkpoints").glob("checkpoint_*")) == [
        "checkpoint_66",
        "checkpoint_72",
    ]
    assert {"config.json", "model.safetensors", "tokenizer.json", "rankery.json", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.parent.rglob(".tmp-*"))
    assert not list(folder.parent.rglob(".old-*"))


def test_resolved_configuration_reruns_the_run(config: dict, tmp_path: Path) -> None:
    first = train(config).parent
    resolved = load_config(first / "config.yaml")
    assert resolved.token_budget is not None
    assert load_config(first / "config.yaml", {"output_dir": "x"}).output_dir == "x"
    second = train(first / "config.yaml", output_dir=str(tmp_path / "again")).parent
    assert_equal_runs(first, second)


@pytest.mark.parametrize("checkpoint", [3, 6])
def test_resumed_run_is_the_uninterrupted_run(
    config: dict, tmp_path: Path, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout on; in the middle of an epoch (6 steps) and at its end."""
    settings = {**config, "save_steps": 3}
    whole = train(settings).parent
    cut = tmp_path / "cut"
    original = loop.train_step

    def interrupted(run, number, batches):
        if number == checkpoint + 2:
            raise KeyboardInterrupt
        return original(run, number, batches)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings, output_dir=str(cut))
    monkeypatch.setattr(loop, "train_step", original)
    torch.manual_seed(12345)  # whatever the generators were at
    train(settings, output_dir=str(cut), resume=True)
    assert_equal_runs(whole, cut)


def test_resumed_run_of_plain_sgd(config: dict, tmp_path: Path) -> None:
    """Which keeps no state, so that its checkpoints have no file for one."""
    settings = {**config, "optimizer": "sgd", "lr": 0.05}
    whole = train(settings).parent
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    for path in [*(cut / "checkpoints").glob("*_12"), *(cut / "checkpoints").glob("best_*")]:
        shutil.rmtree(path)
    shutil.copytree(cut / "checkpoints" / "checkpoint_6" / "model", cut / "checkpoints" / "best_6")
    train(settings, output_dir=str(cut), resume=True)
    assert_equal_runs(whole, cut)


def test_killed_at_random_moments_ends_as_uninterrupted(config: dict, tmp_path: Path) -> None:
    """SIGKILL, during saves too: the resumed run saves every step, so most moments are within one."""
    settings = {**config, "save_steps": 1, "epochs": 4, "output_dir": str(tmp_path / "whole")}
    whole = train(settings).parent
    killed = tmp_path / "killed"
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(load_config({**settings, "output_dir": str(killed), "resume": True})))
    command = [sys.executable, "-m", "rankery.cli", "train", "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "tokens a step" in line:
                break
        time.sleep(0.25 + 0.13 * attempt)
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 1
    assert_equal_runs(whole, killed)


@pytest.mark.parametrize("other", [{"token_budget": 40}, {"token_budget": 40, "packing": "off"}])
def test_cut_of_a_step_does_not_change_what_is_learnt(config: dict, tmp_path: Path, other: dict) -> None:
    """One packed micro-batch or eight, packed or padded, plain SGD without dropout: equal gradients, equal weights."""
    exact = {"hidden_dropout": 0, "attention_dropout": 0, "optimizer": "sgd", "lr": 0.05, "max_grad_norm": 0.1}
    runs = [
        train(config, **exact, **cut, output_dir=str(tmp_path / str(i)), best_metric=None).parent
        for i, cut in enumerate(({"token_budget": 10_000}, other))
    ]
    norms = [
        [json.loads(line)["grad_norm"] for line in (run / "metrics.jsonl").open() if "grad_norm" in line]
        for run in runs
    ]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), rtol=1e-4, atol=1e-6)
    a, b = (weights(run / "model") for run in runs)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    start = weights_of_base(config)
    assert max(float((a[name] - start[name]).abs().max()) for name in a) > 1e-3  # it did learn


def weights_of_base(config: dict) -> dict[str, torch.Tensor]:
    model = CrossEncoder.from_pretrained(config["model_name_or_path"], 1, seed=config["seed"]).model
    return dict(model.state_dict())


def test_accumulated_batches_are_one_larger_batch(config: dict, tmp_path: Path) -> None:
    a = train(config, output_dir=str(tmp_path / "a"), batch_size=4, gradient_accumulation_steps=2).parent
    b = train(config, output_dir=str(tmp_path / "b")).parent
    assert_equal_runs(a, b)


def test_best_model_is_kept_and_patience_stops(config: dict) -> None:
    folder = train(config, epochs=30, lr=2e-2, patience=2, best_metric="MAP")
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").open()]
    evaluations = [(row["val/MAP"], row["step"]) for row in rows if "val/MAP" in row and row["step"]]
    best = max(evaluations, key=lambda pair: (pair[0], -pair[1]))
    assert evaluations[-1][1] < 180, "it never stopped early"
    assert len([1 for _, step in evaluations if step > best[1]]) == 2
    assert f"for {best[1]} steps" in (folder / "README.md").read_text()


@pytest.mark.parametrize("better", [True, False])
def test_whether_training_has_made_it_better_is_said(
    config: dict, tmp_path: Path, capsys: pytest.CaptureFixture, better: bool
) -> None:
    """Also by a run that is resumed: what it started from was measured before it was interrupted."""
    config |= {"hidden_dropout": 0.0, "attention_dropout": 0.0, "lr": 2e-3}
    config["train_dataset"] = marked(tmp_path / "marked.jsonl", 24, odd=99)
    config["val_dataset"] = marked(tmp_path / "marked_val.jsonl", 24, offset=40, odd=99)
    first = train(config, epochs=2)
    chance = ", which had a new head and ordered by chance"
    assert f"The model is better than what it started from{chance}: nDCG@10 0." in capsys.readouterr().out
    assert "base_model:" not in (first / "README.md").read_text()  # which a hub wants to be one of its names
    # From the trained model on: with the same data, or with labels that are the other way round.
    again = {
        "model_name_or_path": str(first),
        "epochs": 2,
        "output_dir": str(tmp_path / "again"),
        "best_metric": "loss",
    }
    if not better:
        rows = [json.loads(line) for line in Path(config["train_dataset"]).open()]
        turned = [{**row, "pos": row["neg"], "neg": row["pos"]} for row in rows]
        again |= {"train_dataset": str(write_rows(tmp_path / "turned.jsonl", turned))}
    folder = train(config, **again).parent
    said = capsys.readouterr().out
    rows = [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if "val/loss" in row]
    before, after = rows[0]["val/loss"], min(row["val/loss"] for row in rows[1:])
    assert (after < before) == better
    word = "better" if better else "NOT better"
    sentence = f"The model is {word} than what it started from: loss {before:.4f} before training, {after:.4f} after"
    assert sentence in said
    assert f"validation before training -> after: loss {before:.4f} -> {after:.4f}, nDCG@10" in said
    card = (folder / "model" / "README.md").read_text()
    assert f"| loss | {before:.4f} | {after:.4f} |" in card
    assert sentence in card
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_24")
    train(config, **again, resume=True)
    resumed = capsys.readouterr().out
    assert f"{word} than what it started from: loss {before:.4f} before training" in resumed


def test_graded_labels_and_classes(config: dict, tmp_path: Path) -> None:
    rows = [{"query": f"sun {i}", "pos": ["sun sun", "sun sea", "sea hill"], "pos_scores": [2, 1, 0]} for i in range(8)]
    data = str(write_rows(tmp_path / "graded.jsonl", rows))
    common = {"train_dataset": data, "val_dataset": data, "max_label": 2}
    for extra in ({"loss_type": "point_mse"}, {"num_labels": 3}):
        folder = train(config, **common, **extra, overwrite=True)
        reranker = CrossEncoder.from_pretrained(folder)
        assert reranker.compute_score([("sun", "sea")]).shape == ((1,) if "loss_type" in extra else (1, 3))
        if "num_labels" in extra:
            assert all(0 <= entry.score <= 1 for entry in reranker.rerank("sun", ["sea", "sun"]))
    with pytest.raises(InputError, match=r"num_labels is 3 .*max_label - min_label \+ 1 = 2"):
        train(config, num_labels=3)


@pytest.fixture
def broken(config: dict, bert: Path, tmp_path: Path) -> dict:
    """A base whose embedding of "wolf" is NaN, and data in which line 4 alone has it, in one of three documents."""
    folder = Path(shutil.copytree(bert, tmp_path / "broken"))
    state = load_file(bert / "model.safetensors")
    state["embeddings.word_embeddings.weight"][VOCAB.index("wolf")] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [{"query": "sun", "pos": ["sun sun"], "neg": ["sea", f"hill {i}"]} for i in range(6)]
    rows[3] = {"query": "moon", "pos": ["moon"], "neg": ["sea", "wolf"]}
    data = str(write_rows(tmp_path / "nan.jsonl", rows))
    return {**config, "model_name_or_path": str(folder), "train_dataset": data, "val_dataset": None}


@pytest.mark.parametrize("loss_type", ["point_ce", "listwise_ce"])
@pytest.mark.parametrize(
    "token_budget", [10_000, 12]
)  # all pairs in one micro-batch; a pair alone, a group in two passes
def test_non_finite_loss_stops_and_names_the_pairs_it_comes_from(
    broken: dict, loss_type: str, token_budget: int
) -> None:
    """And not their neighbours in the micro-batch, the line of the pair once."""
    with pytest.raises(InputError) as caught:
        train(broken, loss_type=loss_type, token_budget=token_budget, batch_size=18)
    said = rf"the loss of step 1 is not finite; nothing was updated\. Examples: {broken['train_dataset']}:4\. Look"
    assert re.match(said, str(caught.value)), caught.value


def test_scores_of_the_validation_that_are_not_finite_are_named(broken: dict, config: dict) -> None:
    data = broken["train_dataset"]
    with pytest.raises(InputError, match=rf"^1 of 18 scores of the validation are not finite\. Examples: {data}:4\. "):
        train(broken, train_dataset=config["train_dataset"], val_dataset=data)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_out_of_memory_repeats_the_step_with_half_the_budget(
    config: dict, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    exact = {"hidden_dropout": 0, "attention_dropout": 0, "best_metric": None}
    exact |= {"optimizer": "sgd", "lr": 0.05}  # an adaptive optimiser turns rounding into steps
    calm = train(config, **exact, output_dir=str(tmp_path / "calm")).parent
    original = Scorer.forward

    def limited(model, input_ids, *rest):
        if input_ids.numel() > (100 if model.training else 60):  # evaluations too
            raise torch.OutOfMemoryError("injected")
        return original(model, input_ids, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "forward", limited)
        short = train(config, **exact, num_workers=num_workers, output_dir=str(tmp_path / "short")).parent
    # Halved from 2048 until no micro-batch is over 100; batches that were prepared ahead do not halve it again.
    assert capsys.readouterr().out.count("out of memory: the step is repeated with token_budget") == 5
    a, b = weights(calm / "model"), weights(short / "model")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    evaluations = [
        [row["val/loss"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "val/loss" in row]
        for run in (calm, short)
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-4)


def test_out_of_memory_where_no_smaller_batch_helps(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected, where the optimiser makes its state; and where the model is brought to its device."""

    def short(*_):
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "to", short)
        with pytest.raises(
            InputError, match=r"^out of memory for the model, .* \(lora_rank\), .* or choose a smaller base$"
        ):
            train(config)
    assert not Path(config["output_dir"]).exists()
    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    with pytest.raises(
        InputError, match=r"^out of memory for the update, .* \(lora_rank\), .* or choose a smaller base$"
    ):
        train(config)


def test_prediction_survives_a_lack_of_memory(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = CrossEncoder.from_pretrained(bert, seed=0)
    pairs = [(words(i, 3), words(i + 1, 1 + i % 20)) for i in range(40)]
    calm = reranker.compute_score(pairs)
    original = Scorer.forward

    def limited(model, input_ids, *rest):
        if input_ids.numel() > 60:
            raise torch.OutOfMemoryError("injected")
        return original(model, input_ids, *rest)

    monkeypatch.setattr(Scorer, "forward", limited)
    for batch_size in (None, 8):
        torch.testing.assert_close(reranker.compute_score(pairs, batch_size=batch_size), calm, rtol=1e-4, atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        reranker.compute_score([("sun", "sea " * 90)])


def test_taken_output_folders(config: dict, tmp_path: Path) -> None:
    folder = train(config).parent
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds another run"):
        train(config)
    with pytest.raises(InputError, match=r"resume: lr was 0.001 in .*run.json, got 0.01"):
        train(config, resume=True, lr=0.01)
    train(config, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model").mkdir()
    with pytest.raises(InputError, match="is not empty"):
        train(config, output_dir=str(other))
    with pytest.raises(InputError, match="written by something else"):
        train(config, output_dir=str(other), overwrite=True)
    make_data(Path(config["train_dataset"]), 13)
    with pytest.raises(
        InputError, match=r"the data of train_dataset changed since .* bring the files back, or start again"
    ):
        train(config, resume=True)


def test_damaged_checkpoints(config: dict, capsys: pytest.CaptureFixture) -> None:
    folder = train(config).parent
    shutil.rmtree(folder / "model")
    newest = folder / "checkpoints" / "checkpoint_12"
    with (newest / "optimizer-00001-of-00001.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    train(config, resume=True)
    assert "checkpoint_12: is no whole checkpoint" in capsys.readouterr().out
    assert (folder / "model").is_dir()
    for path in (folder / "checkpoints").glob("checkpoint_*"):
        (path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="is no whole checkpoint of a rankery run"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("foreign", "why"),
    [
        ("{}", "no valid step, updates, metrics_bytes, best, best_step"),
        ('{"step": 12, "files": {}}', "no valid updates, metrics_bytes, best"),  # says that it has nothing to check
        ("[]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ("\udcff", "can't decode"),
        ("another run", r"it is of run \w+, this one is \w+"),
    ],
)
def test_checkpoints_of_somebody_else(
    config: dict, tmp_path: Path, capsys: pytest.CaptureFixture, foreign: str, why: str
) -> None:
    """Said, passed over for an older one of the run's own, and refused where there is none."""
    config["best_metric"] = None
    whole = train(config).parent
    folder = Path(shutil.copytree(whole, tmp_path / "cut"))
    shutil.rmtree(folder / "model")
    newest = folder / "checkpoints" / "checkpoint_12"
    if foreign == "another run":
        other = train(config, seed=2, output_dir=str(tmp_path / "other")).parent
        shutil.rmtree(newest)
        shutil.copytree(other / "checkpoints" / "checkpoint_12", newest)
    else:
        (newest / "state.json").write_bytes(os.fsencode(foreign))
    theirs = folder / "checkpoints" / "checkpoint_30"  # another program's
    theirs.mkdir()
    (theirs / "trainer_state.json").write_text("{}")
    capsys.readouterr()
    train(config, output_dir=str(folder), resume=True)
    said = capsys.readouterr().out
    assert re.search(
        rf"note: .*checkpoint_12: is no whole checkpoint .*{why}.*; resuming from checkpoint_6$", said, re.M
    )
    assert_equal_runs(whole, folder)
    assert [path.name for path in theirs.iterdir()] == ["trainer_state.json"]
    shutil.rmtree(folder / "checkpoints" / "checkpoint_6")
    shutil.rmtree(newest)
    shutil.copytree(theirs, newest)
    (newest / "state.json").write_text('{"step": 12}')
    with pytest.raises(InputError, match="checkpoint_12: is no whole checkpoint of a rankery run"):
        train(config, output_dir=str(folder), resume=True)


def test_nothing_is_written_before_everything_is_valid(config: dict, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}\nnot json\n')
    with pytest.raises(InputError) as caught:
        train(config, train_dataset=str(bad), val_dataset=str(bad))
    assert len(caught.value.problems) == 4
    assert not Path(config["output_dir"]).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_len": 4096}, "max_len is 4096; .* takes at most 128 tokens"),
        ({"model_name_or_path": "./nowhere"}, "there is no such folder; expected a folder with config.json"),
        ({"model_name_or_path": "nobody/nothing"}, "could not be loaded"),
        ({"mixed_precision": "fp16"}, "mixed_precision is fp16, but there is no accelerator"),
        ({"query_format": "q"}, "query_format is 'q'"),
        ({"train_dataset": "nowhere.jsonl"}, "nowhere.jsonl: does not exist"),
        ({"lr_groups": {"clasifier": 1.0}}, "'clasifier' finds no parameter"),
        ({"lr_groups": {"classifier": -1.0}}, r"lr_groups\[classifier\] is -1.0; Input should be greater than 0"),
        ({"best_metric": "ndcg"}, "best_metric is 'ndcg'; expected auto, or one of"),
        ({"best_metric": "Kendall"}, "measured on soft scores"),
        ({"recall_at": [10, 0]}, r"recall_at\[1\] is 0; Input should be greater than 0"),
        ({"patience": 2, "val_dataset": None}, "without val_dataset and best_metric nothing is compared"),
        ({"epochs": True}, "epochs is True; Input should be a valid integer"),
        ({"train_dataset": []}, "no data file is named"),
    ],
)
def test_bad_values(config: dict, change: dict, message: str) -> None:
    if "fp16" in message and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, which computes fp16")
    with pytest.raises(InputError, match=message):
        train({**config, **change})
    assert not Path(config["output_dir"]).exists()


@pytest.mark.parametrize(
    ("changes", "model_problem"),
    [
        ({"model_name_or_path": "./nowhere"}, "there is no such folder"),
        ({"max_len": 4096}, "takes at most 128 tokens"),
        ({"model_name_or_path": "nobody/nothing"}, None),  # would be downloaded: later
    ],
)
def test_what_is_missing_or_taken_is_reported_together(config: dict, changes: dict, model_problem: str | None) -> None:
    Path(config["output_dir"]).mkdir()
    (Path(config["output_dir"]) / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        train(config, train_dataset="nowhere.jsonl", val_dataset="nor/here.jsonl", **changes)
    expected = [
        "nowhere.jsonl: does not exist",
        "nor/here.jsonl: does not exist",
        "is not empty; choose another folder",
    ]
    expected += [model_problem] if model_problem else []
    assert len(caught.value.problems) == len(expected)
    assert all(text in problem for text, problem in zip(expected, caught.value.problems, strict=True))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"max_len": 4096}, ["FILE:2: max_len is 4096; ", "bad.jsonl:2: is not JSON"]),
        (
            {"model_name_or_path": "./nowhere"},
            ["FILE:1: model_name_or_path is './nowhere'; ", "bad.jsonl:2: is not JSON"],
        ),
        (
            {"max_len": 4096, "val_dataset": "no.jsonl"},
            ["FILE:3: val_dataset: no.jsonl: does not exist", "bad", "FILE:2: max"],
        ),
        (
            {"mixed_precision": "fp16", "max_len": 4096, "val_dataset": "no.jsonl"},
            ["FILE:3: mixed_precision is fp16", "FILE:4: val_dataset", "bad.jsonl:2", "FILE:2: max_len is 4096"],
        ),
    ],
)
def test_launch_model_and_data_are_reported_together(
    config: dict, tmp_path: Path, keys: dict, expected: list[str]
) -> None:
    """With the lines of the YAML file where it decides."""
    if "mixed_precision" in keys and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, which computes fp16")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "pos": ["a"]}\nnot json\n')
    first = {key: config[key] for key in ("model_name_or_path", "max_len")}
    file = tmp_path / "config.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in {**first, **keys}.items()))
    with pytest.raises(InputError) as caught:
        train(file, train_dataset=str(bad), output_dir=config["output_dir"])
    problems = [problem.replace(str(file), "FILE").replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert len(problems) == len(expected)
    assert all(problem.startswith(text) for text, problem in zip(expected, problems, strict=True)), problems
    assert not Path(config["output_dir"]).exists()


def test_output_folder_below_a_file(config: dict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for key in ("output_dir", "dataset_cache_dir"):
        with pytest.raises(InputError, match=rf"{key} is .*, but .*file is a file"):
            train({**config, key: str(tmp_path / "file" / "below")})


def test_base_model_without_its_tokenizer(config: dict, bert: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(bert, bare, ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(InputError, match=r"its tokenizer has \d+ tokens, the model \d+: tokenizer.json is missing"):
        train(config, model_name_or_path=str(bare))


def test_classes_need_integers_also_from_the_cache(config: dict, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "d.jsonl", [{"query": "sun", "pos": ["sun", "sea"], "pos_scores": [2, 1.5]}]))
    common = {"train_dataset": data, "val_dataset": None, "max_label": 2, "epochs": 1}
    train(config, **common)
    with pytest.raises(InputError, match=r"d.jsonl:1: label 1.5 is no integer"):
        train(config, **common, num_labels=3, output_dir=str(tmp_path / "b"))


def test_nothing_that_the_run_did_not_write_is_deleted(config: dict) -> None:
    folder = train(config, epochs=4).parent
    mine = [folder / name for name in (".tmp-mine", "checkpoints/backup", "checkpoints/checkpoint_1")]
    for path in mine:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    train(config, epochs=4, resume=True)
    train(config, epochs=4, overwrite=True)
    assert all((path / "notes.txt").read_text() == "mine" for path in mine)
    (folder / "model" / "notes.txt").write_text("mine")
    for changes in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"model holds notes.txt, which rankery did not write"):
            train(config, epochs=4, **changes)


def test_resumption_keeps_the_pairs_of_a_step(config: dict) -> None:
    folder = train(config).parent
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_12")
    with pytest.raises(InputError, match=r"a step of .* has 8 pairs .* this launch makes it 4"):
        train(config, resume=True, batch_size=4)
    train(config, resume=True, batch_size=4, gradient_accumulation_steps=2)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()].count(12) == 2


def test_new_checkpoints_outlive_later_damaged_ones(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**config, "save_steps": 2, "num_max_checkpoints": 9}
    folder = train(settings).parent
    for step in (6, 8, 10, 12):
        (folder / "checkpoints" / f"checkpoint_{step}" / "state.json").write_text("{}")
    train(settings, resume=True, num_max_checkpoints=1, save_steps=1, epochs=2)
    assert (folder / "checkpoints" / "checkpoint_12" / "optimizer-00001-of-00001.safetensors").is_file()
    assert "files" in json.loads((folder / "checkpoints" / "checkpoint_12" / "state.json").read_text())


def test_killed_before_the_folder_was_its_own(config: dict, tmp_path: Path) -> None:
    folder = Path(config["output_dir"])
    folder.mkdir()
    (folder / ".tmp-run.json-7").write_text("{")
    with pytest.raises(InputError, match="is not empty"):
        train(config)
    (folder / "config.yaml").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run that resume=true could go on with"):
        train(config, resume=True)
    with pytest.raises(InputError, match=r"holds config.yaml, written by something else"):
        train(config, overwrite=True)
    assert (folder / "config.yaml").read_text() == "mine"
    (folder / "config.yaml").unlink()
    assert train(config, resume=True).is_dir()
    assert not (folder / ".tmp-run.json-7").exists()
    (folder / "config.yaml").unlink()  # killed just after run.json was written
    assert train(config, resume=True).is_dir()
    assert load_config(folder / "config.yaml").lr == config["lr"]


def test_resumed_run_keeps_the_budget_that_it_came_down_to(config: dict, capsys: pytest.CaptureFixture) -> None:
    folder = train(config, token_budget=400).parent
    state = folder / "checkpoints" / "checkpoint_6" / "state.json"
    state.write_text(sealed({**read_sealed(state, State), "token_budget": 100}))
    shutil.rmtree(folder / "checkpoints" / "checkpoint_12")
    for changes, budget in (({}, 100), ({"token_budget": 400}, 100), ({"token_budget": 200}, 200)):
        copy = folder.with_name(f"copy{budget}{len(changes)}")
        shutil.copytree(folder, copy)
        train(config, resume=True, output_dir=str(copy), **changes)
        assert f"micro-batches of {budget} tokens" in capsys.readouterr().out


def test_killed_within_a_save(config: dict, tmp_path: Path) -> None:
    """SIGKILL after a checkpoint's files are written and before they have their name."""
    settings = {**config, "save_steps": 3, "best_metric": ""}
    whole = train(settings, output_dir=str(tmp_path / "whole")).parent
    cut = tmp_path / "cut"
    words = [f"{key}={value}" for key, value in {**settings, "output_dir": cut}.items()]
    code = (
        "import os, signal, sys\n"
        "from rankery.models import folders\n"
        "original = folders.sync\n"
        "def sync(folder):\n"
        "    if folder.name.startswith('.tmp-checkpoint_6'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(folder)\n"
        "folders.sync = sync\n"
        "from rankery.cli import main\n"
        "main(['train', *sys.argv[1:]])"
    )
    assert run_python(code, *words).returncode == -signal.SIGKILL
    assert [path.name for path in (cut / "checkpoints").glob("checkpoint_*")] == ["checkpoint_3"]
    assert list((cut / "checkpoints").glob(".tmp-checkpoint_6*"))
    resume = "import sys; from rankery.cli import main; sys.exit(main(['train', *sys.argv[1:], 'resume=true']))"
    done = run_python(resume, *words)
    assert done.returncode == 0, done.stderr
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()
    assert not list(cut.rglob(".tmp-*"))


@pytest.mark.slow
def test_killed_while_the_final_model_is_written(config: dict, tmp_path: Path) -> None:
    """SIGKILL before and after each renaming of a model: the resumed run ends with the best model, in save_dtype."""
    settings = {**config, "save_dtype": "bf16", "best_metric": "loss", "lr": 3e-2, "warmup_proportion": 0, "epochs": 3}
    whole = train(settings, output_dir=str(tmp_path / "whole")).parent
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "rename, seen = Path.rename, 0\n"
        "def deadly(self, target):\n"
        "    global seen\n"
        "    final = target.parent.name == 'out' and target.name.startswith(('model', '.old-model'))\n"
        "    for done in (False, True):\n"
        "        result = rename(self, target) if done else None\n"
        "        seen += final\n"
        "        if final and seen == int(sys.argv[1]):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        "Path.rename = deadly\n"
        "from rankery.cli import main\n"
        "sys.exit(main(['train', *sys.argv[2:]]))"
    )
    resume = "import sys; from rankery.cli import main; sys.exit(main(['train', *sys.argv[1:], 'resume=true']))"
    for moment in range(1, 9):
        cut = tmp_path / str(moment) / "out"
        words = [f"{key}={value}" for key, value in {**settings, "output_dir": cut}.items()]
        if run_python(code, str(moment), *words).returncode == 0:
            break
        done = run_python(resume, *words)
        assert done.returncode == 0, done.stderr
        assert_equal_runs(whole, cut)
        assert re.search(r"model \((the best by loss, of step \d+|finished before)\)", done.stdout)
        assert not list(cut.rglob(".*-model*"))
        assert not list(cut.rglob("best_*"))
    assert moment > 2


def test_a_lost_best_model_is_said(config: dict, capsys: pytest.CaptureFixture) -> None:
    folder = train(config, lr=3e-2, best_metric="loss", warmup_proportion=0, epochs=3, save_dtype="bf16").parent
    shutil.rmtree(folder / "model")
    train(config, lr=3e-2, best_metric="loss", warmup_proportion=0, epochs=3, save_dtype="bf16", resume=True)
    said = capsys.readouterr().out
    assert "is gone; the last model is saved instead" in said
    assert "model (of the last step, 18)" in said
    (folder / "model").rename(folder / ".old-model-1")
    train(config, lr=3e-2, best_metric="loss", warmup_proportion=0, epochs=3, save_dtype="bf16", resume=True)
    assert "model (finished before)" in capsys.readouterr().out
    assert not list(folder.glob(".*"))


def test_what_is_said_at_the_start_and_after_an_epoch(
    config: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"query": "sun moon", "pos": ["sun " * 60], "neg": ["sea", "hill"]},
        {"query": "sea", "pos": ["sea"], "neg": ["sun"]},
    ]
    train(config, train_dataset=str(write_rows(tmp_path / "d.jsonl", rows)), val_dataset=None, epochs=1)
    said = capsys.readouterr().out
    assert "train: 2 queries, 5 pairs, 2-3 documents a query (mean 2.5)\n  labels 0: 3, 1: 2\n" in said
    assert "cut to max_len 48: 20.0% of documents, 1 of 2 positives lose text; 0.0% of queries" in said
    assert "engine single, 1 process, device cpu, precision no" in said
    assert "1 step (1 epoch of 1), 8 pairs" in said
    assert "of computed tokens are padding" in said
    assert said.count("epoch 1: loss") == 1
    assert "Without val_dataset nobody has measured whether the model is better" in said


@pytest.mark.parametrize(
    ("scores", "metric", "message"),
    [
        (
            [0.2, 0.7],
            "MAP",
            "which is measured on relevant documents; .*soft.jsonl has none; expected loss, nDCG@10, Kendall, or",
        ),
        (
            [0.7, 0.7],
            "Kendall",
            "measured on soft scores, different ones of one query; .* has none; expected loss, nDCG@10$",
        ),
        ([20_000, 0], "MAP", "measured on relevant documents"),  # integers, but no grades
        (
            [0, 1],
            "Kendall",
            "different ones of one query; .* has none; expected loss, nDCG@10, MRR@10, MAP, Recall@10$",
        ),
    ],
)
def test_a_best_metric_that_the_validation_cannot_have(
    config: dict, tmp_path: Path, scores: list[float], metric: str, message: str
) -> None:
    rows = [{"query": f"sun {i}", "pos": ["sun", "sea"], "pos_scores": scores} for i in range(3)]
    data = str(write_rows(tmp_path / "soft.jsonl", rows))
    with pytest.raises(InputError, match=f"best_metric is {metric}, .*{message}"):
        train(config, val_dataset=data, max_label=20_000, best_metric=metric)
    assert not Path(config["output_dir"]).exists()


def test_soft_labels_are_validated_by_rank_correlation(config: dict, tmp_path: Path) -> None:
    """A teacher's scores have no relevant documents: gains, order and loss, and the best model by them."""
    rows = [
        {"query": f"sun {i}", "pos": ["sun sun", "sun sea", "sea hill"], "pos_scores": [0.93, 0.41, 0.05]}
        for i in range(8)
    ]
    data = str(write_rows(tmp_path / "soft.jsonl", rows))
    calm = {"loss_type": "point_mse", "epochs": 12, "lr": 3e-3, "hidden_dropout": 0.0}
    folder = train(config, train_dataset=data, val_dataset=data, **calm).parent
    (*_, last) = [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if "val/loss" in row]
    assert {key for key in last if key.startswith("val/")} == {"val/loss", "val/nDCG@10", "val/Kendall"}
    assert last["val/Kendall"] == last["val/nDCG@10"] == 1.0
    assert re.search(r"\| Kendall \| -?\d\.\d{4} \| 1\.0000 \|", (folder / "model" / "README.md").read_text())


def test_gradients_are_summed_in_fp32_under_bf16(config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = engine.gradient_norm, []

    def spied(parameters):
        seen.extend(parameter.grad.dtype for parameter in parameters)
        return original(parameters)

    monkeypatch.setattr(engine, "gradient_norm", spied)
    train(config, mixed_precision="bf16", epochs=1, token_budget=60)
    assert set(seen) == {torch.float32}


def test_card_shows_three_lines_that_run(config: dict) -> None:
    folder = train(config, epochs=1)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 3
    done = run_python(code.replace("path/of/this/folder", str(folder)))
    assert done.returncode == 0, done.stderr
    assert "one document" in done.stdout
    assert "another document" in done.stdout


def test_best_models_do_not_pile_up(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept are the newest and the one that the newest checkpoint names, which a resumed run finds."""
    settings = {**config, "best_metric": "loss", "save_on_epoch_end": False, "save_steps": 5, "eval_steps": 1}
    seen = []
    original = loop.train_step

    def watched(run, number, batches):
        seen.append(sorted(path.name for path in (run.folder / "checkpoints").glob("best_*")))
        if number == 9:
            raise KeyboardInterrupt
        return original(run, number, batches)

    monkeypatch.setattr(loop, "train_step", watched)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    assert max(map(len, seen)) == 2
    folder = Path(config["output_dir"]) / "checkpoints"
    named = json.loads((folder / "checkpoint_5" / "state.json").read_text())["best_step"]
    assert f"best_{named}" in seen[-1]
    monkeypatch.setattr(loop, "train_step", original)
    train(settings, resume=True)
    assert not list(folder.glob("best_*"))


def test_gradient_checkpointing_changes_nothing(config: dict, tmp_path: Path) -> None:
    exact = {**config, "optimizer": "sgd", "lr": 0.05, "hidden_dropout": 0.0, "attention_dropout": 0.0, "epochs": 1}
    a, b = (
        weights(train(exact, gradient_checkpointing=on, output_dir=str(tmp_path / str(on)))) for on in (False, True)
    )
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_what_a_base_model_cannot_do(config: dict, bert: Path, tmp_path: Path) -> None:
    """MPNet has no gradient checkpointing, and rankery does not pack it."""
    base = Path(shutil.copytree(bert, tmp_path / "mpnet"))
    settings = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    MPNetModel(MPNetConfig(vocab_size=len(VOCAB), **settings)).save_pretrained(base)
    with pytest.raises(InputError) as caught:
        train(config, model_name_or_path=str(base), gradient_checkpointing=True, packing="on")
    packing, checkpointing = caught.value.problems
    assert "packing is on, but models of type mpnet cannot be packed; expected auto or off" in packing
    assert (
        "gradient_checkpointing is true, but transformers has none for models of type mpnet; expected" in checkpointing
    )
    assert not Path(config["output_dir"]).exists()
    train(config, model_name_or_path=str(base), epochs=1)


@pytest.mark.parametrize("more", [{}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}])
def test_activation_offload_changes_nothing(
    config: dict, tmp_path: Path, more: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and weights bit for bit, with dropout on; activations really go through it, and weights do not."""
    asked: list[bool] = []
    original = offload.is_weight

    def watched(tensor):
        asked.append(original(tensor))
        return asked[-1]

    monkeypatch.setattr(offload, "is_weight", watched)
    settings = {**config, **more, "optimizer": "sgd", "lr": 0.05, "best_metric": None}
    plain = train(settings, output_dir=str(tmp_path / "plain")).parent
    assert not asked
    offloaded = train(settings, activation_offload=True, output_dir=str(tmp_path / "offloaded")).parent
    assert 0 < sum(asked) < len(asked)
    assert_equal_runs(plain, offloaded)


def test_evaluating_and_saving_at_steps(config: dict) -> None:
    settings = {"eval_steps": 5, "save_steps": 4, "save_on_epoch_end": False, "num_max_checkpoints": 3}
    folder = train(config, **settings).parent
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 5, 10, 12]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "checkpoint_12",
        "checkpoint_4",
        "checkpoint_8",
        "published.json",
    ]


# What is written when the disk is full: (module, its function, when in its arguments, bytes left, what is there then).
FULL = {
    "checkpoint": ("checkpoint", "write_checkpoint", "arguments[1]['step'] > 6", "20000", {"checkpoint_3", "checkpoint_6", "best_6"}),
    "best model": ("loop", "write_model_directory", "arguments[0].name[:5] == 'best_'", "20000", {"checkpoint_3"}),
    "final model": ("loop", "write_model_directory", "arguments[0].name[:6] == 'final_'", "20000", {"checkpoint_9", "checkpoint_12", "best_"}),
    "metrics": ("tracking.Tracker", "log", "arguments[1] == 5", "os.path.getsize(out + '/metrics.jsonl') + 10", {"checkpoint_3"}),
}  # fmt: skip


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_is_said_and_the_run_goes_on(config: dict, tmp_path: Path, what: str) -> None:
    """A file-size limit stands in for a full disk: the kernel refuses the write in the middle of the file."""
    home, name, when, room, left = FULL[what]
    settings = {**config, "save_steps": 3, "save_dtype": "bf16"}
    code = f"""
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from rankery.cli import main
from rankery.training import checkpoint, loop, tracking
out, original = {config["output_dir"]!r}, {home}.{name}
def limited(*arguments, **options):
    if {when}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
    return original(*arguments, **options)
{home}.{name} = limited
sys.exit(main(["train", *{[f"{key}={value}" for key, value in settings.items()]!r}]))
"""
    done = run_python(code)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(rf"^error: {config['output_dir']}/\S+: could not be saved: .*resume=true$", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    folder = Path(config["output_dir"])
    assert not (folder / "model").exists()
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {re.sub(r"^(best_).*", r"\1", path) if "best_" in left else path for path in found} == left
    train(settings, resume=True)
    assert_equal_runs(train(settings, output_dir=str(tmp_path / "whole")).parent, folder)


def test_full_disk_under_the_metrics(config: dict) -> None:
    """A file-size limit again; the resumed run ends as if nothing had happened."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from rankery.training import loop
original = loop.train_step
def limited(run, number, works):
    if number == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    return original(run, number, works)
loop.train_step = limited
from rankery.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""
    done = run_python(code, *[f"{key}={value}" for key, value in config.items()])
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "metrics.jsonl: could not be saved: [Errno 27]" in done.stderr
    folder = train(config, resume=True).parent
    steps = [row["step"] for row in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in row]
    assert steps == list(range(1, 13))


def test_tensorboard_run_goes_on(config: dict) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(config, log_with="tensorboard").parent
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_12")
    train(config, log_with="tensorboard", resume=True)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("val/MAP")] == [0, 6, 12]


def test_wandb_offline(config: dict) -> None:
    words = [f"{key}={value}" for key, value in {**config, "log_with": "wandb", "epochs": 1}.items()]
    code = "import sys; from rankery.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
    for more in ([], ["resume=true"]):  # the second goes on with the same run
        done = run_python(code, *words, *more, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
    run_id = json.loads((Path(config["output_dir"]) / "run.json").read_text())["run_id"]
    assert len([path for path in Path(config["output_dir"]).rglob("run-*.wandb") if run_id in path.name]) == 2


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_wandb_without_a_login(config: dict, tmp_path: Path, mode: str) -> None:
    changed = {"log_with": "wandb", "epochs": 1} | ({"train_dataset": "nowhere.jsonl"} if mode == "online" else {})
    words = [f"{key}={value}" for key, value in {**config, **changed}.items()]
    code = "import sys; from rankery.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    done = run_python(code, *words, **unreachable, WANDB_MODE=mode)
    if mode == "disabled":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    login, missing = done.stderr.splitlines()
    assert re.match("error: log_with is wandb, but nobody is logged in .* `wandb login` .* WANDB_MODE=offline", login)
    assert "nowhere.jsonl: does not exist" in missing
    assert not Path(config["output_dir"]).exists()
