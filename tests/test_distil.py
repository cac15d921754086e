"""Teacher scores: resumable byte for byte, shared work, the store, several teachers; and the distillation command."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, WORDS, make_data, spoil, write_rows

from rankery import CrossEncoder, InputError, LLMDecoder, train
from rankery.cli import main
from rankery.config import TrainConfig
from rankery.distilling import compare
from rankery.distilling import teacher as teacher_module
from rankery.distilling.compare import distil
from rankery.distilling.measured import Measured, comparison
from rankery.distilling.score import open_teachers, score
from rankery.distilling.store import Store, pair_key, teacher_digest
from rankery.distilling.students import STUDENTS, student_configs
from rankery.distilling.teacher import Teacher, score_file
from rankery.models.lora import add_adapters
from rankery.sealed import sealed


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    CrossEncoder.from_pretrained(bert, seed=1, max_len=48).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data.jsonl", 60, 5)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_writes_data_that_trains(config: dict, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    assert main(["score", "--model", str(model), "--data", str(data), "--output", str(out)]) == 0
    reranker = CrossEncoder.from_pretrained(model)
    for before, after in zip(rows(data), rows(out), strict=True):
        documents = [*before["pos"], *before["neg"]]
        assert (after["query"], after["pos"]) == (before["query"], documents)
        expected = reranker.compute_score([(before["query"], document) for document in documents])
        torch.testing.assert_close(torch.tensor(after["pos_logits"]), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(after["pos_scores"]), expected.sigmoid(), rtol=1e-5, atol=1e-6)
    assert not out.with_name("scored.jsonl.parts").exists()
    assert train(config, train_dataset=str(out), loss_type="listwise_kl", epochs=1).is_dir()


def test_lists_may_be_kept_apart_for_a_filter_of_negatives(
    config: dict, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What was listed as a negative stays one: the lists are learnt, the scores leave out what is probably relevant."""
    out, together = tmp_path / "lists.jsonl", tmp_path / "together.jsonl"
    words = ["score", "--model", str(model), "--data", str(data), "--output"]
    assert main([*words, str(out), "--keep-lists"]) == 0
    assert main([*words, str(together)]) == 0
    close = 0
    for before, apart, joined in zip(rows(data), rows(out), rows(together), strict=True):
        assert (apart["pos"], apart["neg"]) == (before["pos"], before["neg"])
        for kind in ("scores", "logits"):
            assert apart[f"pos_{kind}"] + apart[f"neg_{kind}"] == joined[f"pos_{kind}"]
        close += sum(score > max(apart["pos_scores"]) for score in apart["neg_scores"])
    assert close
    settings = {"train_dataset": str(out), "val_dataset": None, "loss_type": "listwise_ce", "epochs": 1}
    capsys.readouterr()
    assert train(config, **settings, false_negative_margin=0.0).is_dir()
    assert f"{close} documents listed as negatives score like positives and are left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="or false_negative_margin, with which the lists pos and neg are the labels"):
        train(config, **settings, overwrite=True)


def test_only_lists_can_be_kept_apart(model: Path, tmp_path: Path) -> None:
    def refused(lines: list[dict]) -> list[str]:
        data = write_rows(tmp_path / "data.jsonl", lines)
        with pytest.raises(InputError) as error:
            score_file([Teacher(CrossEncoder.from_pretrained(model))], [data], tmp_path / "out.jsonl", keep_lists=True)
        assert not (tmp_path / "out.jsonl.parts").exists()
        return [problem.removeprefix(str(data)) for problem in error.value.problems]

    listed = {"query": "sun", "pos": ["sun"], "neg": ["sea"]}
    others = [{"query": "sun", "content": "sea", "label": 0}, {"query": "sun", "documents": ["sea"]}]
    wrong = 'has no lists; expected "pos" and "neg", or leave keep_lists out'
    assert refused([listed, *others]) == [f":2: {wrong}", f":3: {wrong}"]
    (said,) = refused([{"query": "sun", "pos": ["sun", "sea"], "pos_scores": [1, 0]}])
    assert said == ': lists no documents as negatives; expected lines with "neg", or leave keep_lists out'


