"""Prediction and the contract of saved models, against transformers, sentence-transformers and one-by-one scoring."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, make_bert, make_decoder, run_python, words
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rankery import CrossEncoder, InputError, LLMDecoder, train
from rankery.cli import main
from rankery.data.collate import Batch
from rankery.errors import NewHeadWarning
from rankery.models import reranker as reranker_module
from rankery.models.ahead import ahead
from rankery.models.budget import keep_large_blocks
from rankery.models.golden import PROBES, padded_scores
from rankery.models.loading import is_decoder_family
from rankery.models.opening import open_reranker
from rankery.models.reranker import expected_grade

PAIRS = [(words(i, 1 + i % 5), words(i + 3, 1 + 3 * i % 40)) for i in range(30)]


@pytest.fixture(scope="module", params=["bert", "xlmr"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / request.param
    reranker = CrossEncoder.from_pretrained(request.getfixturevalue(request.param), num_labels=1, seed=3, max_len=64)
    torch.nn.init.normal_(head_of(reranker.model), std=0.5)
    reranker.save_pretrained(folder, "card")
    return folder


def head_of(model: torch.nn.Module) -> torch.nn.Parameter:
    return next(
        p for name, p in reversed(list(model.named_parameters())) if name.startswith("classifier") and p.dim() == 2
    )


def test_scores_do_not_depend_on_company_or_order(saved: Path) -> None:
    reranker = CrossEncoder.from_pretrained(saved)
    together = reranker.compute_score(PAIRS)
    assert together.dtype == torch.float32
    alone = torch.cat([reranker.compute_score([pair]) for pair in PAIRS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reranker.compute_score(PAIRS[::-1]).flip(0), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reranker.compute_score(PAIRS, batch_size=3), together, rtol=1e-4, atol=1e-5)
    assert float(together.std()) > 0.01, "all scores are alike: the test shows nothing"


def test_transformers_and_sentence_transformers_agree(saved: Path) -> None:
    from sentence_transformers import CrossEncoder as Peer

    ours = CrossEncoder.from_pretrained(saved).compute_score(PAIRS)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    with torch.inference_mode():
        theirs = model(**tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    peer = Peer(str(saved), device="cpu")
    assert peer.max_length == 64 or tokenizer.model_max_length == 64
    torch.testing.assert_close(ours, torch.as_tensor(peer.predict(PAIRS)), rtol=1e-4, atol=1e-5)


def test_the_specifications_code(saved: Path) -> None:
    reranker = CrossEncoder.from_pretrained(
        model_name_or_path=str(saved),
        num_labels=1,  # binary classification
    )
    reranker.model.to("cpu")
    reranker.eval()
    res = reranker.compute_score([["sun moon", "sun moon"], ["sun", "sea hill"]])
    assert 0 < float(torch.sigmoid(res[0])) < 1
    assert res[1].shape == ()


def test_rerank(saved: Path) -> None:
    reranker = CrossEncoder.from_pretrained(saved)
    documents = [words(i, 5) for i in range(20)] + ["", "sun"]
    ranking = reranker.rerank("sun", documents)
    assert sorted(entry.index for entry in ranking) == list(range(22))
    assert [entry.score for entry in ranking] == sorted((entry.score for entry in ranking), reverse=True)
    index, _, document = reranker.rerank("sun", documents, top_k=3)[0]
    assert document == documents[index]
    assert all(0 < entry.score < 1 for entry in reranker.rerank("sun", documents, normalize=True))
    assert reranker.rerank("sun", []) == []
    assert len(reranker.rerank("", [""])) == 1


def test_shapes_and_sizes(saved: Path) -> None:
    reranker = CrossEncoder.from_pretrained(saved)
    assert reranker.compute_score([]).shape == (0,)
    assert reranker.compute_score(["sun", "sea"]).shape == (1,)
    many = [(WORDS[i % 23], WORDS[i * 5 % 23]) for i in range(10_000)]
    scores = reranker.compute_score(many)
    assert scores.shape == (10_000,)
    torch.testing.assert_close(scores[9_000:9_010], reranker.compute_score(many[9_000:9_010]), rtol=1e-4, atol=1e-5)
    long = [("sun " * 300, "sea " * 300)]
    assert reranker.compute_score(long).isfinite().all()
    assert not torch.equal(reranker.compute_score(long), reranker.compute_score(long, max_length=16))


def test_normalised_scores_are_the_sigmoid_of_the_logits(saved: Path) -> None:
    """1 / (1 + exp(-logit)), in [0, 1]."""
    reranker = CrossEncoder.from_pretrained(saved)
    logits, scores = reranker.compute_score(PAIRS), reranker.compute_score(PAIRS, normalize=True)
    expected = [1 / (1 + math.exp(-logit)) for logit in logits.tolist()]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert 0 < scores.min() < scores.max() - 0.1 < 0.9


@pytest.mark.parametrize("pairs", [["sun"], [("sun",)], [("sun", 3)], [("a", "b", "c")]])
def test_bad_pairs(saved: Path, pairs: list) -> None:
    with pytest.raises(InputError, match=r"pair \d+ is .* expected two strings"):
        CrossEncoder.from_pretrained(saved).compute_score(pairs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.compute_score("sun sea"), "pairs is 'sun sea'; expected a list of"),
        (lambda r: r.compute_score(None), "pairs is None; expected a list of"),
        (lambda r: r.rerank("sun", "sea"), "documents is 'sea'; expected a list of strings"),
        (lambda r: r.rerank("sun", None), "documents is None; expected a list of strings"),
        (lambda r: r.rerank("sun", [None]), "pair 0 is .* expected two strings"),
        (lambda r: r.rerank("sun", ["sea"], top_k=1.0), "top_k is 1.0; expected a whole number from 0, or None"),
        (lambda r: r.rerank("sun", ["sea"], top_k=-1), "top_k is -1; expected a whole number"),
        (lambda r: r.rerank("sun", ["sea"], batch_size=2.0), "batch_size is 2.0; expected a whole number from 1"),
        (lambda r: r.rerank("sun", ["sea"], batch_size=0), "batch_size is 0; expected a whole number"),
        (lambda r: r.rerank("sun", ["sea"], batch_size=True), "batch_size is True; expected a whole number"),
        (lambda r: r.compute_score(PAIRS, max_length=20.0), "max_length is 20.0; expected a whole number"),
    ],
)
def test_bad_calls(saved: Path, call: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(CrossEncoder.from_pretrained(saved))


def test_collections_of_other_kinds(saved: Path) -> None:
    reranker = CrossEncoder.from_pretrained(saved)
    expected = reranker.rerank("sun", ["sea", "hill", "sun"], top_k=2)
    assert reranker.rerank("sun", iter(["sea", "hill", "sun"]), top_k=np.int64(2)) == expected
    assert reranker.rerank("sun", np.array(["sea", "hill", "sun"]), top_k=2) == expected
    assert torch.equal(reranker.compute_score(iter(PAIRS)), reranker.compute_score(PAIRS))


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0; expected a whole number from 1"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"num_labels": 1.5}, "num_labels is 1.5"),
        ({"max_len": 20.5}, "max_len is 20.5"),
        ({"dtype": "int8"}, "dtype is 'torch.int8'; expected float32, bfloat16 or float16"),
        ({"dtype": torch.int8}, "dtype is 'torch.int8'"),
        ({"dtype": 16}, "dtype is '16'"),
    ],
)
def test_bad_arguments_of_loading(kind: str, change: dict, message: str, request: pytest.FixtureRequest) -> None:
    cls = CrossEncoder if kind == "bert" else LLMDecoder
    with pytest.raises(InputError, match=message):
        cls.from_pretrained(request.getfixturevalue(kind), **change, seed=0)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_decoders_are_no_cross_encoders(llama: Path, config: dict, tmp_path: Path, packing: str) -> None:
    """Their first token sees no other, so that a head on it would learn nothing."""
    message = (
        r"a decoder \(llama\); expected an encoder such as .* or set model_type=llm_decoder \(in Python: LLMDecoder\)"
    )
    with pytest.raises(InputError, match=message):
        CrossEncoder.from_pretrained(make_decoder(tmp_path / "headed", causal=False), seed=0)
    with pytest.raises(InputError, match=message):
        train(config, model_name_or_path=str(llama), packing=packing)
    assert not Path(config["output_dir"]).exists()


def test_families() -> None:
    encoders = ["bert", "xlm-roberta", "modernbert", "mpnet", "deberta-v2", "distilbert", "electra", "t5", "bart"]
    decoders = ["llama", "qwen3", "gemma3_text", "modernbert-decoder", "gpt2"]
    assert not any(is_decoder_family(AutoConfig.for_model(kind)) for kind in encoders)
    assert all(is_decoder_family(AutoConfig.for_model(kind)) for kind in decoders)


def test_bad_arguments(saved: Path) -> None:
    with pytest.raises(InputError, match="was trained with num_labels 1, got 3"):
        CrossEncoder.from_pretrained(saved, num_labels=3)
    with pytest.raises(InputError, match=r"was trained with query_format '\{\}', got 'q \{\}'"):
        CrossEncoder.from_pretrained(saved, query_format="q {}")
    with pytest.raises(InputError, match=r"max_len is 1000; .* takes at most 128"):
        CrossEncoder.from_pretrained(saved).set_max_len(1000)
    with pytest.raises(InputError, match="max_length is 65; expected"):
        CrossEncoder.from_pretrained(saved).compute_score(PAIRS, max_length=65)
    with pytest.raises(InputError, match="dtype is 'float3'"):
        CrossEncoder.from_pretrained(saved, dtype="float3")
    with pytest.raises(InputError, match="float16 on a CPU"):
        CrossEncoder.from_pretrained(saved, dtype="float16", device="cpu")


def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_contract_finds_changed_weights(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    state = load_file(folder / "model.safetensors")
    head = [name for name in state if name.startswith("classifier") and state[name].dim() == 2][-1]
    state[head] = state[head] * 1.05
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not score as it was saved"):
        CrossEncoder.from_pretrained(folder)
    assert CrossEncoder.from_pretrained(folder, verify=False).compute_score(PAIRS).isfinite().all()


def test_contract_finds_a_wrong_template_and_pad(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    contract = json.loads((folder / "rankery.json").read_text())
    (folder / "rankery.json").write_text(json.dumps({**contract, "query_format": "sea sun {}"}))
    with pytest.raises(InputError, match="query_format"):
        CrossEncoder.from_pretrained(folder)
    contract["template"]["query_format"] = "sea sun {}"
    (folder / "rankery.json").write_text(json.dumps({**contract, "query_format": "sea sun {}"}))
    with pytest.raises(InputError, match="does not score as it was saved"):
        CrossEncoder.from_pretrained(folder)
    other = Path(shutil.copytree(saved, tmp_path / "pad"))
    change_json(other / "tokenizer_config.json", pad_token="[MASK]" if "bert" in str(saved.name) else "<mask>")
    with pytest.raises(InputError, match="pad_token_id"):
        CrossEncoder.from_pretrained(other)


def test_contract_finds_a_wrong_pad_in_the_model(saved: Path, tmp_path: Path) -> None:
    """XLM-RoBERTa counts positions from the pad id: another one moves them all."""
    if saved.name != "xlmr":
        pytest.skip("BERT's scores do not depend on its pad id")
    folder = copied(saved, tmp_path)
    change_json(folder / "config.json", pad_token_id=7)
    with pytest.raises(InputError, match=r"does not score as it was saved|could not be loaded"):
        CrossEncoder.from_pretrained(folder)


def with_wrong_template(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the contract as in the template, so that nothing but the scores can tell."""
    contract = json.loads((folder / "rankery.json").read_text())
    template = {**contract["template"], "query_format": "sea sun {}"}
    change_json(folder / "rankery.json", query_format="sea sun {}", template=template)


