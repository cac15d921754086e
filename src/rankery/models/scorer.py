"""What an engine wraps and a loop calls: token ids -> logits, whatever transformers model stands behind.

Contract: one call of the module computes the logits of a micro-batch, so that the hooks of DDP, FSDP2 and DeepSpeed see every
use of a weight. The transformers model inside keeps its names, which are those of the saved directory, with `model.` before.
Decoders are scored at the last real token, found by length. The product that gives the logits is of fp32 numbers in every
precision: rounded to bf16, one document in eight has the logit of another. Cost: decoders compute the head for one position a
pair, and yes/no models two rows of the vocabulary. Rejected: the position of the pad id, which transformers searches for (a
template may end in that very token), and the model's own `forward`, which multiplies every position by the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from rankery.data.packing import Packing
from rankery.models.packing import first_tokens, is_causal, packed_options, sequence_module, spare_last_layer
from rankery.models.precision import full_product, keep_order

# Shapes: B pairs, T tokens, N tokens of all pairs, H width of the model, L labels.


class Scorer(torch.nn.Module):
    """A sequence-classification model as it is: BERT-like encoders."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self._watch_output()

    def _watch_output(self) -> None:
        keep_order(self.model)
        sequence_module(self.model).register_forward_hook(first_tokens, with_kwargs=True)
        spare_last_layer(self.model)

    @property
    def num_labels(self) -> int:
        return int(self.model.config.num_labels)

    @property
    def sees_only_before(self) -> bool:
        """Whether no token sees a later one, so that pairs that begin alike compute their beginning alike."""
        return False

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """Logits, [B] for one label, else [B, L], of ids and masks [B, T], padded to the right; or of packed ids [1, N], without a mask."""
        options = (
            {"attention_mask": attention_mask} if packing is None else packed_options(packing, input_ids, self.model)
        )
        if token_type_ids is not None:
            options["token_type_ids"] = token_type_ids
        logits = self.model(input_ids=input_ids, **options).logits
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits


class LastTokenScorer(Scorer):
    """A decoder with a classification head, read at the last real token."""

    def _watch_output(self) -> None:
        keep_order(self.model)  # the head is given the tokens that it scores

    @property
    def sees_only_before(self) -> bool:
        return is_causal(self.model.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        logits = self.head(self.last_hidden(input_ids, attention_mask, packing))
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, L] of hidden states [B, H]."""
        return self.model.score(hidden)

    def last_hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, packing: Packing | None = None
    ) -> torch.Tensor:
        """Hidden state of each pair's last real token, [B, H]."""
        if packing is not None:
            options = packed_options(packing, input_ids, self.model)
            packed = self.model.base_model(input_ids=input_ids, use_cache=False, **options).last_hidden_state
            return packed[0, packing.last]
        assert attention_mask is not None
        # Padding is to the right and attention causal: no real token sees a padded one, and without a mask the fused kernels run.
        mask = None if is_causal(self.model.config) else attention_mask
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        return hidden[torch.arange(len(last), device=hidden.device), last]


class YesNoScorer(LastTokenScorer):
    """A causal language model, read at the next token: logit(yes) - logit(no), or logit(yes) alone.

    The first is the log odds of "yes" against "no" (Nogueira et al. 2020, "Document Ranking with a Pretrained
    Sequence-to-Sequence Model", section 3; the Qwen3-Reranker family), the second the score of bge-reranker-v2-gemma.

    Args:
        model: a transformers model with a vocabulary head.
        words: ids of "yes" and "no", or of "yes" alone.
    """

    def __init__(self, model: Any, words: tuple[int, ...]):
        super().__init__(model)
        self.vocabulary = VocabularyRows(model.get_output_embeddings(), words)

    def _watch_output(self) -> None:
        """Nothing to do: two rows of the vocabulary are the head."""

    @property
    def num_labels(self) -> int:
        return 1

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = final_logits(self.vocabulary(hidden), self.model.config)
        return logits[:, :1] - logits[:, 1:] if logits.shape[1] == 2 else logits


class VocabularyRows(torch.nn.Module):
    """Some rows of a vocabulary head; shares its weights. A module of its own, so that ZeRO-3 gathers them for it."""

    def __init__(self, vocabulary_head: Any, rows: tuple[int, ...]):
        super().__init__()
        self.weight, self.bias = vocabulary_head.weight, vocabulary_head.bias
        self.rows = list(rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return full_product(hidden, self.weight[self.rows], None if self.bias is None else self.bias[self.rows])


def model_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a scorer's state, the weights of its transformers model, by that model's names."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


def final_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """What some families do to vocabulary logits: scale them (Cohere, Granite), or cap them (Gemma 2: cap * tanh(x / cap))."""
    logits = logits * logit_factor(config)
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2, RecurrentGemma, xLSTM
    cap = next((cap for name in names if (cap := getattr(config.get_text_config(), name, None))), None)
    return cap * torch.tanh(logits / cap) if cap else logits


def logit_factor(config: Any) -> float:
    """What vocabulary logits are multiplied by; 1 in most families."""
    config = config.get_text_config()
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


def expected_grade(logits: torch.Tensor) -> torch.Tensor:
    """Mean class index under softmax(logits), divided by the highest, [pairs] in [0, 1]; logits [pairs, labels]."""
    grades = torch.linspace(0.0, 1.0, logits.shape[-1], dtype=torch.float32, device=logits.device)
    return logits.float().softmax(dim=-1) @ grades