def test_all_shapes_of_data(model: Path, tmp_path: Path) -> None:
    mixed = write_rows(
        tmp_path / "mixed.jsonl",
        [
            {"query": "sun", "content": "sea", "label": -20},
            {"query": "sun", "content": "sun", "label": 1},
            {"query": "moon", "content": "sea", "label": 0},
            {"query": "star", "hits": [{"content": "star", "label": 2}]},
            {"query": "rain", "documents": ["snow", "rain"]},
            {"query": "snow", "content": "snow"},
            {"query": "lake", "hits": [{"content": "lake"}]},
        ],
    )
    out = score_file([Teacher(CrossEncoder.from_pretrained(model))], [mixed], tmp_path / "out.jsonl")
    assert [(row["query"], row["pos"]) for row in rows(out)] == [
        ("sun", ["sea", "sun"]),
        ("moon", ["sea"]),
        ("star", ["star"]),
        ("rain", ["snow", "rain"]),
        ("snow", ["snow"]),
        ("lake", ["lake"]),
    ]


def test_pair_lines_of_a_query_come_together(
    config: dict, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are apart, in other blocks and files; a student then learns from whole lists."""
    listed = {"query": "moon", "pos": ["moon", "sea"]}  # a line of its own, whatever pair lines say of its query
    pairs = [("moon", "hill"), ("sun", "sea"), ("moon", "moon"), ("star", "star"), ("sun", "sun"), ("moon", "sand")]
    lines = [{"query": query, "content": text, "label": 0} for query, text in pairs]
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 2)
    files = [
        write_rows(tmp_path / "a.jsonl", [*lines[:2], listed, *lines[2:4]]),
        write_rows(tmp_path / "b.jsonl", lines[4:]),
    ]
    reranker = CrossEncoder.from_pretrained(model)
    out = score_file([Teacher(reranker)], files, tmp_path / "out.jsonl")
    found = rows(out)
    assert [(row["query"], row["pos"]) for row in found] == [
        ("moon", ["hill", "moon", "sand"]), ("sun", ["sea", "sun"]), ("moon", ["moon", "sea"]), ("star", ["star"]),
    ]  # fmt: skip
    for row in found:
        logits = reranker.compute_score([(row["query"], text) for text in row["pos"]])
        torch.testing.assert_close(torch.tensor(row["pos_logits"]), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(row["pos_scores"]), logits.sigmoid(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_killed_ten_times_at_random_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "long.jsonl", 500, 5)
    code = "import sys, rankery.distilling.teacher as t; t.BLOCK_PAIRS = 8; from rankery.cli import main; sys.exit(main(sys.argv[1:]))"

    def start(out: Path) -> subprocess.Popen:
        command = [
            sys.executable,
            "-c",
            code,
            "score",
            "--model",
            str(model),
            "--data",
            str(data),
            "--output",
            str(out),
        ]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert start(whole).wait(timeout=300) == 0
    random, parts = np.random.default_rng(0), cut.with_name("cut.jsonl.parts")
    killed = 0
    for _ in range(10):
        process = start(cut)
        before = len(list(parts.glob("0*")))
        # Wait for a few blocks more, then for a random moment.
        while process.poll() is None and len(list(parts.glob("0*"))) < before + 2:
            time.sleep(0.01)
        time.sleep(float(random.random()) * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 10
    assert start(cut).wait(timeout=300) == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert not parts.exists()


class Killed(BaseException):
    """Nobody handles it."""


def die_after(operations: int, patch: pytest.MonkeyPatch) -> None:
    """As if killed: after so many operations of the file system no other has an effect, those of cleaning up neither."""
    left = [operations]

    def mortal(path: Path, does: Callable, *arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return does(path, *arguments, **options)

    for name in ("open", "mkdir", "replace", "unlink", "rmdir"):
        patch.setattr(Path, name, partialmethod(mortal, getattr(Path, name)))


@pytest.mark.parametrize("older", [False, True])
def test_killed_between_any_two_operations_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """Also while the output gets its name and while the folder of parts is removed; nothing else is left."""
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 4)
    data, teachers = make_data(tmp_path / "data.jsonl", 3), [Teacher(CrossEncoder.from_pretrained(model))]
    whole = score_file(teachers, [data], tmp_path / "whole.jsonl").read_bytes()
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        out = folder / "out.jsonl"
        if older:
            out.write_text("older")
        with monkeypatch.context() as patch:
            die_after(moment, patch)
            try:
                score_file(teachers, [data], out, overwrite=older)
                break
            except Killed:
                pass
        before = out.read_bytes() if out.exists() else None
        assert before in (whole, b"older" if older else None)
        if before == b"older":
            with pytest.raises(InputError, match="there already"):  # it is not taken for what this run wrote
                score_file(teachers, [data], out)
        parts = folder / "out.jsonl.parts"
        left = {path.name for path in parts.iterdir()} if parts.exists() else {"gone"}
        if not older and before == whole and left <= {".lock"}:  # as good as finished
            with pytest.raises(InputError, match="there already"):
                score_file(teachers, [data], out)
            continue
        assert score_file(teachers, [data], out, overwrite=older).read_bytes() == whole
        assert [path.name for path in folder.iterdir()] == ["out.jsonl"]
    assert moment > 20


def test_progress_counts_what_is_scored_now(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """300 pairs, 160 of them stored: a clock on which 20 pairs take ten seconds says 2 pairs/s and what the others take."""
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 20)
    teachers, out = [Teacher(CrossEncoder.from_pretrained(model))], tmp_path / "out.jsonl"
    blocks = itertools.count()
    score = teacher_module.block_logits

    def slow(*arguments: object) -> np.ndarray:
        if next(blocks) == 8:
            raise Killed
        now[0] += 10.0
        return score(*arguments)

    now = [0.0]
    monkeypatch.setattr(teacher_module, "block_logits", slow)
    monkeypatch.setattr(teacher_module.time, "monotonic", lambda: now[0])
    with pytest.raises(Killed):
        score_file(teachers, [data], out)
    capsys.readouterr()
    score_file(teachers, [data], out)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "220 of 300 pairs, 2.0 pairs/s, 40 s left"
    assert said[-1] == "scored 140 pairs in 70 s (2.0 pairs/s)"


def test_processes_share_the_blocks(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 16)
    one = score_file([Teacher(CrossEncoder.from_pretrained(model))], [data], tmp_path / "one.jsonl")
    monkeypatch.undo()
    two = tmp_path / "two.jsonl"
    code = "import sys, rankery.distilling.teacher as t; t.BLOCK_PAIRS = 16; from rankery.cli import main; sys.exit(main(sys.argv[1:]))"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port,
    }  # fmt: skip
    command = [sys.executable, "-c", code, "score", "--model", str(model), "--data", str(data), "--output", str(two)]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert two.read_bytes() == one.read_bytes()


def test_launches_processes_itself(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.jsonl"
    words = ["score", "--model", str(model), "--data", str(data), "--processes", "2", "--output", str(out)]
    assert main(words) == 0
    assert len(rows(out)) == 60


def test_store_answers_for_pairs_that_it_knows(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = CrossEncoder.from_pretrained(model)
    plain = score_file([Teacher(reranker)], [data], tmp_path / "plain.jsonl")
    store = tmp_path / "scores.sqlite"
    first = score_file([Teacher(reranker)], [data], tmp_path / "first.jsonl", store=store)
    monkeypatch.setattr(type(reranker), "compute_score", lambda *_, **__: pytest.fail("scored again"))
    second = score_file([Teacher(reranker)], [data], tmp_path / "second.jsonl", store=store)
    assert first.read_bytes() == second.read_bytes()
    for a, b in zip(rows(plain), rows(first), strict=True):
        assert a["pos_logits"] == pytest.approx(b["pos_logits"], abs=1e-5)
    # Another teacher's scores are other keys.
    torch.nn.init.zeros_(reranker.model.classifier.weight)
    with pytest.raises(pytest.fail.Exception):
        score_file([Teacher(reranker)], [data], tmp_path / "third.jsonl", store=store)


def test_keys_tell_teachers_and_texts_apart(bert: Path, tmp_path: Path) -> None:
    a, b = (CrossEncoder.from_pretrained(bert, seed=seed) for seed in (1, 2))
    assert teacher_digest(a) == teacher_digest(CrossEncoder.from_pretrained(bert, seed=1))
    assert teacher_digest(a) != teacher_digest(b)
    assert teacher_digest(a) != teacher_digest(CrossEncoder.from_pretrained(bert, seed=1, max_len=20))
    for change in ({"layer_norm_eps": 1e-3}, {"hidden_act": "relu"}):  # the weights stay as they are
        other = shutil.copytree(bert, tmp_path / next(iter(change)))
        (other / "config.json").write_text(json.dumps(json.loads((bert / "config.json").read_text()) | change))
        assert teacher_digest(a) != teacher_digest(CrossEncoder.from_pretrained(other, seed=1))
    text = (bert / "tokenizer.json").read_text()
    other = shutil.copytree(bert, tmp_path / "copy")
    assert teacher_digest(a) == teacher_digest(CrossEncoder.from_pretrained(other, seed=1)), "another place only"
    (other / "tokenizer.json").write_text(text.replace('"sun": 5', '"moon": 5', 1).replace('"moon": 6', '"sun": 6', 1))
    assert teacher_digest(a) != teacher_digest(CrossEncoder.from_pretrained(other, seed=1))
    assert pair_key("t", "ab", "c") != pair_key("t", "a", "bc")
    with pytest.raises(InputError, match="store of scores"):
        Store(bert)


def test_keys_tell_the_weight_of_adapters_apart(bert: Path) -> None:
    pytest.importorskip("peft", reason="needs peft")
    digests = set()
    for alpha in (8, 16):
        reranker = CrossEncoder.from_pretrained(bert, seed=1)
        add_adapters(reranker.model, str(bert), 4, alpha, 0.0, "all-linear", 0)
        digests.add(teacher_digest(reranker))
    assert len(digests) == 2


def test_several_teachers_are_averaged_in_logit_space(bert: Path, llama: Path, data: Path, tmp_path: Path) -> None:
    encoder = CrossEncoder.from_pretrained(bert, seed=1)
    decoder = LLMDecoder.from_pretrained(llama, head="yes_no", yes_word="yes", no_word="no")
    classes = CrossEncoder.from_pretrained(bert, num_labels=3, seed=2)
    out = score_file(
        [Teacher(encoder, 1.0, 2.0), Teacher(decoder, 3.0), Teacher(classes, 1.0)], [data], tmp_path / "mean.jsonl"
    )
    row = rows(out)[0]
    pairs = [(row["query"], document) for document in row["pos"]]
    grade = classes.rank_scores(classes.compute_score(pairs))
    logits = (encoder.compute_score(pairs) / 2 + 3 * decoder.compute_score(pairs) + torch.logit(grade)) / 5
    assert row["pos_logits"] == pytest.approx(logits.tolist(), abs=1e-4)
    # A yes/no teacher's score is P(yes) / (P(yes) + P(no)).
    alone = rows(score_file([Teacher(decoder)], [data], tmp_path / "alone.jsonl"))[0]
    ids, _ = decoder.template.build(
        decoder.tokenizer(decoder.prompt.query_format.replace("{}", pairs[0][0]), add_special_tokens=False)[
            "input_ids"
        ],
        decoder.tokenizer(decoder.prompt.document_format.replace("{}", pairs[0][1]), add_special_tokens=False)[
            "input_ids"
        ],
    )
    with torch.no_grad():
        chances = decoder.model(torch.from_numpy(ids)[None]).logits[0, -1].softmax(dim=0)
    yes, no = (chances[decoder.tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
    assert alone["pos_scores"][0] == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def test_one_prompt_is_for_the_language_models_among_several(bert: Path, llama: Path, tmp_path: Path) -> None:
    CrossEncoder.from_pretrained(bert, seed=1).save_pretrained(tmp_path / "encoder")
    encoder, decoder = str(tmp_path / "encoder"), str(llama)
    preset = "bge-reranker-v2-gemma"

    def asked(*prompt: str, models: tuple[str, ...] = (encoder, decoder)) -> list[str]:
        opened = open_teachers(models, prompt=list(prompt))
        return [getattr(one.reranker, "prompt", None) and one.reranker.prompt.query_format for one in opened]

    wanted = [None, LLMDecoder.from_pretrained(llama, prompt=preset).prompt.query_format]
    assert asked(preset) == asked("none", preset) == wanted
    assert asked(preset, models=(decoder,)) == wanted[1:]
    for prompts in ([preset], [preset, preset]):
        with pytest.raises(InputError, match="is an encoder, which takes none"):
            asked(*prompts, models=(encoder, encoder))
    with pytest.raises(InputError, match="expected one, or one for each of 2 models"):
        score([encoder, decoder], "none.jsonl", tmp_path / "out.jsonl", prompt=[preset] * 3)


def test_a_teacher_may_read_less_of_long_documents(model: Path, tmp_path: Path) -> None:
    """One that rankery has not saved: those that it has keep what they were trained with."""
    (model / "rankery.json").unlink()
    data = write_rows(tmp_path / "long.jsonl", [{"query": "sun", "documents": ["sea " * 12 + "sun", "sea " * 12]}])
    words = ["score", "--model", str(model), "--data", str(data), "--output"]
    assert main([*words, str(tmp_path / "whole.jsonl")]) == 0
    assert main([*words, str(tmp_path / "cut.jsonl"), "--max-length", "12"]) == 0
    (whole,), (cut,) = (rows(tmp_path / f"{name}.jsonl") for name in ("whole", "cut"))
    assert cut["pos_logits"][0] == pytest.approx(cut["pos_logits"][1], abs=1e-6)
    assert whole["pos_logits"][0] != pytest.approx(whole["pos_logits"][1], abs=1e-4)


def test_bad_input(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(*words: str) -> str:
        assert main(["score", "--model", str(model), *words]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out.jsonl")
    assert "does not exist" in said("--data", "nowhere.jsonl", "--output", out)
    assert "which is the input" in said("--data", str(data), "--output", str(data))
    assert "a folder" in said("--data", str(data), "--output", str(tmp_path))
    assert "expected one number above 0" in said("--data", str(data), "--output", out, "--weight", "1", "--weight", "2")
    assert "weight is [inf]; expected one number above 0" in said(
        "--data", str(data), "--output", out, "--weight", "inf"
    )
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "a", "pos": ["b"]}\n{"query": 3, "pos": ["b"]}\n')
    assert f'{broken}:2: "query"' in said("--data", str(broken), "--output", out)
    assert not Path(out).exists()
    assert main(["score", "--model", str(model), "--data", str(data), "--output", out]) == 0
    assert "there already" in said("--data", str(data), "--output", out)
    assert main(["score", "--model", str(model), "--data", str(data), "--output", out, "--overwrite"]) == 0
    parts = tmp_path / "new.jsonl.parts"
    parts.mkdir()
    (parts / "meta.json").write_text("{}")
    assert "meta.json: is not what rankery writes there (no valid data)" in said(
        "--data", str(data), "--output", str(tmp_path / "new.jsonl")
    )
    (parts / "meta.json").write_text(sealed({"data": "others"}))
    assert "half a run of other data" in said("--data", str(data), "--output", str(tmp_path / "new.jsonl"))


def test_scores_that_are_no_numbers_are_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 2)
    spoil(model, "snow")
    lines = [{"query": "sun", "pos": ["sun"], "neg": ["sea", "rain"]}, {"query": "rain", "pos": ["rain", "snow"]}]
    data, out, store = write_rows(tmp_path / "data.jsonl", lines), tmp_path / "out.jsonl", tmp_path / "scores.sqlite"
    words = ["score", "--model", str(model), "--data", str(data), "--output", str(out), "--store", str(store)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"1 of 2 scores of {model} are not finite, the first at {data}:2, query 'rain'" in said
    assert len(said.splitlines()) == 1
    assert not out.exists()
    assert [path.name for path in out.with_name("out.jsonl.parts").glob("*.f32")] == ["00000000.f32"]
    with Store(store) as kept:
        digest = teacher_digest(CrossEncoder.from_pretrained(model))
        known = kept.find([pair_key(digest, "rain", text) for text in ("rain", "snow")])
        assert list(known) == [pair_key(digest, "rain", "rain")]


def instead(words: list[str], *others: str) -> list[str]:
    """A command line with other values of what it has: key=value words, or an option and its value."""
    keys = {word.split("=")[0] for word in others if "=" in word}
    kept = [word for word in words if "=" not in word or word.split("=")[0] not in keys]
    for option, value in pairwise(others):
        if option.startswith("--"):
            kept[kept.index(option) + 1] = value
    return kept + [word for word in others if "=" in word]


def test_distillation_compares_teacher_and_students(
    config: dict, bert: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "distil"
    words = [
        "distil", "--output", str(out), "--teacher", str(model), "--student", config["model_name_or_path"],
        "--data", config["train_dataset"], "--val", config["val_dataset"], "max_len=48", "epochs=1", "log_with=none",
        "batch_size=4", "distilled.lr=1e-3", "labels.loss_type=point_ce",
    ]  # fmt: skip
    assert main(words) == 0
    table = capsys.readouterr().out
    for name in ("random order", "BM25", "teacher", "student, labels", "student, distilled"):
        assert name in table
    assert "of the teacher's nDCG@10" in table
    assert "95% interval" in table
    found = json.loads((out / "comparison.json").read_text())
    assert found["student, distilled"]["parameters"] > 0
    assert "lr: 0.001" in (out / "distilled" / "config.yaml").read_text()
    assert "loss_type: point_ce" in (out / "labels" / "config.yaml").read_text()
    # Again: nothing is done twice.
    assert main(words) == 0
    assert "scores of the training data" not in capsys.readouterr().out
    # Other settings, which the models there were not trained with: refused. What changes no model may differ.
    assert main(instead(words, "log_interval=5", "lr=1e-4", "labels.loss_type=point_mse")) == 2
    loss, rate = sorted(capsys.readouterr().err.splitlines())
    kept = "keep it, or choose another --output"
    run = out / "labels" / "run.json"
    assert loss == f"error: student, labels: loss_type was 'point_ce' in {run}, got 'point_mse'; {kept}"
    assert rate == f"error: student, labels: lr was 2e-05 in {run}, got 0.0001; {kept}"
    assert main(instead(words, "batch_size=8")) == 2
    assert "student, distilled: batch_size x gradient_accumulation_steps x processes was 4" in capsys.readouterr().err
    assert main(instead(words, "--student", str(model))) == 2
    assert f"model_name_or_path was {config['model_name_or_path']!r}" in capsys.readouterr().err
    other = tmp_path / "other"
    CrossEncoder.from_pretrained(bert, seed=2, max_len=48).save_pretrained(other)
    assert main(instead(words, "--teacher", str(other))) == 2
    assert "other data or another teacher" in capsys.readouterr().err
    assert main([*words, "output_dir=x"]) == 2
    assert "output_dir is set" in capsys.readouterr().err


def test_relevant_above_is_for_the_comparison(config: dict, model: Path, tmp_path: Path) -> None:
    grades = [3, 1, 0]
    rows = [
        {"query": f"{word} sun", "pos": [f"{word} sea", f"{word} sun", "moon"], "pos_scores": grades}
        for word in WORDS[:6]
    ]
    train_file, val = (
        write_rows(tmp_path / "graded.jsonl", rows[:3]),
        write_rows(tmp_path / "graded_val.jsonl", rows[3:]),
    )
    settings = {"max_label": 3, "relevant_above": 1, "epochs": 1, "max_len": 48, "log_with": "none"}
    out = tmp_path / "distil"
    distil(model, config["model_name_or_path"], train_file, val, out, overrides=settings)
    found = json.loads((out / "comparison.json").read_text())
    # BM25 has the document of grade 1 first, which then is not relevant, and that of grade 3 second.
    assert found["BM25"]["metrics"]["MRR@10"] == 0.5
    kept = {kind: yaml.safe_load((out / kind / "config.yaml").read_text()) for kind in STUDENTS}
    assert [kept[kind]["relevant_above"] for kind in STUDENTS] == [1, None]
    # The students stay as they are; what counts as relevant may be asked anew.
    distil(model, config["model_name_or_path"], train_file, val, out, overrides={**settings, "relevant_above": 0})
    assert json.loads((out / "comparison.json").read_text())["BM25"]["metrics"]["MRR@10"] == 1.0


def test_held_out_data_has_something_to_find(config: dict, model: Path, tmp_path: Path) -> None:
    rows, out = [{"query": "sun", "pos": ["sea", "moon"], "pos_scores": [1, 0]}], tmp_path / "distil"
    val = write_rows(tmp_path / "val.jsonl", rows)
    settings = {"max_label": 3, "relevant_above": 1, "max_len": 48}
    with pytest.raises(InputError, match=r"val.jsonl: no document has a label above 1, so no system could find"):
        distil(model, config["model_name_or_path"], config["train_dataset"], val, out, overrides=settings)
    assert not out.exists()


def students(config: str | Path | None = None, **overrides: object) -> dict[str, TrainConfig]:
    """The configurations of both trainings."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return student_configs(
        "base", config, keys, {"labels": [Path("a.jsonl")], "distilled": [Path("b.jsonl")]}, Path("out")
    )