def with_pads_that_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = reranker_module.pad

    def unmasked(*arguments: object) -> Batch:
        batch = original(*arguments)
        return replace(batch, attention_mask=torch.ones_like(batch.attention_mask))

    monkeypatch.setattr(reranker_module, "pad", unmasked)


def with_wrong_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth too large: the order of documents stays."""
    state = load_file(folder / "model.safetensors")
    head = [name for name in state if name.startswith("classifier") and state[name].dim() == 2][-1]
    save_file({**state, head: 1.2 * state[head]}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [with_wrong_template, with_pads_that_are_read, with_wrong_head])
def test_golden_scores_tell_faults_from_rounding(
    saved: Path, tmp_path: Path, dtype: str, fault: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without fault loads in either precision, one with a fault in neither: both lie well off the tolerance."""
    contract = json.loads((saved / "rankery.json").read_text())
    tolerance, golden = contract["tolerance"][dtype], torch.tensor(contract["golden"])
    sound = CrossEncoder.from_pretrained(saved, dtype=dtype)
    assert float((sound.compute_score(PROBES) - golden).abs().max()) < tolerance / 2
    folder = copied(saved, tmp_path)
    fault(folder, monkeypatch)
    with pytest.raises(InputError, match=rf"does not score as it was saved.*\({dtype}\)"):
        CrossEncoder.from_pretrained(folder, dtype=dtype)
    wrong = padded_scores(CrossEncoder.from_pretrained(folder, dtype=dtype, verify=False), PROBES)
    assert float((wrong - golden).abs().max()) > 2 * tolerance


