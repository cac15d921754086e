"""What may be packed, padded or must run by length: decided by classes and comparisons, never by names; scores equal to other programs'."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, VOCAB, make_bert, make_decoder, make_xlmr, run_python, words
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rankery import CrossEncoder, LLMDecoder, train
from rankery.data.examples import one_each, query_groups
from rankery.data.plan import deal, length_points
from rankery.models import golden
from rankery.models.budget import CPU_BUDGET, default_token_budget
from rankery.models.contract_schema import DIGEST
from rankery.models.layouts import known_family, length_limit
from rankery.models.opening import open_reranker
from rankery.models.reranker import encode_pairs

TINY = {
    "vocab_size": len(VOCAB), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "initializer_range": 0.3, "num_labels": 1, "pad_token_id": 0,
}  # fmt: skip
PAIRS = [(words(i, 1 + i % 4), words(i + 3, 1 + 7 * i % 60)) for i in range(12)]


def make(folder: Path, tokenizer: Path, kind: str, **changes: object) -> Path:
    """A tiny random cross-encoder of a family, as another program would save it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**TINY, **changes})
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@torch.no_grad()
def alone(folder: Path, reranker: CrossEncoder, pairs: list[tuple[str, str]], trust: bool = False) -> torch.Tensor:
    """Logits by transformers, one pair at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust).eval()
    out = []
    for ids, types in encode_pairs(pairs, reranker.tokenizer, reranker.template)[0]:
        more = {} if types is None else {"token_type_ids": torch.from_numpy(types)[None]}
        out.append(model(torch.from_numpy(ids)[None], attention_mask=torch.ones(1, len(ids)), **more).logits[0, 0])
    return torch.stack(out)


REMOTE = """
import torch
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

class OddConfig(XLMRobertaConfig):
    pass

class OddModel(XLMRobertaForSequenceClassification):
    config_class = OddConfig

    def forward(self, input_ids, attention_mask=None, **options):
        # Padded as ever; but each token is told how many real ones its row has, which a packed row tells otherwise.
        count = attention_mask.reshape(len(attention_mask), -1).float().sum(1)
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        out.logits = out.logits + torch.log1p(count)[:, None]
        return out
"""


def test_code_of_a_checkpoint_is_never_packed(tmp_path: Path) -> None:
    """Its configuration may say xlm-roberta all the same."""
    folder = make_xlmr(tmp_path / "odd")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    (folder / "odd.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForSequenceClassification": "odd.OddModel"},
        "architectures": ["XLMRobertaForSequenceClassification"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    reranker = CrossEncoder.from_pretrained(folder, trust_remote_code=True)
    assert (reranker.model.config.model_type, type(reranker.model).__name__) == ("xlm-roberta", "OddModel")
    assert reranker.layout == "padded"
    torch.testing.assert_close(
        reranker.compute_score(PAIRS), alone(folder, reranker, PAIRS, True), atol=1e-5, rtol=1e-4
    )


def test_an_ignored_setting_changes_nothing(bert: Path, tmp_path: Path) -> None:
    """transformers reads no position_embedding_type of a BERT any more."""
    folder = make(tmp_path / "m", bert, "bert")
    before = CrossEncoder.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
    after = CrossEncoder.from_pretrained(folder)
    assert before.layout == after.layout == "packed"
    assert torch.equal(before.compute_score(PAIRS), after.compute_score(PAIRS))


@pytest.mark.parametrize("config_pad", [1, 7], ids=["one pad", "config and tokenizer differ"])
def test_texts_that_spell_the_pad_token(config_pad: int, tmp_path: Path) -> None:
    """RoBERTa's positions leave the pad id out, wherever it stands; packed, padded, trained, saved: as transformers counts."""
    folder = make_xlmr(tmp_path / "base")
    settings = {**TINY, "vocab_size": len(AutoTokenizer.from_pretrained(folder)), "max_position_embeddings": 140}
    folder = make(
        tmp_path / "m", folder, "xlm-roberta", **{**settings, "pad_token_id": config_pad, "type_vocab_size": 1}
    )
    reranker = CrossEncoder.from_pretrained(folder)
    assert reranker.layout == "packed"
    word = reranker.tokenizer.convert_ids_to_tokens(config_pad)
    pairs = [("sun", "moon"), (f"{word} sun", "moon"), ("sun", f"moon {word} star {word}"), ("sun", f"{word}"), *PAIRS]
    expected = alone(folder, reranker, pairs)
    assert float((expected[0] - expected[1]).abs()) > 1e-3
    torch.testing.assert_close(reranker.compute_score(pairs), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(golden.padded_scores(reranker, pairs), expected, atol=1e-5, rtol=1e-4)
    reranker.save_pretrained(tmp_path / "saved")
    again = CrossEncoder.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.compute_score(pairs), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone(tmp_path / "saved", again, pairs), expected, atol=1e-5, rtol=1e-4)