def test_grades_and_scores_are_validated_apart(bert: Path, tmp_path: Path) -> None:
    """Both trainings read val_dataset by the range of what they learn."""
    files = {kind: [tmp_path / f"{kind}.jsonl"] for kind in STUDENTS}
    settings = {"max_label": 3, "val_dataset": "val.jsonl"}
    with pytest.raises(InputError, match=r"labels are from 0 to 3, and the distilled student's scores from 0 to 1"):
        student_configs(str(bert), None, settings, files, tmp_path)
    for key in ("labels.val_dataset", "distilled.val_dataset"):
        student_configs(str(bert), None, {"max_label": 3, key: "val.jsonl"}, files, tmp_path)


def test_a_teacher_that_finds_nothing_is_compared_too() -> None:
    def row(value: float) -> Measured:
        return Measured({name: np.array([value, value]) for name in ("nDCG@10", "MAP")}, 1000, 10.0)

    names = ["teacher", *STUDENTS.values()]
    table = comparison(dict(zip(names, map(row, (0, 0.4, 0.5)), strict=True)))
    assert "keeps 0.5000 to 0 of the teacher's nDCG@10" in table


def test_a_file_replaces_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("lr: 3e-4\noverwrite: true\n")
    both = students(file, epochs=3, distilled__lr=1e-3)
    assert [both[kind].loss_type for kind in STUDENTS] == ["listwise_ce", "listwise_kl"]
    assert [both[kind].lr for kind in STUDENTS] == [3e-4, 1e-3]
    assert all((one.epochs, one.best_metric, one.num_max_checkpoints) == (3, None, 1) for one in both.values())
    assert not any(one.overwrite for one in both.values())
    file.write_text("loss_type: point_mse\nbest_metric: loss\n")
    assert all((one.loss_type, one.best_metric) == ("point_mse", "loss") for one in students(file).values())
    assert students(file, labels__loss_type="list_mle")["labels"].loss_type == "list_mle"


