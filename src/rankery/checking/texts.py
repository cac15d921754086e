"""Texts as arrays: a normal form, its 64-bit key, characters by script, a rough count of tokens.

Contract: two texts with the same key are the same but for case, width and white space (NFKC, case folding); punctuation, accents
and order count. Characters are looked at in arrays, all texts of a chunk at once. Cost: some 6 us for 500 characters.
Rejected: dropping punctuation from the normal form ("C" and "C++" are two documents; `sketch` finds texts that are nearly equal).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Ranges of code points (inclusive) by script; white space, marks and punctuation are of none.
RANGES = {
    "Latin": ((0x41, 0x24F), (0x250, 0x2AF), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Hebrew": ((0x590, 0x5FF),),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Indic": ((0x900, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF)),
    "Han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF)),
}
SCRIPTS = ("none", "digits", "other", *RANGES, "Japanese")
UNSPACED = ("Thai", "Kana", "Han")  # written without spaces: a character counts, not a word
MARKED = ("Indic", "Thai")  # vowels are marks, which are no letters to Unicode
TOKENS_A_WORD = 1.3  # word pieces of common vocabularies, roughly
TABLE = 0x30000  # code points beyond it are of no script


def normalise(text: str) -> str:
    """The text in lower case, in compatible characters, with single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def keys_of(texts: Sequence[str]) -> np.ndarray:
    """64-bit keys of normal texts, [texts] uint64, equal on every machine."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Characters:
    """Characters of several texts in a row."""

    codes: np.ndarray  # [C] uint32
    text: np.ndarray  # [C] index of the text that each is of
    scripts: np.ndarray  # [C] uint8, index into SCRIPTS
    texts: int

    def script_counts(self) -> np.ndarray:
        """[texts, len(SCRIPTS)] characters of each script."""
        width = len(SCRIPTS)
        counts = np.bincount(self.text * width + self.scripts, minlength=self.texts * width)
        return counts.reshape(self.texts, width)

    def words(self) -> np.ndarray:
        """[texts] runs of letters and digits, of scripts that put spaces between words."""
        inside = _is_spaced()[self.scripts]
        before = np.concatenate([[False], inside[:-1] & (self.text[1:] == self.text[:-1])]) if len(inside) else inside
        return np.bincount(self.text[inside & ~before], minlength=self.texts)


def characters(texts: Sequence[str]) -> Characters:
    """The characters of texts."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    owner: np.ndarray = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
    return Characters(codes, owner, _script_table()[np.minimum(codes, TABLE - 1)], len(texts))


def main_scripts(counts: np.ndarray) -> np.ndarray:
    """The script of each text, [texts] index into SCRIPTS: the one of most letters; Han among kana is Japanese.

    Args:
        counts: as `Characters.script_counts` gives them.
    """
    kana, han, japanese = (SCRIPTS.index(name) for name in ("Kana", "Han", "Japanese"))
    letters = counts.copy()
    letters[:, : SCRIPTS.index("other")] = 0
    is_japanese = counts[:, kana] * 10 > counts[:, han] + counts[:, kana]
    letters[is_japanese, japanese] = letters[is_japanese, han] + letters[is_japanese, kana]
    letters[is_japanese, kana] = letters[is_japanese, han] = 0
    return np.where(letters.any(axis=1), letters.argmax(axis=1), 0)


def rough_tokens(found: Characters, counts: np.ndarray) -> np.ndarray:
    """Tokens of each text, [texts], within a third or so: 1.3 a word, 1 a character where there are no spaces."""
    alone = counts[:, [SCRIPTS.index(name) for name in UNSPACED]].sum(axis=1)
    return np.ceil(TOKENS_A_WORD * found.words() + alone).astype(np.int64)


@lru_cache(maxsize=1)
def _script_table() -> np.ndarray:
    table: np.ndarray = np.zeros(TABLE, dtype=np.uint8)
    for code in range(0x10000):
        letter = chr(code)
        if letter.isalnum():
            table[code] = 1 if letter.isdigit() else 2
    for name, ranges in RANGES.items():
        for first, last in ranges:
            part = table[first : last + 1]
            part[:] = np.where((part == 2) | (name in MARKED) | (first >= 0x10000), SCRIPTS.index(name), part)
    return table


@lru_cache(maxsize=1)
def _is_spaced() -> np.ndarray:
    return np.array([name not in ("none", *UNSPACED) for name in SCRIPTS])