def test_bfloat16_is_within_its_tolerance(saved: Path) -> None:
    """Also for pairs that are no probes."""
    half, full = (CrossEncoder.from_pretrained(saved, dtype=dtype).compute_score(PAIRS) for dtype in ("bf16", "fp32"))
    tolerance = json.loads((saved / "rankery.json").read_text())["tolerance"]
    assert tolerance["float32"] < float((half - full).abs().max()) < tolerance["bfloat16"]


def test_contracts_that_cannot_be_read(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    change_json(folder / "rankery.json", format_version=99)
    with pytest.raises(InputError, match="format version 99"):
        CrossEncoder.from_pretrained(folder)
    (folder / "rankery.json").write_text("{")
    with pytest.raises(InputError, match="is no rankery contract"):
        CrossEncoder.from_pretrained(folder)


def test_saving_never_overwrites_something_else(saved: Path, tmp_path: Path) -> None:
    reranker = CrossEncoder.from_pretrained(saved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"holds notes\.txt, not written by rankery"):
        reranker.save_pretrained(tmp_path / "mine")
    reranker.save_pretrained(tmp_path / "own")
    reranker.save_pretrained(tmp_path / "own")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "own"]


def test_seeded_heads(tmp_path: Path) -> None:
    base = make_bert(tmp_path / "base")
    scores = [CrossEncoder.from_pretrained(base, seed=seed).compute_score(PAIRS) for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_head_that_nobody_trained_is_not_silent(bert: Path, saved: Path, tmp_path: Path) -> None:
    """Its scores are random: refused where a reranker is opened, warned of where a base may be meant."""
    with pytest.raises(InputError, match=r"a base model: its head \(classifier\.bias, .*\) is new and random"):
        open_reranker(bert)
    assert main(["evaluate", "--model", str(bert), "--data", "example_data/binary.jsonl"]) == 2
    with pytest.warns(NewHeadWarning, match="is new and random"):
        CrossEncoder.from_pretrained(bert)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CrossEncoder.from_pretrained(bert, seed=0)
        open_reranker(saved)
        headed = Path(shutil.copytree(saved, tmp_path / "headed"))
        (headed / "rankery.json").unlink()  # another library's reranker
        open_reranker(headed)


def test_importing_and_helping_stay_light() -> None:
    done = run_python(
        "import sys, rankery, rankery.cli; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert sys.version_info >= (3, 10)


def test_expected_grade() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 50.0]])
    assert expected_grade(logits).tolist() == pytest.approx([0.5, 1.0])


