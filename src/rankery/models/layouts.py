"""How the pairs of a model may go through it without changing a score: packed, padded to one length, or one length at a time.

Contract: the class decides, never a name in a configuration. Classes of transformers that were tried at every length
(benchmarks/families.py) are known to pack; of any other, four short pairs are scored alone, and the widest layout that gives the
same scores is taken; a model that gives none, or others each time, is refused. Code that came with a checkpoint is never packed.
Cost: nothing for known classes, else some seven passes of a few tokens. Rejected: lists of all families, which the next release of
transformers outdates, and a look at the source of their attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rankery.data.collate import Batch, Row, pack, pad
from rankery.data.plan import Layout
from rankery.errors import InputError
from rankery.models.packing import INNER, PREFIX

# Families whose sequence-classification and causal classes are known to pack at every length.
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
HEADS = ("ForSequenceClassification", "ForCausalLM")
# Settings of attention that short pairs do not show, unless they are as wide as the longest pair: known families alone pack with them.
UNSEEN = (
    "sliding_window", "attention_chunk_size", "local_attention", "attention_window", "window_size", "attn_temperature_tuning",
    "llama_4_scaling_beta", "index_topk",
)  # fmt: skip
LENGTH_FREE = ("default", "linear", "llama3", "yarn", "proportional")  # rotary embeddings that no neighbour changes
# Of one query, so that a shared prefix shows too; of different lengths; the last is longer than blocks and kernels are wide.
TRIALS = (
    ("capital of France", "Paris"),
    ("capital of France", "The train leaves at noon."),
    ("how do plants make food", "plants"),
    ("how do plants make food", "Plants turn light, water and carbon dioxide into sugar; this is photosynthesis. " * 5),
)
SAME = {torch.float32: 2e-4, torch.float64: 2e-4}  # of the largest score; in half precision a tenth


def known_family(model: Any) -> str | None:
    """The family of a class of transformers' own that is known to pack; None for any other class.

    The module says whose a class is: `model_type` of a configuration is anybody's to set.
    """
    where, name = type(model).__module__, type(model).__name__
    family = where.removeprefix("transformers.models.").partition(".")[0]
    if where != f"transformers.models.{family}.modeling_{family}" or not name.endswith(HEADS):
        return None
    kind = family.replace("_", "-")
    # ModernBERT's head may read the mean of all tokens.
    reads_first = kind != "modernbert" or model.config.classifier_pooling == "cls"
    return kind if kind in DECODERS or (kind in ENCODERS and reads_first) else None


def takes_packed(model: Any) -> bool:
    """Whether a model's attention is one that packs: somebody may have chosen another kernel."""
    return model.config._attn_implementation.removeprefix(PREFIX) in INNER


def length_limit(model: Any) -> int | None:
    """Tokens beyond which the longest pair of a batch sets the rotary frequencies of all (longrope); None: never."""
    rotary = [module for module in model.modules() if "longrope" in str(getattr(module, "rope_type", ""))]
    settings = [module.config.rope_parameters for module in rotary]
    of_layers = [s for one in settings for s in ([one] if "rope_type" in one else one.values())]
    return min(
        (int(s["original_max_position_embeddings"]) for s in of_layers if s["rope_type"] == "longrope"), default=None
    )


