"""Training on groups: a group that is cut learns what a whole one does, on any number of processes; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import launch, write_rows
from safetensors.torch import load_file

from rankery import InputError, train
from rankery.config import load_config
from rankery.models import budget
from rankery.objective import LOSSES, POINTWISE
from rankery.training import step as step_module
from rankery.training.describe import describe
from rankery.training.engine import start_engine
from rankery.training.run import Run, build
from rankery.training.step import step_batches, train_step

GROUPED = [name for name in LOSSES if name not in POINTWISE]
EXACT = {
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "optimizer": "sgd", "lr": 0.05, "max_grad_norm": 0.1, "best_metric": "",
}  # fmt: skip


@pytest.fixture
def grouped(config: dict, tmp_path: Path) -> dict:
    """Queries of 2 to 9 documents with teacher scores; 4 queries a step, the last step smaller."""
    rows = []
    for i in range(9):
        count = 2 + i % 8
        documents = [f"{'moon ' * (1 + (i + 2 * j) % 9)}sea" for j in range(count)]
        rows.append(
            {
                "query": f"sun {i}",
                "pos": documents,
                "pos_scores": [round(0.1 + 0.8 * j / count, 3) for j in range(count)],
            }
        )
    data = str(write_rows(tmp_path / "grouped.jsonl", rows))
    return {**config, "train_dataset": data, "val_dataset": None, "batch_size": 4, "epochs": 1}


def arguments(config: dict) -> list[str]:
    return [
        f"{key}={json.dumps(value) if isinstance(value, dict) else '' if value is None else value}"
        for key, value in config.items()
    ]


def numbers(folder: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return torch.tensor([[row["grad_norm"], row["loss"]] for row in rows if "grad_norm" in row])


def assert_same(one: Path, other: Path) -> None:
    torch.testing.assert_close(numbers(one), numbers(other), rtol=1e-4, atol=1e-6)
    a, b = load_file(one / "model" / "model.safetensors"), load_file(other / "model" / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def built(config: dict, **changes: object) -> Run:
    parsed = load_config(config, changes)
    return build(parsed, start_engine(parsed))


def gradients(run: Run) -> dict[str, torch.Tensor]:
    """Those of the first step, before clipping and update."""
    found: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> tuple[torch.Tensor, bool]:
        found.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        return torch.tensor(1.0), True

    run.engine.update = keep  # type: ignore[method-assign]
    run.model.train()
    train_step(run, 0, step_batches(run)[0])
    return found


@pytest.mark.parametrize("loss", [*GROUPED, "weighted"])
def test_two_passes_give_the_gradient_of_one(grouped: dict, tmp_path: Path, loss: str) -> None:
    if loss == "listwise_ce":  # wants labels
        rows = [json.loads(line) for line in Path(grouped["train_dataset"]).read_text().splitlines()]
        graded = [{**row, "pos_scores": [i % 4 for i in range(len(row["pos"]))]} for row in rows]
        grouped |= {"train_dataset": str(write_rows(tmp_path / "grades.jsonl", graded)), "max_label": 3.0}
    loss_type = {"listwise_kl": 1.0, "point_ce": 0.2} if loss == "weighted" else loss
    one = built({**grouped, **EXACT, "loss_type": loss_type}, token_budget=4096, output_dir=str(tmp_path / "one"))
    two = built({**grouped, **EXACT, "loss_type": loss_type}, token_budget=30, output_dir=str(tmp_path / "two"))
    assert all(work.passes == 1 for work in step_batches(one)[0])
    assert any(work.passes > 2 for work in step_batches(two)[0])
    assert "of groups" not in describe(one)
    said = re.search(r"% of groups are larger .* token_budget=(\d+) spares that", describe(two))
    assert said is not None
    enough = built({**two.config.model_dump(), "token_budget": int(said[1])}, output_dir=str(tmp_path / "enough"))
    assert all(work.passes == 1 for work in step_batches(enough)[0])
    a, b = gradients(one), gradients(two)
    assert a.keys() == b.keys()
    scale = max(float(value.abs().max()) for value in a.values())
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=5e-6 * max(scale, 1.0))


def test_a_cpu_computes_groups_whole_if_they_are_not_huge(
    grouped: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CPU_BUDGET", 30)
    whole = built({**grouped, "loss_type": "listwise_kl"}, output_dir=str(tmp_path / "whole"))
    assert whole.plan.budget > 30
    assert all(work.passes == 1 for step in range(whole.steps) for work in whole.plan.step(step).micro_batches[0])
    assert built({**grouped, "loss_type": "point_ce"}, output_dir=str(tmp_path / "pairs")).plan.budget == 30
    monkeypatch.setattr(budget, "CPU_WHOLE_BYTES", 1)
    assert built({**grouped, "loss_type": "listwise_kl"}, output_dir=str(tmp_path / "parts")).plan.budget == 30


def test_both_passes_draw_the_same_masks(grouped: dict, tmp_path: Path) -> None:
    """With dropout on: the gradient is that of the objective over the scores of the very same masks, in one graph."""
    settings = {**grouped, **EXACT, "hidden_dropout": 0.3, "attention_dropout": 0.3, "loss_type": "lambda_rank"}
    run = built(settings, token_budget=30, output_dir=str(tmp_path / "two"))
    got = gradients(run)
    run.optimizer.zero_grad(set_to_none=True)
    pairs, sizes = run.plan.pairs(0)
    counts = run.objective.counts(torch.from_numpy(run.train_data.targets(pairs)), sizes)
    for work in step_batches(run)[0]:
        passes = list(step_module._passes(work, run.engine))
        scores = torch.cat([step_module._logits(run, 0, batch, first) for batch, first, counted in passes if counted])
        run.objective(scores, work.targets, work.sizes, counts).backward()
    for name, parameter in run.model.named_parameters():
        if name in got:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        ("bert", "ddp"), ("bert", "fsdp2"), pytest.param("bert", "zero1", marks=SLOW), pytest.param("bert", "zero3", marks=SLOW),
        ("llama", "fsdp2"), pytest.param("llama", "ddp", marks=SLOW), pytest.param("llama", "zero1", marks=SLOW),
        pytest.param("llama", "zero3", marks=SLOW),
    ],
)  # fmt: skip
def test_two_processes_learn_what_one_learns(
    grouped: dict, tmp_path: Path, model: str, engine: str, request: pytest.FixtureRequest
) -> None:
    """Groups of very different sizes: one process is in several passes while the other has a small group, or nothing.

    A decoder computes a query once for the documents of each pass.
    """
    base = {"model_name_or_path": str(request.getfixturevalue(model))}
    base |= {"model_type": "llm_decoder", "query_format": "query {}"} if model == "llama" else {}
    settings = {**grouped, **EXACT, **base, "loss_type": {"listwise_kl": 1.0, "point_ce": 0.2}, "token_budget": 40}
    one = train({**settings, "best_metric": None}, output_dir=str(tmp_path / "one"), token_budget=4096).parent
    two = tmp_path / "two"
    file = {"ddp": "config/ddp.yaml", "fsdp2": "config/default_fsdp.yaml"}.get(
        engine, f"config/deepspeed/deepspeed_{engine}.yaml"
    )
    words = arguments({**settings, "batch_size": 2, "output_dir": str(two)})
    done = launch(file, *words, RANKERY_CPU_ENGINES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"engine {engine}, 2 processes" in done.stdout
    assert ("shared micro-batches" in done.stdout) == (model == "llama")
    assert_same(one, two)


def test_resumed_run_draws_the_same_groups(grouped: dict, tmp_path: Path) -> None:
    """Bit for bit, dropout on, from the middle of an epoch; other documents in each epoch."""
    settings = {
        **grouped,
        "loss_type": "pairwise_ranknet",
        "train_group_size": 3,
        "epochs": 3,
        "save_steps": 1,
        "num_max_checkpoints": 99,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings, output_dir=str(whole))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    for path in (cut / "checkpoints").glob("*_*"):
        if int(path.name.split("_")[1]) > 4:
            shutil.rmtree(path)
    train(settings, output_dir=str(cut), resume=True)
    a, b = load_file(whole / "model" / "model.safetensors"), load_file(cut / "model" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()


def test_what_is_said_at_the_start(grouped: dict, capsys: pytest.CaptureFixture) -> None:
    train(grouped, loss_type="listwise_kl")
    assert "4 queries with about" in capsys.readouterr().out


def test_names_of_others_are_taken(config: dict) -> None:
    assert train(config, loss_type="listwise_softmax", epochs=1).is_dir()


def test_false_negatives_are_left_out(config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {"query": "sun", "pos": ["sun"], "pos_scores": [0.8], "neg": ["sun sun", "sea"], "neg_scores": [0.9, 0.1]}
    data = str(write_rows(tmp_path / "scored.jsonl", [row] * 4))
    train(
        config,
        train_dataset=data,
        val_dataset=None,
        loss_type="pairwise_ranknet",
        false_negative_margin=0.0,
        batch_size=4,
    )
    out = capsys.readouterr().out
    assert "4 documents listed as negatives score like positives and are left out" in out
    assert "4 queries with about 8 pairs" in out
    plain = [{"query": "a", "pos": ["sun", "sea"], "pos_scores": [1, 0]}]
    data = str(write_rows(tmp_path / "plain.jsonl", plain))
    with pytest.raises(InputError, match="lists no documents as negatives"):
        train(config, train_dataset=data, val_dataset=None, false_negative_margin=0.0, overwrite=True)
    for row in (
        {"query": "a", "pos": ["sun"], "neg": ["sea"]},
        {"query": "a", "pos": ["sun"], "neg": ["sea"], "pos_logits": [2], "neg_logits": [1]},
    ):
        data = str(write_rows(tmp_path / "plain.jsonl", [row]))
        with pytest.raises(InputError, match=r"no document that \S+plain.jsonl lists as a negative has a score"):
            train(config, train_dataset=data, val_dataset=None, false_negative_margin=0.0, overwrite=True)


def test_lists_are_labels_where_scores_filter_negatives(config: dict, tmp_path: Path) -> None:
    """Of listwise_ce and what stands beside it; losses of a teacher learn its logits, or those of its scores, all the same."""
    lists = {"query": "sun", "pos": ["sun", "sun sea"], "neg": ["sun sun", "sea", "hill"]}
    lists |= {"pos_scores": [0.8, 0.02], "neg_scores": [0.9, 0.1, 0.3]}
    labels = {"query": "moon", "hits": [{"content": "moon", "label": 1}, {"content": "sea", "label": 0}]}
    data = str(write_rows(tmp_path / "scored.jsonl", [lists, labels]))
    settings = {**config, "train_dataset": data, "val_dataset": None, "false_negative_margin": 0.1}
    run = built(settings, loss_type={"listwise_ce": 1.0, "listwise_kl": 0.5})
    targets = run.train_data.targets(np.arange(7))
    assert targets[:, 0].tolist() == [1, 1, 0, 0, 0, 1, 0]
    assert torch.from_numpy(targets[:5, 1]).sigmoid().tolist() == pytest.approx([0.8, 0.02, 0.9, 0.1, 0.3])
    assert sorted(run.plan.pairs(0)[0].tolist()) == [0, 1, 3, 4, 5, 6]
    drawn = built(settings, loss_type="listwise_ce", train_group_size=2, output_dir=str(tmp_path / "drawn"), epochs=2)
    firsts = {pair for epoch in range(2) for pair in drawn.plan.pairs(epoch)[0].tolist() if pair < 2}
    assert firsts == {0, 1}, "both of pos are positives, whatever their scores"
    learns_scores = built(settings, loss_type="lambda_rank", output_dir=str(tmp_path / "scores"))
    assert learns_scores.train_data.targets(np.arange(2))[:, 0].tolist() == pytest.approx([0.8, 0.02])
    labels["hits"][1]["label"] = 0.4
    write_rows(tmp_path / "scored.jsonl", [lists, labels])
    with pytest.raises(InputError, match=r"scored.jsonl:2: label 0.4 is a score, but loss_type listwise_ce wants"):
        built(settings, loss_type="listwise_ce", output_dir=str(tmp_path / "soft"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "listwise_cf"}, "did you mean listwise_ce"),
        ({"loss_type": {"point_ce": 1.0, "pointwise_bce": 1.0}}, "names a loss twice"),
        ({"loss_type": {"point_ce": -1.0}}, "greater than 0"),
        ({"loss_type": {}}, "loss_type is empty"),
        ({"teacher_temperature": 2.0}, "it belongs to listwise_kl"),
        ({"train_group_size": 4}, "looks at each pair alone"),
        ({"loss_type": "listwise_ce", "train_group_size": 1}, "greater than or equal to 2"),
        ({"loss_type": "listwise_kl", "num_labels": 2}, "expected num_labels 1"),
    ],
)
def test_bad_configurations(config: dict, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(config, change)


def test_losses_refuse_data_that_they_cannot_use(config: dict, tmp_path: Path) -> None:
    def refused(name: str, rows: list[dict], loss: str) -> str:
        data = str(write_rows(tmp_path / f"{name}.jsonl", rows))
        with pytest.raises(InputError) as error:
            train(config, train_dataset=data, val_dataset=None, loss_type=loss)
        assert not Path(config["output_dir"]).exists()
        return str(error.value)

    alone = [{"query": "a", "pos": ["sun"]}, {"query": "b", "neg": ["sea"]}]
    assert "no query there has two documents with different labels" in refused("alone", alone, "lambda_rank")
    assert "both a document with a label above min_label" in refused("alone2", alone, "listwise_ce")
    assert "no query there has two documents" in refused("alone3", alone, "listwise_kl")
    soft = [{"query": "a", "pos": ["sun", "sea"], "pos_scores": [0.9, 0.2]}]
    assert "use listwise_kl for scores" in refused("soft", soft, "listwise_ce")
    some = [
        {"query": "a", "pos": ["sun", "sea"], "pos_logits": [2, -3]},
        {"query": "b", "pos": ["sun"], "neg": ["sea"]},
    ]
    said = refused("some", some, "listwise_kl")
    assert "some.jsonl:2: has no teacher's logits, but" in said
    assert "some.jsonl:1 has; expected pos_logits" in said
    hard = [{"query": "a", "pos": ["sun"], "neg": ["sea"]}]
    assert "learns a teacher's margins" in refused("hard", hard, "pairwise_margin_mse")
    graded = [{"query": "a", "pos": ["sun", "rain", "sea"], "pos_scores": [3, 1, 0]}]
    config["max_label"] = 3
    assert "expected its scores or logits (rankery score)" in refused("graded", graded, "pairwise_margin_mse")


@pytest.mark.parametrize("loss", ["listwise_kl", "pairwise_margin_mse"])
def test_teachers_logits_are_learnt_where_scores_say_nothing(config: dict, tmp_path: Path, loss: str) -> None:
    """A teacher without a fixed zero scores all near 0; a student that gives its logits, shifted, has nothing to learn."""
    row = {"query": "sun", "pos": ["sun sea", "moon", "rain"], "pos_scores": [7.5e-5, 6.1e-6, 3.1e-7]}
    teacher = torch.tensor([-9.5, -12.0, -15.0])

    def loss_of(name: str, row: dict, student: torch.Tensor) -> float:
        data = str(write_rows(tmp_path / f"{name}.jsonl", [row]))
        settings = {**config, "val_dataset": None, "loss_type": loss, "output_dir": str(tmp_path / name)}
        run = built(settings, train_dataset=data)
        return run.objective.mean(student, torch.from_numpy(run.train_data.targets(np.arange(3))), [3])

    with_logits = {**row, "pos_logits": teacher.tolist()}
    assert loss_of("same", with_logits, teacher + 10) == pytest.approx(0.0, abs=1e-6)
    assert loss_of("flat", with_logits, torch.zeros(3)) > 0.5
    if loss == "listwise_kl":
        assert loss_of("scores", row, torch.zeros(3)) == pytest.approx(0.0, abs=1e-6), "scores alone are uniform"


def test_command_line_takes_weighted_losses() -> None:
    from rankery.config import parse_overrides

    assert parse_overrides(["loss_type={listwise_kl: 1, point_ce: 0.2}", "loss_type2=x"])["loss_type"] == {
        "listwise_kl": 1, "point_ce": 0.2,
    }  # fmt: skip
    assert parse_overrides(["loss_type=list_mle"])["loss_type"] == "list_mle"


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("cut", [{"token_budget": 4096}, {"token_budget": 40}])
def test_packed_groups_learn_what_padded_ones_do(
    grouped: dict, tmp_path: Path, model: str, cut: dict, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    """Whole groups and parts; of decoders, with a query computed once for its documents."""
    base = {"model_name_or_path": str(request.getfixturevalue(model)), "loss_type": "listwise_kl"}
    base |= {"model_type": "llm_decoder", "query_format": "query {}"} if model == "llama" else {}
    held_out = {"val_dataset": grouped["train_dataset"], "best_metric": None}
    runs = [
        train(
            {**grouped, **EXACT, **base, **cut, **held_out}, packing=packing, output_dir=str(tmp_path / packing)
        ).parent
        for packing in ("off", "auto")
    ]
    said = capsys.readouterr().out
    assert ("padded micro-batches" in said, "of tokens are spared" in said) == (True, model == "llama")
    assert_same(*runs)
    losses = [
        [json.loads(line)["val/loss"] for line in (run / "metrics.jsonl").open() if "val/loss" in line] for run in runs
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