def test_allocator_is_left_alone_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKERY_KEEP_BLOCKS", "0")
    assert not keep_large_blocks()


def test_a_damaged_model_is_found_also_in_another_dtype(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    state = load_file(folder / "model.safetensors")
    head = next(name for name in state if name.startswith("classifier") and state[name].dim() == 2)
    save_file({**state, head: -state[head]}, folder / "model.safetensors", metadata={"format": "pt"})
    for changes in ({}, {"dtype": "float64"}):
        with pytest.raises(InputError, match="does not score as it was saved"):
            CrossEncoder.from_pretrained(folder, **changes)
        assert CrossEncoder.from_pretrained(saved, **changes)


def test_foreign_files_in_a_model_folder(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    reranker = CrossEncoder.from_pretrained(folder)
    reranker.save_pretrained(folder)  # over itself: nothing in it is anybody else's
    (folder / "my_eval.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds my_eval\.json, not written by rankery"):
        reranker.save_pretrained(folder)


def test_code_that_came_with_a_checkpoint(bert: Path, tmp_path: Path) -> None:
    """Loaded only when allowed; what is saved from it keeps the code and its scores."""
    folder = tmp_path / "remote"
    shutil.copytree(bert, folder)
    (folder / "my_model.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class MyConfig(BertConfig):\n    model_type = 'my_bert'\n"
        "class MyModel(BertForSequenceClassification):\n    config_class = MyConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "my_model.MyConfig", "AutoModelForSequenceClassification": "my_model.MyModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "my_bert", "auto_map": names}))
    with pytest.raises(InputError, match="could not be loaded"):
        CrossEncoder.from_pretrained(folder, 1)
    reranker = CrossEncoder.from_pretrained(folder, 1, trust_remote_code=True, seed=0)
    reranker.save_pretrained(tmp_path / "again")
    again = CrossEncoder.from_pretrained(tmp_path / "again", trust_remote_code=True)
    torch.testing.assert_close(again.compute_score(PAIRS), reranker.compute_score(PAIRS))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_base_without_some_of_its_weights(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers would make them up; of a base, only a head and a pooler may be new."""
    folder = tmp_path / kind
    shutil.copytree(request.getfixturevalue(kind), folder)
    state = load_file(folder / "model.safetensors")
    cls = CrossEncoder if kind == "bert" else LLMDecoder
    save_file({k: v for k, v in state.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    cls.from_pretrained(folder, seed=0)
    save_file({k: v for k, v in state.items() if "layer" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"weights of a \w+ are not in its files \(\w+\..*layers?\.0.*, \.\.\.\)"):
        cls.from_pretrained(folder)


def test_a_head_with_another_number_of_labels(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "rankery.json").unlink()
    with pytest.raises(InputError, match="whose head gives 1 logits, but num_labels is 3; set num_labels to 1"):
        CrossEncoder.from_pretrained(folder, 3)
    for kinds in ([], ["BertModel"]):  # the configuration does not say that there is a head
        other = Path(shutil.copytree(folder, tmp_path / f"unsaid{len(kinds)}"))
        change_json(other / "config.json", architectures=kinds)
        with pytest.raises(InputError, match=r"hold classifier\S* as \(1,.*with num_labels 3 has it as \(3,"):
            CrossEncoder.from_pretrained(other, 3)
        CrossEncoder.from_pretrained(other)
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"are not in its files \(classifier"):
        CrossEncoder.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_saved_model_has_its_length(kind: str, tmp_path: Path, config: dict, request: pytest.FixtureRequest) -> None:
    """Another one contradicts the contract; training may go on with another one, within the model's limit."""
    cls = CrossEncoder if kind == "bert" else LLMDecoder
    cls.from_pretrained(request.getfixturevalue(kind), max_len=64, seed=0).save_pretrained(tmp_path / "saved")
    for length in (32, 100):
        with pytest.raises(
            ValueError, match=rf"was trained with max_len 64, got {length}; set max_len to that, or leave"
        ):
            cls.from_pretrained(tmp_path / "saved", max_len=length)
    assert cls.from_pretrained(tmp_path / "saved", max_len=64).template.max_len == 64
    settings = {**config, "model_type": cls.model_type, "model_name_or_path": str(tmp_path / "saved"), "epochs": 1}
    folder = train(settings, max_len=100)
    assert cls.from_pretrained(folder).template.max_len == 100
    with pytest.raises(InputError, match="max_len is 1000; the model takes at most 128 tokens"):
        train(settings, max_len=1000, output_dir=str(tmp_path / "longer"))


@pytest.mark.parametrize("threaded", [True, False])
def test_work_is_done_ahead(threaded: bool) -> None:
    done: list[int] = []

    def piece(number: int) -> int:
        done.append(number)
        if number == 4:
            raise InputError("the fourth")
        return number * number

    results = ahead(map(piece, range(6)), threaded)
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    with pytest.raises(InputError, match="the fourth"):
        next(results)
    assert done == list(range(5))
    assert list(ahead([], threaded)) == []


def test_thousands_of_pairs_in_chunks_on_a_thread(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator's scores come from, computed here: the same numbers."""
    reranker = CrossEncoder.from_pretrained(bert, seed=0)
    pairs = [(WORDS[i % 7], " ".join(WORDS[: i % 11 + 1])) for i in range(50)]
    expected = reranker.compute_score(pairs)
    monkeypatch.setattr("rankery.models.reranker.PAIRS_AT_ONCE", 16)
    monkeypatch.setattr("rankery.models.reranker.ahead", lambda work, threaded: ahead(work, True))
    torch.testing.assert_close(reranker.compute_score(pairs), expected, atol=1e-5, rtol=1e-5)
