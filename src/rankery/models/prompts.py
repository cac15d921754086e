"""How families of yes/no rerankers were trained to be asked. Facts of the published models, with their sources.

Contract: a preset fills every setting that the user leaves open. The texts must be those of the training, letter by letter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rankery.data.template import Prompt
from rankery.errors import InputError

INSTRUCTION = "{instruction}"  # in a preset's query_format: where the task is described


@dataclass(frozen=True)
class Reading:
    """What is read at the last token: `score`, a trained head, or `yes_no`, the vocabulary's logits of one or two words."""

    head: str = "score"
    yes_word: str = ""
    no_word: str = ""  # empty: the logit of yes_word alone


@dataclass(frozen=True)
class Preset:
    prompt: Prompt
    reading: Reading
    instruction: str = ""


PRESETS = {
    # https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, "Transformers Usage"
    "qwen3-reranker": Preset(
        Prompt(
            prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
            query_format=f"<Instruct>: {INSTRUCTION}\n<Query>: {{}}",
            seq="\n",
            document_format="<Document>: {}",
            special_token="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        Reading("yes_no", "yes", "no"),
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma, "Using Huggingface transformers"
    "bge-reranker-v2-gemma": Preset(
        Prompt(
            query_format="A: {}",
            seq="\n",
            document_format="B: {}",
            special_token="\nGiven a query A and a passage B, determine whether the passage contains an answer to the query by "
            "providing a prediction of either 'Yes' or 'No'.",
        ),
        Reading("yes_no", "Yes"),
    ),
}
# A yes/no model without a preset: a plain question. The words follow a colon, so they start with a space.
ASKED = Preset(
    Prompt(
        query_format="Query: {}",
        seq="\n",
        document_format="Document: {}",
        special_token="\nDoes the document answer the query? Answer yes or no:",
    ),
    Reading("yes_no", " yes", " no"),
)


def resolve_prompt(
    preset: str | None, instruction: str | None, given: dict[str, Any], saved: dict[str, Any]
) -> tuple[Prompt, Reading]:
    """Prompt and reading: what is given, else as saved, else the preset's, else the default of the head.

    Args:
        preset: name in PRESETS; None: none.
        instruction: describes the task, where the preset has a place for it; None: the preset's.
        given: settings by name (those of Prompt and Reading); None: left open.
        saved: a contract's settings; empty: none.

    Raises:
        InputError: no such preset, an instruction without a place for it, or words that no head reads.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"prompt is {preset!r}; expected one of {', '.join(PRESETS)}, or none")
    head = given.get("head") or saved.get("head") or ("yes_no" if preset else "score")
    base = PRESETS[preset] if preset else ASKED if head == "yes_no" else Preset(Prompt(), Reading())
    if head not in ("score", "yes_no"):
        raise InputError(f"head is {head!r}; expected score or yes_no")
    if instruction is not None and INSTRUCTION not in base.prompt.query_format:
        raise InputError(
            f"instruction is {instruction!r}, but the prompt has no place for one; write it into query_format or prefix"
        )
    query_format = base.prompt.query_format.replace(
        INSTRUCTION, base.instruction if instruction is None else instruction
    )
    prompt, reading = replace(base.prompt, query_format=query_format), replace(base.reading, head=head)
    if head == "score":
        reading = Reading()
        words = [f"{name} is {given[name]!r}" for name in ("yes_word", "no_word") if given.get(name)]
        if words:
            raise InputError(f"{', '.join(words)}, but head is not yes_no; set head to yes_no, or leave the words out")

    def chosen(name: str, default: Any) -> Any:
        value = given.get(name)
        return value if value is not None else saved.get(name, default)

    return (
        Prompt(**{name: chosen(name, default) for name, default in asdict(prompt).items()}),
        Reading(**{name: chosen(name, default) for name, default in asdict(reading).items()}),
    )
