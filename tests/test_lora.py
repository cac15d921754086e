"""LoRA: what is trained and kept, merged or not, the same scores; in peft's own format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_bert, make_decoder, words
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rankery import CrossEncoder, InputError, LLMDecoder, train
from rankery.models.loading import new_head
from rankery.models.lora import add_adapters, has_adapters, merge_adapters
from rankery.models.opening import open_reranker

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(12)]
LORA = {"lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.1, "lr": 1e-2, "epochs": 4}


@pytest.fixture
def decoder_config(config: dict, llama: Path) -> dict:
    return {**config, **LORA, "model_type": "llm_decoder", "model_name_or_path": str(llama)}


@pytest.mark.parametrize("head", ["score", "yes_no"])
def test_merged_model_scores_as_the_adapters_do(decoder_config: dict, tmp_path: Path, head: str) -> None:
    words = {"head": "yes_no", "yes_word": "y", "no_word": "n"} if head == "yes_no" else {}
    merged = train({**decoder_config, **words}, best_metric=None)
    adapters = train(
        {**decoder_config, **words}, best_metric=None, lora_merge=False, output_dir=str(tmp_path / "apart")
    )
    assert {path.name for path in adapters.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "rankery.json",
    }
    assert not (adapters / "model.safetensors").exists()
    a, b = LLMDecoder.from_pretrained(merged), open_reranker(adapters)
    assert has_adapters(b.model)
    assert not has_adapters(a.model)
    base = LLMDecoder.from_pretrained(decoder_config["model_name_or_path"], **words)
    assert (a.compute_score(PAIRS) - base.compute_score(PAIRS)).abs().max() > 0.05
    torch.testing.assert_close(a.compute_score(PAIRS), b.compute_score(PAIRS), rtol=1e-4, atol=1e-5)
    sizes = [sum(file.stat().st_size for file in path.rglob("*.safetensors")) for path in (merged, adapters)]
    assert sizes[1] < sizes[0]


def test_encoders_take_adapters_too(config: dict) -> None:
    folder = train({**config, **LORA})
    reranker = CrossEncoder.from_pretrained(folder)
    base = load_file(Path(config["model_name_or_path"]) / "model.safetensors")
    tuned = reranker.model.base_model.state_dict()
    assert not torch.equal(
        base["encoder.layer.0.attention.self.query.weight"], tuned["encoder.layer.0.attention.self.query.weight"]
    )
    assert torch.equal(base["embeddings.word_embeddings.weight"], tuned["embeddings.word_embeddings.weight"])


def test_heads_that_are_new_are_known(decoder_config: dict, llama: Path, bert: Path, tmp_path: Path) -> None:
    """Without a head of their own; not asked for yes and no, not saved, and not in adapters."""
    assert new_head(CrossEncoder.from_pretrained(bert).model)
    assert new_head(LLMDecoder.from_pretrained(llama, head="score").model)
    for family in ("llama", "gemma2"):
        asked = LLMDecoder.from_pretrained(make_decoder(tmp_path / family, family), head="yes_no")
        assert not new_head(asked.model)
    CrossEncoder.from_pretrained(bert).save_pretrained(tmp_path / "saved")
    assert not new_head(CrossEncoder.from_pretrained(tmp_path / "saved").model)
    adapters = train(decoder_config, head="score", lora_merge=False, epochs=1)
    assert not new_head(LLMDecoder.from_pretrained(adapters).model)


def test_only_adapters_and_head_are_trained_and_kept(decoder_config: dict, capsys: pytest.CaptureFixture) -> None:
    folder = train(decoder_config).parent
    assert "M of them trained" in capsys.readouterr().out
    (checkpoint, _) = sorted((folder / "checkpoints").glob("checkpoint_*"))
    names = load_file(checkpoint / "model" / "adapter_model.safetensors")
    assert all("lora_" in name or name == "base_model.model.score.weight" for name in names)
    assert len(names) == 2 * 7 * 2 + 1  # A and B of seven linear layers in each of two layers, and the head
    state = load_file(checkpoint / "optimizer-00001-of-00001.safetensors")
    assert {key.rsplit("|", 1)[1] for key in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(state) == 3 * len(names)


def test_peft_opens_the_adapters(decoder_config: dict) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    folder = train(decoder_config, lora_merge=False)
    base = AutoModelForSequenceClassification.from_pretrained(decoder_config["model_name_or_path"], num_labels=1)
    theirs = PeftModel.from_pretrained(base, folder).eval()
    reranker = LLMDecoder.from_pretrained(folder)
    from rankery.models.reranker import encode_pairs

    ids = torch.tensor(encode_pairs(PAIRS[1:2], reranker.tokenizer, reranker.template)[0][0][0])[None]
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits.squeeze()
    torch.testing.assert_close(logits, reranker.compute_score(PAIRS[1:2]).squeeze(), rtol=1e-4, atol=1e-5)


def test_resumed_run_is_the_uninterrupted_run(decoder_config: dict, tmp_path: Path) -> None:
    settings = {**decoder_config, "save_steps": 4, "num_max_checkpoints": 99}
    whole = train(settings).parent
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for path in (cut / "checkpoints").glob("*_*"):
        if int(path.name.split("_")[1]) > 8:
            shutil.rmtree(path)
    train(settings, output_dir=str(cut), resume=True)
    a, b = (load_file(run / "model" / "model.safetensors") for run in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()


def test_adapters_are_nothing_at_first_and_merge_exactly(llama: Path) -> None:
    reranker = LLMDecoder.from_pretrained(llama, seed=1)
    before = reranker.compute_score(PAIRS)
    add_adapters(reranker.model, str(llama), 4, 8, 0.5, "all-linear", seed=0)
    assert reranker.compute_score(PAIRS).equal(before)
    for name, parameter in reranker.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = reranker.compute_score(PAIRS)
    assert (adapted - before).abs().max() > 1e-3
    merge_adapters(reranker.model)
    assert "lora" not in str(reranker.model.state_dict().keys())
    torch.testing.assert_close(reranker.compute_score(PAIRS), adapted, rtol=1e-4, atol=1e-5)


def test_what_the_base_lacks_is_trained_and_kept(config: dict, bert: Path, tmp_path: Path) -> None:
    """DistilBERT's pre_classifier is in no base checkpoint: frozen at random and not saved, it would be drawn anew."""
    from transformers import DistilBertConfig, DistilBertModel

    base = tmp_path / "distilbert"
    AutoTokenizer.from_pretrained(bert).save_pretrained(base)
    size = len(AutoTokenizer.from_pretrained(bert))
    DistilBertModel(
        DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.3)
    ).save_pretrained(base)
    adapters = train({**config, **LORA}, model_name_or_path=str(base), lora_merge=False)
    names = load_file(adapters / "adapter_model.safetensors")
    assert "base_model.model.pre_classifier.weight" in names
    merged = train({**config, **LORA}, model_name_or_path=str(base), output_dir=str(tmp_path / "merged"))
    a, b = (CrossEncoder.from_pretrained(folder).compute_score(PAIRS) for folder in (adapters, merged))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_several_labels_and_paths_of_the_user(
    decoder_config: dict, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(llama.parent))
    labels = {"num_labels": 2, "model_name_or_path": f"~/{llama.name}", "lora_merge": False}
    folder = train(decoder_config, **labels)
    monkeypatch.chdir(tmp_path)
    assert open_reranker(folder).compute_score(PAIRS).shape == (12, 2)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(llama.resolve())
    with pytest.raises(InputError, match=r"an adapter directory, and lora_rank is 4; expected a whole model"):
        train(decoder_config, **{**labels, "model_name_or_path": str(folder)}, output_dir=str(tmp_path / "more"))
    whole = {**decoder_config, "lora_rank": None, "lora_alpha": 32, "lora_dropout": 0.0, "num_labels": 2}
    further = train(whole, model_name_or_path=str(folder), output_dir=str(tmp_path / "further"))
    assert (further / "model.safetensors").exists()


