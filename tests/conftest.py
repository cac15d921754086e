"""What the tests share: tiny models made on the spot, small data, the paths of real data where it is present."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = [
    "sun",
    "moon",
    "star",
    "rain",
    "snow",
    "wind",
    "river",
    "lake",
    "sea",
    "hill",
    "stone",
    "sand",
    "tree",
    "leaf",
    "root",
    "seed",
    "rose",
    "fern",
    "moss",
    "bird",
    "fish",
    "bear",
    "wolf",
]
VOCAB = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,?!", *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"],
]  # fmt: skip


def make_bert(folder: Path, **changes: object) -> Path:
    """A tiny BERT with a word-piece tokenizer, saved as a base model without a head."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    settings = {
        "vocab_size": len(VOCAB), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    BertModel(BertConfig(**{**settings, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_xlmr(folder: Path) -> Path:
    """A tiny XLM-RoBERTa: positions start after the pad id, pairs are <s> a </s></s> b </s>, no token types."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *VOCAB[5:]])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", mask_token="<mask>",
    )  # fmt: skip
    config = XLMRobertaConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2")


def make_decoder(
    folder: Path,
    family: str = "llama",
    pad: str | None = "<pad>",
    causal: bool = True,
    positions: int = 128,
    width: int = 32,
) -> Path:
    """A tiny random decoder; Gemma's tokenizer adds a BOS, Gemma 2 caps its logits. `pad` None: no pad token anywhere."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    vocab = {
        word: i for i, word in enumerate(["<unk>", "<pad>", "<bos>", "</s>", "<|reserved_0|>", "yes", "no", *VOCAB[5:]])
    }
    vocab |= {word: len(vocab) + i for i, word in enumerate(["query", "document", ":", "是", "否"])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if family.startswith("gemma"):
        raw.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<bos>", eos_token="</s>", pad_token=pad,
        extra_special_tokens=["<|reserved_0|>"],
    )  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=len(vocab), hidden_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=width // 4, intermediate_size=2 * width, max_position_embeddings=positions, initializer_range=0.3, bos_token_id=2, eos_token_id=3,
        pad_token_id=None if pad is None else vocab[pad], tie_word_embeddings=True,
    )  # fmt: skip
    (AutoModelForCausalLM if causal else AutoModelForSequenceClassification).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_xlmr(tmp_path_factory.mktemp("xlmr"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RANKERY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def spoil(model: Path, word: str) -> None:
    """Makes a BERT's scores of texts with a word NaN; those of its probes stay as they were."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][tokenizer.convert_tokens_to_ids(word)] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    if (model / "rankery.json").is_file():  # as an older rankery wrote it: digests would tell
        contract = json.loads((model / "rankery.json").read_text())
        rest = {key: value for key, value in contract.items() if not key.startswith("digest")}
        (model / "rankery.json").write_text(json.dumps(rest))


def words(seed: int, count: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(count))


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_data(path: Path, queries: int = 12, documents: int = 4, offset: int = 0) -> Path:
    """Binary data that can be learnt: the relevant document holds the query's word."""
    rows = []
    for i in range(offset, offset + queries):
        word = WORDS[i % len(WORDS)]
        others = [
            words(i * 3 + j + 1, 3 + (i + 5 * j) % 11).replace(word, "sand" if word != "sand" else "sea")
            for j in range(documents - 1)
        ]
        rows.append({"query": f"{word} {i}", "pos": [f"{words(i, 2 + i % 9)} {word}"], "neg": others})
    return write_rows(path, rows)


def marked(path: Path, queries: int, offset: int = 0, odd: int = 6) -> str:
    """Relevance that a tiny model learns whatever its seed: a word that relevant documents hold; one query in `odd` is wrong."""
    rows = [json.loads(line) for line in make_data(path, queries, offset=offset).read_text().splitlines()]
    for i, row in enumerate(rows, 1):
        row["neg"] = [text.replace("moss", "sand") for text in row["neg"]]
        row["neg" if i % odd == 0 else "pos"][0] += " moss moss"
    return str(write_rows(path, rows))


@pytest.fixture
def config(tmp_path: Path, bert: Path) -> dict:
    """A configuration that trains the tiny model in a second."""
    return {
        "model_name_or_path": str(bert), "max_len": 48, "train_dataset": str(make_data(tmp_path / "train.jsonl")),
        "val_dataset": str(make_data(tmp_path / "val.jsonl", 6, offset=40)), "output_dir": str(tmp_path / "out"), "lr": 1e-3,
        "batch_size": 8, "epochs": 2, "log_interval": 1, "log_with": "none", "seed": 1,
    }  # fmt: skip


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter from the repository root."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, env=variables, timeout=300
    )


def launch(launch_file: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of train_reranker.py from the repository root, as the specification does it."""
    return launch_script("train_reranker.py", launch_file, *arguments, **environment)


def launch_script(
    script: str, launch_file: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    with start_launch(launch_file, *arguments, script=script, **environment) as process:
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_launch(
    launch_file: str, *arguments: str, script: str = "train_reranker.py", **environment: str
) -> subprocess.Popen[str]:
    """A launch that runs on."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    port = str(20000 + os.getpid() % 20000)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", launch_file, "--main_process_port", port, script,
        *arguments,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
