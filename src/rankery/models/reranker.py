"""What every kind of reranker shares: score pairs, rerank documents, save.

Contract: a pair's score depends on its two texts and the model only, not on its neighbours or their order (to rounding). Scoring
changes nothing that others see: several threads may score with one reranker, while another trains it.
Cost: every text is tokenised once, pairs are sorted by length and cut under a token budget, packed into one row or, in families
that cannot, with little padding.
Rejected: batches in input order, which compute up to 2.6 tokens for each real one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rankery.data.collate import Batch, Row, pack, pad
from rankery.data.examples import met
from rankery.data.finite import check_finite
from rankery.data.plan import Layout, deal
from rankery.data.records import is_text
from rankery.data.template import PairTemplate
from rankery.data.tokens import text_ids
from rankery.errors import InputError, attempt, check_whole
from rankery.models.ahead import ahead
from rankery.models.budget import default_token_budget, keep_large_blocks, pad_multiple, set_attention
from rankery.models.calibration import Calibration, check_scale, probabilities
from rankery.models.layouts import TRIALS, choose_layout, takes_packed
from rankery.models.loading import choose_max_len, placed, position_limit
from rankery.models.scorer import Scorer, expected_grade
from rankery.models.threads import in_own_thread
from rankery.models.varlen import takes
from rankery.models.view import scoring_view

PAIRS_AT_ONCE = 8192  # tokenised, sorted and scored together; bounds memory
Pair = Sequence[str]
Encoded = tuple[list[Row], np.ndarray, np.ndarray]  # see encode_pairs


class RankedDocument(NamedTuple):
    """One reranked document: its index in the input, its score, its text."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody wants of three fields
    score: float
    document: str


class Group(NamedTuple):
    """Pairs that go through the model at once."""

    indices: np.ndarray  # [pairs] in the input
    encoded: Encoded  # theirs alone
    batch: Batch