def test_targets_that_match_nothing(decoder_config: dict) -> None:
    with pytest.raises(
        InputError, match=r"lora_target_modules: w_pack matches no linear layer; the model has .*q_proj"
    ):
        train(decoder_config, lora_target_modules=["q_proj", "w_pack"])
    assert not Path(decoder_config["output_dir"]).exists()


def test_targets_that_leave_nothing(decoder_config: dict, llama: Path, tmp_path: Path) -> None:
    for targets in (["score"], []):
        with pytest.raises(
            InputError, match=r"lora_target_modules: \[.*\] leaves no layer to adapt: the head is trained"
        ):
            train(decoder_config, lora_target_modules=targets)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "gpt2")
    config = AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"'all-linear' leaves no layer .* \(the model is made of Conv1D"):
        train(decoder_config, model_name_or_path=str(tmp_path / "gpt2"))


def test_adapter_weights_that_are_damaged_or_gone(decoder_config: dict, bert: Path, tmp_path: Path) -> None:
    for kind in ("llm_decoder", "bert_encoder"):
        model = {} if kind == "llm_decoder" else {"model_name_or_path": str(bert), "model_type": kind}
        folder = train({**decoder_config, **model}, lora_merge=False, epochs=1, output_dir=str(tmp_path / kind))
        (folder / "adapter_model.safetensors").write_bytes(b"{}")
        with pytest.raises(InputError, match=r"its adapters could not be read: .* as saved"):
            open_reranker(folder)
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(InputError, match=r"its adapters could not be read: .* as saved"):
            open_reranker(folder)


