"""How a query and a document become one sequence of token ids; and what truncation cuts.

    prefix + query + middle + document + suffix        (BERT: [CLS] query [SEP] document [SEP])
    prefix + document + middle + query + suffix        (document_first)

Contract: the special ids are read off the tokenizer itself, so every fast tokenizer's own pair format comes out, id for
id, as `tokenizer(query, document)` gives it when nothing is cut. The pieces are tokenised apart, once, and joined here:
the same query is never tokenised twice. Rejected: the tokenizer's own truncation ("longest first" eats the query;
"only second" fails on long queries).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rankery.data.tokens import Reading, control_pattern, control_tokens, tokenize
from rankery.errors import InputError


@dataclass(frozen=True)
class PairTemplate:
    """Special ids around the two texts, their token types, and the length limit (in tokens, specials included)."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    token_types: tuple[int, int, int, int, int] | None  # of prefix, first text, middle, second, suffix; None: not used
    max_len: int
    pad_token_id: int
    query_format: str = "{}"
    document_format: str = "{}"
    document_first: bool = False
    special_tokens_in_text: Reading = "parse"  # of queries and documents; the template keeps its own

    @property
    def specials(self) -> int:
        """Tokens of the sequence that are neither query nor document."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def shared_prefix(self, query_kept: Any) -> Any:
        """Tokens that the pairs of a query have in common at their beginning; takes and gives arrays.

        All before the document; where the document comes first, what stands before any text.
        """
        if self.document_first:
            return np.full_like(query_kept, len(self.prefix))
        return query_kept + len(self.prefix) + len(self.middle)

    @property
    def room(self) -> int:
        """Tokens left for query and document together."""
        return self.max_len - self.specials

    def cut(self, query_tokens: Any, document_tokens: Any) -> tuple[Any, Any]:
        """Tokens of query and document that are kept; takes and gives ints or arrays.

        What is over the limit is taken from the document, as long as it keeps half of the room; the rest from the query. Of a
        text longer than the room, any length above it gives the same.
        """
        document_room = np.maximum(self.room - query_tokens, self.room - self.room // 2)
        document_kept = np.minimum(document_tokens, document_room)
        return np.minimum(query_tokens, self.room - document_kept), document_kept

    def build(self, query_ids: Any, document_ids: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Joined (input_ids [tokens], token_type_ids [tokens] or None), truncated to max_len."""
        query_kept, document_kept = self.cut(len(query_ids), len(document_ids))
        texts = [query_ids[:query_kept], document_ids[:document_kept]]
        first, second = reversed(texts) if self.document_first else texts
        pieces = (self.prefix, first, self.middle, second, self.suffix)
        ids = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
        if self.token_types is None:
            return ids, None
        return ids, np.repeat(np.asarray(self.token_types, dtype=np.int64), [len(piece) for piece in pieces])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without keys that are as they were before there were such keys, so that digests stay what they were."""
        newer = {"document_first": False, "special_tokens_in_text": "parse"}
        return {key: value for key, value in asdict(self).items() if key not in newer or newer[key] != value}

    def fingerprint(self) -> str:
        return hashlib.blake2b(json.dumps(self.to_dict()).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """How a decoder is shown a pair: prefix + query_format(query) + seq + document_format(document) + special_token.

    `document_first`: the document, in its format, stands before seq and the query after it.
    """

    query_format: str = "query: {}"
    document_format: str = "document: {}"
    seq: str = " "
    special_token: str = "</s>"
    prefix: str = ""
    document_first: bool = False

    @property
    def formats(self) -> tuple[str, str]:
        """Those of the first and of the second text."""
        both = (self.query_format, self.document_format)
        return both[::-1] if self.document_first else both


def prompt_template(
    tokenizer: Any, max_len: int, prompt: Prompt, pad_token_id: int, special_tokens_in_text: Reading | None = None
) -> PairTemplate:
    """Token ids of a prompt. Its pieces are tokenised apart, so that special_token always ends the input whole.

    `special_tokens_in_text` None: literal where the prompt is a chat, whose turns a text could close, else parse.

    Raises:
        InputError: a slow tokenizer, a format without {}, a text that vanishes in tokenisation, no room for the pair.
    """
    problems = _format_problems(tokenizer, prompt.query_format, prompt.document_format)
    if problems:
        raise InputError(problems)
    texts = {"prefix": prompt.prefix, "seq": prompt.seq, "special_token": prompt.special_token}
    pieces = {name: tuple(tokenize(tokenizer, [text])[0]) for name, text in texts.items()}
    vanished = [name for name, text in texts.items() if text.strip() and not pieces[name]]
    if vanished:
        raise InputError(
            [f"{name} is {texts[name]!r}; the tokenizer makes no token of it: choose another text" for name in vanished]
        )
    bos = added_before(tokenizer)
    # What the input begins with: the prefix, or where that is empty what stands before the first text and may spell the BOS out.
    start = pieces["prefix"] or tuple(tokenize(tokenizer, [prompt.formats[0].split("{}")[0]])[0])
    prefix = pieces["prefix"] if start[: len(bos)] == bos else bos + pieces["prefix"]
    return _with_room(
        PairTemplate(
            prefix, pieces["seq"], pieces["special_token"], None, max_len, pad_token_id, prompt.query_format,
            prompt.document_format, prompt.document_first,
            special_tokens_in_text or ("literal" if is_chat(tokenizer, prompt) else "parse"),
        )
    )  # fmt: skip


def is_chat(tokenizer: Any, prompt: Prompt) -> bool:
    """Whether a prompt has control tokens other than a BOS and the one that ends it: those of turns, which a text could close."""
    names = [name for name in control_tokens(tokenizer) if name != tokenizer.bos_token]
    before_end = prompt.special_token.rstrip()
    before_end = before_end.removesuffix(next((name for name in names if before_end.endswith(name)), ""))
    pieces = (prompt.prefix, *prompt.formats, prompt.seq, before_end)
    return any(control_pattern(names).search(piece) for piece in pieces)


def added_before(tokenizer: Any) -> tuple[int, ...]:
    """Ids that the tokenizer puts before a text of its own accord: a BOS, or nothing."""
    plain = tokenize(tokenizer, ["a"])[0]
    ids = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(ids)) if ids[i : i + len(plain)] == plain)
    return tuple(ids[:start])


def pair_template(
    tokenizer: Any,
    max_len: int,
    query_format: str = "{}",
    document_format: str = "{}",
    uses_token_types: bool = True,
    document_first: bool = False,
    special_tokens_in_text: Reading = "parse",
) -> PairTemplate:
    """Reads the pair format off a fast Hugging Face tokenizer.

    Raises:
        InputError: a slow tokenizer, one without a pad token, a format without {}, or a max_len without room for text.
    """
    problems = _format_problems(tokenizer, query_format, document_format)
    if getattr(tokenizer, "is_fast", False) and tokenizer.pad_token_id is None:
        problems.append("the tokenizer has no pad token; set one with tokenizer.pad_token = ... and save it")
    if problems:
        raise InputError(problems)
    return _with_room(
        PairTemplate(
            *_probe(tokenizer, uses_token_types), max_len, tokenizer.pad_token_id, query_format, document_format,
            document_first, special_tokens_in_text,
        )
    )  # fmt: skip


def _format_problems(tokenizer: Any, query_format: str, document_format: str) -> list[str]:
    problems = [
        f"{name} is {value!r}; expected a text with {{}} where the {name.split('_')[0]} goes"
        for name, value in (("query_format", query_format), ("document_format", document_format))
        if "{}" not in value
    ]
    if not getattr(tokenizer, "is_fast", False):
        problems.append(f"the tokenizer is a {type(tokenizer).__name__}; expected a fast one (with a tokenizer.json)")
    return problems


def _with_room(template: PairTemplate) -> PairTemplate:
    if template.room < 2:
        raise InputError(
            f"max_len is {template.max_len}; expected at least {template.specials + 2}: the template alone takes "
            f"{template.specials} tokens"
        )
    return template


def _probe(tokenizer: Any, uses_token_types: bool) -> tuple[Any, Any, Any, Any]:
    """(prefix, middle, suffix, token types) from the encoding of a pair of short texts."""
    encoding = tokenizer("a", "b")
    ids, sources = encoding["input_ids"], encoding.sequence_ids(0)
    first_query, first_document = sources.index(0), sources.index(1)
    query_end = len(sources) - sources[::-1].index(0)
    document_end = len(sources) - sources[::-1].index(1)
    assert query_end <= first_document, "the tokenizer puts the document before the query"
    cuts = (slice(0, first_query), slice(query_end, first_document), slice(document_end, None))
    token_types = None
    if uses_token_types and "token_type_ids" in encoding:
        types = encoding["token_type_ids"]
        at = (0, first_query, query_end if query_end < first_document else first_query, first_document, -1)
        token_types = tuple(types[i] for i in at)
    prefix, middle, suffix = (tuple(ids[cut]) for cut in cuts)
    return prefix, middle, suffix, token_types
