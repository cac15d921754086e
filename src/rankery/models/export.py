"""`rankery export --to seq-cls`: a yes/no language model becomes a sequence-classification model with the same scores.

logit(yes) - logit(no) = h W_yes - h W_no = h (W_yes - W_no): one row, which any server can load as a head (Qwen3-Reranker's
sequence-classification conversions do the same). Contract: what the head cannot hold is refused, saying why; the directory
written has golden scores of its own, and they are those of the original.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rankery.errors import InputError
from rankery.models.contract import PROBES, read_contract
from rankery.models.llm_decoder import LLMDecoder
from rankery.models.loading import check_family
from rankery.models.lora import has_adapters, merge_adapters
from rankery.models.prompts import Reading
from rankery.models.scorer import YesNoScorer, logit_factor

SAME = 1e-4  # relative to the largest score, 1 at least


def to_sequence_classification(reranker: LLMDecoder) -> LLMDecoder:
    """A reranker with a one-label classification head that scores as the yes/no reranker does.

    Raises:
        InputError: the reranker has no yes/no head, or scores that no linear head gives.
    """
    from transformers import AutoModelForSequenceClassification

    if not isinstance(reranker.scorer, YesNoScorer):
        raise InputError("the model has a score head: its directory is a sequence-classification model already")
    if has_adapters(reranker.model):
        merge_adapters(reranker.model)
    config, vocabulary = reranker.model.config, reranker.scorer.vocabulary
    text = config.get_text_config()
    if getattr(text, "final_logit_softcapping", None):
        raise InputError(
            f"the model caps its logits (final_logit_softcapping {text.final_logit_softcapping:g}); a difference of capped logits "
            "is no linear function of the hidden state, which is all that a classification head computes: use the model as it is"
        )
    if vocabulary.bias is not None:
        raise InputError(
            "the model's vocabulary head has a bias, which a classification head of this family has no place for: use the model "
            "as it is"
        )
    check_family("the model", config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).to(torch.float32)
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise InputError(f"the head of a {type(model).__name__} is no single linear layer: use the model as it is")
    model.base_model.load_state_dict(reranker.model.base_model.state_dict())
    yes, *no = vocabulary.weight.detach().float()[vocabulary.rows]
    with torch.no_grad():
        # The factor is MiniCPM3's, whose family has both scaled logits and a classification head.
        model.score.weight.copy_(((yes - no[0] if no else yes) * logit_factor(config))[None])
    exported = LLMDecoder(model, reranker.tokenizer, reranker.template, reranker.labels, reranker.prompt, Reading())
    exported.calibration = reranker.calibration  # of the same scores
    return exported


def export(source: str | Path, target: str | Path, prompt: str | None = None, overwrite: bool = False) -> None:
    """Writes the sequence-classification model of a yes/no reranker, once its scores have been compared.

    Args:
        source: the reranker.
        target: folder to write.
        prompt: preset of a model that rankery has not saved.
        overwrite: replace a model that rankery has saved to `target`.

    Raises:
        InputError: as above; scores that differ; a `target` that is there.
    """
    from rankery.models.opening import open_reranker

    if Path(source).expanduser().resolve() == Path(target).expanduser().resolve():
        raise InputError(f"--output is {target}, the model itself, which stays as it is: choose another folder")
    place = Path(target).expanduser()
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not overwrite):
        raise InputError(f"--output is {target}, which is there already; choose another folder, or say --overwrite")
    if prompt is None and read_contract(Path(source)) is None:
        raise InputError(
            f"{source}: nothing says how it is asked; name its preset with --prompt, or save it with rankery (save_pretrained) first"
        )
    reranker = open_reranker(source, prompt, device="cpu", dtype=torch.float32)
    if not isinstance(reranker, LLMDecoder):
        raise InputError(f"{source}: is an encoder, which is a sequence-classification model already")
    before = reranker.compute_score(PROBES)
    exported = to_sequence_classification(reranker)
    worst = float((exported.compute_score(PROBES) - before).abs().max())
    if worst > SAME * max(1.0, float(before.abs().max())):
        raise InputError(f"{source}: the exported model scores otherwise, by up to {worst:g}; nothing was written")
    exported.save_pretrained(target)