def choose_layout(
    scorer: Any, rows: Sequence[Row], heads: np.ndarray, queries: np.ndarray, pad_id: int, max_len: int
) -> Layout:
    """The layout that computes least and leaves scores as they are of pairs alone.

    Args:
        scorer: with its model, in evaluation mode; an unknown one scores.
        rows: `TRIALS` as the model takes them.
        heads: tokens of each before its document.
        queries: index of each pair's query.
        pad_id: what fills rows up.
        max_len: tokens of the longest pair that may come.

    Raises:
        InputError: the model cannot score a pair, or scores it otherwise each time or beside others.
    """
    model = scorer.model
    widest: Layout = "shared" if scorer.sees_only_before else "packed"
    if (limit := length_limit(model)) is not None and max_len > limit:
        return "by_length"
    if known_family(model) is not None:
        return widest
    if any(parameter.is_meta for parameter in model.parameters()) or not all(len(ids) for ids, _ in rows):
        return "padded"
    trial = _Trial(scorer)
    alone = torch.cat([trial.score(pad([row], pad_id)) for row in rows])
    again = trial.score(pad(rows[-1:], pad_id))
    if not trial.same(again, alone[-1:]):
        raise trial.refused(
            f"gives the same pair another score each time ({alone[-1].tolist()}, then {again[0].tolist()})"
        )
    if not trial.same(trial.score(pad(rows, pad_id)), alone):
        twin = (rows[0][0][::-1].copy(), rows[0][1])
        expected = torch.cat([alone[:1], trial.score(pad([twin], pad_id))])
        if not trial.same(trial.score(pad([rows[0], twin], pad_id)), expected):
            raise trial.refused("gives a pair another score beside a pair of its own length")
        return "by_length"
    may_pack = (
        type(model).__module__.startswith("transformers.models.")
        and takes_packed(model)
        and not _unseen(model, max_len)
    )
    batch = (lambda: pack(rows, heads.tolist(), queries.tolist())) if widest == "shared" else (lambda: pack(rows))
    return widest if may_pack and trial.packs(batch, alone) else "padded"


def _unseen(model: Any, max_len: int) -> bool:
    """Whether something in a model shows with long pairs only, shorter than `max_len`."""
    config = model.config.get_text_config()
    ropes = {kind for module in model.modules() for kind in _rope_types(module)}
    settings = [getattr(config, name, None) for name in UNSEEN]
    wide = [type(value) is int and value >= max_len for value in settings if value]
    return not all(wide) or not ropes <= set(LENGTH_FREE)


def _rope_types(module: Any) -> list[str]:
    found = getattr(module, "rope_type", [])
    return (
        [found]
        if isinstance(found, str)
        else [str(kind) for kind in (found.values() if isinstance(found, dict) else [])]
    )


class _Trial:
    """Scores of a model that nobody has tried."""

    def __init__(self, scorer: Any):
        self.scorer, self.model = scorer, scorer.model
        self.dtype = next(self.model.parameters()).dtype

    @torch.no_grad()
    def score(self, batch: Batch) -> torch.Tensor:
        """[pairs, labels] on the CPU.

        Raises:
            InputError: the model raises.
        """
        try:
            logits = self.scorer(*batch.to(next(self.model.parameters()).device).arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a family does not like about a pair
            said = " ".join(str(error).split())
            raise self.refused(f"cannot score a pair: {type(error).__name__}: {said}") from error
        return logits.float().reshape(len(batch), -1).cpu()

    def same(self, scores: torch.Tensor, expected: torch.Tensor) -> bool:
        """Equal to rounding, beside the largest score; a head may be new and its scores small."""
        tolerance = SAME.get(self.dtype, 0.1) * float(expected.abs().max())
        return scores.shape == expected.shape and bool(((scores - expected).abs() <= tolerance).all())

    def packs(self, batch: Callable[[], Batch], alone: torch.Tensor) -> bool:
        """Whether packed pairs score as they do alone, in each attention that the model has."""
        before = self.model.config._attn_implementation
        try:
            kinds = ["eager", "sdpa"] if getattr(self.model, "_supports_sdpa", False) else ["eager"]
            for inner in kinds:
                self.model.set_attn_implementation(PREFIX + inner)
                if not self.same(self.score(batch()), alone):
                    return False
            return True
        except Exception:  # a family that does not know of packing may raise anything; it is padded then
            return False
        finally:
            self.model.set_attn_implementation(before)

    def refused(self, reason: str) -> InputError:
        name = self.model.config.name_or_path or "the model"
        return InputError(
            f"{name}: a {type(self.model).__name__} {reason[:300]}; expected a model that scores a query and a document from "
            "their token ids alone, always alike: choose another one"
        )