def test_what_is_wrong_with_both_is_said_once() -> None:
    with pytest.raises(InputError) as caught:
        students(rl=1e-3, epochs=0, teacher_temperature=2.0, distilled__batch_size=0)
    said = [problem.partition(";")[0].partition(" (")[0] for problem in caught.value.problems]
    assert said == [
        "command line: unknown key rl",
        "command line: epochs is 0",
        "student, labels: command line: teacher_temperature is 2.0, but loss_type is 'listwise_ce'",
        "student, distilled: command line: batch_size is 0",
    ]
    with pytest.raises(InputError, match="resume is set, but rankery distil decides it"):
        students(labels__resume=True)


def test_students_are_checked_before_the_teacher_scores(
    config: dict, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, student = tmp_path / "distil", config["model_name_or_path"]
    monkeypatch.chdir(ROOT)  # whose recipes name files

    def said(student: str = student, data: str = config["train_dataset"], **changes: object) -> list[str]:
        options = {"teacher": model, "overrides": {"max_len": 48}, **changes}
        with pytest.raises(InputError) as caught:
            distil(student=student, data=data, val=config["val_dataset"], output=out, **options)
        assert not out.exists()
        return caught.value.problems

    (problem,) = said("./misspelt")
    assert problem.startswith("model_name_or_path is './misspelt'; there is no such folder")
    (problem,) = said(config="config/training_listwise.yaml")
    assert problem.startswith(
        "student, distilled: the teacher's scores: label 0.2 is a score, but loss_type listwise_ce"
    )
    assert "use listwise_kl for scores" in problem
    assert problem.endswith("(distilled.KEY=VALUE is for this training alone)")
    single = write_rows(tmp_path / "single.jsonl", [{"query": word, "pos": [word]} for word in WORDS[:4]])
    labels, distilled = said(data=single)
    assert "student, labels: loss_type listwise_ce finds nothing to learn" in labels
    assert "student, distilled: loss_type listwise_kl finds nothing to learn in the teacher's scores" in distilled
    assert len(said(data=single, overrides={"max_len": 48, "labels.loss_type": "point_ce"})) == 1
    scored = write_rows(tmp_path / "scored.jsonl", [{"query": "sun", "pos": ["sea", "sun"], "pos_scores": [0.5, 7]}])
    (problem,) = said(scores=scored)
    assert problem.startswith(f"student, distilled: {scored}:1:")
    assert said(scores=scored, store=tmp_path / "store") == [
        f"store is {tmp_path / 'store'}, but the scores are given; leave one of them out"
    ]
    assert "neither a teacher nor scores" in said(teacher=None)[0]
    assert "no teacher is asked" in said(teacher=None, scores=scored, prompt="qwen3-reranker")[0]


def test_scores_are_there_for_another_student(
    config: dict,
    bert: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def stopped(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "train", stopped)
    for student in (bert, model):
        with pytest.raises(KeyboardInterrupt):
            distil(
                model,
                student,
                config["train_dataset"],
                config["val_dataset"],
                tmp_path / "out",
                overrides={"max_len": 48},
            )
    assert capsys.readouterr().out.count("scores of the training data") == 1


def test_several_teachers_teach_as_they_score(config: dict, bert: Path, model: Path, tmp_path: Path) -> None:
    second, out, scored = tmp_path / "second", tmp_path / "out", tmp_path / "scored.jsonl"
    CrossEncoder.from_pretrained(bert, seed=2, max_len=48).save_pretrained(second)
    teachers = ["--weight", "2", "--weight", "1", "--temperature", "1", "--temperature", "3", "--dtype", "bfloat16"]
    teachers += ["--device", "cpu"]
    data = ["--data", config["train_dataset"]]
    assert (
        main(["score", "--model", str(model), "--model", str(second), *teachers, *data, "--output", str(scored)]) == 0
    )
    words = [
        "distil",
        "--teacher",
        str(model),
        "--teacher",
        str(second),
        *teachers,
        *data,
        "--val",
        config["val_dataset"],
    ]
    words += ["--student", str(bert), "--output", str(out), "max_len=48", "log_with=none"]
    assert main(words) == 0
    assert (out / "teacher_scores.jsonl").read_bytes() == scored.read_bytes()
    found = json.loads((out / "comparison.json").read_text())
    # The scores alone, in another folder: the same student, but no teacher to be compared with.
    words = [
        "distil",
        "--scores",
        str(scored),
        "max_len=48",
        *data,
        "--val",
        config["val_dataset"],
        "--student",
        str(bert),
    ]
    assert main([*words, "--output", str(tmp_path / "again"), "log_with=none"]) == 0
    again = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert list(again) == ["random order", "BM25", *STUDENTS.values()]
    student = "distilled/model/model.safetensors"
    assert (tmp_path / "again" / student).read_bytes() == (out / student).read_bytes()
    size = sum(parameter.numel() for parameter in CrossEncoder.from_pretrained(model).model.parameters())
    assert [found[name]["parameters"] for name in ("teacher", "student, distilled")] == [2 * size, size]


@pytest.mark.slow
def test_processes_distil_as_one_does(
    config: dict, model: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    def distilled(name: str, *words: str) -> Path:
        models = ["--teacher", str(model), "--student", config["model_name_or_path"], "--output", str(tmp_path / name)]
        files = ["--data", str(data), "--val", config["val_dataset"]]
        settings = ["max_len=48", "log_with=none", "hidden_dropout=0", "attention_dropout=0", *words]
        assert main(["distil", *models, *files, *settings]) == 0
        return tmp_path / name

    one, two = distilled("one", "batch_size=4"), distilled("two", "batch_size=2", "--processes", "2")
    assert capfd.readouterr().out.count("engine ddp, 2 processes") == 2
    assert (one / "teacher_scores.jsonl").read_bytes() == (two / "teacher_scores.jsonl").read_bytes()
    pairs = [("sun", "sea sun"), ("moon", "sea")]
    for kind in STUDENTS:
        a, b = (CrossEncoder.from_pretrained(out / kind / "model").compute_score(pairs) for out in (one, two))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_it_starts_its_processes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="processes is 0"):
        distil("t", "s", "a.jsonl", "b.jsonl", tmp_path / "out", processes=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="run it without the launcher, with --processes 2"):
        distil("t", "s", "a.jsonl", "b.jsonl", tmp_path / "out")


def test_settings_may_follow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("year=2024.jsonl").touch()
    calls: list[tuple] = []
    monkeypatch.setattr(compare, "distil", lambda *words, **options: calls.append((*words[2:4], options["overrides"])))
    models = ["--teacher", "t", "--student", "s"]
    assert (
        main(["distil", *models, "--data", "year=2024.jsonl", "a.jsonl", "lr=1e-3", "--val", "year=*", "labels.lr=1"])
        == 0
    )
    assert main(["distil", "epochs=2", *models, "--data", "a.jsonl", "--val", "b.jsonl", "--lr=1e-3"]) == 0
    assert calls == [
        (["year=2024.jsonl", "a.jsonl"], ["year=*"], {"lr": 1e-3, "labels.lr": 1}),
        (["a.jsonl"], ["b.jsonl"], {"epochs": 2, "lr": 1e-3}),
    ]