LEAKING = {
    "convbert": {"embedding_size": 32, "head_ratio": 1, "num_groups": 1},
    "fnet": {"tpu_short_seq_length": 128},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 3},
}


@pytest.mark.parametrize("kind", LEAKING)
def test_neighbours_never_change_a_score(kind: str, bert: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", bert, kind, **LEAKING[kind])
    with pytest.warns(UserWarning, match="one length at a time"):
        reranker = CrossEncoder.from_pretrained(folder)
    assert reranker.layout == "by_length"
    expected = alone(folder, reranker, PAIRS)
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, atol=1e-5, rtol=1e-4)
    assert float((golden.padded_scores(reranker, PAIRS) - expected).abs().max()) > 1e-3, "padding changes nothing"


@pytest.mark.parametrize("loss", ["point_ce", "listwise_ce"])
def test_training_by_length(loss: str, config: dict, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Trained, evaluated and saved one length at a time: FNet's bf16 fails on CPUs, which costs a tolerance and no more."""
    base = make(tmp_path / "m", bert, "fnet", **LEAKING["fnet"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = train(config, model_name_or_path=str(base), loss_type=loss, epochs=1, save_steps=2)
    said = capsys.readouterr().out
    assert "by_length micro-batches" in said
    assert any("does not score in bfloat16" in str(w.message) for w in caught)
    reranker = CrossEncoder.from_pretrained(folder)
    torch.testing.assert_close(reranker.compute_score(PAIRS), alone(folder, reranker, PAIRS), atol=1e-5, rtol=1e-4)
    contract = json.loads((folder / "rankery.json").read_text())
    assert len(contract["golden"]) == len(contract["probes"]) == 8


def test_a_folder_that_was_saved_padded_still_loads(bert: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", bert, "convbert", **LEAKING["convbert"])
    reranker = CrossEncoder.from_pretrained(folder)
    reranker.save_pretrained(tmp_path / "saved")
    contract = json.loads((tmp_path / "saved" / "rankery.json").read_text())
    contract["golden"] = golden.padded_scores(reranker, golden.PROBES).tolist()
    contract = {key: value for key, value in contract.items() if key not in (DIGEST, "digests")}  # nor had it these
    (tmp_path / "saved" / "rankery.json").write_text(json.dumps(contract))
    assert CrossEncoder.from_pretrained(tmp_path / "saved").layout == "by_length"


def test_longrope_beyond_its_original_length(tmp_path: Path) -> None:
    """Long pairs take other frequencies, and so would all beside them."""
    from transformers import AutoModelForCausalLM, Phi3Config

    folder = make_decoder(tmp_path / "m")
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
    }  # fmt: skip
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = Phi3Config(
        vocab_size=AutoConfig.from_pretrained(folder).vocab_size, intermediate_size=64, max_position_embeddings=96,
        original_max_position_embeddings=24, rope_parameters=rope, pad_token_id=1, bos_token_id=2, eos_token_id=3,
        initializer_range=0.3, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    options = {"head": "yes_no", "yes_word": "yes", "no_word": "no", "special_token": "</s>"}
    assert LLMDecoder.from_pretrained(folder, max_len=24, **options).layout != "by_length"
    with pytest.warns(UserWarning, match="one length at a time"):
        reranker = LLMDecoder.from_pretrained(folder, max_len=96, **options)
    assert length_limit(reranker.model) == 24
    assert reranker.layout == "by_length"
    together = reranker.compute_score(PAIRS)
    torch.testing.assert_close(
        together, torch.cat([reranker.compute_score([pair]) for pair in PAIRS]), atol=1e-5, rtol=1e-4
    )
    assert float((golden.padded_scores(reranker, PAIRS) - together).abs().max()) > 1e-3
    reranker.set_max_len(24)
    assert reranker.layout != "by_length"


def test_families_that_nobody_tried(bert: Path, tmp_path: Path) -> None:
    """A comparison lets ALBERT pack, DeBERTa pad, and refuses a model that wants more than tokens."""
    albert = CrossEncoder.from_pretrained(make(tmp_path / "albert", bert, "albert", embedding_size=16))
    assert known_family(albert.model) is None
    assert albert.layout == "packed"
    torch.testing.assert_close(
        albert.compute_score(PAIRS), alone(tmp_path / "albert", albert, PAIRS), atol=1e-5, rtol=1e-4
    )
    deberta = make(tmp_path / "deberta", bert, "deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"])
    assert CrossEncoder.from_pretrained(deberta).layout == "padded"


def test_packed_pairs_that_score_otherwise_are_padded(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden scores are computed by the path that production takes: padding alone would see nothing."""
    from rankery.models import packing

    folder = make(tmp_path / "m", bert, "bert")
    CrossEncoder.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    right = CrossEncoder.from_pretrained(tmp_path / "saved").compute_score(PAIRS)
    monkeypatch.setattr(packing, "counted_without", lambda model: 3)  # positions as another family counts them
    with pytest.warns(UserWarning, match="packed pairs score otherwise than padded ones"):
        reranker = CrossEncoder.from_pretrained(tmp_path / "saved")
    assert reranker.layout == "padded"
    torch.testing.assert_close(reranker.compute_score(PAIRS), right, atol=1e-5, rtol=1e-4)


def test_what_fails_beside_the_weights_costs_nothing(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden scores and the card; checkpoints compute no golden scores at all."""
    from rankery.training import loop

    def broken(*arguments: object, **options: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(golden, "_golden", broken)
    monkeypatch.setattr(loop, "model_card", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = train(config, epochs=1, save_steps=1)
    said = [str(w.message) for w in caught]
    assert len([text for text in said if "golden scores could not be computed" in text]) == 1
    assert any("card" in text for text in said)
    contract = json.loads((folder / "rankery.json").read_text())
    assert contract["golden"] == contract["probes"] == []
    assert open_reranker(folder).compute_score(PAIRS).isfinite().all()


def test_a_folder_that_scores_otherwise_than_memory_is_said(bert: Path, tmp_path: Path) -> None:
    reranker = CrossEncoder.from_pretrained(make(tmp_path / "m", bert, "bert"))
    reranker.model.register_forward_hook(lambda module, args, out: setattr(out, "logits", out.logits + 1))
    with pytest.warns(UserWarning, match="scores otherwise than the model in memory"):
        reranker.save_pretrained(tmp_path / "saved")


FORK = """
import os, signal, sys, time
import torch
torch.set_num_threads(2)  # as on a machine of several cores
from rankery.models.opening import open_reranker
for dtype in ("float32", "bfloat16"):
    reranker = open_reranker(sys.argv[1], device="cpu", dtype=dtype)
    child = os.fork()
    if not child:
        reranker.compute_score([("sun", "moon star " * 40)] * 16)
        os._exit(0 if torch.get_num_threads() == 2 else 3)
    end, done = time.time() + 30, 0
    while not done and time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    if not done:
        os.kill(child, signal.SIGKILL)
    print(dtype, os.waitstatus_to_exitcode(status) if done else "hangs")
"""


def test_a_process_that_forks_after_loading_scores(tmp_path: Path) -> None:
    """gunicorn --preload: the parent loads and verifies, the children score. Large enough that torch would share the work out."""
    base = make_bert(tmp_path / "base", hidden_size=256, intermediate_size=1024)
    CrossEncoder.from_pretrained(base, num_labels=1, seed=0).save_pretrained(tmp_path / "m")
    done = run_python(FORK, str(tmp_path / "m"), OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE")
    assert done.stdout.splitlines()[-2:] == ["float32 0", "bfloat16 0"], done.stdout + done.stderr[-2000:]


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=12),
    st.integers(5, 40),
    st.integers(1, 3),
)
def test_plan_by_length(groups: list[list[int]], budget: int, processes: int) -> None:
    """Every pass has pairs of one length, within the budget unless it is one pair; every pair comes once."""
    lengths = np.array([n for group in groups for n in group])
    query = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    kept = np.arange(len(lengths))
    label, key = np.zeros(len(lengths)), np.arange(len(lengths), dtype=np.uint64)
    whole = query_groups(query, label, key, lengths, kept, 0.0, None, 0).draw(0)
    for draw in (one_each(lengths), whole):
        rows = deal(np.arange(len(draw)), draw, lengths, processes, budget, "by_length")
        assert len({len(row) for row in rows}) == 1
        real = [micro for row in rows for micro in row if micro.weight]
        assert sorted(pair for micro in real for pair in micro.pairs.tolist()) == kept.tolist()
        for piece in (piece for micro in real for piece in micro.pieces):
            assert len(set(lengths[piece].tolist())) == 1
            assert len(piece) == 1 or lengths[piece].sum() <= budget or len(draw) < len(lengths)


def test_length_points() -> None:
    falling = np.array([9, 9, 9, 5, 5, 2])
    assert length_points(falling, falling, np.ones(6, dtype=int), 18) == [2, 3, 5]


@pytest.mark.parametrize(
    ("kind", "which", "layout"),
    [
        ("ernie", "encoder", "packed"), ("mpnet", "encoder", "padded"), ("canine", "encoder", "by_length"),
        ("recurrent_gemma", "decoder", "padded"), ("gpt2", "decoder", "shared"), ("bloom", "decoder", "padded"), ("granite", "decoder", "shared"),
    ],
)  # fmt: skip
def test_families(kind: str, which: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows of docs/families.md: scores as transformers gives them one pair at a time; trains; saves."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from families import examine

    row = examine(kind, which)
    assert (row.loads, row.layout, row.trains, row.saved) == ("yes", layout, "yes", "yes"), row
    assert row.difference is not None
    assert row.difference < 1e-4


def test_a_model_that_scores_by_chance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from families import examine

    row = examine("reformer", "encoder")
    assert row.loads == "refused", row
    assert "another score each time" in row.note


def test_weights_that_are_parts_of_others_are_saved(tmp_path: Path) -> None:
    """As of fused weights that transformers takes apart when it loads them."""
    from rankery.models.contract import _save_weights

    fused = torch.arange(12.0).view(4, 3)
    _save_weights(tmp_path, {"gate": fused[:2], "up": fused[2:3]})
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["gate"], fused[:2])
    assert torch.equal(found["up"], fused[2:3])


def test_a_family_that_does_not_name_its_size_has_a_budget() -> None:
    config = AutoConfig.for_model("perceiver")
    assert default_token_budget(config, torch.device("cpu"), training=True) == CPU_BUDGET


def test_the_page_of_families(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its example runs, and its table shows no difference that nobody is told of."""
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    folder = make(tmp_path / "m", bert, "bert")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    exec(example.replace("path/of/a/model", str(folder)), {})
    assert capsys.readouterr().out.split()[-1] == "packed"
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [a-z0-9_-]+ \| (en|de)coder", line)
    ]
    compared = [row for row in rows if row[2] == "yes" and row[4].strip()]
    assert len(compared) > 90
    assert [row[0] for row in compared if float(row[4]) > 1e-4] == []
