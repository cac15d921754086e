"""rankery: fine-tune, distil, evaluate and run text rerankers. Heavy imports wait until a name is used."""

import os  # there since Python started, as sys is
import sys

if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()]:
    sys.path.pop(0)  # `python -m rankery.cli` put the current folder first; see start.py

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankery.errors import InputError

if TYPE_CHECKING:
    from rankery.calibrating.calibrate import calibrate
    from rankery.checking.check import check
    from rankery.distilling.compare import distil
    from rankery.distilling.score import score
    from rankery.evaluation.evaluate import evaluate
    from rankery.mining.mine import mine
    from rankery.models.cross_encoder import CrossEncoder
    from rankery.models.llm_decoder import LLMDecoder
    from rankery.models.reranker import RankedDocument, Reranker
    from rankery.training.comparison import compare
    from rankery.training.run import train
    from rankery.training.tune import tune

__version__ = "0.1.0"
__all__ = [
    "CrossEncoder",
    "InputError",
    "LLMDecoder",
    "RankedDocument",
    "Reranker",
    "__version__",
    "calibrate",
    "check",
    "compare",
    "distil",
    "evaluate",
    "mine",
    "score",
    "train",
    "tune",
]

_HOMES = {
    "CrossEncoder": "rankery.models.cross_encoder",
    "LLMDecoder": "rankery.models.llm_decoder",
    "RankedDocument": "rankery.models.reranker",
    "Reranker": "rankery.models.reranker",
    "calibrate": "rankery.calibrating.calibrate",
    "check": "rankery.checking.check",
    "compare": "rankery.training.comparison",
    "distil": "rankery.distilling.compare",
    "evaluate": "rankery.evaluation.evaluate",
    "mine": "rankery.mining.mine",
    "score": "rankery.distilling.score",
    "train": "rankery.training.run",
    "tune": "rankery.training.tune",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rankery' has no attribute {name!r}")