class Reranker:
    """A transformers model in a `Scorer`, its tokenizer, and how a pair is put before them."""

    model_type: str
    scored_token: str  # position of the token that the logits are read at
    cache_dir: str | None = None  # of downloads, for the base of adapters
    calibration: Calibration | None = None  # what `rankery calibrate` has put into the contract
    packing: str = "auto"  # or "off": pad pairs to one length, also where the model's family can do without

    forced_layout: Layout | None = None  # while layouts are compared

    def __init__(
        self, scorer: Scorer, tokenizer: Any, template: PairTemplate, labels: tuple[float, float] = (0.0, 1.0)
    ):
        self.scorer, self.tokenizer, self.template, self.labels = scorer, tokenizer, template, labels
        self._choose_layout()
        self._set_attention()

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.scorer.model

    @property
    def num_labels(self) -> int:
        return self.scorer.num_labels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def layout(self) -> Layout:
        """How pairs go through the model."""
        if self.forced_layout is not None:
            return self.forced_layout
        packs = self.family_layout in ("packed", "shared")
        return "padded" if packs and (self.packing == "off" or not takes_packed(self.model)) else self.family_layout

    @property
    def packed(self) -> bool:
        """Whether pairs stand in one row, without padding."""
        return self.layout in ("packed", "shared")

    def _choose_layout(self) -> None:
        trials = encode_pairs(TRIALS, self.tokenizer, self.template)
        self.family_layout = in_own_thread(
            choose_layout, self.scorer.eval(), *trials, self.template.pad_token_id, self.template.max_len
        )
        if self.layout == "by_length":
            warnings.warn(
                f"in a {type(self.model).__name__} padding and longer neighbours change a score; pairs run one length at a time, which is slower and keeps every score as it is alone",
                stacklevel=4,
            )

    def settings(self) -> dict[str, Any]:
        """What `from_pretrained` needs to score as this reranker does, beside model and tokenizer; kept in the contract."""
        template = self.template
        names = ("query_format", "document_format", "document_first", "special_tokens_in_text")
        return {name: getattr(template, name) for name in names}

    def reopened(self, folder: Path, trust_remote_code: bool) -> Reranker:
        """This reranker with the fp32 weights and the tokenizer of a folder that is being written."""
        again = type(self).from_pretrained(  # type: ignore[attr-defined]
            folder, self.num_labels, **self.settings(), max_len=self.template.max_len, device="cpu", dtype=torch.float32,
            verify=False, trust_remote_code=trust_remote_code, cache_dir=self.cache_dir,
        )  # fmt: skip
        assert again.template == self.template, "the folder's tokenizer builds another input"
        return again

    def to(self, *args: Any, **kwargs: Any) -> Reranker:
        """Moves the model, or casts its weights; arguments as torch's `Module.to`."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        placed(self.model, device, dtype)
        self._set_attention()
        return self

    def _set_attention(self) -> None:
        set_attention(self.model, self.device, next(self.model.parameters()).dtype, self.packed)

    def eval(self) -> Reranker:
        self.scorer.eval()
        return self

    def try_out(self) -> None:
        """Scores one pair of a model that nobody has scored with: what cannot score is not opened.

        Memory that another process or program has taken says nothing about the model.
        """
        with suppress(torch.OutOfMemoryError):
            self.compute_score([("query", "document")])

    def compute_score(
        self,
        pairs: Sequence[Pair],
        batch_size: int | None = None,
        max_length: int | None = None,
        normalize: bool = False,
        show_progress: bool = False,
        calibrated: bool = False,
        finite: bool = True,
    ) -> torch.Tensor:
        """Logits of (query, document) pairs, fp32 on the CPU: [pairs], or [pairs, num_labels] with several labels.

        Args:
            pairs: (query, document) pairs; one bare pair of strings counts as a list of one.
            batch_size: pairs that run together at most; None: as many as the token budget takes.
            max_length: tokens of a pair at most, below the model's own limit.
            normalize: sigmoid of the logit (softmax with several labels), in [0, 1].
            show_progress: a progress bar on standard error.
            calibrated: probabilities of relevance, [pairs], also with several labels (`rankery calibrate`; fitted at the model's
                own max_len).
            finite: scores that are NaN or infinite are an error; False: they come as they are, for callers that say where.

        Raises:
            InputError: something that is no pair of strings, a pair without a single token, a max_length that the model cannot
                take, calibrated scores of a model without a calibration, or a score that is not finite, with its document.
        """
        check_scale(self.calibration, calibrated, normalize)
        check_whole("batch_size", batch_size)
        pairs = _listed("pairs", pairs, "(query, document) pairs")
        pairs = [pairs] if len(pairs) == 2 and all(isinstance(text, str) for text in pairs) else pairs  # type: ignore[list-item]
        _check_pairs(pairs)
        template = self._shortened(max_length)
        shape = (len(pairs),) if self.num_labels == 1 else (len(pairs), self.num_labels)
        scores = torch.empty(shape, dtype=torch.float32)
        keep_large_blocks()
        bar = _progress(len(pairs), show_progress)
        dtype = next(self.model.parameters()).dtype
        scorer = scoring_view(self.scorer, self.device, dtype, self.packed)
        try:
            self._score(scorer, pairs, template, batch_size, scores, bar)
        finally:
            bar.close()
        if finite:
            check_finite(scores, lambda i: f"pair {i}, query {pairs[i][0]!r:.60}, document {pairs[i][1]!r:.80}")
        if calibrated:
            return probabilities(self.calibration, scores)
        if not normalize:
            return scores
        return scores.sigmoid() if self.num_labels == 1 else scores.softmax(dim=-1)

    score = compute_score

    def rank_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What documents are ranked by, [pairs]: the logit, or with several labels the expected grade scaled to [0, 1]."""
        return expected_grade(logits) if logits.dim() == 2 else logits

    def rerank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, **options: Any
    ) -> list[RankedDocument]:
        """Documents from best to worst; equal scores keep their input order.

        Args:
            query: the query.
            documents: the candidates.
            top_k: how many to return; None: all.
            options: as for `compute_score`; with `normalize` the scores are in [0, 1], with `calibrated` they are probabilities
                of relevance, and the order is that of the scores before.

        Raises:
            InputError: documents that are no list of strings, a top_k that is no count, or as `compute_score`.
        """
        check_whole("top_k", top_k, least=0)
        documents = _listed("documents", documents, "strings")
        normalize, calibrated = options.pop("normalize", False), options.pop("calibrated", False)
        check_scale(self.calibration, calibrated, normalize)
        logits = self.compute_score([(query, document) for document in documents], **options)
        scores = self.rank_scores(logits)
        order = torch.argsort(scores, descending=True, stable=True)[:top_k].tolist()
        if calibrated:
            scores = probabilities(self.calibration, logits)
        elif normalize and self.num_labels == 1:
            scores = scores.sigmoid()
        return [RankedDocument(i, float(scores[i]), documents[i]) for i in order]

    def set_max_len(self, max_len: int) -> None:
        """Another length limit of pairs, to train a saved model further with; `compute_score` takes its own.

        Raises:
            InputError: more than the model has positions for, or no room for a pair.
        """
        length = choose_max_len(max_len, None, position_limit(self.model), self.tokenizer, "the model")
        if length < self.template.specials + 2:
            raise InputError(f"max_len is {length}; expected at least {self.template.specials + 2}")
        self.template = replace(self.template, max_len=length)
        self._choose_layout()

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Writes a Hugging Face directory with the contract; what stands at `folder` must not exist or be ours.

        `card` is its README.md; None: how the model is used.
        """
        from rankery.models.card import plain_card
        from rankery.models.contract import write_model_directory

        if card is None:
            card = attempt(f"{folder}: its card could not be written", lambda: plain_card(self), "")
        write_model_directory(Path(folder), self, self.model.state_dict(), card)

    def _shortened(self, max_length: int | None) -> PairTemplate:
        check_whole("max_length", max_length)
        if max_length is None or max_length == self.template.max_len:
            return self.template
        fewest = self.template.specials + 2
        if not fewest <= max_length <= self.template.max_len:
            raise InputError(
                f"max_length is {max_length}; expected {fewest} to {self.template.max_len}, the model's max_len"
            )
        return replace(self.template, max_len=max_length)

    def _encoded(self, pairs: Sequence[Pair], first: int, template: PairTemplate) -> Encoded:
        """Pair `first` of the input and those after it, as many as run at once."""
        rows, heads, queries = encode_pairs(pairs[first : first + PAIRS_AT_ONCE], self.tokenizer, template)
        empty = next((i for i, (ids, _) in enumerate(rows, first) if not len(ids)), None)
        if empty is not None:
            raise InputError(
                f"pair {empty} is {pairs[empty]!r:.80}, of which the tokenizer makes no token at all; expected some text: "
                "leave the pair out, or use formats or a special_token that add some"
            )
        return rows, heads, queries

    def _score(
        self, scorer: Scorer, pairs: Sequence[Pair], template: PairTemplate, batch_size: int | None, out: torch.Tensor, bar: Any
    ) -> None:  # fmt: skip
        """Scores into `out`; on accelerators, all that the processor does is done on a thread, one batch ahead of its use.

        Scores stay on the device until those of `PAIRS_AT_ONCE` are asked for, so that it never waits for the next batch.
        """
        budget = default_token_budget(self.model.config, self.device, training=False)
        groups = self._groups(pairs, template, batch_size, budget)
        scored: list[tuple[np.ndarray, torch.Tensor]] = []
        waiting = 0
        for group in ahead(groups, self.device.type != "cpu"):
            scored += self._group_logits(scorer, group, template, batch_size, budget)
            waiting += len(group.indices)
            bar.update(len(group.indices))
            if waiting >= PAIRS_AT_ONCE:
                _keep(scored, out)
                scored, waiting = [], 0
        if scored:
            _keep(scored, out)

    def _groups(
        self, pairs: Sequence[Pair], template: PairTemplate, batch_size: int | None, budget: int
    ) -> Iterator[Group]:
        """All pairs, tokenised, sorted and cut."""
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            encoded = self._encoded(pairs, start, template)
            yield from self._cut(np.arange(start, start + len(encoded[0])), encoded, template, batch_size, budget)

    def _cut(
        self, indices: np.ndarray, encoded: Encoded, template: PairTemplate, batch_size: int | None, budget: int
    ) -> Iterator[Group]:
        """Pairs by length, in groups of at most `batch_size` under a token budget."""
        rows, heads, queries = encoded
        lengths = np.array([len(ids) for ids, _ in rows])
        draw, trunks = met(self.layout, lengths, heads, queries, budget)
        (micro_batches,) = deal(np.arange(len(draw)), draw, lengths, 1, budget, self.layout, trunks)
        for micro_batch in micro_batches:
            step = batch_size or len(micro_batch.pairs)
            for at in range(0, len(micro_batch.pairs), step):
                chosen = micro_batch.pairs[at : at + step]
                own = ([rows[i] for i in chosen], heads[chosen], queries[chosen])
                yield Group(indices[chosen], own, self._batch(*own, template))

    def _group_logits(
        self, scorer: Scorer, group: Group, template: PairTemplate, batch_size: int | None, budget: int
    ) -> list[tuple[np.ndarray, torch.Tensor]]:
        """(indices, logits) of a group; what does not fit into memory is cut again, under half its tokens."""
        try:
            return [(group.indices, self._logits(scorer, group.batch))]
        except torch.OutOfMemoryError:
            if len(group.indices) == 1:
                raise
        budget = min(budget, group.batch.input_ids.numel()) // 2
        smaller = self._cut(group.indices, group.encoded, template, batch_size, budget)
        return [part for cut in smaller for part in self._group_logits(scorer, cut, template, batch_size, budget)]

    def _batch(self, rows: Sequence[Row], heads: np.ndarray, queries: np.ndarray, template: PairTemplate) -> Batch:
        if self.layout in ("padded", "by_length"):
            multiple = pad_multiple(self.device) if self.layout == "padded" else 1
            return pad(rows, template.pad_token_id, multiple, self.template.max_len)
        if self.layout == "shared":
            return pack(rows, heads.tolist(), queries.tolist())
        return pack(rows, chunked=not takes(self.device, next(self.model.parameters()).dtype))

    @torch.inference_mode()
    def _logits(self, scorer: Scorer, batch: Batch) -> torch.Tensor:
        return scorer(*batch.to(self.device).arguments).float()


def _keep(scored: list[tuple[np.ndarray, torch.Tensor]], out: torch.Tensor) -> None:
    """Puts logits where their pairs stand in the input."""
    indices, logits = zip(*scored, strict=True)
    out[torch.from_numpy(np.concatenate(indices))] = torch.cat(logits).cpu()


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any, template: PairTemplate) -> Encoded:
    """((input_ids, token types), tokens of the shared prefix, index of the query) of each pair; equal texts are tokenised once."""
    queries = {query: i for i, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
    documents = {document: i for i, document in enumerate(dict.fromkeys(document for _, document in pairs))}
    query_ids = text_ids(tokenizer, template, "query", list(queries), template.room)
    document_ids = text_ids(tokenizer, template, "document", list(documents), template.room)
    texts = [(query_ids[queries[query]], document_ids[documents[document]]) for query, document in pairs]
    rows = [template.build(query, document) for query, document in texts]
    kept, _ = template.cut(np.array([len(query) for query, _ in texts]), np.array([len(ids) for _, ids in texts]))
    return rows, template.shared_prefix(kept), np.array([queries[query] for query, _ in pairs])


def _listed(name: str, values: Any, of: str) -> list[Any]:
    """Any collection as a list; not a bare string, whose characters nobody means."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} is {values!r:.80}; expected a list of {of}")
    return list(values)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    problems = [
        f"pair {i} is {pair!r:.80}; expected two strings, (query, document), without lone surrogates"
        for i, pair in enumerate(pairs)
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not all(map(is_text, pair))
    ]
    if problems:
        raise InputError(problems)


def _progress(total: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="pair", desc="scoring", disable=not shown)
