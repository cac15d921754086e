"""Texts -> token ids: control tokens that a text spells, and texts of megabytes of which a few hundred tokens are kept.

Contract: `text_ids` gives the first ids that the fast tokenizer makes of a text in its format; a long text is cut in characters
first, only where this cannot change them (`_is_settled`), else it is tokenised whole. With `literal`, no text gives the id of a
control token, whatever it spells; formats keep theirs. Cost: of the kept part; `literal` holds a second copy of the tokenizer.
Rejected: transformers' `split_special_tokens`, which knows no markers that are not "special" (Qwen's <think>), lets SentencePiece
vocabularies find "<s>" all the same, reads the formats literally too, and is a switch on an object that threads share.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from rankery.data.template import PairTemplate

Reading = Literal["literal", "parse"]
MARKER = re.compile(
    r"<.+>|\[.+\]", re.DOTALL
)  # what control tokens look like where a tokenizer does not call them special
CHARACTERS_A_TOKEN = 8  # looked at first; four times as many if that was not enough
SPARE_CHARACTERS = 64  # before a cut: what a normaliser or an added token may look at
WHOLE_WORD = re.compile(r"\W\w+\W")


def text_ids(
    tokenizer: Any,
    template: PairTemplate,
    kind: Literal["query", "document"],
    texts: Sequence[str],
    most: int | None = None,
) -> list[list[int]]:
    """Ids of texts in the format that the template has for them, without special tokens around.

    Args:
        tokenizer: a fast tokenizer.
        template: says how, and whether texts that spell control tokens are read literally.
        kind: which format.
        texts: as the user has them.
        most: ids of a text at most; None: all.
    """
    shown = template.query_format if kind == "query" else template.document_format
    if template.special_tokens_in_text == "parse":
        return tokenize(tokenizer, [shown.replace("{}", text) for text in texts], most)
    literal = _literal(tokenizer)
    shown = literal.renamed(shown)
    return _ids([shown.replace("{}", text) for text in texts], literal.encode, most)


def tokenize(tokenizer: Any, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
    """Ids of texts as they stand, without special tokens around, `most` of each; the fast tokenizer works on all cores."""
    return _ids(texts, _encoder(tokenizer), most)


def shortened(tokenizer: Any, texts: Sequence[str], most: int) -> list[str]:
    """The texts, long ones cut where that changes none of their first `most` ids."""
    found = list(texts)
    for i, characters, _ in _looks(
        [i for i, t in enumerate(texts) if len(t) > _look(most)], texts, _encoder(tokenizer), most
    ):
        found[i] = texts[i][:characters]
    return found


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of everything that a fast tokenizer makes token ids by."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Id of each control token by its spelling: special tokens, and other added ones in brackets (<think>, [INST])."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: index for index, token in added if token.special or MARKER.fullmatch(token.content.strip())}


def control_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds any of these in a text, the longest first."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[Any]]:
    def encode(texts: list[str]) -> list[Any]:
        encoded = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        return encoded.encodings

    return encode


def _ids(texts: Sequence[str], encode: Callable[[list[str]], list[Any]], most: int | None) -> list[list[int]]:
    if most is None:
        return [encoding.ids for encoding in encode(list(texts))] if texts else []
    found: list[list[int]] = [[]] * len(texts)
    for i, _, encoding in _looks(range(len(texts)), texts, encode, most):
        found[i] = encoding.ids[:most]
    return found


def _look(most: int) -> int:
    return CHARACTERS_A_TOKEN * most + 4 * SPARE_CHARACTERS


def _looks(
    left: Sequence[int], texts: Sequence[str], encode: Callable[[list[str]], list[Any]], most: int
) -> Iterator[tuple[int, int, Any]]:
    """(text, its characters looked at, their encoding), once the first `most` ids are certain; in any order."""
    characters = _look(most)
    while left:
        again = []
        for i, encoding in zip(left, encode([texts[i][:characters] for i in left]), strict=True):
            if len(texts[i]) <= characters or _is_settled(encoding, texts[i], characters, most):
                yield i, min(characters, len(texts[i])), encoding
            else:
                again.append(i)
        left, characters = again, 4 * characters


def _is_settled(encoding: Any, text: str, characters: int, most: int) -> bool:
    """Whether the first `most` ids of the first characters are those of the whole text.

    Tokenizers cut a text into words and make tokens of each word alone. Where a word ends depends on what follows it, as far as
    the run of letters, digits or spaces that it stands in (three digits from the right, a space that belongs to the next word):
    so a whole other word has to stand between the last word that is kept and the cut. Tokenizers without words settle nothing.
    """
    words = encoding.word_ids
    if len(words) <= most:
        return False
    following = next((i for i in range(most, len(words)) if words[i] != words[most - 1]), None)
    if following is None:
        return False
    return WHOLE_WORD.search(text, encoding.offsets[following][0], characters - SPARE_CHARACTERS) is not None


@dataclass(frozen=True)
class _Literal:
    """A tokenizer whose control tokens have names that nobody can spell."""

    backend: Any  # tokenizers.Tokenizer
    names: dict[str, str]
    pattern: re.Pattern[str]
    tokens: int  # of the tokenizer when this was made of it

    def renamed(self, text: str) -> str:
        """A format with its control tokens under their new names."""
        return self.pattern.sub(lambda found: self.names[found[0]], text)

    def encode(self, texts: list[str]) -> list[Any]:
        return self.backend.encode_batch(texts, add_special_tokens=False)


_LITERAL: WeakKeyDictionary[Any, _Literal] = WeakKeyDictionary()


def _literal(tokenizer: Any) -> _Literal:
    """The literal reader of a tokenizer; made once."""
    found = _LITERAL.get(tokenizer)
    if found is None or found.tokens != len(tokenizer):
        found = _LITERAL[tokenizer] = _make_literal(tokenizer)
    return found


def _make_literal(tokenizer: Any) -> _Literal:
    """The same tokenizer with random names for its control tokens, in the list of added tokens and in the vocabulary, where a
    SentencePiece model would find them too.
    """
    from tokenizers import Tokenizer

    control = control_tokens(tokenizer)
    names = {token: f"<{secrets.token_hex(16)}>" for token in control}
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data |= {"truncation": None, "padding": None, "post_processor": None}
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, names)]
    backend = Tokenizer.from_str(json.dumps(data))
    moved = [token for token, index in control.items() if backend.token_to_id(names[token]) != index]
    assert not moved, f"the tokenizer's copy has other ids for {moved[:5]}"
    return _Literal(backend, names, control_pattern(list(names)), len(tokenizer))


def _makes(pair: Any, names: dict[str, str]) -> bool:
    """Whether a merge of a BPE model makes a control token, or takes one."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in names or right in names or left + right in names