def test_adapters_for_another_base(decoder_config: dict, tmp_path: Path) -> None:
    folder = train(decoder_config, lora_merge=False)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    torch.manual_seed(5)
    other = make_decoder(tmp_path / "other", "qwen2")
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(other)}))
    with pytest.raises(InputError, match=r"does not score as it was saved|do not fit"):
        LLMDecoder.from_pretrained(folder)
    same_shape = shutil.copytree(decoder_config["model_name_or_path"], tmp_path / "same_shape")
    state = load_file(same_shape / "model.safetensors")
    save_file({name: -tensor for name, tensor in state.items()}, same_shape / "model.safetensors", {"format": "pt"})
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(same_shape)}))
    with pytest.raises(
        InputError, match=f"does not score as it was saved: .*the base {same_shape} or the adapters are"
    ):
        LLMDecoder.from_pretrained(folder)
    bert = make_bert(tmp_path / "bert")
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(bert)}))
    with pytest.raises(InputError, match="expected an LLM decoder"):
        LLMDecoder.from_pretrained(folder)
    small = make_bert(tmp_path / "small", num_hidden_layers=1)
    adapters = train(
        {**decoder_config, "model_type": "bert_encoder", "model_name_or_path": str(bert)},
        lora_merge=False,
        overwrite=True,
    )
    file = adapters / "adapter_config.json"
    file.write_text(file.read_text().replace(str(bert), str(small)))
    with pytest.raises(InputError, match="its adapters do not fit"):
        CrossEncoder.from_pretrained(adapters)


def test_four_bit_base(decoder_config: dict, tmp_path: Path) -> None:
    """Weights in 4 bits score near the whole ones; an adapter directory opens over them."""
    pytest.importorskip("bitsandbytes")
    base = make_decoder(tmp_path / "base", width=128)  # blocks of 64 values
    adapters = train(decoder_config, model_name_or_path=str(base), lora_merge=False)
    whole, packed = (LLMDecoder.from_pretrained(adapters, load_in_4bit=four) for four in (False, True))
    assert type(packed.model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    scores = [reranker.compute_score(PAIRS) for reranker in (whole, packed)]
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.8
    train(decoder_config, model_name_or_path=str(base), load_in_4bit=True, overwrite=True)


def test_four_bits_need_bitsandbytes_and_adapters(decoder_config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="4-bit weights cannot be trained; set lora_rank too"):
        train(decoder_config, lora_rank=None, load_in_4bit=True)
    monkeypatch.setattr("rankery.config_rules.find_spec", lambda name: None)
    monkeypatch.setattr("rankery.models.loading.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"bitsandbytes is not installed[^\0]*peft is not installed: pip install 'rankery\[peft\]'"
    ):
        train(decoder_config, load_in_4bit=True)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed: pip install 'rankery\[qlora\]'"):
        LLMDecoder.from_pretrained(decoder_config["model_name_or_path"], load_in_4bit=True)


def test_final_weights_in_another_precision(config: dict) -> None:
    folder = train(config, save_dtype="bf16")
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    (kept,) = (folder.parent / "checkpoints").glob("checkpoint_12")
    assert load_file(kept / "model" / "model.safetensors")["classifier.weight"].dtype == torch.float32
    assert CrossEncoder.from_pretrained(folder).compute_score(PAIRS).isfinite().all()
